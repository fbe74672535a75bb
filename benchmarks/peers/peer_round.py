"""What every peer driver reports about one summation."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PeerRound", "random_updates", "run_and_print"]


@dataclass(frozen=True)
class PeerRound:
    """Cost and result of one round.

    Attributes
    ----------
    peer : str
        Method and version.
    clients, coordinates : int
        n and d.
    client_seconds : dict of str to float
        By stage, mean over the clients that ran the stage.
    server_seconds : dict of str to float
        By stage.
    contribution_bytes : int
        What one client uploads in the stage that carries its vector, mean, bytes.
    upload_bytes : int
        What one client uploads in all stages, mean over the clients that ran them all, bytes.
    total : float64 array, shape (d,)
        Sum over the clients in `summed`, as the server or, with CKKS, the holders of the key get it.
    summed : tuple of int
        Clients whose vectors are in `total`, ascending, counted from 1.
    step : float
        Largest error per coordinate that the method's own encoding explains, in units of the updates.
    """

    peer: str
    clients: int
    coordinates: int
    client_seconds: dict[str, float]
    server_seconds: dict[str, float]
    contribution_bytes: int
    upload_bytes: int
    total: NDArray[np.float64]
    summed: tuple[int, ...]
    step: float

    def error(self, updates: dict[int, NDArray[np.float32]]) -> float:
        """Largest distance, over coordinates, from the plain float64 sum of the same clients."""
        plain = np.zeros(self.coordinates)
        for client in self.summed:
            plain += updates[client]
        return float(np.abs(self.total - plain).max())

    def line(self) -> str:
        """One line of figures."""
        return (
            f"{self.peer}: n = {self.clients}, d = {self.coordinates}, "
            f"client {sum(self.client_seconds.values()):.3f} s, server {sum(self.server_seconds.values()):.3f} s, "
            f"contribution {self.contribution_bytes / self.coordinates:.2f} bytes a coordinate, "
            f"upload {self.upload_bytes} bytes a client"
        )


def random_updates(clients: int, coordinates: int, seed: int = 0) -> dict[int, NDArray[np.float32]]:
    """Vectors within [-1, 1) for clients 1..n, float32 of shape (d,); test data, not secrets."""
    random = np.random.default_rng(seed)
    return {client: random.uniform(-1, 1, coordinates).astype(np.float32) for client in range(1, clients + 1)}


def run_and_print(description: str, run_round: Callable[[dict[int, NDArray[np.float32]]], PeerRound]) -> None:
    """A peer's command line: run one round and print its figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    arguments = parser.parse_args()
    updates = random_updates(arguments.clients, arguments.coordinates)
    done = run_round(updates)
    print(done.line())
    print(f"client seconds: {done.client_seconds}, server seconds: {done.server_seconds}")
    print(f"largest error {done.error(updates):.3g}")
