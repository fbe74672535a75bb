"""CKKS sums under one key that all clients share, as NVFlare sets TenSEAL up, for benchmarks/ckks.py.

What NVFlare does (nvflare/lighter/impl/he.py, nvflare/app_opt/he/): provisioning makes one TenSEAL context with
poly_modulus_degree 8192, coeff_mod_bit_sizes [60, 40, 40], scale 2^40, symmetric encryption and relinearisation keys,
gives it with the secret key to every client, and without to the server. A client multiplies each layer by its weight
and sends `ckks_vector(context, layer).serialize()`; the server adds the vectors up and multiplies the sum by one over
the sum of weights, which drops a prime; clients get the serialised encrypted aggregate and decrypt it. Here the model
is one layer, which wastes the least room in ciphertexts.

Trust: any client opens any ciphertext it sees; one client and the server together open everybody's.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tenseal as ts
from ckks_peaks import NoPeaks, Peaks
from numpy.typing import NDArray

__all__ = ["NVFLARE", "TUTORIAL", "Chain", "SharedKeyRound", "SharedKeySums"]

DEGREE = 8192
SCALE = 2.0**40
# Of an encrypted value at this degree and scale; far above it, so that only a wrong sum trips it.
LARGEST_ERROR = 1e-4


@dataclass(frozen=True)
class Chain:
    """A context and what is done under it.

    Attributes
    ----------
    sizes : tuple of int
        Bits of the primes, coeff_mod_bit_sizes; the last one is not sent.
    symmetric : bool
        Encrypt under the secret key instead of the public one.
    averaged : bool
        The server divides the sum by the number of clients.
    """

    name: str
    sizes: tuple[int, ...]
    symmetric: bool
    averaged: bool


NVFLARE = Chain("NVFlare's setting", (60, 40, 40), symmetric=True, averaged=True)
TUTORIAL = Chain("TenSEAL's tutorial", (60, 40, 40, 60), symmetric=False, averaged=False)


@dataclass
class SharedKeyRound:
    """Cost of one sum; lists are by client.

    Attributes
    ----------
    encrypt, add : list of float
        A client's ciphertexts and their serialisation; the server's reading and adding of them, s.
    finish : float
        The server's division and serialisation, s.
    decrypt : float
        A client's reading and decryption of the aggregate, s.
    encrypt_cpu, decrypt_cpu
        The same in CPU time.
    up : list of int
        Bytes a client sends.
    down : int
        Bytes of the encrypted aggregate.
    error : float
        Largest distance from the plain sum.
    """

    encrypt: list[float] = field(default_factory=list)
    add: list[float] = field(default_factory=list)
    finish: float = 0.0
    decrypt: float = 0.0
    encrypt_cpu: list[float] = field(default_factory=list)
    decrypt_cpu: float = 0.0
    up: list[int] = field(default_factory=list)
    down: int = 0
    error: float = 0.0


class SharedKeySums:
    """Clients that share one context, and a server that has it without the secret key."""

    def __init__(self, chain: Chain, peaks: Peaks | None = None) -> None:
        kinds = ts.ENCRYPTION_TYPE
        # One thread, as everything else here.
        self._client: Any = ts.context(
            ts.SCHEME_TYPE.CKKS,
            poly_modulus_degree=DEGREE,
            coeff_mod_bit_sizes=list(chain.sizes),
            encryption_type=kinds.SYMMETRIC if chain.symmetric else kinds.ASYMMETRIC,
            n_threads=1,
        )
        if chain.averaged:
            self._client.generate_relin_keys()
        self._client.global_scale = SCALE
        public = self._client.serialize(
            save_public_key=not chain.symmetric,
            save_secret_key=False,
            save_galois_keys=False,
            save_relin_keys=chain.averaged,
        )
        self._server: Any = ts.context_from(public, n_threads=1)
        self._chain, self._peaks = chain, NoPeaks() if peaks is None else peaks

    def sum(self, updates: Mapping[int, NDArray[np.float32]]) -> SharedKeyRound:
        """One sum.

        Raises
        ------
        ArithmeticError
            It is further from the plain sum than encryption explains.
        """
        # TenSEAL prints that a vector of several ciphertexts cannot be multiplied by a matrix.
        with contextlib.redirect_stdout(io.StringIO()):
            return self._sum(updates)

    def _sum(self, updates: Mapping[int, NDArray[np.float32]]) -> SharedKeyRound:
        done, peaks = SharedKeyRound(), self._peaks
        total: Any = None
        before = peaks.now()
        for update in updates.values():
            base = peaks.reset()
            cpu, began = time.process_time(), time.perf_counter()
            weighted = update * np.float64(1.0)
            upload = ts.ckks_vector(self._client, weighted).serialize()
            done.encrypt.append(time.perf_counter() - began)
            done.encrypt_cpu.append(time.process_time() - cpu)
            peaks.note("encrypt", base)
            done.up.append(len(upload))
            del weighted
            peaks.reset()
            began = time.perf_counter()
            vector = ts.ckks_vector_from(self._server, upload)
            total = vector if total is None else total + vector
            done.add.append(time.perf_counter() - began)
            peaks.note("coordinator", before)
            del upload, vector
        peaks.reset()
        began = time.perf_counter()
        aggregate = total * (1.0 / len(updates)) if self._chain.averaged else total
        download = aggregate.serialize()
        done.finish = time.perf_counter() - began
        peaks.note("coordinator", before)
        done.down = len(download)
        del total, aggregate
        base = peaks.reset()
        cpu, began = time.process_time(), time.perf_counter()
        values = ts.ckks_vector_from(self._client, download).decrypt()
        done.decrypt, done.decrypt_cpu = time.perf_counter() - began, time.process_time() - cpu
        peaks.note("decrypt", base)
        self._check(done, np.array(values), updates)
        return done

    def _check(
        self, done: SharedKeyRound, values: NDArray[np.float64], updates: Mapping[int, NDArray[np.float32]]
    ) -> None:
        plain = np.sum([update.astype(np.float64) for update in updates.values()], axis=0)
        found = values * len(updates) if self._chain.averaged else values
        done.error = float(np.abs(found - plain).max())
        if done.error > LARGEST_ERROR * len(updates):
            raise ArithmeticError(f"{self._chain.name}: the sum is off by {done.error}")
