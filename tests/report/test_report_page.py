"""The page as a document: self-contained, well-formed, escaped, accessible, small."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import matplotlib
import pytest

from autoflip_secure.report.html import write_report
from autoflip_secure.report.style import DARK, LIGHT

VOID = {"meta", "br", "link", "img", "input", "hr"}

VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no privacy": {"dp": False},
    "no pruning": {"prune": False},
    "no drops": {"drops": False},
    "nothing": {"dp": False, "prune": False, "drops": False, "auroc": False, "aggregation": "none"},
    "one round": {"rounds": 1, "every": 1, "first": 1},
    "one scored round": {"rounds": 30, "every": 30},
    "two rounds": {"rounds": 2, "every": 1, "first": 1},
    "many layers": {"rounds": 30, "layers": {f"block{i}": 16 for i in range(12)}},
    "no ledgers": {"ledgers": False},
    "values unknown": {"accuracy": None, "auroc": None, "loss": None, "epsilon_spent": None, "agreement_final": None},
    "reproducible noise": {"insecure_reproducible_noise": True},
}


class Page(HTMLParser):
    """Elements of a page; fails on a tag that is not closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html, self.open = html, [""]
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.children: Counter[tuple[str, str]] = Counter()
        self.feed(html)
        self.close()
        assert self.open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.children[self.open[-1], tag] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] not in ("style", "title"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(run: Any) -> Page:
    return Page(write_report(run.path, run.summary).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=list(VARIANTS))
def page(request: pytest.FixtureRequest, build_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return page_of(build_run(tmp_path_factory.mktemp("page") / "run", **VARIANTS[request.param]))


def test_every_kind_of_run_gives_a_self_contained_document(page: Page) -> None:
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("img")
    for _, attributes in page.elements:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert set(re.findall(r"url\((.)", page.html)) <= {"#"}
    assert "http" not in page.html
    assert "@import" not in page.html
    assert len(page.html) < 300_000
    assert "nan" not in page.words.lower().split()


def test_ids_are_unique_and_references_lead_somewhere(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    targets = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page.html))
    targets |= {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert targets <= set(ids)


def test_screen_readers_and_keyboards_get_everything(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for graphic in page.all("svg"):
        assert graphic["role"] == "img"
        assert len(graphic["aria-label"]) > 20
        assert "nan" not in graphic["aria-label"]
    assert page.children["figure", "figcaption"] == page.children["figure", "svg"] == len(page.all("figure"))
    assert page.children["table", "caption"] == len(page.all("table")) > 0
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    scrolling = [region for region in page.all("div") if region.get("class") == "scroll"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in scrolling)


def test_figures_take_all_their_colours_from_the_theme(page: Page) -> None:
    for graphic in re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL):
        assert not re.findall(r"(?:fill|stroke|color)[:=]\s*\"?#", graphic)
        used = set(re.findall(r"var\(--([\w-]+)\)", graphic))
        assert "currentColor" in graphic
        assert used <= set(LIGHT)
        assert any(name.startswith("series-") for name in used)


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dark, light = sorted([_luminance(one), _luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_meets_wcag_aa(palette: dict[str, str]) -> None:
    for ground in ("page", "card"):
        for name in ("ink", "muted", "link"):
            assert _contrast(palette[name], palette[ground]) >= 4.5
    assert _contrast(palette["alarm-ink"], palette["alarm"]) >= 4.5
    for index in range(1, 7):
        assert _contrast(palette[f"series-{index}"], palette["card"]) >= 3
    assert set(LIGHT) == set(DARK)


HOSTILE = "</title><script>alert('1')</script> & \"<svg onload=x>\" $x^2$ #fe0100"


def test_no_text_of_the_run_becomes_markup(make_run: Any) -> None:
    run = make_run(rounds=30, run=HOSTILE, dataset=HOSTILE, note=HOSTILE, layers={HOSTILE: 4, "conv": 4})
    run.summary["privacy"]["promise"] = HOSTILE
    run.summary["package_versions"][HOSTILE] = HOSTILE
    run.summary["ledgers"][0] = {"silo": HOSTILE, "dataset": HOSTILE, "lines": 1, "epsilon": 1.0}
    event = {"event": "abort", "phase": HOSTILE, "round": 1, "attempt": 0, "stage": HOSTILE, "reason": HOSTILE}
    misbehaved = {"event": "silo_misbehaved", "silo": HOSTILE, "stage": HOSTILE, "reason": HOSTILE}
    absent = {"event": "absent", "stage": HOSTILE, "silo": 1, "status": HOSTILE, "error": HOSTILE}
    (run.path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (event, misbehaved, absent)))
    (run.path / "config.toml").write_text(f"model = {json.dumps(HOSTILE)}\n")
    page = page_of(run)
    assert not page.all("script")
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.html.count("<script") == 0
    assert page.words.count(HOSTILE) >= 14
    label = next(svg["aria-label"] for svg in page.all("svg") if "conv" in svg["aria-label"].lower())
    assert HOSTILE[1:] in label


def test_two_hundred_scored_rounds_of_a_hundred_silos_stay_below_a_megabyte(make_run: Any) -> None:
    run = make_run(rounds=200, every=1, layers={f"layer{i}": 16 for i in range(6)})
    run.summary["ledgers"] = [
        {"silo": silo, "dataset": name, "lines": 200, "epsilon": 7.5}
        for silo in range(100)
        for name in ("train", "holdout")
    ]
    assert write_report(run.path, run.summary).stat().st_size < 400_000


def test_long_runs_are_thinned(make_run: Any) -> None:
    run = make_run(rounds=4000, every=1)
    page = page_of(run)
    assert len(page.html) < 600_000
    assert "4000 0.9" in page.words  # the last round is always in the table


def test_the_same_run_gives_the_same_bytes_whatever_the_readers_matplotlib_style(make_run: Any) -> None:
    run = make_run(rounds=20, first=5)
    first = write_report(run.path, run.summary).read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert write_report(run.path, run.summary).read_bytes() == first
        assert dict(matplotlib.rcParams) == before
