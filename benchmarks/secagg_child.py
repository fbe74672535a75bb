"""Measurements that need a process of their own, for benchmarks/secagg.py; prints one line of JSON.

    python benchmarks/secagg_child.py memory COORDINATES FOLDER
    python benchmarks/secagg_child.py workers COORDINATES

Memory. Three silos answer stage masked from a float32 file (memory-mapped), part by part, into a file each; the
coordinator reads one such file after the other. Measured is anonymous memory (RssAnon and RssShmem of /proc), read
every 2 ms and at every part, at its highest:

- silo: while it answers, less what the process had when it began to.
- coordinator: in the whole sum but while a silo answers, less what the process had after two sums of 64 coordinates.

Pages of the mapped input are left out: they are the page cache's, which takes them back at will.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from secagg_bounds import best_of, encode_and_mask, masks_removed, random_keys
from secagg_federation import Federation, KeyedRandomness, update_channel

from autoflip_secure.secagg.mask_workers import WORKERS_VARIABLE, mask_processes, start_workers
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.words import RANGE_WORDS, ContributionWords, FloatChannel

SILOS = 3
BLOCK = 1 << 20
SAMPLE_SECONDS = 0.002


def anonymous_bytes() -> int:
    """Anonymous and shared memory of this process, bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem"))


@dataclass
class Peak:
    """The highest value seen while not paused, bytes."""

    highest: int = 0
    paused: bool = False

    def look(self) -> None:
        """Take one more sample."""
        now = anonymous_bytes()
        if not self.paused:
            self.highest = max(self.highest, now)


@contextmanager
def sampled(peak: Peak) -> Iterator[None]:
    """Sample in a thread while the block runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        peak.look()


class FileFederation:
    """Three silos with their vectors in files; a round keeps to what a deployment would have in memory."""

    def __init__(self, folder: Path, coordinates: int) -> None:
        self._folder, self._federation = folder, Federation(SILOS, folder, slots=4, seed=0)
        self._federation.set_up()
        self.coordinator, self.silo_extra = Peak(), 0
        for silo in range(1, SILOS + 1):
            values = np.memmap(self._input(silo), np.float32, "w+", shape=(coordinates,))
            random = np.random.default_rng(silo)
            for start in range(0, coordinates, BLOCK):
                part = values[start : start + BLOCK]
                part[:] = 2 * random.random(part.size, np.float32) - 1
            values.flush()

    def round(self, channel: ChannelSpec) -> NDArray[np.uint64]:
        """One sum; the peaks are taken on the way."""

        def exchange(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            for silo, request in requests.items():
                if stage == "masked":
                    self.coordinator.paused = True
                    self._answer_into_file(silo, request, channel)
                    self.coordinator.paused = False
                    yield silo, self._read_reply(silo)
                else:
                    yield silo, self._federation.silos[silo].answer(stage, request, self._refuse)
                self.coordinator.look()

        with sampled(self.coordinator):
            (opened,) = self._federation.coordinator.sum(self._federation.manifest(channel), exchange)
        return opened.words

    @property
    def reply_bytes(self) -> int:
        """Size of a masked reply."""
        return self._reply(1).stat().st_size

    def check(self, words: NDArray[np.uint64], channel: ChannelSpec) -> None:
        """Compare the sum with the silos' own words, range by range."""
        sources = [self._source(silo, channel) for silo in range(1, SILOS + 1)]
        for start in range(0, words.size, RANGE_WORDS):
            ours = words[start : start + RANGE_WORDS]
            plain, one = np.zeros_like(ours), np.empty_like(ours)
            for source in sources:
                source.fill(start, one)
                plain += one
            if not np.array_equal(plain, ours):
                raise ArithmeticError("the opened sum is not the sum of the silos' words")

    def _answer_into_file(self, silo: int, request: bytes, channel: ChannelSpec) -> None:
        before, peak = anonymous_bytes(), Peak()
        with sampled(peak), self._reply(silo).open("wb") as file:
            for part in self._federation.silos[silo].answer_in_parts(request, lambda _: self._source(silo, channel)):
                file.write(part)
                peak.look()
        self.silo_extra = max(self.silo_extra, peak.highest - before)

    def _read_reply(self, silo: int) -> bytes:
        reply = self._reply(silo).read_bytes()
        self.coordinator.look()  # a short vector is added up between two samples of the thread
        return reply

    def _source(self, silo: int, channel: ChannelSpec) -> ContributionWords:
        values = np.memmap(self._input(silo), np.float32, "r", shape=(channel.length,))
        return ContributionWords({channel.name: FloatChannel(values, KeyedRandomness(silo))}, (channel,), SILOS)

    @staticmethod
    def _refuse(manifest: Manifest) -> ContributionWords:
        raise AssertionError("only stage masked asks for words")

    def _input(self, silo: int) -> Path:
        return self._folder / f"{silo}.f32"

    def _reply(self, silo: int) -> Path:
        return self._folder / f"{silo}.reply"


def memory(coordinates: int, folder: Path) -> dict[str, Any]:
    """Peaks of one round of three silos, bytes."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        federation = FileFederation(Path(name), coordinates)
        before = anonymous_bytes()
        federation.coordinator, federation.silo_extra = Peak(), 0
        channel = update_channel(coordinates, 16)
        words = federation.round(channel)
        federation.check(words, channel)
        reply = federation.reply_bytes
    peak = federation.coordinator.highest - before
    return {
        "coordinates": coordinates,
        "sums_bytes": words.nbytes,
        "reply_bytes": reply,
        "silo_extra": federation.silo_extra,
        "coordinator_peak": peak,
        "coordinator_extra": peak - words.nbytes - reply,
        "exact": True,
    }


def workers(coordinates: int) -> dict[str, Any]:
    """Encoding and masking by one process and by all cores, n = 10, and taking off the masks of 3 dropped silos."""
    os.environ.pop(WORKERS_VARIABLE, None)
    processes, started = mask_processes(), start_workers()
    values = np.random.default_rng(0).random(coordinates, np.float32)
    channel, masks = update_channel(coordinates, 16), masks_removed(10, 3)
    total = np.zeros(word_count((channel,), 10), np.uint64)

    def limited(number: int, work: Any) -> Any:
        def call() -> None:
            os.environ[WORKERS_VARIABLE] = str(number)
            work()

        return call

    def silo() -> None:
        encode_and_mask(values, channel, 10, 10)

    def coordinator() -> None:
        apply_masks(total, *random_keys(masks))

    best = best_of(
        {
            "silo_one": limited(1, silo),
            "silo_all": limited(processes, silo),
            "coordinator_one": limited(1, coordinator),
            "coordinator_all": limited(processes, coordinator),
        },
        3.0,
    )
    return {"coordinates": coordinates, "processes": processes, "started": started, **best}


def main() -> None:
    """Measure one thing, by name."""
    what, coordinates, *rest = sys.argv[1:]
    began = time.perf_counter()
    result = workers(int(coordinates)) if what == "workers" else memory(int(coordinates), Path(rest[0]))
    print(json.dumps(result | {"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
