"""Joining a run: what the coordinator tells every silo before the first round, signed, and what the silo answers.

Every manifest of the run names the digest of this statement, so silos that were told different things produce masks
that do not cancel.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import msgpack

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import ConfigError, ProtocolError, Refusal
from autoflip_secure.federation.code_digest import code_digest
from autoflip_secure.parties.identity import Identity, verify
from autoflip_secure.privacy.accounting import Mechanism

__all__ = ["JOIN_STAGE", "JoinRequest", "join_reply", "read_join_reply"]

JOIN_STAGE = "join"
DOMAIN = b"autoflip-secure/join"
SESSION_BYTES = 16
DIGEST_BYTES = 32

MAX_REQUEST_BYTES = 1 << 18
"""Longest request: silos keep those that wait for approval. Configuration and task take a few kilobytes."""

Planned = dict[str, list[Mechanism]]


@dataclass(frozen=True)
class JoinRequest:
    """One run, as all silos are told of it.

    Attributes
    ----------
    session : bytes, 16
    config : ResolvedConfig
    task : str
        JSON of the public task; a silo accepts only the one it was provisioned with.
    planned : dict of str to list of Mechanism
        By record set, all that the run will do under DP; a silo does no more than this. Empty without DP.
    code : bytes, 32
        Digest of the coordinator's own autoflip_secure (`code_digest`): a coordinator that was upgraded asks anew. What
        runs at a silo is that silo's own code, which its policy and its approvals name.
    """

    session: bytes
    config: ResolvedConfig
    task: str
    planned: Planned
    code: bytes = field(default_factory=code_digest)

    def body(self) -> bytes:
        """The statement: one msgpack array."""
        fields = [self.session, self.config.model_dump_json(), self.task, _rows(self.planned), self.code]
        return bytes(msgpack.packb(fields))

    def digest(self) -> bytes:
        """SHA-256 over all that the run computes, for manifests; where it runs (devices, folders) is left out.

        What an officer approves is this digest, so any other session, option, task, plan or code is another run.
        """
        planned = sorted(_rows(self.planned).items())
        fields = [self.session, self.config.digest(), self.task, planned, self.code]
        return hashlib.sha256(msgpack.packb(fields)).digest()

    def run_digest(self) -> bytes:
        """SHA-256 over all that the run computes, 32 bytes: as `digest`, but the same whatever code asks for it."""
        planned = sorted(_rows(self.planned).items())
        return hashlib.sha256(msgpack.packb([self.session, self.config.digest(), self.task, planned])).digest()

    def sign(self, coordinator: Identity) -> bytes:
        """The message: statement and signature."""
        body = self.body()
        return bytes(msgpack.packb([body, coordinator.sign(DOMAIN, body)]))

    @classmethod
    def open(cls, message: bytes, coordinator: bytes) -> JoinRequest:
        """Read a message signed by the coordinator with this public key.

        Raises
        ------
        Refusal
            Not signed by it.
        ProtocolError
            Not a join request, or longer than one.
        """
        if len(message) > MAX_REQUEST_BYTES:
            raise ProtocolError(f"a join request of {len(message)} bytes is longer than {MAX_REQUEST_BYTES}")
        try:
            body, signature = msgpack.unpackb(message)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise ProtocolError(f"not a join request: {error}") from error
        if type(body) is not bytes or type(signature) is not bytes or not verify(coordinator, DOMAIN, body, signature):
            raise Refusal("the join request is not signed by this federation's coordinator")
        return cls.from_body(body)

    @classmethod
    def from_body(cls, body: bytes) -> JoinRequest:
        """Read the statement alone, from this silo's own store.

        Raises
        ------
        ProtocolError
            Not a statement.
        """
        try:
            session, config, task, planned, code = msgpack.unpackb(body)
            mechanisms = {dataset: [Mechanism(*row) for row in rows] for dataset, rows in planned.items()}
            request = cls(session, ResolvedConfig.create(**json.loads(config)), task, mechanisms, code)
        except (
            *(ValueError, TypeError, AttributeError, RecursionError, ConfigError),
            msgpack.exceptions.UnpackException,
        ) as error:
            raise ProtocolError(f"not a join request: {error}") from error
        if type(session) is not bytes or len(session) != SESSION_BYTES or type(task) is not str:
            raise ProtocolError("not a join request: no session or task")
        if type(code) is not bytes or len(code) != DIGEST_BYTES:
            raise ProtocolError("not a join request: no digest of the coordinator's code")
        return request


def _rows(planned: Planned) -> dict[str, list[list[float]]]:
    return {
        dataset: [[float(m.sampling_rate), float(m.noise_multiplier), m.count] for m in mechanisms]
        for dataset, mechanisms in planned.items()
    }


def join_reply(silo: int) -> bytes:
    """A silo's answer: its id."""
    return bytes(msgpack.packb(silo))


def read_join_reply(reply: bytes) -> int:
    """Silo id of a node.

    Raises
    ------
    ProtocolError
        Not a join reply.
    """
    try:
        silo = msgpack.unpackb(reply)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a join reply: {error}") from error
    if type(silo) is not int or silo < 1:
        raise ProtocolError("not a join reply: no silo id")
    return silo
