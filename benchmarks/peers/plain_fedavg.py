"""Plain FedAvg: float32 vectors in the clear, the lower end of every cost.

    python benchmarks/peers/plain_fedavg.py [--clients 10] [--coordinates 1000000]

An upload is the 4 d bytes of the vector; the server reads and adds. No protection: the server sees every vector.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from peer_round import PeerRound, run_and_print


def run_round(updates: dict[int, NDArray[np.float32]], *, dropped: tuple[int, ...] = ()) -> PeerRound:
    """One round; `dropped` clients send nothing.

    Parameters
    ----------
    updates : dict of int to float32 array, shape (d,)
    dropped : tuple of int
    """
    summed = tuple(client for client in sorted(updates) if client not in dropped)
    began = time.perf_counter()
    uploads = [updates[client].tobytes() for client in summed]
    sending = (time.perf_counter() - began) / len(summed)
    began = time.perf_counter()
    total = np.zeros(updates[1].size, np.float32)
    for upload in uploads:
        total += np.frombuffer(upload, np.float32)
    adding = time.perf_counter() - began
    size = len(uploads[0])
    return PeerRound(
        "plain FedAvg, float32",
        len(updates),
        total.size,
        {"serialise": sending},
        {"add": adding},
        size,
        size,
        total.astype(np.float64),
        summed,
        # n - 1 roundings of partial sums below n times the largest value.
        float(np.finfo(np.float32).eps * len(summed) ** 2 * max(np.abs(update).max() for update in updates.values())),
    )


if __name__ == "__main__":
    run_and_print(__doc__, run_round)
