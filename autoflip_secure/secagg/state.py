"""A silo's durable protocol state: SQLite tables on the connection it shares with the privacy ledger.

Every method that changes something is one transaction, committed to disk before it returns, so nothing leaves the silo
that a restart would forget. A slot's secrets are deleted in the transaction that spends the slot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgpack

from autoflip_secure.errors import ProtocolError
from autoflip_secure.parties.rules import refusal
from autoflip_secure.parties.store import Store
from autoflip_secure.secagg.graph import ShareGraph
from autoflip_secure.secagg.keys import SlotSecret
from autoflip_secure.secagg.silo_states import (
    Advertised,
    Answered,
    Closed,
    Confirmed,
    Dealt,
    EpochState,
    Masked,
    Ready,
    SlotState,
    Spent,
)

__all__ = ["SiloState"]

TABLES = """
CREATE TABLE IF NOT EXISTS secagg_session (session BLOB PRIMARY KEY, newest_epoch INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS secagg_epoch (
    session BLOB PRIMARY KEY, epoch INTEGER NOT NULL, slots INTEGER NOT NULL, stage TEXT NOT NULL,
    advertisement BLOB, box_key BLOB, holders INTEGER, threshold INTEGER, keys_hash BLOB, dealing BLOB,
    advertisements BLOB, epoch_hash BLOB, members BLOB, mask_keys BLOB, holdings BLOB, share_holders BLOB) STRICT;
CREATE TABLE IF NOT EXISTS secagg_secret (
    session BLOB, epoch INTEGER, slot INTEGER, seed BLOB NOT NULL, mask_key BLOB NOT NULL,
    PRIMARY KEY (session, epoch, slot)) STRICT;
CREATE TABLE IF NOT EXISTS secagg_share (
    session BLOB, epoch INTEGER, slot INTEGER, shares BLOB NOT NULL, PRIMARY KEY (session, epoch, slot)) STRICT;
CREATE TABLE IF NOT EXISTS secagg_chain (
    session BLOB, epoch INTEGER, slot INTEGER, root BLOB NOT NULL, PRIMARY KEY (session, epoch, slot)) STRICT;
CREATE TABLE IF NOT EXISTS secagg_slot (
    session BLOB, epoch INTEGER, slot INTEGER, stage TEXT NOT NULL, manifest BLOB NOT NULL, statement BLOB,
    confirm_hash BLOB, confirm_reply BLOB, unmask_hash BLOB, unmask_reply BLOB,
    PRIMARY KEY (session, epoch, slot)) STRICT;
"""

# Slots are numbered anew in every epoch, and another process may have opened a later one since this one looked.
THE_SLOT = " WHERE session = ? AND epoch = ? AND slot = ?"
EPOCH_COLUMNS = (
    *("epoch", "slots", "stage", "advertisement", "holders", "threshold", "box_key", "keys_hash", "dealing"),
    *("advertisements", "epoch_hash", "members", "mask_keys", "holdings", "share_holders"),
)
PER_EPOCH = ("secagg_epoch", "secagg_secret", "secagg_share", "secagg_chain", "secagg_slot")


class SiloState:
    """State of one silo over all sessions; one epoch a session is kept."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._store = Store(connection, TABLES, "SELECT epoch FROM secagg_slot LIMIT 0")

    def open_epoch(
        self,
        session: bytes,
        epoch: int,
        advertisement: bytes,
        box_key: bytes,
        secrets: Sequence[SlotSecret],
    ) -> None:
        """Start an epoch and forget the session's former one, its secrets included.

        Raises
        ------
        Refusal
            The epoch is not greater than every one seen in the session.
        """
        with self._store.forgetting() as db:
            newest = db.execute("SELECT newest_epoch FROM secagg_session WHERE session = ?", (session,)).fetchone()
            if newest is not None and epoch <= newest[0]:
                raise refusal("epoch-order", f"epoch {epoch} is not after epoch {newest[0]}; open a later one")
            self._forget(db, session)
            db.execute("INSERT OR REPLACE INTO secagg_session VALUES (?, ?)", (session, epoch))
            db.execute(
                "INSERT INTO secagg_epoch (session, epoch, slots, stage, advertisement, box_key)"
                " VALUES (?, ?, ?, 'advertised', ?, ?)",
                (session, epoch, len(secrets), advertisement, box_key),
            )
            rows = ((session, epoch, slot, secret.seed, secret.mask_key) for slot, secret in enumerate(secrets))
            db.executemany("INSERT INTO secagg_secret VALUES (?, ?, ?, ?, ?)", rows)

    def forget_others(self, session: bytes) -> None:
        """Delete the keys and shares of all other sessions; that their epochs were seen is kept."""
        with self._store.forgetting() as db:
            for table in PER_EPOCH:
                db.execute(f"DELETE FROM {table} WHERE session <> ?", (session,))

    @staticmethod
    def _forget(db: sqlite3.Connection, session: bytes) -> None:
        for table in PER_EPOCH:
            db.execute(f"DELETE FROM {table} WHERE session = ?", (session,))

    def epoch_number(self, session: bytes) -> int | None:
        """Number of the session's current epoch."""
        row = self._store.row("SELECT epoch FROM secagg_epoch WHERE session = ?", session)
        return None if row is None else int(row[0])

    def epoch(self, session: bytes) -> EpochState:
        """Where the session's current epoch stands.

        Raises
        ------
        ProtocolError
            The session has none.
        """
        row = self._store.row(f"SELECT {', '.join(EPOCH_COLUMNS)} FROM secagg_epoch WHERE session = ?", session)
        if row is None:
            raise ProtocolError("this silo has no keys in the session; advertise comes first")
        found = dict(zip(EPOCH_COLUMNS, row, strict=True))
        head = (session, found["epoch"], found["slots"])
        if found["stage"] == "advertised":
            return Advertised(*head, found["advertisement"])
        graph = ShareGraph(found["holders"], found["threshold"])
        if found["stage"] == "dealt":
            keys = (found["box_key"], found["keys_hash"], found["dealing"])
            return Dealt(*head, graph, *keys, _unpacked(found["advertisements"]))
        peers = (found[name] for name in ("members", "mask_keys", "holdings", "share_holders"))
        return Ready(*head, graph, found["epoch_hash"], *map(_unpacked, peers))

    def settle(self) -> None:
        """Make sure that what was deleted before is off the disk, also where a process died in between."""
        self._store.clear_log()

    def secrets(self, state: Advertised) -> tuple[bytes, tuple[SlotSecret, ...]]:
        """Private box key and the secrets of all slots, to be dealt."""
        key = (state.session, state.epoch)
        box_key = self._store.row("SELECT box_key FROM secagg_epoch WHERE session = ? AND epoch = ?", *key)
        query = "SELECT seed, mask_key FROM secagg_secret WHERE session = ? AND epoch = ? ORDER BY slot"
        rows = self._store.rows(query, *key)
        if box_key is None or len(rows) != state.slots:
            raise refusal("epoch-keys", f"the keys of epoch {state.epoch} are gone; open a later one")
        return box_key[0], tuple(SlotSecret(*row) for row in rows)

    def record_dealing(self, state: Advertised, dealt: Dealt) -> None:
        """Note that this silo dealt its secrets, and to whom; it deals once an epoch."""
        graph, where = dealt.graph, (state.session, state.epoch)
        self._store.step(
            "UPDATE secagg_epoch SET stage = 'dealt', holders = ?, threshold = ?, keys_hash = ?, dealing = ?,"
            " advertisements = ?, advertisement = NULL WHERE session = ? AND epoch = ? AND stage = 'advertised'",
            (
                graph.holders,
                graph.threshold,
                dealt.keys_hash,
                dealt.dealing,
                msgpack.packb(dealt.advertisements),
                *where,
            ),
            refusal("deal-once", f"shares of epoch {state.epoch} were already dealt"),
        )

    def record_delivery(self, state: Dealt, ready: Ready, shares: Sequence[bytes]) -> None:
        """Keep the shares received, one blob a slot, and who the peers are; forget the private box key."""
        with self._store.forgetting() as db:
            peers = (ready.members, dict(ready.mask_keys), ready.holdings, dict(ready.holders))
            changed = db.execute(
                "UPDATE secagg_epoch SET stage = 'ready', epoch_hash = ?, members = ?, mask_keys = ?, holdings = ?,"
                " share_holders = ?, advertisements = NULL, box_key = NULL, dealing = NULL"
                " WHERE session = ? AND epoch = ? AND stage = 'dealt'",
                (ready.epoch_hash, *map(msgpack.packb, peers), state.session, state.epoch),
            ).rowcount
            if changed != 1:
                raise refusal("delivery-once", f"shares of epoch {state.epoch} were already delivered")
            rows = ((state.session, state.epoch, slot, blob) for slot, blob in enumerate(shares))
            db.executemany("INSERT INTO secagg_share VALUES (?, ?, ?, ?)", rows)

    def slot(self, ready: Ready, slot: int) -> SlotState | None:
        """What this silo did in a slot; None where it is unused."""
        row = self._store.row(
            "SELECT stage, manifest, statement, confirm_hash, confirm_reply, unmask_hash, unmask_reply FROM secagg_slot"
            + THE_SLOT,
            *_key(ready, slot),
        )
        if row is None:
            return None
        stage, manifest, statement, *answers = row
        if stage == "confirmed":
            return Confirmed(slot, manifest, statement, *answers[:2])
        if stage == "answered":
            return Answered(slot, manifest, statement, *answers)
        bare: dict[str, type[Spent] | type[Masked] | type[Closed]] = {
            "spent": Spent,
            "masked": Masked,
            "closed": Closed,
        }
        return bare[stage](slot, manifest)

    def spend(self, ready: Ready, slot: int, manifest: bytes, *, closed: bool = False) -> SlotSecret:
        """Use up a slot for a manifest: return its secrets and delete them from disk.

        Raises
        ------
        Refusal
            The slot was used, or the epoch's secrets are gone.
        """
        key = _key(ready, slot)
        with self._store.forgetting() as db:
            secret = db.execute("SELECT seed, mask_key FROM secagg_secret" + THE_SLOT, key).fetchone()
            if secret is None:
                raise refusal("slot-once", f"slot {slot} of epoch {ready.epoch} was used before; take the next one")
            db.execute("DELETE FROM secagg_secret" + THE_SLOT, key)
            stage = "closed" if closed else "spent"
            db.execute(
                "INSERT INTO secagg_slot (session, epoch, slot, stage, manifest) VALUES (?, ?, ?, ?, ?)",
                (*key, stage, manifest),
            )
            if closed:
                db.execute("DELETE FROM secagg_share" + THE_SLOT, key)
        return SlotSecret(*secret)

    def record_masked(self, ready: Ready, slot: int, root: bytes | None) -> None:
        """Note that the masked vector exists, and the root of the chain of its removable noise, if it has any."""
        key = _key(ready, slot)
        with self._store.change() as db:
            query = "UPDATE secagg_slot SET stage = 'masked'" + THE_SLOT + " AND stage = 'spent'"
            if db.execute(query, key).rowcount != 1:
                raise refusal("slot-once", f"slot {slot} of epoch {ready.epoch} was closed meanwhile")
            if root is not None:
                db.execute("INSERT INTO secagg_chain VALUES (?, ?, ?, ?)", (*key, root))

    def record_confirmation(self, ready: Ready, confirmed: Confirmed) -> None:
        """Note the one confirmation of a slot, before it is sent."""
        self._store.step(
            "UPDATE secagg_slot SET stage = 'confirmed', statement = ?, confirm_hash = ?, confirm_reply = ?"
            + THE_SLOT
            + " AND stage IN ('spent', 'masked')",
            (confirmed.statement, confirmed.request_hash, confirmed.reply, *_key(ready, confirmed.slot)),
            refusal("confirm-once", f"slot {confirmed.slot} was confirmed meanwhile"),
        )

    def record_answer(self, ready: Ready, slot: int, request_hash: bytes, reply: bytes) -> None:
        """Note the one unmask answer of a slot, before it is sent, and forget the slot's shares and chain."""
        key = _key(ready, slot)
        with self._store.forgetting() as db:
            changed = db.execute(
                "UPDATE secagg_slot SET stage = 'answered', unmask_hash = ?, unmask_reply = ?"
                + THE_SLOT
                + " AND stage = 'confirmed'",
                (request_hash, reply, *key),
            ).rowcount
            if changed != 1:
                raise refusal("unmask-once", f"slot {slot} was answered meanwhile")
            db.execute("DELETE FROM secagg_share" + THE_SLOT, key)
            db.execute("DELETE FROM secagg_chain" + THE_SLOT, key)

    def close(self, ready: Ready, slot: int) -> None:
        """Give up a slot after a broken rule: its shares are deleted, so this silo cannot help to open it."""
        key = _key(ready, slot)
        with self._store.forgetting() as db:
            db.execute("UPDATE secagg_slot SET stage = 'closed'" + THE_SLOT, key)
            db.execute("DELETE FROM secagg_share" + THE_SLOT, key)
            db.execute("DELETE FROM secagg_chain" + THE_SLOT, key)

    def shares(self, ready: Ready, slot: int) -> bytes:
        """Shares received for a slot, as `record_delivery` got them."""
        row = self._store.row("SELECT shares FROM secagg_share" + THE_SLOT, *_key(ready, slot))
        if row is None:
            raise refusal("unmask-once", f"the shares of slot {slot} are gone")
        return row[0]

    def root(self, ready: Ready, slot: int) -> bytes | None:
        """Root of the noise chain of this silo's vector; None where it has none."""
        row = self._store.row("SELECT root FROM secagg_chain" + THE_SLOT, *_key(ready, slot))
        return None if row is None else row[0]


def _key(ready: Ready, slot: int) -> tuple[bytes, int, int]:
    return ready.session, ready.epoch, slot


def _unpacked(blob: bytes) -> Any:
    return msgpack.unpackb(blob, use_list=False, strict_map_key=False)
