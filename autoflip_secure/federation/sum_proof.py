"""What opened sums are, as silos are shown them: manifest, and by cohort survivors, words and links of noise chains.

The tag at the end of the words proves that silos of the run, and nobody else, made the sum (see `sums.sum_tag`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgpack
import numpy as np

from autoflip_secure.errors import AutoflipSecureError, EncodingError, ProtocolError
from autoflip_secure.sums.chain_ends import END_WORDS, WithChainEnd, link_holds
from autoflip_secure.sums.channels import TAG_CHANNEL, ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import HASH_BYTES, Manifest
from autoflip_secure.sums.noise_chain import LINK_BYTES
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.sum_tag import TAG_WORDS, TaggedWords, tag_holds, tag_spec
from autoflip_secure.sums.words import WordSource

__all__ = [
    "FOLLOW_STAGE",
    "KEY_STAGE",
    "PROVED_PHASES",
    "Position",
    "SumProof",
    "is_tagged",
    "proof_spec",
    "tagged",
    "untagged",
    "untagged_sums",
    "with_tag",
]

KEY_STAGE, FOLLOW_STAGE = "key", "follow"
"""Stages in which silos are given the run's key, and opened sums."""

PROVED_PHASES = frozenset({"census", "explore", "train"})
"""Phases whose sums the model follows from."""

MAX_POSITION = 1 << 32
MAX_PROOF_BYTES = 1 << 30


def places_of(manifest: Manifest) -> int:
    """Places for ends of noise chains before a tag: one for each silo of the largest cohort, where noise is removed."""
    return max(map(len, manifest.cohorts)) if manifest.privacy.trust == "distributed" else 0


def proof_spec(manifest: Manifest) -> ChannelSpec:
    """The channel by which sums of a manifest prove themselves: ends of noise chains, and the tag."""
    return tag_spec(places_of(manifest) * END_WORDS)


def with_tag(manifest: Manifest) -> Manifest:
    """The same manifest, asking for a tag too."""
    return replace(manifest, channels=(*manifest.channels, proof_spec(manifest)))


def is_tagged(manifest: Manifest) -> bool:
    """Whether contributions end in a tag."""
    return manifest.channels[-1] == proof_spec(manifest)


def tagged(words: WordSource, manifest: Manifest, key: bytes, silo: int) -> WordSource:
    """A silo's words for a manifest that asks for a tag, with the end of its noise chain and the tag.

    Parameters
    ----------
    words : WordSource
        Of all other channels.
    key : bytes, 32
        The run key.
    """
    cohort, places = manifest.cohort_of(silo), places_of(manifest)
    if places:
        place = manifest.cohorts[cohort].index(silo)
        words = WithChainEnd(words, place, places, manifest.most_missing(cohort))
    return TaggedWords(words, key, manifest.digest(), cohort, silo)


def untagged(manifest: Manifest) -> Manifest:
    """The manifest as if no tag had been asked for: of what training finds, and its sums mean."""
    channels = tuple(channel for channel in manifest.channels if channel.name != TAG_CHANNEL)
    return replace(manifest, channels=channels)


def untagged_sums(manifest: Manifest, sums: Sequence[CohortSum]) -> list[CohortSum]:
    """Sums without the tag at their end, and without what comes before it."""
    length = proof_spec(manifest).length
    return [replace(each, words=each.words[:-length]) for each in sums]


@dataclass(frozen=True)
class Position:
    """Where a silo is.

    Attributes
    ----------
    taken : int
        Opened sums it has taken; -1 where it wrote something else.
    model_hash : bytes
        SHA-256 of the model that they lead to, 32 bytes.
    last : bytes
        SHA-256 of the last of them, as it was shown, 32 bytes; zeros where there is none.
    """

    taken: int
    model_hash: bytes = b""
    last: bytes = b""

    def to_bytes(self) -> bytes:
        """A silo's answer: one msgpack array."""
        return bytes(msgpack.packb([self.taken, self.model_hash, self.last]))

    @classmethod
    def read(cls, reply: bytes) -> Position:
        """What a silo answered."""
        try:
            taken, *hashes = msgpack.unpackb(reply)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            return cls(-1)
        if type(taken) is not int or not 0 <= taken <= MAX_POSITION:
            return cls(-1)
        if len(hashes) != 2 or any(type(each) is not bytes or len(each) != HASH_BYTES for each in hashes):
            return cls(-1)
        return cls(taken, *hashes)


@dataclass(frozen=True, eq=False)
class SumProof:
    """The opened sums of one attempt, one a cohort, in order.

    Attributes
    ----------
    start : bytes
        With the run's first sums, the weights before anything was pruned, as float32: machines draw them alike up to
        last bits, and from then on nobody's last bits count but these.
    """

    manifest: Manifest
    sums: tuple[CohortSum, ...]
    start: bytes = b""

    def holds(self, key: bytes) -> bool:
        """Whether all sums, and the links that are removed from them, are what their silos sent.

        Parameters
        ----------
        key : bytes, 32
            The run key.
        """
        return all(self._sum_holds(key, each) for each in self.sums)

    def _sum_holds(self, key: bytes, opened: CohortSum) -> bool:
        digest = self.manifest.digest()
        return tag_holds(opened.words, key, digest, opened.cohort, opened.silos) and not self._false_links(opened)

    def _false_links(self, opened: CohortSum) -> list[int]:
        manifest, cohort = self.manifest, opened.cohort
        members, most = manifest.cohorts[cohort], manifest.most_missing(cohort)
        ends = opened.words[-proof_spec(manifest).length : -TAG_WORDS]
        missing = len(members) - len(opened.silos)
        links = opened.links.items()
        return [silo for silo, link in links if not link_holds(link, ends, members.index(silo), missing, most)]

    def with_true_links(self) -> tuple[SumProof, list[int]]:
        """The same without links that do not lead to their silos' ends, and the silos they came from.

        It takes no key to see this: ends stand in the sum. The noise of such a silo stays in it.
        """
        sums, liars = [], []
        for each in self.sums:
            false = self._false_links(each)
            links = {silo: link for silo, link in each.links.items() if silo not in false}
            sums.append(replace(each, links=links))
            liars += false
        return replace(self, sums=tuple(sums)), liars

    def to_bytes(self) -> bytes:
        """One msgpack array."""
        rows = [
            [list(each.silos), each.words.astype("<u8").tobytes(), sorted(each.links.items())] for each in self.sums
        ]
        return bytes(msgpack.packb([self.manifest.to_bytes(), rows, self.start]))

    @classmethod
    def from_bytes(cls, data: bytes) -> SumProof:
        """Read and validate: as many sums as cohorts, of silos of each, with as many words as the manifest asks for.

        Raises
        ------
        ProtocolError
            Not such a proof.
        """
        if len(data) > MAX_PROOF_BYTES:
            raise ProtocolError(f"opened sums of {len(data)} bytes are longer than {MAX_PROOF_BYTES}")
        try:
            statement, rows, start = msgpack.unpackb(data, strict_map_key=False)
            manifest = Manifest.from_bytes(statement)
            if type(rows) is not list or len(rows) != len(manifest.cohorts):
                raise ProtocolError("there is not one opened sum a cohort")
            if type(start) is not bytes:
                raise ProtocolError("the weights that the run starts from are not bytes")
            return cls(manifest, tuple(_read(manifest, cohort, *row) for cohort, row in enumerate(rows)), start)
        except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException, EncodingError) as error:
            raise ProtocolError(f"not opened sums: {error}") from error
        except AutoflipSecureError:
            raise
        except RecursionError as error:
            raise ProtocolError("opened sums are nested too deep") from error


def _read(manifest: Manifest, cohort: int, silos: object, words: object, links: object) -> CohortSum:
    members, least = manifest.cohorts[cohort], manifest.minimum[cohort]
    if type(silos) is not list or any(type(silo) is not int for silo in silos):
        raise ProtocolError("an opened sum does not say whose it is")
    if silos != list(manifest.whole(cohort, silos)) or not set(silos) <= set(members) or len(silos) < max(1, least):
        raise ProtocolError(f"cohort {cohort}: the silos of an opened sum are not enough of it, ascending, in blocks")
    size = 8 * word_count(manifest.channels, len(members))
    if type(words) is not bytes or len(words) != size:
        raise ProtocolError(f"cohort {cohort}: an opened sum is not {size} bytes")
    if type(links) is not list:
        raise ProtocolError("links of an opened sum are not a list")
    found: dict[int, bytes] = {}
    for silo, link in links:
        named = type(silo) is int and silo in silos and silo not in found
        if not named or type(link) is not bytes or len(link) != LINK_BYTES:
            raise ProtocolError(f"cohort {cohort}: a link is not one of a silo of the sum")
        found[silo] = link
    return CohortSum(cohort, tuple(silos), np.frombuffer(words, "<u8").astype(np.uint64), found)
