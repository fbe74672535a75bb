"""Polynomials that follow from a key: the common reference a of a sum, and the masks two silos share.

Both are uniform: words of AES-256-CTR, cut to the modulus' bits, those not below the modulus left out.
"""

from __future__ import annotations

import struct

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from autoflip_secure.ckks.parameters import DEGREE
from autoflip_secure.ckks.ring import Ring
from autoflip_secure.parties.agreement import Agreement, pair_sign
from autoflip_secure.parties.wire import KEY_BYTES
from autoflip_secure.sums.randomness import SecretRandomness

__all__ = ["LABEL", "UniformPolynomials", "masked_key", "pair_key", "reference_key"]

LABEL = b"autoflip-secure/ckks/1"
Words = NDArray[np.uint64]


class UniformPolynomials:
    """A stream of uniform polynomials of a ring.

    Parameters
    ----------
    ring : Ring
    key : bytes, 32
        Used for this stream only.
    """

    def __init__(self, ring: Ring, key: bytes) -> None:
        self._ring, self._words = ring, SecretRandomness(key)

    def next(self, count: int) -> Words:
        """The next `count` polynomials, shape (count, N)."""
        mask, missing, parts = np.uint64((1 << self._ring.bits) - 1), count * DEGREE, [np.empty(0, np.uint64)]
        while missing:
            drawn = self._words.words(missing) & mask
            parts.append(drawn[drawn < self._ring.modulus])
            missing -= parts[-1].size
        return np.concatenate(parts).reshape(count, DEGREE)


def reference_key(digest: bytes, cohort: int, bits: int) -> bytes:
    """Key of the public polynomials a of one cohort's sum.

    It is derived from the digest of the manifest, which names session, epoch keys and slot: no two sums have the same
    a, and nobody can choose it.
    """
    return _derive(digest, b"", b"reference", struct.pack(">II", cohort, bits))


def pair_key(agreement: Agreement, public: bytes, opening: bytes, silo: int, peer: int, bits: int) -> bytes:
    """Key of the mask that two silos' key shares carry when they open one sum.

    Parameters
    ----------
    agreement : Agreement
        Of `silo`, with the key it advertised.
    public : bytes, 32
        Key that `peer` advertised.
    opening : bytes, 32
        Digest of what is opened: manifest, cohort and who is in the sum. Silos that were told different things have
        masks that do not cancel.
    """
    low, high = min(silo, peer), max(silo, peer)
    return _derive(agreement.with_peer(public), opening, b"key mask", struct.pack(">III", low, high, bits))


def masked_key(
    ring: Ring, words: Words, agreement: Agreement, publics: dict[int, bytes], opening: bytes, silo: int
) -> Words:
    """A silo's key share for one opening: its key plus the masks it shares with all others of the sum, shape (N,).

    The masks of all silos add up to zero, so the shares of a sum add up to its silos' keys; fewer are uniform.

    Parameters
    ----------
    words : uint64 array, shape (N,)
        The silo's secret key.
    publics : dict of int to bytes
        Advertised keys of all other silos of the sum.
    """
    total = words
    for peer, public in publics.items():
        key = pair_key(agreement, public, opening, silo, peer, ring.bits)
        mask = UniformPolynomials(ring, key).next(1)[0]
        total = ring.add(total, mask) if pair_sign(silo, peer) > 0 else ring.subtract(total, mask)
    return total


def _derive(secret: bytes, salt: bytes, label: bytes, context: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, LABEL + b"|" + label + b"|" + context).derive(secret)
