"""What the coordinator writes to its audit log, and the heads of the silos' logs that it collects.

Lines about what is sent are on disk before it leaves. Lines about what came back or was opened are written at once and
reach the disk with the next request at the latest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autoflip_secure.ckks.messages import EncryptRequest
from autoflip_secure.errors import Abort, ProtocolError
from autoflip_secure.federation.audit_heads import HeadList
from autoflip_secure.federation.audit_log import AuditLog, Head
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.wire import TRAINING_STAGES, Reply
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.signing import Signed
from autoflip_secure.secagg.round_messages import MaskedRequest
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum

__all__ = ["CoordinatorTrail", "manifest_in"]

LONGEST_WORD = 64


class CoordinatorTrail:
    """The audit log of the coordinator of one run, and what it knows of the silos' logs.

    Parameters
    ----------
    log : AuditLog
    roster : Roster
    """

    def __init__(self, log: AuditLog, roster: Roster) -> None:
        self._log, self._roster = log, roster
        log.refresh()
        self._heads = self._known()
        self._present: set[int] = set()
        self._shown: Mapping[int, bytes] = {}
        self._replies: dict[int, list[Any]] = {}
        self._new: dict[bytes, Head] = {}

    def joining(self, request: JoinRequest, message: bytes) -> None:
        """Before the join request leaves."""
        self._log.append(
            "join",
            session=request.session,
            run=request.digest(),
            config=request.config.digest(),
            roster=self._roster.hash(),
            bytes=len(message),
            sha256=hashlib.sha256(message).digest(),
        )

    def joined(self, replies: Mapping[int, Reply]) -> None:
        """After the silos' answers, by silo. They say which head each silo's log has.

        A silo whose head does not hold is left out of the lists, so that it refuses, and counts as away in every stage.
        """
        for silo, reply in replies.items():
            try:
                self.take(silo, reply)
                self._present.add(silo)
            except ProtocolError as error:
                self._present.discard(silo)
                self._log.append("rejected", sync=False, silo=silo, reason=str(error))
        if replies:
            self.answered("join", 0, 0)

    def enrol(self, roster: Roster) -> None:
        """Go on with a roster that its authority has changed; all its silos are asked to join again."""
        self._roster, self._present = roster, set()
        self._heads = self._known()
        self._log.append("roster", roster=roster.hash(), silos=list(roster.silos))

    def _known(self) -> dict[int, Head]:
        of = self._roster.public
        return {silo: self._log.witnessed[of(silo)] for silo in self._roster.silos if of(silo) in self._log.witnessed}

    def take(self, silo: int, reply: Reply) -> None:
        """Note a reply and the head that came with it; ProtocolError where that is not the silo's next one."""
        content = hashlib.sha256(reply.reply).digest()
        self._replies[silo] = [reply.status[:LONGEST_WORD], len(reply.reply), content]
        if not reply.head and reply.status != "ok":
            return  # a silo whose log cannot be written says so, and nothing else
        head, known = Head.from_bytes(reply.head), self._heads.get(silo)
        if not head.is_of(self._roster.public(silo)):
            raise ProtocolError(f"the audit head of silo {silo} is not signed by it")
        if known is not None and head.count <= known.count:
            raise ProtocolError(
                f"the audit log of silo {silo} has {head.count} lines after it had {known.count}: lines were lost or "
                "its past was rewritten"
            )
        self._heads[silo] = self._new[self._roster.public(silo)] = head

    def freeze(self) -> bytes:
        """Hash of the list that all silos of an attempt are shown, as of now."""
        own = self._log.head
        if own is None:
            raise ProtocolError("the coordinator has asked nobody to join yet")
        heads = HeadList(own, {silo: self._heads[silo] for silo in sorted(self._present)})
        self._shown = heads.shown()
        return heads.hash()

    def shown_to(self, silo: int) -> bytes:
        """The part of that list that travels to a silo; nothing to one that has not joined."""
        return self._shown.get(silo, b"")

    def asking(
        self,
        stage: str,
        round: int,
        attempt: int,
        requests: Mapping[int, bytes],
        attachment: bytes,
        spared: Collection[int] = (),
    ) -> None:
        """Before a stage's requests leave; for the one that carries the manifest first, what it says.

        Parameters
        ----------
        spared : collection of int
            Silos that the attachment is not sent to.
        """
        digests = {request: hashlib.sha256(request).digest() for request in set(requests.values())}
        silos = sorted(requests)
        facts: dict[str, Any] = {"model": hashlib.sha256(attachment).digest()} if attachment else {}
        if stage in TRAINING_STAGES and silos:
            facts |= _described(manifest_in(stage, requests[silos[0]]))
        self._log.append(
            "request",
            stage=stage,
            round=round,
            attempt=attempt,
            silos=silos,
            bytes=sum(len(requests[silo]) + (0 if silo in spared else len(attachment)) for silo in silos),
            sha256=hashlib.sha256(b"".join(digests[requests[silo]] for silo in silos)).digest(),
            **facts,
        )

    def answered(self, stage: str, round: int, attempt: int) -> None:
        """After a stage's last reply."""
        replies = {str(silo): reply for silo, reply in sorted(self._replies.items())}
        self._log.append(
            "replies", sync=False, stage=stage, round=round, attempt=attempt, replies=replies, witnessed=self._new
        )
        self._replies, self._new = {}, {}

    def opened(self, manifest: Manifest, sums: Sequence[CohortSum]) -> None:
        """After an attempt's sums were opened."""
        survivors = [list(each.silos) for each in sums]
        self._log.append(
            "sum", sync=False, phase=manifest.phase, round=manifest.round, attempt=manifest.attempt, survivors=survivors
        )

    def aborted(self, manifest: Manifest, abort: Abort) -> None:
        """After an attempt that gave no sum, or one that was not taken."""
        self._log.append(
            "abort", sync=False, phase=manifest.phase, round=manifest.round, attempt=manifest.attempt, stage=abort.stage
        )

    def done(self, round: int, model: bytes) -> None:
        """After a round: the model that came out of it."""
        self._log.append("round", sync=False, round=round, model=hashlib.sha256(model).digest())

    def finished(self, rounds: int, model: bytes) -> None:
        """After the last round."""
        self._log.append("finished", rounds=rounds, model=hashlib.sha256(model).digest())


def manifest_in(stage: str, request: bytes) -> Manifest:
    """The manifest that a request of a stage that trains carries.

    Raises
    ------
    ProtocolError
        It carries none.
    """
    if stage == "clear":
        return Manifest.from_bytes(request)
    kind = MaskedRequest if stage == "masked" else EncryptRequest
    return Manifest.from_bytes(kind.from_bytes(Signed.from_bytes(request).payload).manifest)


def _described(manifest: Manifest) -> dict[str, Any]:
    return {
        "manifest": manifest.digest(),
        "heads": manifest.heads_hash,
        "phase": manifest.phase,
        "cohorts": [list(cohort) for cohort in manifest.cohorts],
    }
