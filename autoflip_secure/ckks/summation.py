"""The three computations of a sum: a silo encrypts, a silo opens in part, the coordinator puts the parts together.

All polynomials are their NTT words; a is the common reference, s a silo's key, sigma its masked key.

    c     = -(a s + e) + encode(values)                   one silo's ciphertext
    p     = a sigma + encode(smudging) - e'               its part of the opening
    sum c + sum p = encode(sum of values) + noise         since the sigma of a sum add up to its silos' s
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.ckks.parameters import DEGREE, SAFETY, CkksParameters
from autoflip_secure.ckks.ring import Ring, SecretKey
from autoflip_secure.errors import Abort
from autoflip_secure.sums.gaussian import secure_gaussian
from autoflip_secure.sums.randomness import Randomness

__all__ = ["encrypt", "open_part", "read_sum"]

Words = NDArray[np.uint64]
FAR_OFF = 0.5 * 8.0 / SAFETY
"""Residue that no honest sum shows: eight standard deviations of its noise, of the nine that half a step has."""


def encrypt(
    ring: Ring, parameters: CkksParameters, key: SecretKey, reference: Words, rows: NDArray[np.float64]
) -> Words:
    """Ciphertexts of rows of values under the common reference, shape (rows, N).

    SEAL encrypts under an a of its own; going over to the common one is linear: c + (own - common) s.

    Parameters
    ----------
    reference : uint64 array, shape (rows, N)
        Never used with this key before.
    rows : float64 array, shape (rows, N)
    """
    cipher, own = ring.encrypted(key, rows, parameters.scale)
    return ring.add(cipher, ring.multiply(ring.subtract(own, reference), key.words))


def open_part(
    ring: Ring,
    parameters: CkksParameters,
    key: SecretKey,
    share: Words,
    reference: Words,
    randomness: Randomness,
) -> Words:
    """A silo's part of the opening of a sum, shape (rows, N): the reference times its masked key, drowned in noise.

    Parameters
    ----------
    share : uint64 array, shape (N,)
        See `reference.masked_key`.
    randomness : Randomness
        Source of the smudging noise; secret.
    """
    smudging = secure_gaussian(reference.size, parameters.smudging, randomness).reshape(-1, DEGREE)
    cipher, own = ring.encrypted(key, smudging, parameters.scale)
    noise = ring.add(cipher, ring.multiply(own, key.words))
    return ring.add(ring.multiply(reference, share), noise)


def read_sum(ring: Ring, parameters: CkksParameters, opened: Words) -> NDArray[np.int64]:
    """Whole numbers of the sum of all ciphertexts and all parts, shape (rows * N,): nothing finer ever leaves here.

    Raises
    ------
    Abort
        What was opened is no sum of whole numbers within their fields: a part is missing, of something else, or wrong.
    """
    values = ring.decoded(opened, parameters.scale).reshape(-1)
    whole = np.rint(values)
    if np.abs(values - whole).max() > FAR_OFF or np.abs(whole).max() >= 2.0 ** (parameters.width + 1):
        raise Abort(
            "the parts of the opening do not fit the ciphertexts: a silo sent a wrong one, or worked on another sum; "
            "the model is unchanged, try again with new keys",
            stage="open",
        )
    return whole.astype(np.int64)
