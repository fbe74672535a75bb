"""The page in a real browser: what it shows, to everybody, and what it never does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SOON = 15_000
"""Milliseconds within which what changed must be shown, on a busy machine."""

Open = Callable[..., Any]


@pytest.fixture
def open_page(chromium: Any, serve: Any) -> Iterator[Open]:
    """open_page(address, dark=..., size=...) -> a page; whatever goes wrong in it fails the test at its end.

    It is closed before its server is.
    """
    contexts, wrong = [], []

    def open_(address: str, *, dark: bool = False, size: dict[str, int] = DESKTOP) -> Any:
        context = chromium.new_context(viewport=size, color_scheme="dark" if dark else "light", reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SOON)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: asked.url.startswith(address.split("#")[0]) or wrong.append(asked.url))
        page.goto(address)
        page.wait_for_selector("main h1:not(:text-is('Loading'))")
        return page

    open_.wrong = wrong  # type: ignore[attr-defined]
    yield open_
    for context in contexts:
        context.close()
    assert not wrong


def view(kind: str, tmp_path: Path, make: Any, serve: Open) -> str:
    """Address of one of the views, each as full as it gets."""
    home, token, route = tmp_path / "home", None, ""
    if kind == "silo":
        make.silo(home)
        for rounds, verdict in enumerate(("approved", "denied", ""), start=3):
            make.ask_to_join(home, rounds, verdict)
    else:
        make.run(home / "runs" / "first", rounds=19)
        (home / "runs" / "first" / "summary.json").write_text('{"rounds": 19, "accuracy": 0.5, "aggregation": "none"}')
        second = make.run(home / "runs" / "second", rounds=12, layers=9)
        events = make.event_lines(12, time=time.time())
        make.append(second / "events.jsonl", *events[:1])
        waiting = make.run(home / "runs" / "third", rounds=0)
        (waiting / "events.jsonl").write_text("")
        make.append(
            waiting / "events.jsonl", {"time": 1.0, "event": "join_answer", "silo": 2, "answer": "ApprovalPending"}
        )
    if kind == "login":
        token = make.token
    if kind in ("first", "second", "third"):
        route = f"#/run/{kind}"
    return f"{serve(home, token)}/{route}"


def wait_until_full(page: Any, kind: str) -> None:
    if kind == "silo":
        page.wait_for_selector(".gauge", timeout=60_000)
    elif kind == "login":
        page.wait_for_selector("#token")
    elif kind == "third":
        page.wait_for_selector(".badge.waiting")
    else:
        page.wait_for_selector("table" if kind == "runs" else "figure svg text")


VIEWS = ("runs", "first", "second", "third", "silo", "login")


@pytest.mark.slow
@pytest.mark.parametrize("kind", VIEWS)
def test_no_view_has_a_barrier_in_light_or_dark_wide_or_narrow(
    kind: str, tmp_path: Path, make: Any, serve: Open, open_page: Open
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    address = view(kind, tmp_path, make, serve)
    for dark in (False, True):
        for size in (DESKTOP, PHONE):
            page = open_page(address, dark=dark, size=size)
            wait_until_full(page, kind)
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            found = Axe().run(page)
            assert not found.response["violations"], found.generate_report()
            assert len(found.response["passes"]) > 10, "it looked"
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], "the page scrolls sideways"
            page.close()
    if kind == "login":
        open_page.wrong.clear()  # type: ignore[attr-defined]  # a browser reports each answer that says 401


@pytest.mark.parametrize("kind", VIEWS)
def test_the_tab_key_reaches_everything_that_can_be_used(
    kind: str, tmp_path: Path, make: Any, serve: Open, open_page: Open
) -> None:
    address = view(kind, tmp_path, make, serve)
    page = open_page(address)
    wait_until_full(page, kind)
    page.click("#pause")  # nothing is to change under the test's hands
    page.wait_for_selector("#pause[aria-pressed=true]")
    shown = """() => [...document.querySelectorAll(
        'a[href], button, input, summary, [tabindex="0"]')].filter((each) => each.checkVisibility())"""
    wanted = page.evaluate(f"({shown})().length")
    for _ in range(wanted + 2):  # around once, to where a page begins
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.skip')"):
            break
    page.evaluate("() => { window.reached = [document.activeElement]; }")
    for _ in range(wanted - 1):
        page.keyboard.press("Tab")
        page.evaluate("() => window.reached.push(document.activeElement)")
    missed = page.evaluate(
        f"() => ({shown})().filter((each) => !window.reached.includes(each)).map((each) => each.outerHTML)"
    )
    in_order = page.evaluate(
        """() => window.reached.every((each, i) => !i ||
            window.reached[i - 1].compareDocumentPosition(each) & Node.DOCUMENT_POSITION_FOLLOWING)"""
    )
    assert wanted >= 3
    assert missed == []
    assert page.evaluate("window.reached[0].matches('.skip')"), "the first leads over what every page begins with"
    assert in_order, "in the order in which they are read"
    if kind == "login":
        open_page.wrong.clear()  # type: ignore[attr-defined]


def test_keys_alone_open_a_run_its_table_and_filter_its_events(
    tmp_path: Path, make: Any, serve: Open, open_page: Open
) -> None:
    address = view("runs", tmp_path, make, serve)
    page = open_page(address)
    page.locator("a", has_text="second").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text-is('second')")
    assert page.evaluate("document.activeElement.tagName") == "H1", "who moved there is there"
    page.locator("summary", has_text="Table: Scores").focus()
    page.keyboard.press("Enter")
    table = page.locator("details[open] table").inner_text()
    assert "0.511" in table
    drops = page.locator("label", has_text="Drops").locator("input")
    drops.focus()
    assert page.locator(".events li.drops").count() == 1
    page.keyboard.press("Space")
    assert page.locator(".events li.drops").count() == 0
    assert page.locator(".events li.aborts").count() == 1
    page.locator("a", has_text="All runs").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Runs of home")


def test_names_from_outside_are_text_and_nothing_else(tmp_path: Path, make: Any, serve: Open, open_page: Open) -> None:
    hostile = make.hostile
    folder = make.run(tmp_path / "run", names=(hostile, "<script>document.title='gotcha'</script>", "javascript:x()"))
    make.append(folder / "metrics.jsonl", make.metrics_line(6, phase=hostile, drops={hostile: 3}))
    rows = [{"layer": hostile, "units": 3, "live": 7, "agreement": 0.1}]
    make.append(folder / "metrics.jsonl", {**make.metrics_line(7), "layers": rows})
    place = {"time": 1.0, "stage": hostile, "round": 7, "attempt": 0}
    make.append(
        folder / "events.jsonl",
        {**place, "event": "absent", "silo": 1, "status": hostile, "error": hostile},
        {**place, "event": "abort", "reason": hostile, "blamed": [1]},
        {**place, "event": hostile, hostile: [hostile]},
        {**place, "event": "silo_misbehaved", "silo": 1, "reason": hostile},
        {**place, "event": "asking", "silos": [1, 2, 3]},
    )
    address = serve(tmp_path / "run")
    page = open_page(address)
    page.wait_for_selector("figure svg text")
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    text = page.locator("body").inner_text()
    assert text.count(hostile) > 8
    assert page.locator("main img, main script, main iframe, main [onerror]").count() == 0
    assert "gotcha" not in page.title()


def test_a_silos_own_words_are_text_and_nothing_else(tmp_path: Path, make: Any, serve: Open, open_page: Open) -> None:
    hostile = make.hostile
    folder = make.silo(tmp_path / "silo", name=hostile)
    line = {"n": 99, "kind": hostile, "stage": hostile, "status": hostile, "error": hostile, "channels": [[hostile, 3]]}
    make.append(folder / "audit.jsonl", line)
    address = serve(folder)
    page = open_page(address)
    page.wait_for_selector(".gauge", timeout=60_000)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.locator("body").inner_text().count(hostile) > 4
    assert page.locator("main img, main script, main [onerror]").count() == 0
    assert page.title().startswith(hostile), "a title is text"


def test_what_is_appended_is_shown_and_pausing_holds_it(
    tmp_path: Path, make: Any, serve: Open, open_page: Open
) -> None:
    folder = make.run(tmp_path / "run")
    address = serve(folder)
    page = open_page(address)
    page.wait_for_selector("text=round 6 of 20")
    page.click("#pause")
    page.wait_for_selector("#status:has-text('Paused')")
    make.append(folder / "metrics.jsonl", make.metrics_line(6))
    page.wait_for_timeout(4500)
    assert page.locator("text=round 6 of 20").count() == 1
    page.click("#pause")
    page.wait_for_selector("text=round 7 of 20")
    make.append(folder / "events.jsonl", *make.event_lines(6, time=time.time()))
    page.wait_for_selector("text=3 of 3 silos up now")


def test_a_page_whose_server_is_gone_says_so_and_goes_on_when_it_is_back(
    run_folder: Path, make: Any, serve: Open, open_page: Open
) -> None:
    address = serve(run_folder)
    page = open_page(address)
    page.wait_for_selector("#status.on")
    page.route("**/api/**", lambda route: route.abort())
    page.wait_for_selector("#status:has-text('Connection lost')")
    assert page.locator("text=round 6 of 20").count() == 1, "what is known stays"
    page.unroute("**/api/**")
    page.wait_for_selector("#status.on")
    open_page.wrong.clear()  # type: ignore[attr-defined]  # a browser reports each request that fails


def test_a_token_opens_the_page_and_a_wrong_one_does_not(
    run_folder: Path, make: Any, serve: Open, open_page: Open
) -> None:
    address = serve(run_folder, make.token)
    page = open_page(address)
    page.fill("#token", "not the token at all")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=That token is not the right one")
    assert "digits" not in page.content()
    page.fill("#token", make.token)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=round 6 of 20")
    page.reload()
    page.wait_for_selector("text=round 6 of 20")
    assert make.token not in page.url
    assert page.context.cookies() == []
    open_page.wrong.clear()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_real_run_is_watched_while_it_runs(tmp_path: Path, make: Any, serve: Open, open_page: Open) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    options = "--dataset digits --model mlp --silos 5 --rounds 12 --dropout 0.1 --dp-epsilon 8 --workers 0 --quiet"
    command = [sys.executable, "-m", "autoflip_secure.sim", *options.split(), "--run-dir", str(runs / "watched")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until = time.monotonic() + 120
        while not (runs / "watched" / "config.toml").exists():
            assert time.monotonic() < until
            assert started.poll() is None, started.communicate()[0]
            time.sleep(0.1)
        address, silo_address = serve(runs), serve(runs / "watched" / "silos" / "silo-001")
        page = open_page(f"{address}/#/run/watched")
        silo = open_page(silo_address)
        seen = []
        while started.poll() is None:
            seen.append(page.locator(".lead").first.inner_text().split(" · ")[0])
            page.wait_for_timeout(200)
        assert started.returncode == 0, started.communicate()[0]
        page.wait_for_selector(".badge.finished")
        page.wait_for_selector("text=round 12 of 12")
        assert len(set(seen)) >= 3, f"it was watched in {set(seen)}"
        assert page.locator(".tiles li").count() == 5
        assert page.locator("text=by its ledger").count() == 5
        silo.wait_for_selector(".gauge", timeout=60_000)
        silo.wait_for_selector("text=lines in the audit log")
        assert "audit.jsonl could not be read" not in silo.content()
    finally:
        started.kill()
        started.communicate()
