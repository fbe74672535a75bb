"""Silos that lie in the protocol of the secure sum: altered software of some, honest software of the others.

What a liar has: its own keys and database, its records, and every message that reaches it. It has no other silo's key
and does not see other silos' vectors. Both halves of the sum are the service's own; a lie is a reply, a key in the
liar's own database or a vector that honest software would not have made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.bad_silos import wild_integers
from autoflip_secure.autoflip.sum_bounds import out_of_fields, out_of_range
from autoflip_secure.errors import Abort, AutoflipSecureError
from autoflip_secure.federation.sums import decode
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.parties.rules import SiloRules, share_threshold
from autoflip_secure.parties.signing import open_signed, sign_message
from autoflip_secure.secagg.coordinator import SecAggCoordinator
from autoflip_secure.secagg.round_messages import UnmaskReply
from autoflip_secure.secagg.silo import SecAggSilo
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import dequantise, quantise
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.words import ContributionWords, WordSource

__all__ = ["LIES", "LyingFederation", "Told", "told_of"]

SPEC = ChannelSpec("update", 64, 16, 1.0)
SESSION = bytes(range(16))
SPREAD = 0.2
"""Standard deviation of an honest coordinate, in the channel's range."""

LIES = ("wrong shares", "rogue keys", "wild words", "a vector far out of range", "a vector at the sum's own bound")
"""A share of others' secrets that was not dealt; a mask key or self-mask seed other than the advertised one, exchanged
before shares are dealt or after; uniform words; a multiple of the range beyond what the whole sum may be; one as large
as the whole sum may be."""


@dataclass(frozen=True)
class Told:
    """What came of one lie.

    Attributes
    ----------
    opened : bool
        A sum was opened.
    exact : bool
        It is the sum that the honest protocol gives, of the vectors that the survivors' own software made.
    moved : bool
        Some coordinate of it is off by more than one silo's whole range from the sum of honest survivors.
    in_bounds : bool
        The coordinator's bounds on sums let it pass.
    named : bool
        The liars, or some of them, and nobody else, were reported or blamed.
    slandered : bool
        An honest silo was.
    """

    opened: bool
    exact: bool
    moved: bool
    in_bounds: bool
    named: bool
    slandered: bool


class LyingFederation:
    """Silos 1..n with one honest vector each, of which some lie as they are told; one attempt at a sum.

    Parameters
    ----------
    lie : str
        One of `LIES`.
    draw : numpy Generator
        Of who lies, who drops and what is sent.
    """

    def __init__(self, silos: int, lie: str, liars: frozenset[int], draw: np.random.Generator) -> None:
        self._lie, self.liars, self._draw = lie, liars, draw
        self._coordinator = Identity.generate()
        self._identities = {silo: Identity.generate() for silo in range(1, silos + 1)}
        entries = tuple(RosterEntry(silo, f"silo {silo}", key.public) for silo, key in self._identities.items())
        self._roster = Roster(self._coordinator.public, entries)
        self._databases = {silo: sqlite3.connect(":memory:", isolation_level=None) for silo in self._identities}
        rules = SiloRules(0)
        self._silos = {
            silo: SecAggSilo(self._databases[silo], key, silo, self._roster, rules, SESSION)
            for silo, key in self._identities.items()
        }
        self._reported: set[int] = set()
        self._vectors = {silo: self._honest() for silo in self._identities}
        self._seed_or_key = str(draw.choice(["seed", "mask_key"]))
        self._when = str(draw.choice(["advertise", "share"]))

    def attempt(self, gone: frozenset[int]) -> Told:
        """One sum with the silos in `gone` missing from stage masked on."""
        size = len(self._silos)
        manifest = Manifest(
            session=SESSION, epoch=0, slot=0, epoch_hash=bytes(32), round=1, attempt=0, phase="train",
            cohorts=(tuple(self._silos),), minimum=(3,), threshold=share_threshold(size), model_hash=bytes(32),
            mask_hash=bytes(32), config_hash=bytes(32), channels=(SPEC,),
            privacy=PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
        )  # fmt: skip
        coordinator = SecAggCoordinator(
            self._coordinator, self._roster, SESSION, slots=1, first_epoch=1, on_epoch=lambda number: None,
            events=self._event,
        )  # fmt: skip
        try:
            (found,) = coordinator.sum(manifest, self._exchange(gone))
        except Abort as abort:
            blamed = self._reported | set(abort.blamed)
            return Told(False, False, False, False, bool(blamed & self.liars), bool(blamed - self.liars))
        aggregate = decode(manifest, found)
        excess = out_of_fields(found.words, (SPEC,), size, len(found.silos), {})
        there = [silo for silo in found.silos if silo not in self.liars]
        everybody = np.sum([self._vectors[silo] for silo in found.silos], axis=0)
        honest = dequantise(np.sum([self._vectors[silo] for silo in there], axis=0), SPEC)
        off = np.abs(aggregate.sum(SPEC.name) - honest)
        return Told(
            opened=True,
            exact=np.array_equal(aggregate.sum(SPEC.name), dequantise(everybody, SPEC)),
            moved=bool(off.max() > (len(found.silos) - len(there) + 0.5) * SPEC.limit),
            in_bounds=(excess or out_of_range(aggregate, (SPEC,), size)) is None,
            named=bool(self._reported & self.liars),
            slandered=bool(self._reported - self.liars),
        )

    def _honest(self) -> NDArray[np.int64]:
        values = SPREAD * self._draw.normal(size=SPEC.length)
        return quantise(values, SPEC, self._draw.integers(0, 2**32, SPEC.length, np.uint32))

    def _event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "silo_misbehaved":
            self._reported.add(int(fields["silo"]))

    def _contribute(self, silo: int) -> Callable[[Manifest], WordSource]:
        def words(manifest: Manifest) -> WordSource:
            return ContributionWords({SPEC.name: self._sent(silo)}, manifest.channels, len(self._silos))

        return words

    def _sent(self, silo: int) -> NDArray[np.int64]:
        if silo not in self.liars:
            return self._vectors[silo]
        if self._lie == "wild words":
            return wild_integers(SPEC.length, self._draw)
        signs = self._draw.choice([-1, 1], SPEC.length)
        whole = len(self._silos) * SPEC.levels
        if self._lie == "a vector far out of range":
            return signs * int(self._draw.integers(2 * whole, 2**40))
        if self._lie == "a vector at the sum's own bound":
            # What the others send is small, so that a little less than the bound is all that a liar can be sure of.
            return signs * int((0.5 + 0.2 * self._draw.random()) * whole)
        return self._vectors[silo]

    def _exchange(self, gone: frozenset[int]) -> Callable[[str, Mapping[int, bytes]], Iterable[tuple[int, bytes]]]:
        def run(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            for silo, request in requests.items():
                if silo in gone and stage not in ("advertise", "share"):
                    continue
                try:
                    reply = self._silos[silo].answer(stage, request, self._contribute(silo))
                except AutoflipSecureError:
                    continue  # a refusal: the silo counts as dropped
                yield silo, self._altered(stage, silo, reply)

        return run

    def _altered(self, stage: str, silo: int, reply: bytes) -> bytes:
        if silo not in self.liars:
            return reply
        if self._lie == "rogue keys" and stage == self._when:
            self._change_key(silo)
        if self._lie == "wrong shares" and stage == "unmask":
            return self._with_wrong_shares(silo, reply)
        return reply

    def _change_key(self, silo: int) -> None:
        """Another key in the liar's own database, which its software masks and deals by from here on."""
        fresh = self._draw.bytes(32) if self._seed_or_key == "seed" else _private_key()
        self._databases[silo].execute(f"UPDATE secagg_secret SET {self._seed_or_key} = ?", (fresh,))

    def _with_wrong_shares(self, silo: int, reply: bytes) -> bytes:
        message = open_signed(UnmaskReply, self._roster.public(silo), reply)
        altered = replace(
            message,
            seed_shares=tuple(self._flipped(share) for share in message.seed_shares),
            key_shares=tuple(self._flipped(share) for share in message.key_shares),
        )
        return sign_message(self._identities[silo], altered)

    def _flipped(self, share: bytes) -> bytes:
        """The share with up to three bits flipped, of some of the shares all of them."""
        if not share or self._draw.random() < 0.3:
            return share
        wrong = bytearray(share)
        for _ in range(int(self._draw.integers(1, 4))):
            wrong[int(self._draw.integers(len(wrong)))] ^= 1 << int(self._draw.integers(8))
        return bytes(wrong)


def told_of(lie: str, attempts: int, seed: int) -> list[Told]:
    """What came of so many lies of a kind, among 4 to 7 silos of which one lies; of wrong shares up to as many silos as
    may be missing."""
    found = []
    for number in range(attempts):
        draw = np.random.default_rng([seed, number])
        silos = int(draw.integers(4, 8))
        spare = silos - share_threshold(silos)
        most = spare if lie == "wrong shares" else 1
        liars = frozenset(draw.permutation(silos)[: int(draw.integers(1, most + 1))] + 1)
        gone = frozenset({int(draw.integers(1, silos + 1))} if spare > 1 and draw.random() < 0.5 else ())
        found.append(LyingFederation(silos, lie, liars, draw).attempt(gone))
    return found


def _private_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().private_bytes_raw()
