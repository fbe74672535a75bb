"""Where the noise chains of a sum's silos end, as part of the sum, so that a tag covers the links revealed later.

Each silo writes the link after the last of its chain into a place of its own; all others add zeros there. Who knows the
ends can tell a link that a silo revealed from one that somebody made up: hashed forward it has to lead to the silo's
end. No noise comes from an end, and nothing before it can be told from it.
"""

from __future__ import annotations

import hmac

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.sums.noise_chain import LINK_BYTES, later_link
from autoflip_secure.sums.words import WordSource, WordsWithTail

__all__ = ["END_WORDS", "WithChainEnd", "link_holds"]

END_WORDS = LINK_BYTES // 8


class WithChainEnd(WordsWithTail):
    """The words of a source, and then a place for each silo of the cohort, of which one is filled.

    Parameters
    ----------
    source : WordSource
        With the root of its noise chain.
    place, places : int
        Index of the silo in its cohort, and how many places there are.
    most : int
        Silos that may be missing: links of the chain.
    """

    def __init__(self, source: WordSource, place: int, places: int, most: int) -> None:
        super().__init__(source, places * END_WORDS)
        self._ends = np.zeros(places * END_WORDS, np.uint64)
        if source.removable is not None:
            end = np.frombuffer(later_link(source.removable, most), "<u8")
            self._ends[place * END_WORDS : (place + 1) * END_WORDS] = end

    def _tail(self) -> NDArray[np.uint64]:
        return self._ends


def link_holds(link: bytes, ends: NDArray[np.uint64], place: int, missing: int, most: int) -> bool:
    """Whether link `missing` + 1 is one of the chain that ends as the words at a silo's place say.

    Parameters
    ----------
    ends : uint64 array, shape (places * 4,)
        Of the opened sum.
    """
    if len(link) != LINK_BYTES or not 0 <= missing < most or not 0 <= (place + 1) * END_WORDS <= ends.size:
        return False
    end = ends[place * END_WORDS : (place + 1) * END_WORDS].astype("<u8").tobytes()
    return hmac.compare_digest(later_link(link, most - missing), end)
