"""Attacks on the privacy promise: how much of each claimed epsilon one-run auditing shows, and what it says of mutants.

    python benchmarks/audit.py [--quick] [--fresh]

Writes results/audit.json (every setting and figure, and the machine) and audit.md. Rows already in audit.json are kept,
so an interrupted benchmark goes on; --fresh starts anew. About half an hour on two cores, under five minutes with
--quick (no black-box rows, epsilon 8 only, the mutants that the audit itself catches).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from machine import machine

from autoflip_secure.privacy.audit import audit
from autoflip_secure.privacy.audit_settings import AuditSettings

RESULTS = Path(__file__).parent / "results"
MUTANTS = Path(__file__).parents[1] / "tests" / "privacy" / "privacy_mutants.py"

ONE_RELEASE = {"rounds": 1, "sampling_rate": 1.0}
EPSILONS = (8.0, 4.0, 1.0)
TRUSTS = ("distributed", "local")
NAMES = {
    "white-box": "white-box, a run as shipped",
    "one": "white-box, one round and its reserve, every record",
    "black-box": "black-box, a run as shipped",
}


def settings(quick: bool) -> list[tuple[str, AuditSettings]]:
    """Name and settings of each row."""
    rows = []
    for kind in ("white-box", "one") if quick else NAMES:
        for trust in TRUSTS:
            # What the final model alone shows is next to nothing at the largest epsilon already.
            for epsilon in EPSILONS[:1] if quick or kind == "black-box" else EPSILONS:
                options: dict[str, Any] = dict(ONE_RELEASE) if kind == "one" else {}
                setting = "black-box" if kind == "black-box" else "white-box"
                rows.append((NAMES[kind], AuditSettings(epsilon=epsilon, trust=trust, setting=setting, **options)))
    return rows


def mutants_module() -> ModuleType:
    """tests/privacy/privacy_mutants.py."""
    spec = importlib.util.spec_from_file_location("privacy_mutants", MUTANTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mutant_rows(quick: bool) -> list[dict[str, Any]]:
    """One row a mutant; `quick` leaves out those that only tests catch."""
    module = mutants_module()
    chosen = [mutant for mutant in module.MUTANTS if mutant.audit or not quick]
    if quick:
        chosen = [dataclasses.replace(mutant, tests=()) for mutant in chosen]
    return [
        {"what": v.mutant.what, "audit": v.audited, "test": v.failed, "caught": v.caught, "problem": v.problem}
        for v in module.judge(chosen)
    ]


def markdown(rows: list[dict[str, Any]], mutants: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = [
        "| adversary | trust | claimed epsilon | audited at least | ratio | guesses right | canaries | releases | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['trust']} | {row['claimed']:g} | {row['audited']:.2f} | {row['ratio']:.0%} "
            f"| {row['right']} of {row['guesses']} | {row['canaries']} | {row['releases']} | {row['seconds']:.0f} |"
        )
    lines += [
        "",
        "Mutants of the code, each a copy with one thing broken; audited above claimed is a broken promise that shows.",
        "",
        "| mutant | audited / claimed epsilon | failing test | caught |",
        "|---|---|---|---|",
    ]
    for row in mutants:
        shown = "-" if row["audit"] is None else f"{row['audit']['audited']:.2f} / {row['audit']['claimed']:g}"
        outcome = "yes" if row["caught"] else f"NO: {row['problem'] or 'survived'}"
        lines.append(f"| {row['what']} | {shown} | {row['test'] or '-'} | {outcome} |")
    return "\n".join(lines)


def run(*, quick: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Run what is missing, write the files, and return what audit.json holds."""
    RESULTS.mkdir(exist_ok=True)
    name = "audit-quick" if quick else "audit"
    path = RESULTS / f"{name}.json"
    done: dict[str, Any] = {} if fresh or not path.exists() else json.loads(path.read_text())
    rows: list[dict[str, Any]] = done.get("rows", [])
    for title, wanted in settings(quick):
        key = (title, wanted.trust, wanted.epsilon, wanted.count)
        if any((row["name"], row["trust"], row["epsilon"], row["canaries"]) == key for row in rows):
            continue
        report = audit(wanted)
        rows.append({"name": title, **report.to_json()})
        path.write_text(json.dumps({"machine": machine("torch"), "rows": rows}, indent=1))
        print(f"{title}, {wanted.trust}, {wanted.epsilon:g}: {report.audited:.2f}", file=sys.stderr, flush=True)
    found = {"machine": machine("torch"), "rows": rows, "mutants": done.get("mutants") or mutant_rows(quick)}
    path.write_text(json.dumps(found, indent=1))
    text = (
        f"{markdown(rows, found['mutants'])}\n\nLower bounds at 95 % confidence, delta 1e-5 (Steinke, Nasr and "
        "Jagielski 2023). The white-box adversary picks model, mask and all other data, sees every sum (under local "
        "trust every update) and asks until the ledger refuses. Made by `python benchmarks/audit.py`"
        f"{' --quick' if quick else ''} on {json.dumps(machine('torch'))}.\n"
    )
    (RESULTS / f"{name}.md").write_text(text)
    return found


def main() -> int:
    """Print the tables; 1 where a promise is broken or a mutant survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="epsilon 8, no black-box rows, fewer mutants")
    parser.add_argument("--fresh", action="store_true", help="forget the rows already there")
    arguments = parser.parse_args()
    found = run(quick=arguments.quick, fresh=arguments.fresh)
    print(markdown(found["rows"], found["mutants"]))
    broken = [row for row in found["rows"] if row["broken"]] + [row for row in found["mutants"] if not row["caught"]]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
