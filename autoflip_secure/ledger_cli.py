"""autoflip-secure ledger: what a silo spent, whether its ledger adds up, and a copy for auditors. Never writes to one.

Heavy imports happen inside functions: `--help` and a refused option answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoflip_secure.errors import CannotContinue, ConfigError

if TYPE_CHECKING:
    from autoflip_secure.federation.ledger_audit import LedgerAudit
    from autoflip_secure.privacy.ledger_reading import LedgerRecord

__all__ = ["app"]

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Read, check and copy privacy ledgers; never writes to one."
)

Where = Annotated[Path, typer.Argument(metavar="PATH", help="a silo's folder, its state.sqlite, or a run directory")]
Delta = Annotated[float | None, typer.Option(help="delta of all figures [as recorded with the lines]")]
OldDelta = Annotated[float | None, typer.Option("--delta", help="delta of ledgers that do not record theirs")]
Lines = Annotated[bool, typer.Option("--lines", help="every line too")]
Json = Annotated[bool, typer.Option("--json", help="figures as JSON on stdout")]
Head = Annotated[str | None, typer.Option(help="hash of the last line, noted earlier: must still be in the ledger")]
Format = Annotated[str, typer.Option("--format", help="csv | jsonl")]
Output = Annotated[Path | None, typer.Option(help="file to write, readable by you alone [stdout]")]
Force = Annotated[bool, typer.Option("--force", help="replace FILE where it exists")]


@app.command()
def show(path: Where, delta: Delta = None, lines: Lines = False, json: Json = False) -> None:
    """What was done to each record set, what it cost, and what is left."""
    import time

    from autoflip_secure.federation.ledger_audit import policy_of
    from autoflip_secure.privacy.ledger_report import dataset_reports

    _check_delta(delta)
    records = _read(path)
    made = [dataset_reports(r, delta=delta, fallback=policy_of(r), now=time.time()) for r in records]
    if json:
        _print_json(records, made, lines=lines)
    else:
        _print_tables(records, made, lines=lines)


@app.command()
def verify(path: Where, head: Head = None, delta: OldDelta = None) -> None:
    """Check hash chain, caps, plan and claims, and recompute epsilon with PRV and PLD. Exit code 3 where it fails."""
    import time

    from autoflip_secure.federation.ledger_audit import audit_ledger
    from autoflip_secure.federation.ledger_files import claims_of, ledger_files

    _check_delta(delta)
    files = ledger_files(path)
    noted = _noted_hash(head, len(files))
    claims = claims_of(path) if path.is_dir() else None
    audits = [audit_ledger(file, claims, delta=delta, now=time.time(), noted=noted) for file in files]
    _print_audits(audits)
    failed = [(audit, failure) for audit in audits for failure in audit.failures]
    if failed:
        audit, failure = failed[0]
        more = f" (and {len(failed) - 1} more, listed above)" if len(failed) > 1 else ""
        raise CannotContinue(f"the ledger of silo {audit.silo} ({audit.path}) does not add up: {failure}{more}")


@app.command()
def export(path: Where, form: Format = "csv", output: Output = None, force: Force = False) -> None:
    """Copy all lines, for recomputation with any tool."""
    from autoflip_secure.privacy.ledger_export import as_csv, as_json_lines
    from autoflip_secure.storage import write_atomically

    if form not in ("csv", "jsonl"):
        raise ConfigError(f"--format {form}: is neither csv nor jsonl")
    records = _read(path)
    text = as_csv(records) if form == "csv" else as_json_lines(records)
    if output is None:
        sys.stdout.write(text)
        return
    _check_output(output, [record.path for record in records], force=force)
    write_atomically(output, text.encode(), secret=True)


def _read(path: Path) -> list[LedgerRecord]:
    from autoflip_secure.federation.ledger_files import ledger_files
    from autoflip_secure.privacy.ledger_reading import read_ledger

    return [read_ledger(file) for file in ledger_files(path)]


def _check_output(output: Path, ledgers: list[Path], *, force: bool) -> None:
    target = output.resolve()
    for ledger in ledgers:
        own = [ledger.resolve().with_name(ledger.name + end) for end in ("", "-wal", "-shm", "-journal")]
        if target in own or (target.exists() and target.samefile(ledger)):
            raise ConfigError(f"--output {output}: is the ledger itself; name another file")
    if not target.parent.is_dir():
        raise ConfigError(f"--output {output}: its folder does not exist")
    if target.exists() and (not force or not target.is_file()):
        raise ConfigError(f"--output {output}: exists; give --force to replace a file")


def _check_delta(delta: float | None) -> None:
    if delta is not None and not 1e-10 <= delta < 1:
        raise ConfigError(f"--delta {delta}: is not within [1e-10, 1)")


def _noted_hash(head: str | None, ledgers: int) -> bytes | None:
    if head is None:
        return None
    try:
        noted = bytes.fromhex(head)
    except ValueError:
        noted = b""
    if len(noted) != 32:
        raise ConfigError("--head: is not the hash of a line, which has 64 hexadecimal digits")
    if ledgers != 1:
        raise ConfigError("--head: belongs to one ledger; give the folder of one silo")
    return noted


def _print_json(records: list[LedgerRecord], made: list[Any], *, lines: bool) -> None:
    import json

    from autoflip_secure.privacy.ledger_export import values_of
    from autoflip_secure.privacy.ledger_tables import as_values

    figures = []
    for record, reports in zip(records, made, strict=True):
        own_lines = {"every_line": values_of(record)} if lines else {}
        figures.append({**as_values(record, reports), **own_lines})
    print(json.dumps({"ledgers": figures}, indent=2))


def _print_tables(records: list[LedgerRecord], made: list[Any], *, lines: bool) -> None:
    from autoflip_secure.privacy.ledger_tables import adversary_words, lines_table, spending_table, spending_words

    for record, reports in zip(records, made, strict=True):
        for report in reports:
            apart = filter(None, map(adversary_words, report.adversaries))
            _print(spending_table(record.silo, report), spending_words(report), *apart, "")
        if not reports:
            _print(f"Silo {record.silo}: no line yet; nothing is spent")
        elif lines:
            _print(lines_table(record), "")


def _print_audits(audits: list[LedgerAudit]) -> None:
    from autoflip_secure.privacy.ledger_tables import adversary_words, cap_text, epsilon_text, table

    columns = (
        "silo",
        "records",
        "#lines",
        "#runs",
        "#delta",
        "#PRV",
        "#PLD",
        "#RDP",
        "#PRV to PLD",
        "#claimed",
        "#cap",
    )
    made = table("Epsilon recomputed from the lines alone", *columns)
    for audit in audits:
        for row in audit.datasets:
            found = row.recomputed
            epsilons = [epsilon_text(value) for value in (found.prv, found.pld, found.rdp)]
            apart = f"{found.difference:.2%}" if found.independent else "one bound"
            claimed = "-" if row.claimed is None else epsilon_text(row.claimed)
            made.add_row(
                audit.silo, row.dataset, str(row.lines), str(row.sessions), f"{found.delta:.6g}", *epsilons, apart,
                claimed, cap_text(row.cap),
            )  # fmt: skip
    _print(made)
    for audit in audits:
        for row in audit.datasets:
            for words in filter(None, map(adversary_words, row.adversaries)):
                _print(f"silo {audit.silo}, {row.dataset} records: {words}")
        for failure in audit.failures:
            _print(f"silo {audit.silo} ({audit.path}): {failure}")
        if not audit.failures and audit.head:
            _print(f"silo {audit.silo}: adds up; hash of the last line {audit.head.hex()}")


def _print(*parts: Any) -> None:
    """On a terminal as wide as it is, elsewhere as wide as the tables are."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False, soft_wrap=True)
    for part in parts:
        console.print(part)
