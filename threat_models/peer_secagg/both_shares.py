"""One client's update, read by a server that asks Flower's SecAgg+ clients for both kinds of its shares.

    python threat_models/peer_secagg/both_shares.py

Runs against the installed flwr; every client is a real ClientApp with `secaggplus_mod`. All stages but the last are
those of an honest round. The server uses the clients' replies and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import flower_clients as flower
import numpy as np
from flower_clients import FlowerClient, ServerView, Vector

Shares = dict[tuple[str, int], list[bytes]]


@dataclass(frozen=True)
class Outcome:
    """What the attack gave: shares of each kind, and how the opened vector compares with the client's own."""

    seed_shares: int
    key_shares: int
    exact: bool
    distance: float
    step: float
    sum_exact: bool


def open_victim(view: ServerView, victim: int, shares: Shares) -> Vector:
    """The victim's vector without masks."""
    masked = view.masked[victim]
    private = flower.recovered(shares["key", victim])
    peers = [node for node in view.masked if node != victim]
    pair_masks = [flower.pair_mask(private, victim, peer, view.keys, masked) for peer in peers]
    own_mask = flower.mask_of(flower.recovered(shares["seed", victim]), masked)
    return flower.minus(masked, own_mask, *pair_masks)


def sum_is_exact(view: ServerView, clients: dict[int, FlowerClient], shares: Shares) -> bool:
    """Whether the honest sum comes out of the same answers, so that the round ends as usual."""
    zeros = [np.zeros_like(array) for array in view.masked[1]]
    total = [sum((view.masked[node][i] for node in clients), array) for i, array in enumerate(zeros)]
    own_masks = [flower.mask_of(flower.recovered(shares["seed", node]), zeros) for node in clients]
    opened = flower.minus(total, *own_masks)
    return all(
        np.array_equal(array, sum(client.quantised[i] for client in clients.values()))
        for i, array in enumerate(opened[1:])
    )


def attack(n: int, threshold: int, victim: int, *, one_request: bool) -> Outcome:
    """One round of n clients.

    Parameters
    ----------
    one_request : bool
        True: every client is told that the victim is both active and dead. False: the first half of the clients is told
        that it is active, the others that it is dead; this takes n >= 2 * threshold.
    """
    clients = {node: FlowerClient(node) for node in range(1, n + 1)}
    view = flower.collect_masked(clients, threshold)
    everybody = list(clients)
    others = [node for node in everybody if node != victim]

    def lists(node: int) -> tuple[list[int], list[int]]:
        if one_request:
            return everybody, [victim]
        return (everybody, []) if node <= n // 2 else (others, [victim])

    shares = flower.unmask(clients, lists)
    opened = open_victim(view, victim, shares)
    exact, distance = flower.compare(opened, clients[victim])
    return Outcome(
        len(shares["seed", victim]),
        len(shares["key", victim]),
        exact,
        distance,
        flower.grid_step(opened),
        sum_is_exact(view, clients, shares),
    )


def main() -> None:
    """Print one line a setting."""
    print(f"flwr {version('flwr')}, secaggplus_mod, complete graph, victim: client 2")
    print(" n   t  clients are told of the victim   seed, key shares  quantised update  error (grid)       sum of all")
    for n, threshold, one_request in ((5, 4, True), (10, 7, True), (10, 10, True), (10, 5, False)):
        done = attack(n, threshold, 2, one_request=one_request)
        told = "active and dead, in one message" if one_request else "active to half, dead to half"
        print(
            f"{n:2}  {threshold:2}  {told:31}  {done.seed_shares:7}, {done.key_shares:7}  "
            f"{'equal' if done.exact else 'DIFFERENT':16}  {done.distance:.1e} ({done.step:.1e})  "
            f"{'correct' if done.sum_exact else 'wrong'}"
        )


if __name__ == "__main__":
    main()
