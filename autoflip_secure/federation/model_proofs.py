"""The coordinator's half of a run that proves its models: keeps opened sums, and shows each silo what it has not seen.

A sum counts once more silos took it than refused it, and as many as it needs survivors. Where one silo's tag is wrong
they all refuse, and the attempt is made anew as if its sum had not been opened. What was shown is on disk before, and
shown again before another sum is made: a coordinator that was stopped in between, or that replies did not reach, goes
on with the very sum that silos have taken.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import Abort, CannotContinue, ProtocolError
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.sum_proof import FOLLOW_STAGE, KEY_STAGE, Position, SumProof
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.run_key import distribute
from autoflip_secure.storage import write_atomically

__all__ = ["ModelProofs"]

SHOWINGS = 5
"""Times that a sum is shown where nobody answers."""

PAUSE = 2.0
"""Seconds by which each pause before is longer than the one before it."""


class ModelProofs:
    """Opened sums of one run, by their number from 0 on, and which silos have taken them.

    Parameters
    ----------
    folder : Path
        Where they are kept, one file each.
    roster : callable
        roster() is who is enrolled now.
    start : float32 array
        Weights before anything is pruned; silos are shown them with the first sum.
    counted : bool
        The run begins with a census, whose sum is number 0.
    """

    def __init__(
        self,
        folder: Path,
        exchange: StageExchange,
        roster: Callable[[], Roster],
        session: bytes,
        start: NDArray[np.float32],
        *,
        counted: bool,
    ) -> None:
        self._folder, self._exchange, self._roster, self._session = folder, exchange, roster, session
        self._start, self._counted = start.astype("<f4").tobytes(), counted
        self._taken: dict[int, int] = {}
        self._models: dict[int, bytes] = {}
        self._last: dict[int, bytes] = {}
        self._keyed: frozenset[int] = frozenset()

    @property
    def keyed(self) -> frozenset[int]:
        """Silos known to have the run's key."""
        return self._keyed

    def ready(self, number: int) -> frozenset[int]:
        """Silos that have the run's key and the first `number` sums: others would refuse, and cost everybody a try."""
        return frozenset(silo for silo, taken in self._taken.items() if taken == number and silo in self._keyed)

    def have(self, model_hash: bytes) -> frozenset[int]:
        """Silos that have this very model themselves: it need not be sent to them."""
        return frozenset(silo for silo in self._taken if self._models.get(silo) == model_hash)

    def number(self, phase: str, round: int) -> int:
        """Opened sums that the model of a round follows from; the round's own sum is the one of this number."""
        return 0 if phase == "census" else round + self._counted

    def prepare(self, number: int) -> None:
        """Before a sum: all silos that have joined get the run's key and the first `number` opened sums."""
        joined = self._joined()
        if not joined <= self._keyed:
            self._keyed = distribute(self._ask_key, joined, self._roster(), self._session)
        self._find(joined)
        behind = {silo for silo in joined if 0 <= self._taken.get(silo, -1) < number}
        while behind:
            before = {silo: self._taken[silo] for silo in sorted(behind)}
            sums = {taken: self._kept(taken) for taken in set(before.values())}
            found = self._ask({silo: sums[taken] for silo, taken in before.items()})
            # One that says it took nothing would be shown the same sum for ever.
            self._note({silo: taken if taken > before[silo] else -1 for silo, taken in found.items()})
            behind = {silo for silo in behind if 0 <= self._taken.get(silo, -1) < number}

    def ask_anew(self) -> None:
        """Before the next sum, ask all silos where they are: those that refused may have lost what they had taken."""
        self._taken.clear()
        self._keyed = frozenset()

    def pending(self, number: int) -> SumProof | None:
        """Sum `number` where it was opened before, and silos have gone on from it since; None: it is to be made."""
        path = self._path(number)
        if not path.exists():
            return None
        data = path.read_bytes()
        proof = SumProof.from_bytes(data)
        if self._is_taken(number, data, sum(proof.manifest.minimum)):
            return proof
        self._find(self._joined())
        return None

    def show(self, number: int, proof: SumProof) -> None:
        """Keep a sum and show it to all silos that have joined.

        Raises
        ------
        Abort
            More silos refused it than took it: it is not to be used.
        CannotContinue
            Too few answered.
        """
        data = (proof if number else replace(proof, start=self._start)).to_bytes()
        self._folder.mkdir(exist_ok=True)
        write_atomically(self._path(number), data)
        if not self._is_taken(number, data, sum(proof.manifest.minimum)):
            raise Abort("silos do not find their contributions in the opened sum: a tag is wrong", stage=FOLLOW_STAGE)

    def _is_taken(self, number: int, proof: bytes, least: int) -> bool:
        """Whether more silos took a sum than refused it, and at least so many; those that say nothing are asked again.

        Another sum in its place would leave behind for good those that took this one.
        """
        name = hashlib.sha256(proof).digest()
        for tries in range(SHOWINGS):
            time.sleep(PAUSE * tries)
            joined = self._joined()
            self._find(joined)
            at_hand = sorted(silo for silo in joined if self._taken.get(silo, -1) in (number, number + 1))
            self._note(self._ask(dict.fromkeys(at_hand, proof)))
            self._find(joined)  # who refused says that it is where it was
            took = sum(self._taken.get(silo) == number + 1 and self._last.get(silo) == name for silo in joined)
            refused = sum(self._taken.get(silo) == number for silo in joined)
            if refused and refused >= took:
                return False
            if took >= least:
                return True
        raise CannotContinue(
            f"{took} silos took the opened sum {number}, which needs {least}; it is kept: go on when they are back"
        )

    def _find(self, silos: Iterable[int]) -> None:
        """Ask silos of which it is not known where they are."""
        self._note(self._ask({silo: b"" for silo in silos if silo not in self._taken}))

    def _joined(self) -> set[int]:
        return {silo for silo in self._exchange.nodes if silo in self._roster()}

    def _ask_key(self, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        return self._exchange(KEY_STAGE, requests)

    def _ask(self, requests: Mapping[int, bytes]) -> dict[int, int]:
        """Positions of the silos; of those that did not answer -1, until they are asked anew."""
        if not requests:
            return {}
        positions = dict.fromkeys(requests, -1)
        for silo, reply in self._exchange(FOLLOW_STAGE, requests):
            position = Position.read(reply)
            positions[silo], self._models[silo] = position.taken, position.model_hash
            self._last[silo] = position.last
        # Who refuses may have lost the key, too; it is asked before the next sum.
        self._keyed -= {silo for silo, taken in positions.items() if taken < 0}
        return positions

    def _note(self, positions: Mapping[int, int]) -> None:
        for silo, taken in positions.items():
            if taken < 0:
                self._taken.pop(silo, None)  # asked where it is before the next sum
            else:
                self._taken[silo] = taken

    def _kept(self, number: int) -> bytes:
        try:
            return self._path(number).read_bytes()
        except FileNotFoundError:
            raise ProtocolError(
                f"the opened sum {number} is not in {self._folder} any more: silos that missed it cannot go on"
            ) from None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.msgpack"
