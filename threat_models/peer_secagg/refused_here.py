"""The same requests, sent to the silos of this project: each is refused, and by which rule.

    python threat_models/peer_secagg/refused_here.py

Ten silos (threshold 7), the coordinator signs whatever it likes. It wants the share of silo 2's seed from some and of
its mask key from others, as in both_shares.py. The last line checks what weak_seed.py rests on: how a mask's key is
derived.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoflip_secure.errors import Abort, AutoflipSecureError
from autoflip_secure.parties.signing import open_signed, sign_message
from autoflip_secure.secagg import (
    Identity,
    Roster,
    RosterEntry,
    SecAggCoordinator,
    SecAggSilo,
    SiloRules,
    share_threshold,
)
from autoflip_secure.secagg.keys import pair_mask_key
from autoflip_secure.secagg.round_messages import ConfirmReply, ConfirmRequest, UnmaskReply, UnmaskRequest
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.words import PackedWords

VICTIM = 2

Send = Callable[[int, bytes], bytes | None]
Plan = Callable[["Attack", str, int, bytes, Send], bytes | None]


@dataclass
class Attack:
    """A federation whose coordinator is dishonest, and what it got.

    Attributes
    ----------
    plan : callable
        plan(attack, stage, silo, honest request, send): what to send instead, and the reply to go on with.
    refusals : dict of (stage, silo) to str
    shares : dict of "seed" or "key" to int
        Shares of the victim that were revealed.
    """

    n: int
    folder: Path
    plan: Plan
    refusals: dict[tuple[str, int], str] = field(default_factory=dict)
    shares: dict[str, int] = field(default_factory=lambda: {"seed": 0, "key": 0})

    def __post_init__(self) -> None:
        self.identity = Identity.generate()
        identities = {silo: Identity.generate() for silo in range(1, self.n + 1)}
        entries = tuple(RosterEntry(silo, f"hospital {silo}", key.public) for silo, key in identities.items())
        self.roster = Roster(self.identity.public, entries)
        self.connections = [open_silo_database(self.folder / f"{silo}.db") for silo in identities]
        self.session = os.urandom(16)
        self.silos = {
            silo: SecAggSilo(connection, identities[silo], silo, self.roster, SiloRules(0), self.session)
            for silo, connection in zip(identities, self.connections, strict=True)
        }

    def run(self) -> None:
        """One attempt at a sum, with the plan in the place of the network."""
        cohort = tuple(self.silos)
        coordinator = SecAggCoordinator(
            self.identity,
            self.roster,
            self.session,
            slots=2,
            first_epoch=1,
            on_epoch=lambda number: None,
            events=lambda name, details: None,
        )
        manifest = Manifest(
            session=self.session, epoch=0, slot=0, epoch_hash=bytes(32), round=0, attempt=0, phase="train",
            cohorts=(cohort,), minimum=(3,), threshold=share_threshold(self.n), model_hash=bytes(32),
            mask_hash=bytes(32), config_hash=bytes(32), channels=(ChannelSpec("update", 300, 16, 1.0),),
            privacy=PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 0.0),
        )  # fmt: skip
        try:
            coordinator.sum(manifest, self._exchange)
        except Abort as abort:
            self.refusals["coordinator", 0] = str(abort)
        for connection in self.connections:
            connection.close()

    def _exchange(self, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, Any]]:
        for silo, request in requests.items():
            reply = self.plan(self, stage, silo, request, self.sender(stage))
            if reply is not None:
                yield silo, reply

    def sender(self, stage: str) -> Send:
        """Sends a request of a stage to a silo; a refusal is kept and gives None."""

        def send(silo: int, request: bytes) -> bytes | None:
            try:
                reply = self.silos[silo].answer(stage, request, _random_words)
                data = reply if isinstance(reply, bytes) else b"".join(reply)
            except AutoflipSecureError as error:
                self.refusals[stage, silo] = str(error)
                return None
            if stage == "unmask":
                self._count(silo, request, data)
            return data

        return send

    def _count(self, silo: int, request: bytes, reply: bytes) -> None:
        survivors = open_signed(UnmaskRequest, self.roster.coordinator, request).survivors
        answer = open_signed(UnmaskReply, self.roster.public(silo), reply)
        listed = any(VICTIM in silos for silos in survivors)
        self.shares["seed"] += listed and len(answer.seed_shares) > 0
        self.shares["key"] += not listed and len(answer.key_shares) > 0

    def opened(self, kind: Any, request: bytes) -> Any:
        """A request of the coordinator, to be altered."""
        return open_signed(kind, self.roster.coordinator, request)

    def without_victim(self, kind: Any, request: bytes) -> bytes:
        """The request, signed again, with the victim declared dropped."""
        message = self.opened(kind, request)
        survivors = tuple(tuple(silo for silo in silos if silo != VICTIM) for silos in message.survivors)
        changes: dict[str, Any] = {"survivors": survivors}
        if kind is ConfirmRequest:
            changes["receipts"] = tuple(receipt for receipt in message.receipts if receipt[0] != VICTIM)
        return sign_message(self.identity, replace(message, **changes))

    def is_second_half(self, silo: int) -> bool:
        """Silos that are to believe the victim dropped."""
        return silo > self.n // 2


def _random_words(manifest: Manifest) -> PackedWords:
    size = word_count(manifest.channels, len(manifest.cohorts[0]))
    return PackedWords(np.frombuffer(os.urandom(8 * size), np.uint64))


def both_in_one_message(attack: Attack, stage: str, silo: int, request: bytes, send: Send) -> bytes | None:
    """The nearest there is to Flower's two lists: no message has a list of the dropped, but it may have two lists."""
    if stage == "confirm":
        message = attack.opened(ConfirmRequest, request)
        (everybody,) = message.survivors
        lists = (everybody, tuple(other for other in everybody if other != VICTIM))
        request = sign_message(attack.identity, replace(message, survivors=lists))
    return send(silo, request)


def other_lists_at_unmask(attack: Attack, stage: str, silo: int, request: bytes, send: Send) -> bytes | None:
    """All confirm that the victim is there; half of them are then asked for its mask key."""
    if stage == "unmask" and attack.is_second_half(silo):
        request = attack.without_victim(UnmaskRequest, request)
    return send(silo, request)


def second_question(attack: Attack, stage: str, silo: int, request: bytes, send: Send) -> bytes | None:
    """All answer the honest question; all are then asked for the victim's mask key too."""
    reply = send(silo, request)
    if stage == "unmask":
        send(silo, attack.without_victim(UnmaskRequest, request))
    return reply


class TwoLists:
    """Half of the silos confirm that the victim is there, half that it dropped; each half gets its own signatures."""

    def __init__(self) -> None:
        self.requests: dict[int, ConfirmRequest] = {}
        self.signatures: dict[int, bytes] = {}

    def __call__(self, attack: Attack, stage: str, silo: int, request: bytes, send: Send) -> bytes | None:
        if stage != "confirm":
            return send(silo, request)
        if attack.is_second_half(silo):
            request = attack.without_victim(ConfirmRequest, request)
        self.requests[silo] = attack.opened(ConfirmRequest, request)
        reply = send(silo, request)
        if reply is not None:
            self.signatures[silo] = ConfirmReply.from_bytes(reply).signature
        if len(self.requests) == attack.n:
            self._unmask(attack)
        return reply

    def _unmask(self, attack: Attack) -> None:
        for silo, confirmed in self.requests.items():
            manifest = Manifest.from_bytes(confirmed.manifest)
            same = [peer for peer in self.signatures if self.requests[peer].survivors == confirmed.survivors]
            message = UnmaskRequest(
                confirmed.session,
                confirmed.roster_hash,
                confirmed.epoch,
                manifest.slot,
                manifest.digest(),
                confirmed.survivors,
                tuple((peer, self.signatures[peer]) for peer in sorted(same)),
            )
            attack.sender("unmask")(silo, sign_message(attack.identity, message))


ATTEMPTS: dict[str, Callable[[], Plan]] = {
    "both in one message": lambda: both_in_one_message,
    "other lists at unmask": lambda: other_lists_at_unmask,
    "a second question": lambda: second_question,
    "two lists from the start": TwoLists,
}


def attempt(name: str, n: int) -> Attack:
    """One of `ATTEMPTS` on a fresh federation."""
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(n, Path(folder), ATTEMPTS[name]())
        attack.run()
        return attack


def distinct_keys() -> tuple[int, int]:
    """How many mask keys differ when bits of what they are derived from change.

    Returns
    -------
    by_secret : int
        Of 258 shared secrets: one, the same with each of its 256 bits flipped, and with two 32-bit words swapped.
    by_digest : int
        Of 257 manifest digests: one, and the same with each of its bits flipped.
    """
    secret, digest = os.urandom(32), os.urandom(32)

    def flips(data: bytes) -> list[bytes]:
        number = int.from_bytes(data, "little")
        return [data, *((number ^ 1 << bit).to_bytes(32, "little") for bit in range(256))]

    secrets = [*flips(secret), secret[4:8] + secret[:4] + secret[8:]]
    by_secret = {pair_mask_key(one, digest, 1, 2, 0, 0) for one in secrets}
    by_digest = {pair_mask_key(secret, one, 1, 2, 0, 0) for one in flips(digest)}
    assert all(len(key) == 32 for key in by_secret | by_digest)
    return len(by_secret), len(by_digest)


def main() -> None:
    """Print one paragraph an attempt, and the keys."""
    n = 10
    print(f"{n} silos, threshold {share_threshold(n)}, victim: silo {VICTIM}")
    for name in ATTEMPTS:
        attack = attempt(name, n)
        print(
            f"{name}: {attack.shares['seed']} seed shares, {attack.shares['key']} key shares of the victim; refusals:"
        )
        for text in dict.fromkeys(attack.refusals.values()):
            print(f"  {sum(text == other for other in attack.refusals.values())} x {text}")
    by_secret, by_digest = distinct_keys()
    print(f"pair mask keys of 256 bits: {by_secret} of 258 secrets differ, {by_digest} of 257 manifest digests")


if __name__ == "__main__":
    main()
