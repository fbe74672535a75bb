"""What the time of a CKKS sum is spent on: its inner computations by themselves, for benchmarks/ckks.py."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from blake3 import blake3
from ckks_rows import BITS, SLOTS
from numpy.typing import NDArray
from secagg_bounds import encode_and_mask
from secagg_federation import KeyedRandomness, silo_values, update_channel

from autoflip_secure.ckks.packing import from_bytes, rows_of, to_bytes, words_of
from autoflip_secure.ckks.parameters import DEGREE, parameters_for
from autoflip_secure.ckks.reference import UniformPolynomials, masked_key
from autoflip_secure.ckks.ring import Ring, ring
from autoflip_secure.ckks.silo import BATCH
from autoflip_secure.parties.agreement import Agreement, fresh_key, public_key
from autoflip_secure.sums.gaussian import secure_gaussian
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.words import ContributionWords, FloatChannel, all_words

__all__ = ["measure_parts"]

Words = NDArray[np.uint64]


class Parts:
    """Everything one silo and the coordinator compute in a sum, step by step, on `values` values of `silos` silos."""

    def __init__(self, values: int, silos: int, seed: int) -> None:
        self._channels, self._silos = (update_channel(values, BITS),), silos
        self._values, self._seed = silo_values(seed, 1, values), seed
        self.chosen = parameters_for(self._channels, silos)
        self._ring: Ring = ring(self.chosen.modulus_bits)
        self._key = self._ring.fresh_key()
        self._agreement = Agreement(fresh_key())
        self._publics = {silo: public_key(fresh_key()) for silo in range(2, silos + 1)}
        self._words = self._make_words()
        self._rows = self._make_rows()
        self._polynomials = len(self._rows)
        self._reference = UniformPolynomials(self._ring, os.urandom(32)).next(min(BATCH, self._polynomials))
        self._cipher = self._ring.encrypted(self._key, self._rows[: len(self._reference)], self.chosen.scale)[0]
        self._sent = to_bytes(np.resize(self._cipher, self._rows.shape), self.chosen.coefficient_bytes)
        self._total = np.zeros(self._rows.size, np.uint64)
        # One silo's clear encoding: a sum that reads as whole numbers.
        cipher, own = self._ring.encrypted(self._key, self._rows, self.chosen.scale)
        self._opened = self._ring.add(cipher, self._ring.multiply(own, self._key.words))

    def calls(self) -> dict[tuple[str, str], Callable[[], object]]:
        """By who and what; stages encrypt and open of a silo, the coordinator's work on one reply, and its reading."""
        scale, lattice, key = self.chosen.scale, self._ring, self._key
        smudging = secure_gaussian(self._rows.size, self.chosen.smudging, SecretRandomness()).reshape(-1, DEGREE)
        return {
            ("encrypt", "rounding, packing into words"): self._make_words,
            ("encrypt", "words to rows of values"): self._make_rows,
            ("encrypt", "SEAL: lattice key of this sum"): lattice.fresh_key,
            ("encrypt", "common reference a (AES-256-CTR)"): self._references,
            ("encrypt", "SEAL: encode, encrypt, words out"): self._batches(
                lambda start, stop: lattice.encrypted(key, self._rows[start:stop], scale)
            ),
            ("encrypt", "going over to a: one product, two sums"): self._batches(self._go_over),
            ("encrypt", "coefficients to bytes, BLAKE3"): self._serialise,
            ("open", "SEAL: lattice key as it was kept"): lambda: lattice.key_from(key.words),
            ("open", "masked key: agreements and masks"): self.mask_key,
            ("open", "common reference a (AES-256-CTR)"): self._references,
            ("open", "Gaussian smudging from secret words"): self._batches(self._smudge),
            ("open", "SEAL: encode, encrypt, words out"): self._batches(
                lambda start, stop: lattice.encrypted(key, smudging[start:stop], scale)
            ),
            ("open", "two products, two sums"): self._batches(self._put_together),
            ("open", "coefficients to bytes, BLAKE3"): self._serialise,
            ("a silo's reply", "BLAKE3"): lambda: blake3(self._sent).digest(),
            ("a silo's reply", "bytes to coefficients, range check"): self._receive,
            ("a silo's reply", "adding"): lambda: lattice.add(self._total, self._opened.reshape(-1)),
            ("reading the sum", "SEAL: decode"): lambda: lattice.decoded(self._opened, scale),
            ("reading the sum", "values to words"): self._read_words,
        }

    def mask_key(self) -> None:
        """What grows with the number of silos."""
        masked_key(self._ring, self._key.words, self._agreement, self._publics, bytes(32), 1)

    def _batches(self, work: Callable[[int, int], object]) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, self._polynomials, BATCH):
                work(start, min(start + BATCH, self._polynomials))

        return run

    def _make_words(self) -> Words:
        rounded = FloatChannel(self._values, KeyedRandomness(self._seed, 1))
        return all_words(ContributionWords({self._channels[0].name: rounded}, self._channels, self._silos))

    def _make_rows(self) -> NDArray[np.float64]:
        return rows_of(self._words, self._channels, self._silos)

    def _references(self) -> None:
        stream = UniformPolynomials(self._ring, os.urandom(32))
        self._batches(lambda start, stop: stream.next(stop - start))()

    def _go_over(self, start: int, stop: int) -> None:
        lattice, a, c = self._ring, self._reference[: stop - start], self._cipher[: stop - start]
        lattice.add(c, lattice.multiply(lattice.subtract(c, a), self._key.words))

    def _put_together(self, start: int, stop: int) -> None:
        lattice, a, c = self._ring, self._reference[: stop - start], self._cipher[: stop - start]
        lattice.add(lattice.multiply(a, self._key.words), lattice.add(c, lattice.multiply(c, self._key.words)))

    def _smudge(self, start: int, stop: int) -> None:
        secure_gaussian((stop - start) * DEGREE, self.chosen.smudging, SecretRandomness())

    def _serialise(self) -> None:
        hashed, width = blake3(), self.chosen.coefficient_bytes
        self._batches(lambda start, stop: hashed.update(to_bytes(self._cipher[: stop - start], width)))()
        hashed.digest()

    def _receive(self) -> None:
        self._ring.checked(from_bytes(self._sent, self.chosen.coefficient_bytes))

    def _read_words(self) -> None:
        words_of(np.zeros(self._rows.size, np.int64), self._channels, self._silos)


def measure_parts(values: int, silos: int, most: int, seed: int, turns: int) -> dict[str, Any]:
    """Median seconds of each computation over so many turns, of making keys, and of what the masked path does instead.

    Parameters
    ----------
    most : int
        Silos for which the masked key is measured too.
    """
    made = Parts(values, silos, seed)
    calls = made.calls()
    if most > silos:
        calls["open", f"masked key at n = {most} instead"] = Parts(1, most, seed).mask_key
    clear, channel = silo_values(seed, 1, values), update_channel(values, BITS)
    calls["masked path", "encode and mask"] = lambda: encode_and_mask(clear, channel, silos, silos)
    calls["key set-up", f"X25519 keys of {SLOTS} sums"] = lambda: [public_key(fresh_key()) for _ in range(SLOTS)]
    taken: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - began)
    return {
        "silos": silos,
        "most": most,
        "values": values,
        "turns": turns,
        "modulus_bits": made.chosen.modulus_bits,
        "parts": [{"of": of, "what": what, "seconds": statistics.median(t)} for (of, what), t in taken.items()],
    }
