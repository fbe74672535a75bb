"""Ours and its bounds, one call after the other in one process, for benchmarks/secagg.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from autoflip_secure.secagg.masking import masked_words
from autoflip_secure.secagg.prg import apply_masks
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.words import ContributionWords, FloatChannel

__all__ = ["coordinator_times", "encode_and_mask", "information_bytes", "keystreams", "masks_removed", "silo_times"]

BUFFER_BYTES = 1 << 16
CLEAR = memoryview(bytes(BUFFER_BYTES))
# Vectors to add up are distinct while they fit in so many bytes, and used in turn above it.
DISTINCT_BYTES = 3 << 30


def best_of(calls: dict[str, Callable[[], None]], seconds: float, least: int = 3, most: int = 40) -> dict[str, float]:
    """Least time of each call, s; they take turns, so that a slow moment of the machine hits all of them."""
    best = dict.fromkeys(calls, float("inf"))
    ends = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > ends:
            break
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def information_bytes(length: int, bits: int, silos: int) -> float:
    """Bytes that any encoding of a vector needs whose sum is to be exact: ceil(log2(n (2^bits - 1) + 1)) bits each."""
    return length * (silos * (2**bits - 1)).bit_length() / 8


def keystreams(words: int, masks: int) -> None:
    """Bare AES-256-CTR: `masks` keystreams of `words` 64-bit words into one preallocated buffer of 64 KB."""
    buffer = bytearray(BUFFER_BYTES)
    whole, rest = divmod(8 * words, BUFFER_BYTES)
    for _ in range(masks):
        update_into = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor().update_into
        for _ in range(whole):
            update_into(CLEAR, buffer)
        if rest:
            update_into(CLEAR[:rest], buffer)


def masks_removed(silos: int, dropped: int) -> int:
    """Masks the coordinator takes off a sum on the complete graph: one a survivor, and survivors for each dropped."""
    present = silos - dropped
    return present + dropped * present


def random_keys(masks: int) -> tuple[list[bytes], list[int]]:
    """Fresh keys, and signs that alternate."""
    return [os.urandom(32) for _ in range(masks)], [1 - 2 * (i % 2) for i in range(masks)]


def encode_and_mask(values: NDArray[np.float32], channel: ChannelSpec, silos: int, masks: int) -> None:
    """What a silo's masked words cost, without message, receipt and state; parts are thrown away as they come."""
    rounded = FloatChannel(values, SecretRandomness())
    source = ContributionWords({channel.name: rounded}, (channel,), silos)
    for _part in masked_words(source, *random_keys(masks)):
        pass


def silo_times(
    values: NDArray[np.float32], channel: ChannelSpec, silos: int, masks: int, seconds: float
) -> dict[str, float]:
    """encode_mask and keystream (the bound): one silo, `masks` masks, s."""
    words = word_count((channel,), silos)
    return best_of(
        {
            "encode_mask": lambda: encode_and_mask(values, channel, silos, masks),
            "keystream": lambda: keystreams(words, masks),
        },
        seconds,
    )


def coordinator_times(words: int, silos: int, dropped: int, seconds: float) -> dict[str, float]:
    """Adding up the vectors that arrived and taking all masks off, and nothing else; and its bounds, s.

    Returns
    -------
    dict
        arithmetic: `np.add` of each vector as it came plus `apply_masks`. sum: adding n vectors in place, n the size of
        the cohort. keystreams: n bare keystreams. all_keystreams: as many as masks have to come off.
    """
    present, masks = silos - dropped, masks_removed(silos, dropped)
    distinct = max(1, min(silos, DISTINCT_BYTES // (8 * words)))
    vectors = [np.full(words, silo, np.uint64) for silo in range(distinct)]
    total = np.zeros(words, np.uint64)

    def add(count: int) -> None:
        for turn in range(count):
            np.add(total, vectors[turn % distinct], out=total)

    def arithmetic() -> None:
        add(present)
        apply_masks(total, *random_keys(masks))

    calls: dict[str, Callable[[], None]] = {
        "arithmetic": arithmetic,
        "sum": lambda: add(silos),
        "keystreams": lambda: keystreams(words, silos),
    }
    if dropped:
        calls["all_keystreams"] = lambda: keystreams(words, masks)
    best = best_of(calls, seconds)
    return {"all_keystreams": best["keystreams"], **best}
