"""Whoever sends or writes what a party reads tries to crash it, or to have it take all memory or all day.

What the adversary has: the format, and valid inputs to start from. Nothing but an error of `errors.py` may come out.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from autoflip_secure.attacks.outcome import Outcome, Scale, proportion_interval
from autoflip_secure.attacks.parser_calls import Parser
from autoflip_secure.attacks.parser_edits import drawn_edits, edited
from autoflip_secure.attacks.parser_samples import Samples
from autoflip_secure.attacks.parsers import parsers
from autoflip_secure.errors import AutoflipSecureError

__all__ = ["MOST_BYTES", "MOST_SECONDS", "Crash", "crash_rows", "fuzz", "tried", "warm"]

MOST_SECONDS = 5.0
"""For one input; all samples are read in a small part of it."""

QUICK_SECONDS, FULL_SECONDS = 0.05, 2.0
"""For each parser."""

MOST_BYTES = 256 << 20
"""Memory that Python and numpy may take for one input of a few kilobytes."""


@dataclass(frozen=True)
class Crash:
    """An input after which a party would not have gone on as it should."""

    parser: str
    error: str
    data: bytes


class _TooLong(BaseException):
    """Not an Exception: a parser that catches all of those must not catch this."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(parser: Parser, data: bytes) -> Crash | None:
    """Have one input read; what went wrong, if anything. In a main thread only, since the time is taken by a signal."""
    folder = Path(tempfile.mkdtemp(prefix="read-"))
    tracemalloc.start(1)
    error = ""
    try:
        with _within(MOST_SECONDS):
            parser.read(data, folder)
    except AutoflipSecureError:
        pass
    except KeyboardInterrupt:
        raise
    except _TooLong:
        error = f"more than {MOST_SECONDS:g} s"
    except BaseException as raised:  # parsers in Rust panic outside of Exception
        error = f"{type(raised).__name__}: {raised}"[:400]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if not error and peak > MOST_BYTES:
        error = f"{peak >> 20} MiB of memory"
    return Crash(str(parser), error, data) if error else None


def warm(parser: Parser) -> None:
    """Have a sample read: modules are loaded at the first reading, which takes seconds."""
    with suppress(Exception), tempfile.TemporaryDirectory() as folder:
        parser.read(parser.samples[0], Path(folder))


def fuzz(parser: Parser, seconds: float, seed: int) -> tuple[int, list[Crash]]:
    """Edited samples until the time is over, at least each sample itself and twenty of them; inputs and crashes."""
    generator = np.random.default_rng(seed)
    warm(parser)
    inputs, crashes, end = 0, [], time.monotonic() + seconds
    while inputs < 20 or time.monotonic() < end:
        sample = parser.samples[int(generator.integers(len(parser.samples)))]
        data = (
            generator.bytes(int(generator.integers(64)))
            if inputs % 16 == 15
            else edited(sample, drawn_edits(generator))
        )
        crash = tried(parser, data)
        inputs += 1
        if crash is not None:
            crashes.append(crash)
    return inputs, crashes


def crash_rows(scale: Scale) -> Iterator[Outcome]:
    """All parsers, each for a while."""
    made = scale.work / "samples"
    made.mkdir()
    found, inputs = [], 0
    for seed, parser in enumerate(parsers(Samples(made))):
        count, crashes = fuzz(parser, QUICK_SECONDS if scale.quick else FULL_SECONDS, seed)
        inputs += count
        found += crashes
    share, low, high = proportion_interval(len(found), inputs)
    yield Outcome(
        "parsers that crash", "all", "part of all inputs", share, low, high, inputs, 0.0, 0.0,
        "nothing but an error of errors.py comes out",
        ", ".join(sorted({f"{crash.parser}: {crash.error.partition(':')[0]}" for crash in found}))[:300],
    )  # fmt: skip
