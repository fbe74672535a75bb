"""The chain of secrets behind noise that can be removed: who knows a link computes all later ones, and no earlier one.

A silo draws the first link, its root, for every contribution. Noise that a sum needs only where k silos or more are
missing comes from link k. With d missing the silo reveals link d + 1: the receiver can draw the noise of k > d again
and take it out of the sum, while that of k <= d stays as unknown as before.
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from autoflip_secure.sums.randomness import SecretRandomness

__all__ = ["LINK_BYTES", "fresh_root", "later_link", "link_to_reveal", "noise_stream"]

LINK_BYTES = 32
LABEL = b"autoflip-secure/noise-chain/1"


def fresh_root() -> bytes:
    """Link 1 of a new chain, 32 bytes, for one contribution only."""
    return os.urandom(LINK_BYTES)


def later_link(link: bytes, steps: int) -> bytes:
    """The link `steps` further on, each HKDF-SHA256 of the one before; `steps` is not negative."""
    for _ in range(steps):
        link = _derive(link, b"next")
    return link


def noise_stream(link: bytes, channel: str) -> SecretRandomness:
    """Words of the noise that a link stands for in one channel."""
    return SecretRandomness(_derive(link, b"noise|" + channel.encode()))


def link_to_reveal(root: bytes, missing: int, most: int) -> bytes:
    """What a silo reveals of its chain: link `missing` + 1.

    Parameters
    ----------
    missing : int
        Silos of the cohort that are not in the sum.
    most : int
        The most that may be missing; the chain has as many links.

    Returns
    -------
    bytes, 32; empty where nothing is to be removed, as all noise is needed
    """
    return later_link(root, missing) if missing < most else b""


def _derive(link: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), LINK_BYTES, None, LABEL + b"|" + purpose).derive(link)
