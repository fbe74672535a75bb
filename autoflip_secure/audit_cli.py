"""autoflip-secure audit: whether audit logs are whole and agree, and what they say. Never writes to one.

Heavy imports happen inside functions: `--help` and a refused option answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoflip_secure.errors import CannotContinue

if TYPE_CHECKING:
    from autoflip_secure.federation.audit_chain import CheckedLog
    from autoflip_secure.federation.audit_log import LogLine

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Check and read audit logs; never writes to one.")

Where = Annotated[list[Path], typer.Argument(metavar="PATH...", help="audit.jsonl files, homes, or run directories")]
One = Annotated[Path, typer.Argument(metavar="PATH", help="an audit.jsonl file, a home, or a run directory")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout")]
Last = Annotated[int, typer.Option("--last", min=0, help="so many of the last lines of each log; 0: all")]


@app.command()
def verify(paths: Where, json: Json = False) -> None:
    """Find edited, deleted, added and moved lines, and logs that others witnessed to be different. Exit code 3 then.

    Give the logs of several parties at once: what one party rewrote and signed anew shows in the logs of the others.
    """
    from autoflip_secure.federation.audit_cross import first_finding, verify_logs
    from autoflip_secure.federation.audit_files import audit_files, is_run

    files = list(dict.fromkeys(file.resolve() for path in paths for file in audit_files(path)))
    logs = verify_logs(files, [path.resolve() for path in paths if is_run(path)])
    if json:
        _print_json({"logs": [_values(log) for log in logs]})
    else:
        _print_logs(logs)
    wrong, first = sum(len(log.findings) for log in logs), first_finding(logs)
    if first is not None:
        more = f" (and {wrong - 1} more, listed above)" if wrong > 1 else ""
        raise CannotContinue(f"the audit log {first}{more}")


@app.command()
def show(path: One, last: Last = 50, json: Json = False) -> None:
    """What a log says: every message that left, its size, what it was about and what paid for it."""
    from autoflip_secure.federation.audit_chain import read_log
    from autoflip_secure.federation.audit_files import audit_files, names_of

    files = audit_files(path)
    names = names_of(files)
    for log in (read_log(file, names) for file in files):
        lines = [line for line in log.lines if line is not None][-last if last else 0 :]
        if json:
            _print_json({"path": str(log.path), "party": log.party, "lines": [dict(line.fields) for line in lines]})
        else:
            _print_lines(log, lines)


def _values(log: CheckedLog) -> dict[str, Any]:
    last = log.last
    return {
        "path": str(log.path),
        "party": log.party,
        "identity": log.public.hex(),
        "lines": len(log.lines),
        "head": None if last is None else last.digest.hex(),
        "findings": [{"line": f.line, "kind": f.kind, "words": f.words} for f in log.findings],
    }


def _print_json(values: dict[str, Any]) -> None:
    import json

    print(json.dumps(values))


def _print_logs(logs: list[CheckedLog]) -> None:
    from autoflip_secure.privacy.ledger_tables import table

    made = table("Audit logs", "party", "#lines", "first (UTC)", "last (UTC)", "head", "#wrong", "file")
    for log in logs:
        lines = [line for line in log.lines if line is not None]
        times = [_time(line) for line in (*lines[:1], *lines[-1:])] or ["-", "-"]
        head = lines[-1].digest.hex()[:16] + "..." if lines else "-"
        made.add_row(log.party, str(len(log.lines)), *times, head, str(len(log.findings)), str(log.path))
    _print(made)
    for log in logs:
        for finding in log.findings:
            _print(f"{log.party}: {finding}")
    if not any(log.findings for log in logs):
        _print(
            "no sign of tampering; "
            + ("these logs agree" if len(logs) > 1 else "logs of other parties would tell more")
        )


def _print_lines(log: CheckedLog, lines: list[LogLine]) -> None:
    from autoflip_secure.privacy.ledger_tables import table

    made = table(
        f"{log.party}: {log.path}", "#line", "time (UTC)", "kind", "stage", "#round", "#attempt", "status", "#bytes",
        "sha256", "what",
    )  # fmt: skip
    for line in lines:
        said = line.fields
        digest = str(said.get("sha256", ""))[:16]
        texts = [str(said.get(name, "")) for name in ("stage", "round", "attempt")]
        status = ":".join(filter(None, (str(said.get("status", "")), str(said.get("error", "")))))
        made.add_row(
            str(line.number), _time(line), line.kind, *texts, status, str(said.get("bytes", "")), digest, _about(line)
        )
    _print(made, "")


def _about(line: LogLine) -> str:
    said, parts = line.fields, []
    if "manifest" in said:
        parts.append(f"manifest {str(said['manifest'])[:16]}")
    if "channels" in said:
        parts.append(", ".join(f"{name}[{length}]" for name, length in said["channels"]))
        parts.append(f"cohort of {said.get('cohort')}")
    if "ledger" in said:
        parts.append(f"ledger line {said['ledger'][0]}")
    if "run" in said:
        parts.append(f"run {str(said['run'])[:16]}")
    for name in ("silos", "survivors", "reason", "model", "party"):
        if name in said:
            parts.append(f"{name} {str(said[name])[:80]}")
    return "; ".join(parts)


def _time(line: LogLine) -> str:
    import time

    seconds = line.fields.get("time")
    if not isinstance(seconds, int | float):
        return "?"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"


def _print(*parts: Any) -> None:
    """On a terminal as wide as it is, elsewhere as wide as the tables are."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False, soft_wrap=True)
    for part in parts:
        console.print(part)
