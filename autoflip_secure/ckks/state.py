"""A silo's durable state of CKKS sums: SQLite tables on the connection it shares with the privacy ledger.

Every method that changes something is one transaction, committed to disk before it returns, so nothing leaves the silo
that a restart would forget. An epoch goes Advertised -> Ready; each of its slots (unused) -> spent -> encrypted ->
opened, or closed after a broken rule or by a later slot. A slot is never used twice, and its keys are gone once it is
opened or closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgpack

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.rules import refusal
from autoflip_secure.parties.store import Store

__all__ = ["Advertised", "Ready", "SiloState", "Slot", "SlotKeys"]

TABLES = """
CREATE TABLE IF NOT EXISTS ckks_session (session BLOB PRIMARY KEY, newest_epoch INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS ckks_epoch (
    session BLOB PRIMARY KEY, epoch INTEGER NOT NULL, slots INTEGER NOT NULL, advertisement BLOB NOT NULL,
    epoch_hash BLOB, publics BLOB) STRICT;
CREATE TABLE IF NOT EXISTS ckks_secret (
    session BLOB, epoch INTEGER, slot INTEGER, agreement BLOB NOT NULL, lattice BLOB, root BLOB,
    PRIMARY KEY (session, epoch, slot)) STRICT;
CREATE TABLE IF NOT EXISTS ckks_slot (
    session BLOB, epoch INTEGER, slot INTEGER, stage TEXT NOT NULL, manifest BLOB NOT NULL,
    PRIMARY KEY (session, epoch, slot)) STRICT;
"""
NEWEST = "SELECT lattice FROM ckks_secret LIMIT 0"
THE_SLOT = " WHERE session = ? AND epoch = ? AND slot = ?"
EARLIER = " WHERE session = ? AND epoch = ? AND slot < ?"
PER_EPOCH = ("ckks_epoch", "ckks_secret", "ckks_slot")


@dataclass(frozen=True)
class Advertised:
    """Keys exist and were advertised; those of others have not arrived."""

    session: bytes
    epoch: int
    slots: int
    advertisement: bytes = field(repr=False)


@dataclass(frozen=True)
class Ready:
    """The epoch's key set-up is complete.

    Attributes
    ----------
    publics : mapping of int to bytes
        Advertised keys of all silos of the epoch, this one included, 32 bytes a slot.
    """

    session: bytes
    epoch: int
    slots: int
    epoch_hash: bytes
    publics: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True)
class SlotKeys:
    """What a silo needs to open the one sum of a slot, and keeps until then.

    Attributes
    ----------
    agreement : bytes, 32
        Private X25519 key.
    lattice : bytes
        Words of the lattice key its ciphertexts are under, little-endian.
    root : bytes, 32, or None
        Root of the chain of the contribution's removable noise.
    """

    agreement: bytes = field(repr=False)
    lattice: bytes = field(repr=False)
    root: bytes | None = field(repr=False)

    def __reduce__(self) -> str:
        raise TypeError("a slot's private keys cannot be pickled or copied")


@dataclass(frozen=True)
class Slot:
    """What this silo did in a slot: `stage` is spent, encrypted, opened or closed."""

    stage: str
    manifest: bytes = field(repr=False)


class SiloState:
    """State of one silo over all sessions; one epoch a session is kept."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._store = Store(connection, TABLES, NEWEST)

    def open_epoch(self, session: bytes, epoch: int, advertisement: bytes, agreements: Sequence[bytes]) -> None:
        """Start an epoch, with a private X25519 key a slot, and forget the session's former one, its keys included.

        Raises
        ------
        Refusal
            The epoch is not greater than every one seen in the session.
        """
        with self._store.forgetting() as db:
            newest = db.execute("SELECT newest_epoch FROM ckks_session WHERE session = ?", (session,)).fetchone()
            if newest is not None and epoch <= newest[0]:
                raise refusal("epoch-order", f"epoch {epoch} is not after epoch {newest[0]}; open a later one")
            for table in PER_EPOCH:
                db.execute(f"DELETE FROM {table} WHERE session = ?", (session,))
            db.execute("INSERT OR REPLACE INTO ckks_session VALUES (?, ?)", (session, epoch))
            db.execute(
                "INSERT INTO ckks_epoch (session, epoch, slots, advertisement) VALUES (?, ?, ?, ?)",
                (session, epoch, len(agreements), advertisement),
            )
            rows = ((session, epoch, slot, key) for slot, key in enumerate(agreements))
            db.executemany("INSERT INTO ckks_secret (session, epoch, slot, agreement) VALUES (?, ?, ?, ?)", rows)

    def forget_others(self, session: bytes) -> None:
        """Delete the keys of all other sessions; that their epochs were seen is kept."""
        with self._store.forgetting() as db:
            for table in PER_EPOCH:
                db.execute(f"DELETE FROM {table} WHERE session <> ?", (session,))

    def epoch(self, session: bytes) -> Advertised | Ready:
        """Where the session's current epoch stands.

        Raises
        ------
        ProtocolError
            The session has none.
        """
        row = self._store.row(
            "SELECT epoch, slots, advertisement, epoch_hash, publics FROM ckks_epoch WHERE session = ?", session
        )
        if row is None:
            raise ProtocolError("this silo has no keys in the session; they are made first")
        epoch, slots, advertisement, epoch_hash, publics = row
        if epoch_hash is None:
            return Advertised(session, epoch, slots, advertisement)
        return Ready(session, epoch, slots, epoch_hash, msgpack.unpackb(publics, strict_map_key=False))

    def record_keys(self, state: Advertised, epoch_hash: bytes, publics: Mapping[int, bytes]) -> None:
        """Keep the keys of all silos of the epoch, once."""
        self._store.step(
            "UPDATE ckks_epoch SET epoch_hash = ?, publics = ? WHERE session = ? AND epoch = ? AND epoch_hash IS NULL",
            (epoch_hash, msgpack.packb(dict(publics)), state.session, state.epoch),
            refusal("keys-once", f"the keys of epoch {state.epoch} were delivered before"),
        )

    def slot(self, ready: Ready, slot: int) -> Slot | None:
        """What this silo did in a slot; None where it is unused."""
        row = self._store.row("SELECT stage, manifest FROM ckks_slot" + THE_SLOT, *_key(ready, slot))
        return None if row is None else Slot(*row)

    def spend(self, ready: Ready, slot: int, manifest: bytes, *, closed: bool = False) -> None:
        """Use up a slot for a manifest, and give up earlier ones that were not opened: their keys are deleted.

        Raises
        ------
        Refusal
            The slot was used, or its epoch is over.
        """
        with self._store.forgetting() as db:
            key = _key(ready, slot)
            unused = db.execute("SELECT 1 FROM ckks_secret" + THE_SLOT, key).fetchone() is not None
            used = db.execute("SELECT 1 FROM ckks_slot" + THE_SLOT, key).fetchone() is not None
            if used or not unused:
                raise refusal("slot-once", f"slot {slot} of epoch {ready.epoch} was used before; take the next one")
            stage = "closed" if closed else "spent"
            db.execute("INSERT INTO ckks_slot VALUES (?, ?, ?, ?, ?)", (*key, stage, manifest))
            db.execute("UPDATE ckks_slot SET stage = 'closed'" + EARLIER + " AND stage <> 'opened'", key)
            db.execute("DELETE FROM ckks_secret" + EARLIER, key)
            if closed:
                db.execute("DELETE FROM ckks_secret" + THE_SLOT, key)

    def record_encrypted(self, ready: Ready, slot: int, lattice: bytes, root: bytes | None) -> None:
        """Note that the ciphertexts exist, the key they are under, and the root of the chain of their noise, if any."""
        with self._store.change() as db:
            key = _key(ready, slot)
            query = "UPDATE ckks_slot SET stage = 'encrypted'" + THE_SLOT + " AND stage = 'spent'"
            if db.execute(query, key).rowcount != 1:
                raise refusal("slot-once", f"slot {slot} of epoch {ready.epoch} was closed meanwhile")
            db.execute("UPDATE ckks_secret SET lattice = ?, root = ?" + THE_SLOT, (lattice, root, *key))

    def take_keys(self, ready: Ready, slot: int) -> SlotKeys:
        """Note that a slot is opened, before its part is computed: return its keys and delete them from disk.

        Raises
        ------
        Refusal
            It was opened before.
        """
        with self._store.forgetting() as db:
            key = _key(ready, slot)
            query = "UPDATE ckks_slot SET stage = 'opened'" + THE_SLOT + " AND stage = 'encrypted'"
            if db.execute(query, key).rowcount != 1:
                raise refusal("open-once", f"slot {slot} was opened before; every slot is opened once")
            row = db.execute("SELECT agreement, lattice, root FROM ckks_secret" + THE_SLOT, key).fetchone()
            db.execute("DELETE FROM ckks_secret" + THE_SLOT, key)
        return SlotKeys(*row)

    def close(self, ready: Ready, slot: int) -> None:
        """Give up a slot after a broken rule: its keys are deleted, so this silo cannot help to open it."""
        with self._store.forgetting() as db:
            db.execute("UPDATE ckks_slot SET stage = 'closed'" + THE_SLOT, _key(ready, slot))
            db.execute("DELETE FROM ckks_secret" + THE_SLOT, _key(ready, slot))


def _key(ready: Ready, slot: int) -> tuple[bytes, int, int]:
    return ready.session, ready.epoch, slot
