"""The run key: 32 bytes that all silos of a run share and the coordinator, which carries the messages, does not know.

Every silo states an X25519 public key for the session, signed with its identity. One silo draws the key and seals it
for each of the others, who take it from a silo of their roster alone. A key that was not used yet gives way to another
one, so that a reply which got lost parts nobody from the rest; once it was used it stays. A coordinator that colludes
with no silo can withhold boxes, or let silos have different keys. It cannot open a box, or seal one that a silo would
take.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.agreement import Agreement, public_key
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import SiloRules, check_enrolled_silo, refusal, share_threshold
from autoflip_secure.parties.run_key_messages import (
    NONCE_BYTES,
    RunKeyReply,
    RunKeyRequest,
    RunKeyStatement,
    read_statement,
)
from autoflip_secure.parties.run_key_store import RunKeyStore
from autoflip_secure.parties.signing import sign_message
from autoflip_secure.parties.wire import KEY_BYTES, PROTOCOL, SESSION_BYTES, is_ascending, want_bytes

__all__ = ["Ask", "RunKeys", "distribute", "tag_key"]

MOST_SHARERS = 3
"""Silos asked in turn to seal the key, where those before do not answer."""

Ask = Callable[[Mapping[int, bytes]], Iterable[tuple[int, bytes]]]
"""ask(requests by silo id) -> (silo id, reply) one after another; a silo that dropped or refused is absent."""


class RunKeys:
    """A silo's half: states its public key, seals the run key for others, takes it from one of them.

    All state is in the database, so each request may be answered by a new process. A run key outlives a change of the
    roster within its session; statements and boxes do not.

    Parameters
    ----------
    database : sqlite3.Connection
        From `storage.open_silo_database`; no transaction may be open on it.
    identity : Identity
    silo : int
    roster : Roster
    session : bytes, 16
        The run this silo joined; requests of other runs are not answered.
    run : bytes
        Digest of what the run computes: tags of a run that does anything else under the same session hold for nobody.

    Raises
    ------
    InputError
        Identity, id and roster do not fit together.
    ProtocolError
        A session of another length.
    StorageError
        The database cannot be written.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        identity: Identity,
        silo: int,
        roster: Roster,
        session: bytes,
        run: bytes = b"",
    ) -> None:
        want_bytes("a session", session, SESSION_BYTES)
        # Every roster keeps these rules: only who the silo is gets checked.
        check_enrolled_silo(identity, silo, roster, SiloRules(colluders=0))
        self._identity, self._silo, self._roster = identity, silo, roster
        self._session, self._run = session, run
        self._store = RunKeyStore(database)

    @property
    def key(self) -> bytes | None:
        """The run key, 32 bytes; None where this silo has none yet."""
        return self._store.key(self._session)

    @property
    def tag_key(self) -> bytes | None:
        """Key of the run's tags, 32 bytes, by the run key there is now; None where there is none."""
        return None if self.key is None else tag_key(self.key, self._run)

    def use(self) -> bytes | None:
        """Key of the run's tags: from now on no other run key takes the place of this one."""
        key = self._store.use(self._session)
        return None if key is None else tag_key(key, self._run)

    def answer(self, request: bytes) -> bytes:
        """Answer one request; what the reply tells is on disk before it is returned.

        Raises
        ------
        Refusal
            A rule would be broken; the message names it.
        ProtocolError
            The request is malformed.

        Either way the run key is what it was before.
        """
        message = RunKeyRequest.from_bytes(request)
        if message.roster_hash != self._roster.hash():
            raise refusal("roster", "the coordinator works with another roster; both sides need the same file")
        if message.session != self._session:
            raise refusal("session", "the request is of a run that this silo did not join")
        # In order, so one statement a silo.
        senders = [read_statement(data, self._roster, self._session) for data in message.statements]
        silos = [sender.silo for sender in senders]
        if not is_ascending(silos):
            raise refusal("known-silos", "statements are not in ascending order, one a silo")
        if self._silo in silos:
            raise refusal("known-silos", "no silo seals a run key for itself")
        private = self._store.private(self._session)
        statement = self._statement(private)
        boxes: tuple[bytes, ...] = ()
        if message.asked == "share":
            boxes = self._seal(private, statement, senders, message.statements)
        elif message.asked == "take":
            self._take(private, statement, senders[0], message)
        key = self.key
        return RunKeyReply(statement, b"" if key is None else _key_name(key, self._session), boxes).to_bytes()

    def forget_oldest_runs(self) -> None:
        """Delete private keys and run keys of all but the last sessions: one that rests may be gone on with."""
        self._store.forget_oldest(self._session)

    def __repr__(self) -> str:
        return f"RunKeys(silo {self._silo})"

    def _statement(self, private: bytes) -> bytes:
        """The same bytes every time, as Ed25519 signatures are: boxes are bound to them."""
        statement = RunKeyStatement(self._session, self._roster.hash(), self._silo, public_key(private))
        return sign_message(self._identity, statement)

    def _seal(
        self, private: bytes, own: bytes, receivers: Sequence[RunKeyStatement], signed: Sequence[bytes]
    ) -> tuple[bytes, ...]:
        # Drawn where there is none; else the one there stays.
        key = self._store.keep(self._session, os.urandom(KEY_BYTES), drawn=True)
        agreement, boxes = Agreement(private), []
        for receiver, statement in zip(receivers, signed, strict=True):
            nonce = os.urandom(NONCE_BYTES)
            cipher = AESGCM(_box_key(agreement, receiver, self._silo, receiver.silo))
            boxes.append(nonce + cipher.encrypt(nonce, key, own + statement))
        return tuple(boxes)

    def _take(self, private: bytes, own: bytes, sender: RunKeyStatement, message: RunKeyRequest) -> None:
        cipher = AESGCM(_box_key(Agreement(private), sender, sender.silo, self._silo))
        nonce, sealed = message.box[:NONCE_BYTES], message.box[NONCE_BYTES:]
        try:
            key = cipher.decrypt(nonce, sealed, message.statements[0] + own)
        except InvalidTag as error:
            raise refusal("run-key-box", f"the box is not one that silo {sender.silo} sealed for this silo") from error
        if not hmac.compare_digest(self._store.keep(self._session, key, drawn=False), key):
            raise refusal("run-key-once", f"silo {sender.silo} sealed another run key than the one this silo uses")


def distribute(ask: Ask, silos: Iterable[int], roster: Roster, session: bytes) -> frozenset[int]:
    """The coordinator's half: bring as many silos as can be reached to one run key.

    A silo that has the key of most seals it for those without it. Silos are asked to draw one only where as many of
    them without any answered as every sum needs (T): otherwise the key may be with silos that are away, and a second
    one would part the run. A silo that keeps another key than the rest is left out; its words would spoil every tag.

    Parameters
    ----------
    ask : callable
        See `Ask`. It is called at most 7 times; a malformed reply counts as none.
    silos : iterable of int
        All that are to have the key, also those that have it. Call again for silos that come later.
    roster : Roster
    session : bytes, 16

    Returns
    -------
    frozenset of int
        Those known to have the one key; empty where there is none yet.
    """
    head = (session, roster.hash())
    state = RunKeyRequest(*head, "state").to_bytes()
    known = _replies(ask, dict.fromkeys(silos, state), roster, session)
    name, holders = _holders(known)
    without = [silo for silo, reply in known.items() if silo not in holders]
    if not without:
        return frozenset(holders)
    keyless = [silo for silo in without if not known[silo].key_name]
    may_draw = keyless if len(keyless) >= share_threshold(len(roster.entries)) else []
    for sharer in [*holders, *may_draw][:MOST_SHARERS]:
        receivers = [silo for silo in without if silo != sharer]
        request = RunKeyRequest(*head, "share", tuple(known[silo].statement for silo in receivers)).to_bytes()
        shared = _replies(ask, {sharer: request}, roster, session).get(sharer)
        held = known[sharer].key_name
        if shared is None or len(shared.boxes) != len(receivers) or held not in (b"", shared.key_name):
            continue
        boxes = zip(receivers, shared.boxes, strict=True)
        requests = {silo: RunKeyRequest(*head, "take", (shared.statement,), box).to_bytes() for silo, box in boxes}
        taken = _replies(ask, requests, roster, session)
        having = {silo for silo, reply in taken.items() if reply.key_name == shared.key_name}
        if having:
            return frozenset({sharer, *having, *(holders if shared.key_name == name else ())})
    return frozenset(holders)


def _holders(known: Mapping[int, RunKeyReply]) -> tuple[bytes, list[int]]:
    """Name of the key that most silos have, and those that have it, ascending; of two as frequent the first silo's."""
    names = Counter(reply.key_name for reply in known.values() if reply.key_name)
    if not names:
        return b"", []
    name = names.most_common(1)[0][0]
    return name, [silo for silo, reply in known.items() if reply.key_name == name]


def _replies(ask: Ask, requests: Mapping[int, bytes], roster: Roster, session: bytes) -> dict[int, RunKeyReply]:
    """The first reply of each silo asked, where it holds and is the silo's own; ascending by silo."""
    found, answered = {}, set()
    for silo, data in ask(requests):
        if silo in answered or silo not in requests:
            continue
        answered.add(silo)
        try:
            reply = RunKeyReply.from_bytes(data)
            if read_statement(reply.statement, roster, session).silo == silo:
                found[silo] = reply
        except ProtocolError:
            continue
    return dict(sorted(found.items()))


def _box_key(agreement: Agreement, peer: RunKeyStatement, sender: int, receiver: int) -> bytes:
    """HKDF(X25519, salt = session | roster hash, info = protocol | "run key box" | sender | receiver), 32 bytes."""
    info = b"|run key box|" + struct.pack(">II", sender, receiver)
    return _derive(agreement.with_peer(peer.public), peer.session + peer.roster_hash, info)


def tag_key(key: bytes, run: bytes) -> bytes:
    """HKDF(run key, salt = digest of what the run computes, info = protocol | "tag key"), 32 bytes."""
    return _derive(key, run, b"|tag key")


def _key_name(key: bytes, session: bytes) -> bytes:
    """HKDF(run key, salt = session, info = protocol | "run key name"), 32 bytes."""
    return _derive(key, session, b"|run key name")


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, PROTOCOL + info).derive(secret)
