"""Opened sums that silos of a run did not make, shown to them as if they had: how many they go on by."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.protocol_lies import Tally
from autoflip_secure.attacks.proved_run import ProvedRun
from autoflip_secure.errors import AutoflipSecureError
from autoflip_secure.federation.sum_proof import SumProof
from autoflip_secure.sums.sum_tag import TAG_WORDS, TaggedWords
from autoflip_secure.sums.words import PackedWords, all_words

__all__ = ["MadeUpSums", "sum_lies"]

Words = NDArray[np.uint64]

WORD_BITS = 64
TOP = np.uint64(1 << 63)


def sum_lies(run: ProvedRun, attempts: int, random: np.random.Generator) -> Tally:
    """Made-up sums of the round to come, to silos in turn.

    The coordinator has two true ones that it showed nobody: of all silos, and of all but one. Whichever of them it
    shows is believed; what it makes of them should not be.

    Raises
    ------
    RuntimeError
        The true sum is not believed afterwards.
    """
    tally, silos = Tally(), run.lying.roster.silos
    whole, less = run.open(attempt=0), run.open(attempt=1, missing=silos[-1])
    lies = MadeUpSums(whole, less, run.proofs, random)
    for number in range(attempts):
        try:
            lie = lies.draws[number % len(lies.draws)]().to_bytes()
        except AutoflipSecureError:
            continue  # no manifest at all: a silo would not read it
        tally.count(run.believes(silos[number % len(silos)], lie))
    run.go_on(whole)
    return tally


class MadeUpSums:
    """What can be made of true sums without the key under which silos tag them.

    Parameters
    ----------
    whole, less : SumProof
        Two attempts at the same round, with all silos and with one missing.
    older : list of SumProof
        Of the rounds before.
    """

    def __init__(self, whole: SumProof, less: SumProof, older: list[SumProof], random: np.random.Generator) -> None:
        self._whole, self._less, self._older, self._random = whole, less, older, random
        self.draws: list[Callable[[], SumProof]] = [
            self._one_bit,
            self._top_bits,
            self._chosen_update,
            self._other_tag,
            self._multiple,
            self._one_silo_less,
            self._one_silo_more,
            self._of_an_older_round,
            self._older_words,
            self._of_another_attempt,
            self._mixture,
            self._other_manifest,
            self._tag_under_another_key,
        ]
        if whole.sums[0].links:
            self.draws.append(self._other_links)

    def _either(self) -> SumProof:
        return self._whole if self._random.random() < 0.5 else self._less

    def _words(self, proof: SumProof, words: Words) -> SumProof:
        return replace(proof, sums=(replace(proof.sums[0], words=words),))

    def _one_bit(self) -> SumProof:
        """Of a word or of the tag."""
        proof = self._either()
        words = proof.sums[0].words.copy()
        words[self._random.integers(words.size)] ^= np.uint64(1 << int(self._random.integers(WORD_BITS)))
        return self._words(proof, words)

    def _top_bits(self) -> SumProof:
        """Of as many words as it likes: what a linear check modulo 2^64 is least sensitive to."""
        proof = self._either()
        words = proof.sums[0].words.copy()
        chosen = self._random.choice(words.size, int(self._random.integers(1, words.size)), replace=False)
        words[chosen] ^= TOP
        return self._words(proof, words)

    def _chosen_update(self) -> SumProof:
        """Other words of a likely size under the true tag."""
        proof = self._either()
        words = proof.sums[0].words.copy()
        words[:-TAG_WORDS] = self._random.permutation(words[:-TAG_WORDS])
        return self._words(proof, words)

    def _other_tag(self) -> SumProof:
        proof = self._either()
        words = proof.sums[0].words.copy()
        words[-TAG_WORDS:] = self._random.integers(0, 1 << 64, TAG_WORDS, np.uint64)
        return self._words(proof, words)

    def _multiple(self) -> SumProof:
        """Words and tag together, times a number."""
        proof = self._either()
        return self._words(proof, proof.sums[0].words * np.uint64(self._random.integers(2, 1 << 63)))

    def _one_silo_less(self) -> SumProof:
        """The sum of all, as that of all but one."""
        proof, opened = self._whole, self._whole.sums[0]
        out = self._random.choice(opened.silos)
        silos = tuple(silo for silo in opened.silos if silo != out)
        links = {silo: link for silo, link in opened.links.items() if silo in silos}
        return replace(proof, sums=(replace(opened, silos=silos, links=links),))

    def _one_silo_more(self) -> SumProof:
        """The sum of all but one, as that of all, or of all but another."""
        proof, opened, everybody = self._less, self._less.sums[0], self._whole.sums[0].silos
        out = self._random.choice([0, *opened.silos])
        silos = tuple(silo for silo in everybody if silo != out)
        links = {silo: link for silo, link in opened.links.items() if silo in silos}
        return replace(proof, sums=(replace(opened, silos=silos, links=links),))

    def _of_an_older_round(self) -> SumProof:
        """As it was shown then, or under the round to come."""
        proof = self._older[int(self._random.integers(len(self._older)))]
        if self._random.random() < 0.5:
            return proof
        return replace(proof, manifest=replace(proof.manifest, round=self._whole.manifest.round))

    def _older_words(self) -> SumProof:
        """As the sum that was just opened."""
        older = self._older[int(self._random.integers(len(self._older)))].sums[0]
        return replace(self._whole, sums=(older,))

    def _of_another_attempt(self) -> SumProof:
        proof, other = (self._whole, self._less) if self._random.random() < 0.5 else (self._less, self._whole)
        return replace(proof, sums=other.sums)

    def _mixture(self) -> SumProof:
        """A true sum and some times the difference of both."""
        proof = self._either()
        difference = self._whole.sums[0].words - self._less.sums[0].words
        return self._words(proof, proof.sums[0].words + difference * np.uint64(self._random.integers(1, 1 << 63)))

    def _other_manifest(self) -> SumProof:
        """The same words, read otherwise: on a coarser grid, of another clip, attempt, slot, minimum or model."""
        proof, factor = self._either(), float(self._random.uniform(1.01, 100))
        manifest, update = proof.manifest, proof.manifest.channels[0]
        channels = (replace(update, limit=update.limit * factor), *manifest.channels[1:])
        others = (
            {"channels": channels},
            {"privacy": replace(manifest.privacy, clip=manifest.privacy.clip * factor + factor)},
            {"privacy": replace(manifest.privacy, delta=min(0.9, manifest.privacy.delta * factor + 1e-9))},
            {"attempt": manifest.attempt + int(self._random.integers(1, 100))},
            {"slot": manifest.slot + int(self._random.integers(1, 100))},
            {"minimum": (manifest.minimum[0] - 1,)},
            {"model_hash": self._random.bytes(32)},
            {"heads_hash": self._random.bytes(32)},
        )
        return replace(proof, manifest=replace(manifest, **others[int(self._random.integers(len(others)))]))

    def _other_links(self) -> SumProof:
        """Noise of its own choice in the place of what a silo lets be removed, or another silo's."""
        opened = self._whole.sums[0]
        one, other = (int(silo) for silo in self._random.choice(list(opened.links), 2, replace=False))
        link = self._random.bytes(32) if self._random.random() < 0.5 else opened.links[other]
        return replace(self._whole, sums=(replace(opened, links={**opened.links, one: link}),))

    def _tag_under_another_key(self) -> SumProof:
        """Words of the coordinator's own, with the tag that silos with a key of its own would give them."""
        proof = self._either()
        opened, key, digest = proof.sums[0], os.urandom(32), proof.manifest.digest()
        words = self._random.integers(0, 1 << 64, opened.words.size - TAG_WORDS, np.uint64)
        parts = [words, *[np.zeros_like(words)] * (len(opened.silos) - 1)]
        total = np.zeros_like(opened.words)
        for silo, part in zip(opened.silos, parts, strict=True):
            total += all_words(TaggedWords(PackedWords(part), key, digest, 0, silo))
        return self._words(proof, total)
