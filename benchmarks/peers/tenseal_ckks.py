"""The CKKS sum of TenSEAL's tutorials: encrypt, serialise, add on the server, decrypt.

    python benchmarks/peers/tenseal_ckks.py [--clients 10] [--coordinates 1000000]

Context of the tutorials: poly_modulus_degree 8192, coeff_mod_bit_sizes [60, 40, 40, 60], global_scale 2^40; a vector
goes into chunks of 4096 slots, one `ckks_vector` each.

Trust. One secret key is held by all clients and not by the server. A client that sees another's ciphertext, or hands
the key to the server, opens that client's vector; there is no threshold. Clients that drop out cost nothing: the server
adds the ciphertexts it has. The sum is approximate.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
import tenseal as ts
from numpy.typing import NDArray
from peer_round import PeerRound, run_and_print

SLOTS = 4096
# The error of a fresh ciphertext at scale 2^40 and degree 8192 is far below this; it grows with the number of clients.
STEP = 1e-6


def shared_context() -> ts.Context:
    """Context with the secret key, which every client holds."""
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
    context.global_scale = 2**40
    return context


def public_part(context: ts.Context) -> ts.Context:
    """What the server gets: the same context without the secret key."""
    return ts.context_from(context.serialize(save_secret_key=False))


def encrypt(context: ts.Context, update: NDArray[np.float32]) -> list[bytes]:
    """Serialised ciphertexts of a float32 vector of shape (d,), one a chunk of 4096 coordinates."""
    return [
        ts.ckks_vector(context, update[start : start + SLOTS].tolist()).serialize()
        for start in range(0, update.size, SLOTS)
    ]


def add_to(total: list[ts.CKKSVector], server: ts.Context, upload: list[bytes]) -> list[ts.CKKSVector]:
    """Running sum after one more upload; without the secret key."""
    vectors = [ts.ckks_vector_from(server, data) for data in upload]
    if not total:
        return vectors
    for one, other in zip(total, vectors, strict=True):
        one += other
    return total


def run_round(updates: dict[int, NDArray[np.float32]], *, dropped: tuple[int, ...] = ()) -> PeerRound:
    """One round; `dropped` clients send nothing. Each client decrypts the sum, timed once.

    Parameters
    ----------
    updates : dict of int to float32 array, shape (d,)
    dropped : tuple of int
    """
    context = shared_context()
    server = public_part(context)
    summed = tuple(client for client in sorted(updates) if client not in dropped)
    total: list[ts.CKKSVector] = []
    encrypting, adding, sizes = [], 0.0, []
    for client in summed:
        began = time.perf_counter()
        upload = encrypt(context, updates[client])
        encrypting.append(time.perf_counter() - began)
        sizes.append(sum(map(len, upload)))
        began = time.perf_counter()
        total = add_to(total, server, upload)
        adding += time.perf_counter() - began
    began = time.perf_counter()
    download = [vector.serialize() for vector in total]
    adding += time.perf_counter() - began
    began = time.perf_counter()
    opened = [ts.ckks_vector_from(context, data).decrypt() for data in download]
    decrypting = time.perf_counter() - began
    size = round(np.mean(sizes))
    return PeerRound(
        f"TenSEAL {version('tenseal')} CKKS",
        len(updates),
        updates[1].size,
        {"encrypt": float(np.mean(encrypting)), "decrypt": decrypting},
        {"add": adding},
        size,
        size,
        np.concatenate(opened),
        summed,
        STEP * len(summed),
    )


if __name__ == "__main__":
    run_and_print(__doc__, run_round)
