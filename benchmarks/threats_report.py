"""The table of `threats.py`, and the parts of it that pages of threat_models/ show."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threats_defaults import BY_DEFAULT, Tried, Unpromised, attacks_with_a_way

from autoflip_secure.attacks.outcome import TRIALS_OF_NOTHING, Outcome
from autoflip_secure.attacks.registry import MODULES
from autoflip_secure.attacks.settings import SETTINGS

__all__ = ["defaults_table", "markdown", "page_table", "results_of", "write_pages"]

MARKER = re.compile(r"<!-- results: ([\w-]+) -->\n.*?<!-- /results -->", re.S)
MARKS = {"broken": "**broken**", "loose": "bound is loose"}
"""How verdicts are written where they do not speak for themselves."""
OFF_HERE = "†"
NOT_PROMISED = "nothing: [not promised](../../threat_models/not-defended.md#others-who-take-part)"

Attacks = dict[str, dict[str, Any]]


def outcomes_of(attack: dict[str, Any]) -> list[Outcome]:
    """Of one attack, in the order it gave them."""
    return [Outcome.from_json(row) for row in attack["rows"]]


def number(value: float) -> str:
    """Three digits that mean something; no exponents near 1."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def interval(outcome: Outcome) -> str:
    """Value and interval."""
    if outcome.trials < 2 and outcome.low == outcome.high:
        return f"{number(outcome.value)} (one run)"
    return f"{number(outcome.value)} [{number(outcome.low)}, {number(outcome.high)}]"


def cell(outcome: Outcome | None) -> str:
    """Value, interval, bound where one is promised, verdict."""
    if outcome is None:
        return "-"
    bound = "" if outcome.bound is None else f", at most {number(outcome.bound)}"
    return f"{interval(outcome)}{bound}: {MARKS.get(outcome.verdict, outcome.verdict)}"


def chances(group: list[Outcome]) -> str:
    """What is had without the attack, of a row; where settings differ in it, the range."""
    known = sorted({number(o.chance) for o in group if o.chance is not None}, key=float)
    return "-" if not known else known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"


def decided(promised: list[Outcome], full: Attacks) -> str:
    """What became of cells that few trials left open, where the full form was run; empty where nothing did."""
    key = operator.attrgetter("attack", "setting", "measure")
    verdicts = {key(o): o.verdict for attack in full.values() for o in outcomes_of(attack)}
    open_here = [o for o in promised if o.verdict == "not refuted"]
    count = Counter(verdicts[key(o)] for o in open_here if key(o) in verdicts)
    if not count:
        return ""
    shown = ", ".join(f"{number} {MARKS.get(verdict, verdict)}" for verdict, number in count.most_common())
    return f"The full form ([threats.md](threats.md)) has {count.total()} of the {len(open_here)} left open: {shown}."


def markdown(
    attacks: Attacks, *, quick: bool, full: Attacks | None = None, failed: Sequence[str] = (), wall: float | None = None
) -> str:
    """The whole file: attacks by the four settings.

    Parameters
    ----------
    attacks : dict
        Outcomes by attack.
    full : dict, optional
        Outcomes of the full form, which says more of what the quick one leaves open.
    failed : sequence of str
        Attacks that did not run this time, whose rows are of an earlier one.
    wall : float, optional
        Seconds that all of them took together, where all were made in one go.
    """
    form = "`make bench-threats ARGS=--quick`" if quick else "`make bench-threats`"
    lines = [
        "# Attacks",
        "",
        "What an attacker gets, larger is better for the attacker, with its 95 % interval. `without`: what is had "
        "without the attack, by a guess or from a run that nobody spoils. `at most`: what is promised under that "
        "setting. Such a cell is **broken** where its whole interval lies above, *held* where it lies below (or where "
        f"nothing is allowed and nothing was found in {TRIALS_OF_NOTHING} trials or more), *not refuted* where so few "
        "trials do not tell, and its *bound is loose* where it allows nearly everything. Where nothing is promised the "
        "attack *succeeds* if the whole interval lies above `without`, else there is *no gain shown*, though there may "
        "be one that so few trials do not show. `-`: not tried there, since there is nothing to see or another column "
        "tells the same. Pages of "
        "[threat_models/](../../threat_models/README.md) say who attacks with what, and have all settings.",
        "",
        f"| attack | measure | without | {' | '.join(SETTINGS)} |",
        "|---|---|---|" + "---|" * len(SETTINGS),
    ]
    found = [outcome for name in MODULES if name in attacks for outcome in outcomes_of(attacks[name])]
    stopped = {attack for attack in attacks_with_a_way(found) if isinstance(BY_DEFAULT.get(attack), Tried)}
    for attack, measure in dict.fromkeys((o.attack, o.measure) for o in found):
        group = [o for o in found if (o.attack, o.measure) == (attack, measure) and o.setting in SETTINGS]
        if group:
            by_setting = {o.setting: o for o in group}
            marked = {o.setting for o in group if o.attack in stopped and o.verdict == "succeeds"} - {"plain"}
            shown = [
                cell(by_setting.get(setting)) + (f" {OFF_HERE}" if setting in marked else "") for setting in SETTINGS
            ]
            cells = " | ".join(shown)
            lines.append(f"| {attack} | {measure} | {chances(group)} | {cells} |")
    lines += defaults_table(found)
    promised = [o for o in found if o.bound is not None]
    count = Counter(o.verdict for o in promised)
    lines += [
        "",
        f"Of {len(promised)} cells with a promise, those of the pages' further settings included: {count['held']} "
        f"held, {count['not refuted']} not refuted by so few trials, {count['loose']} with a loose bound, "
        f"{count['broken']} broken.",
    ]
    lines += [line for line in (decided(promised, full or {}),) if line]
    lines += [f"Broken: {o.attack}, {o.setting}." for o in promised if o.verdict == "broken"]
    missing = [name for name in MODULES if name not in attacks]
    lines += [f"Not run: {', '.join(missing)}."] if missing else []
    older = [name for name in failed if name in attacks]
    lines += [f"Did not run this time, rows are older: {', '.join(older)}."] if older else []
    seconds = sum(attack["seconds"] for attack in attacks.values())
    machines = {json.dumps(attack["machine"]) for attack in attacks.values()}
    took = "" if wall is None else f" ({wall / 60:.1f} by the clock)"
    lines += [
        "",
        f"Made by {form} in {seconds / 60:.0f} minutes of one core{took}, on {' and '.join(sorted(machines))}.",
    ]
    return "\n".join(lines) + "\n"


def defaults_table(found: list[Outcome]) -> list[str]:
    """What attacks that succeed under DP above come to where institutions run it; no lines where none does."""
    rows = []
    for attack in attacks_with_a_way(found):
        stands, comes_to = "**not said in threats_defaults.py**", "as above"
        default = BY_DEFAULT.get(attack)
        if isinstance(default, Unpromised):
            stands = NOT_PROMISED
        elif default is not None:
            tried = [f"{o.attack}, {o.measure}: {cell(o)}" for o in default.outcomes(found)]
            stands, comes_to = default.defence, "; ".join(tried) or "not run"
        rows.append(f"| {attack} | {stands} | {comes_to} |")
    if not rows:
        return []
    return [
        "",
        "## Across institutions",
        "",
        "Of the attacks against which nothing is promised in the simulations above, those that succeed under DP, and "
        "what stands against them where a hospital's `policy.toml` is left as it comes (DP 8). Above they are marked "
        f"{OFF_HERE} where something does, which simulations leave off.",
        "",
        "| attack | what is on by default there | what it comes to |",
        "|---|---|---|",
        *rows,
    ]


def results_of(name: str, results: Path) -> tuple[dict[str, Any], bool] | None:
    """Outcomes of an attack and whether they are of its quick form: the full form's where there are any."""
    for stem, quick in (("threats", False), ("threats-quick", True)):
        path = results / f"{stem}.json"
        if path.exists():
            attacks: Attacks = json.loads(path.read_text())["attacks"]
            if name in attacks:
                return attacks[name], quick
    return None


def page_table(name: str, results: Path) -> str:
    """All outcomes of an attack, one a row, and the command that made them; empty where there are none yet."""
    found = results_of(name, results)
    if found is None:
        return ""
    attack, quick = found
    lines = ["", "| attack | setting | measure | value [95 %] | without | promised | verdict | trials |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    notes: list[str] = []
    for o in outcomes_of(attack):
        mark = ""
        if o.note:
            if o.note not in notes:
                notes.append(o.note)
            mark = f" ({notes.index(o.note) + 1})"
        promised = "-" if o.bound is None else f"at most {number(o.bound)} ({o.promise})"
        chance = "-" if o.chance is None else number(o.chance)
        cells = [
            o.attack + mark,
            o.setting,
            o.measure,
            interval(o),
            chance,
            promised,
            MARKS.get(o.verdict, o.verdict),
            str(o.trials),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"{index}. {note}" for index, note in enumerate(notes, start=1))] if notes else []
    command = f'make bench-threats ARGS="--only {name}{" --quick" if quick else ""}"'
    lines += ["", f"Made by `{command}` in {attack['seconds']} s on {json.dumps(attack['machine'])}.", ""]
    return "\n".join(lines)


def write_pages(pages: Path, results: Path) -> None:
    """Put each page's table between its two marks."""
    for path in sorted(pages.glob("*.md")):
        text = path.read_text()
        fresh = MARKER.sub(
            lambda found: f"<!-- results: {found[1]} -->\n{page_table(found[1], results)}<!-- /results -->", text
        )
        if fresh != text:
            path.write_text(fresh)
