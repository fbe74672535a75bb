"""What `coordinator` and `silo` share of up, status, stop and logs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoflip_secure.errors import ConfigError

__all__ = ["follow", "print_status", "say", "stop"]

TAIL_BYTES = 1 << 16
LOOK_EVERY = 0.5


def say(line: str) -> None:
    """One line of a service on stderr, which systemd and Docker keep."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)


def print_status(facts: Mapping[str, Any], *, json: bool) -> None:
    """What is running, a fact a line or as a JSON object."""
    if json:
        import json as codec

        print(codec.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if name == "processes":
            for process, about in value.items():
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(about["since"]))
                print(f"{process:<22}pid {about['pid']}, since {since}, restarts: {about['restarts']}")
        elif name == "runs":
            for run in value:
                why = f": {run['reason']}" if run.get("reason") else ""
                print(f"run {run['run']:<18}{run['state']}, {run['rounds']} of {run['of'] or '?'} rounds{why}")
        else:
            shown = {True: "yes", False: "no", None: "-"}.get(value, value) if isinstance(value, bool | None) else value
            print(f"{name.replace('_', ' '):<22}{shown}")


def stop(folder: Path, what: str) -> None:
    """End the processes of a home."""
    from autoflip_secure.deployment.children import stop_running

    print(f"{what} is stopped" if stop_running(folder) else f"{what} was not up")


def follow(logs: Mapping[str, Path], which: str | None, *, lines: int, keep_on: bool) -> None:
    """Print the ends of logs, and what is added to them.

    Raises
    ------
    ConfigError
        No such log, or none yet.
    """
    if which is not None and which not in logs:
        raise ConfigError(f"--which {which}: the logs are {', '.join(logs)}")
    chosen = {name: path for name, path in logs.items() if which in (None, name) and path.exists()}
    if not chosen:
        raise ConfigError(f"there is no log yet below {next(iter(logs.values())).parent}; has it been up?")
    places = {}
    for name, path in chosen.items():
        places[name] = path.stat().st_size
        for line in _last_lines(path, lines):
            print(f"{name}: {line}", flush=True)
    while keep_on:
        time.sleep(LOOK_EVERY)
        for name, path in chosen.items():
            for line in _added(path, places, name):
                print(f"{name}: {line}", flush=True)


def _last_lines(path: Path, count: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-count:]


def _added(path: Path, places: dict[str, int], name: str) -> Iterator[str]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return  # just turned over
    with file:
        if os.fstat(file.fileno()).st_size < places[name]:
            places[name] = 0  # begun anew
        file.seek(places[name])
        data = file.read()
    whole = data.rfind(b"\n") + 1
    places[name] += whole
    yield from data[:whole].decode(errors="replace").splitlines()
