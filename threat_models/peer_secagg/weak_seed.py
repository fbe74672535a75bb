"""How many bits a mask of Flower's SecAgg+ has, and one client's update found by trying them.

    python threat_models/peer_secagg/weak_seed.py [--pair-bits 28] [--private-bits 26]

Every client is a real ClientApp with `secaggplus_mod` of the installed flwr, and the server follows the protocol to the
letter. It then goes through seeds. What it knows of the plaintext is one coordinate: the weight of the client, which
Flower puts in front of the masked vector and also sends in the clear.

With fewer bits than the whole space, the part that is searched is chosen to hold the right seed, which only the script
knows; the time for the whole space is then extrapolated from the rate.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import flower_clients as flower
import numpy as np
import seed_search as search
from flower_clients import MODULUS, TARGET, FlowerClient, ServerView, Vector
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_STATE
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key, generate_key_pairs


@dataclass(frozen=True)
class Found:
    """A search: how much was tried, how long it took, and how the opened vector compares with the client's own."""

    tried: int
    seconds: float
    exact: bool
    distance: float
    step: float

    @property
    def rate(self) -> float:
        """Seeds a second."""
        return self.tried / self.seconds


def equal_masks() -> tuple[bytes, bytes]:
    """Two different 32-byte seeds that give one mask: the second has two words swapped."""
    one = os.urandom(32)
    other = one[4:8] + one[:4] + one[8:]
    mask, same = (pseudo_rand_gen(seed, MODULUS, [(1000,)])[0] for seed in (one, other))
    assert np.array_equal(mask, same)
    return one, other


def bits_ever_set(samples: int) -> tuple[int, int]:
    """OR of the folded private seeds and of the folded pair seeds of `samples` honest key agreements."""
    private = pair = 0
    key, _ = generate_key_pairs()
    for _ in range(samples):
        private |= search.fold(os.urandom(32))
        pair |= search.fold(generate_shared_key(key, generate_key_pairs()[1]))
    return private, pair


def plausible(opened: Vector) -> bool:
    """Whether every value lies on Flower's grid; a wrong mask passes with probability 2^-10 a coordinate."""
    return all(array.min() >= 0 and array.max() <= TARGET for array in opened)


def try_seeds(
    rest: Vector,
    sign: int,
    view: ServerView,
    victim: FlowerClient,
    space: Callable[[np.ndarray], np.ndarray],
    start: int,
    stop: int,
) -> Found:
    """Open a vector that has one mask left, `rest = vector + sign * mask`."""
    weight = flower.quantised_weight(view.examples[victim.node])
    known = sign * (int(rest[0][0]) - weight) % MODULUS
    began, tried, opened = time.perf_counter(), 0, rest
    for low in range(start, stop, 1 << search.BATCH_BITS):
        high = min(low + (1 << search.BATCH_BITS), stop)
        tried += high - low
        for seed in search.candidates(known, space, low, high):
            mask = flower.mask_of(seed.to_bytes(4, "little"), rest)
            trial = flower.minus(rest, [sign * array for array in mask])
            opened = trial if plausible(trial) else opened
    return Found(tried, time.perf_counter() - began, *flower.compare(opened, victim), flower.grid_step(opened))


def window(index: int, bits: int, whole: int) -> tuple[int, int]:
    """Aligned part of 2^bits indices around `index`; the whole space where bits reaches it."""
    bits = min(bits, whole)
    start = index >> bits << bits
    return start, start + (1 << bits)


def pair_seed_search(bits: int) -> Found:
    """Three clients, threshold 2; client 3 colludes, below the threshold. Of clients 1 and 2 only the sum should show.

    The server takes off client 1's own mask, as in every round, and the mask it shares with client 3, which client 3
    knows. The mask shared with client 2 is left.
    """
    clients = {node: FlowerClient(node) for node in (1, 2, 3)}
    view = flower.collect_masked(clients, 2)
    shares = flower.unmask(clients, lambda node: ((1, 2, 3), ()))
    masked = view.masked[1]
    own = flower.mask_of(flower.recovered(shares["seed", 1]), masked)
    colluder = private_key(clients[3])
    with_colluder = [-array for array in flower.pair_mask(colluder, 3, 1, view.keys, masked)]
    rest = flower.minus(masked, own, with_colluder)
    seed = generate_shared_key(bytes_to_private_key(private_key(clients[1])), bytes_to_public_key(view.keys[2][0]))
    part = window(search.index_of_pair_seed(search.fold(seed)), bits, search.PAIR_BITS)
    return try_seeds(rest, -1, view, clients[1], search.pair_seed, *part)


def private_seed_search(bits: int) -> Found:
    """Five clients, threshold 4, nobody colludes; client 5's vector comes in after it was counted as dropped.

    The others reveal its pair key, as they must to finish the round. Its own mask is there to cover just this case.
    """
    clients = {node: FlowerClient(node) for node in range(1, 6)}
    view = flower.collect_masked(clients, 4)
    active = {node: clients[node] for node in (1, 2, 3, 4)}
    shares = flower.unmask(active, lambda node: ((1, 2, 3, 4), (5,)))
    private = flower.recovered(shares["key", 5])
    masked = view.masked[5]
    rest = flower.minus(masked, *(flower.pair_mask(private, 5, peer, view.keys, masked) for peer in active))
    part = window(search.fold(state_of(clients[5], "rd_seed")), bits, search.PRIVATE_BITS)
    return try_seeds(rest, 1, view, clients[5], search.private_seed, *part)


def private_key(client: FlowerClient) -> bytes:
    """A client's own mask key: for the colluder, who hands it over, and to choose the part of a partial search."""
    return state_of(client, "sk1")


def state_of(client: FlowerClient, name: str) -> bytes:
    """A secret in a client's own Context."""
    value = client.context.state.config_records[RECORD_KEY_STATE][name]
    assert isinstance(value, bytes)
    return value


def describe(name: str, found: Found, whole: int) -> str:
    """Two lines."""
    seconds = (1 << whole) / found.rate
    remark = "the whole space" if found.tried == 1 << whole else f"the whole space, extrapolated: {seconds:.0f} s"
    return (
        f"{name}: 2^{found.tried.bit_length() - 1} of 2^{whole} seeds tried in {found.seconds:.1f} s, "
        f"{found.rate / 1e6:.1f} million a second ({remark})\n"
        f"  quantised update {'equal' if found.exact else 'DIFFERENT'}, "
        f"error {found.distance:.1e} (grid {found.step:.1e})"
    )


def main() -> None:
    """Print the facts and both searches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair-bits", type=int, default=search.PAIR_BITS)
    parser.add_argument("--private-bits", type=int, default=26)
    arguments = parser.parse_args()
    print(f"flwr {version('flwr')}, numpy {version('numpy')}, one core")
    one, other = equal_masks()
    print(f"equal masks from {one.hex()[:16]}... and {other.hex()[:16]}...")
    private, pair = bits_ever_set(300)
    print(f"bits ever set in 300 folded seeds: private {private:#010x} ({private.bit_count()}), ", end="")
    print(f"pair {pair:#010x} ({pair.bit_count()})")
    print(describe("pair seed", pair_seed_search(arguments.pair_bits), search.PAIR_BITS), flush=True)
    print(describe("private seed", private_seed_search(arguments.private_bits), search.PRIVATE_BITS))


if __name__ == "__main__":
    main()
