"""A tag at the end of a contribution, by which silos that share a key tell whether a sum is what they sent.

The tag is a linear one-time MAC. Tags add up inside the secure sum as all words do, and who has the key checks the
tag of a sum against the sum itself. With the run key K, unknown to whoever opens the sum, a manifest's digest D, and
words x of shape (m,), all modulo 2^64:

    a = first m + 63 words of the keystream of HKDF(K, salt = D, info = label | "tag hash")
    h_j(x) = sum over k of a[k + j] x[k],  j = 0..63
    b_{c,i} = first 64 words of the keystream of HKDF(K, salt = D, info = label | "tag pad" | cohort | silo)
    tag of silo i in cohort c: h(x) + b_{c,i}

The sum over survivors S of cohort c holds iff its tag is h(the sum) + sum over S of b_{c,i}.

The 64 rows are what a change of few bits needs, as Z_2^64 is a ring. Any change of the words is 2^v e with an odd entry
in e, and one row misses it with probability 2^-(64 - v): a half where only top bits change. Modulo 2^(v + 1) the rows
are a Toeplitz hash over GF(2) of where e is odd (Krawczyk, LFSR-based hashing and authentication, 1994). At the last
such place k row j meets a[k + j], which no earlier row does, so the rows err independently, and a forgery passes with
probability 2^-64 at most. The pads (Wegman and Carter, 1981) hide a, as every word of a tag has one of its own. They
also tie a tag to its cohort and its silos: the pads of two sets of silos are independent, but not those of a list
that counts a silo twice, which therefore never holds.

A tag is the sum's words and keys put together, so it tells nothing beyond the sum.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from autoflip_secure.sums.channels import TAG_CHANNEL, ChannelSpec
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.words import RANGE_WORDS, WordSource, WordsWithTail

__all__ = ["TAG_WORDS", "TaggedWords", "tag_holds", "tag_spec"]

TAG_WORDS = 64
KEY_BYTES = 32
LABEL = b"autoflip-secure/tag/1"


def tag_spec(more: int = 0) -> ChannelSpec:
    """The place of a tag, and of so many further words before it, in a manifest: after all other channels.

    With 32 bits a silo, a field for two silos or more is wider than half a word: each word of the tag is one
    coordinate. Its words are uniform modulo 2^64, and are never decoded.
    """
    return ChannelSpec(TAG_CHANNEL, more + TAG_WORDS, 32, 1.0)


class TaggedWords(WordsWithTail):
    """The words of a source, and then their tag (see the module), as one source.

    Each range is hashed as it is handed out, so memory does not grow with the vector.

    Parameters
    ----------
    source : WordSource
        Its errors pass through.
    key : bytes, 32
        The run key.
    digest : bytes, 32
        Of the manifest. With one digest a silo tags one contribution only: of two, the difference of the tags would
        show the hash.
    cohort, silo : int
        Index of the silo's cohort in the manifest, and its id; both below 2^32.

    Raises
    ------
    ValueError
        A key of another length.
    """

    def __init__(self, source: WordSource, key: bytes, digest: bytes, cohort: int, silo: int) -> None:
        super().__init__(source, TAG_WORDS)
        self._hash = _RunningHash(key, digest, source.size)
        self._pad = _pad(key, digest, cohort, silo)

    def _pass(self, words: NDArray[np.uint64]) -> None:
        self._hash.add(words)

    def _tail(self) -> NDArray[np.uint64]:
        return self._hash.value + self._pad


def tag_holds(words: NDArray[np.uint64], key: bytes, digest: bytes, cohort: int, silos: Sequence[int]) -> bool:
    """Whether a sum is that of what the silos of a cohort sent to be summed.

    A silo that has the key can make any sum hold, and that all silos named are in the cohort is for the caller to see
    to.

    Parameters
    ----------
    words : uint64 array, shape (m + 64,)
        The opened sum, its tag at the end, before noise is removed from it.
    key, digest, cohort
        As for `TaggedWords`.
    silos : sequence of int
        Ids of those in the sum, in any order.

    Returns
    -------
    bool
        False too where the words are too short for a tag, a silo is named twice, or none is: 0 is the sum of none.

    Raises
    ------
    ValueError
        A key of another length.
    """
    running = _RunningHash(key, digest, max(words.size - TAG_WORDS, 0))
    if not silos or len(set(silos)) < len(silos):
        return False
    running.add(words[:-TAG_WORDS])
    expected = running.value
    for silo in silos:
        expected += _pad(key, digest, cohort, silo)
    return hmac.compare_digest(expected.tobytes(), words[-TAG_WORDS:].tobytes())


class _RunningHash:
    """h of all words added so far, `value` of shape (64,).

    Rows are summed in integers: products of 64 bits have to be cut into six products of limbs to be exact in floating
    point, and these together take longer.
    """

    def __init__(self, key: bytes, digest: bytes, size: int) -> None:
        self._keystream = SecretRandomness(_derive(key, digest, b"tag hash"))
        self._overlap = self._keystream.words(TAG_WORDS - 1)
        self._window = np.empty(min(size, RANGE_WORDS) + TAG_WORDS - 1, np.uint64)
        self.value = np.zeros(TAG_WORDS, np.uint64)

    def add(self, words: NDArray[np.uint64]) -> None:
        """Hash the next words, shape (count,)."""
        for start in range(0, words.size, RANGE_WORDS):
            part = words[start : start + RANGE_WORDS]
            # Row j of a range needs the keystream from word j on, 63 words beyond the range for the last.
            window = self._window[: part.size + TAG_WORDS - 1]
            window[: TAG_WORDS - 1] = self._overlap
            self._keystream.fill(window[TAG_WORDS - 1 :])
            self.value += np.einsum("jk,k->j", sliding_window_view(window, part.size), part)
            self._overlap[:] = window[part.size :]


def _pad(key: bytes, digest: bytes, cohort: int, silo: int) -> NDArray[np.uint64]:
    """b of a silo in a cohort, shape (64,)."""
    context = b"tag pad|" + struct.pack(">II", cohort, silo)
    return SecretRandomness(_derive(key, digest, context)).words(TAG_WORDS)


def _derive(key: bytes, digest: bytes, context: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a run key is {KEY_BYTES} bytes, not {len(key)}")
    return HKDF(hashes.SHA256(), KEY_BYTES, digest, LABEL + b"|" + context).derive(key)
