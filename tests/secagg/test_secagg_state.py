"""What is on a silo's disk, when, and who may read it."""

from __future__ import annotations

import sqlite3
import stat

import numpy as np
import pytest

from autoflip_secure.errors import EncodingError, ProtocolError, Refusal, StorageError
from autoflip_secure.secagg import SecAggSilo, SiloRules
from autoflip_secure.secagg.keys import SlotSecret
from autoflip_secure.secagg.round_messages import MaskedRequest
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.words import PackedWords


def blobs(connection):
    """Every blob in the database."""
    found = set()
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for row in connection.execute(f"SELECT * FROM {table}").fetchall():
            found |= {value for value in row if isinstance(value, bytes) and len(value) >= 32}
    return found


def count(connection, table):
    return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_slot_secrets_are_off_the_disk_before_training_starts(federation, tmp_path):
    fed = federation(3, folder=tmp_path)
    seen = []

    def contribute(silo):
        honest = type(fed).contribute(fed, silo)

        def words(manifest):
            other = open_silo_database(tmp_path / f"{silo}.db")
            query = "SELECT stage FROM secagg_slot WHERE slot = ?"
            seen.append((count(other, "secagg_secret"), other.execute(query, (manifest.slot,)).fetchone()))
            return honest(manifest)

        return words

    fed.contribute = contribute
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert seen == [(3, ("spent",))] * 3


def test_no_transaction_is_open_while_training(federation):
    fed = federation(3)

    def contribute(silo):
        def words(manifest):
            connection = fed.connections[silo]
            assert not connection.in_transaction
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS ledger (spent REAL)")
            connection.execute("COMMIT")
            return type(fed).contribute(fed, silo)(manifest)

        return words

    fed.contribute = contribute
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))


@pytest.mark.parametrize("stage", ["confirm", "unmask"])
def test_answer_is_on_disk_before_it_is_sent(federation, stage, tmp_path):
    """The reply is lost and the process dies; the new process repeats the very same bytes."""
    fed = federation(3, folder=tmp_path)
    seen = {}

    def exchange(now, requests):
        replies = dict(fed.exchange()(now, requests))
        if now == stage:
            for silo, request in requests.items():
                seen[silo] = replies[silo], fed.start(silo).answer(now, request, None)
        return replies.items()

    fed.coordinator.sum(fed.manifest(), exchange)
    assert all(first == again for first, again in seen.values())
    assert len(seen) == 3


def test_shares_are_deleted_once_revealed(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    for connection in fed.connections.values():
        assert count(connection, "secagg_share") == 3
        assert count(connection, "secagg_secret") == 3
        assert connection.execute("SELECT box_key FROM secagg_epoch").fetchone() == (None,)


def test_new_epoch_deletes_the_old_ones_secrets(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    old = blobs(fed.connections[1])
    fed.coordinator.rekey()
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    kept = old & blobs(fed.connections[1])
    assert not kept, "nothing of the old epoch is left"


def test_a_new_run_keeps_the_epoch_numbers_of_others_only(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    fed.start(1, bytes(16)).forget_other_runs()
    connection = fed.connections[1]
    assert blobs(connection) == set()
    assert connection.execute("SELECT newest_epoch FROM secagg_session").fetchall() == [(1,)]


def test_a_run_does_not_forget_itself(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    for silo in (1, 2, 3):
        before = blobs(fed.connections[silo])
        fed.start(silo).forget_other_runs()
        assert blobs(fed.connections[silo]) == before
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1]


def test_sessions_do_not_disturb_each_other(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    from autoflip_secure.secagg import SecAggCoordinator

    other = SecAggCoordinator(
        fed.coordinator_identity, fed.roster, bytes(16), slots=2, first_epoch=1,
        on_epoch=lambda number: None, events=lambda name, details: None,
    )  # fmt: skip
    fed.assert_exact(other.sum(fed.manifest(session=bytes(16)), fed.exchange()), (1, 2, 3))
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1]


def test_database_files_are_for_the_owner_only(federation, tmp_path):
    fed = federation(3, folder=tmp_path)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    files = list(tmp_path.iterdir())
    assert len(files) >= 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_contribution_of_the_wrong_shape(federation):
    fed = federation(4)
    wrong = PackedWords(np.zeros(5, np.uint64))
    fed.contribute = lambda silo: (lambda manifest: wrong) if silo == 4 else type(fed).contribute(fed, silo)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert isinstance(fed.failures["masked", 4], EncodingError)
    assert "slot is spent" in str(fed.failures["masked", 4])


def test_contribution_is_not_changed_in_place(federation):
    fed = federation(3)
    mine = np.arange(3, dtype=np.uint64)
    fed.contribute = lambda silo: lambda manifest: PackedWords(mine)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    np.testing.assert_array_equal(mine, [0, 1, 2])


def test_database_that_cannot_be_written(federation, tmp_path):
    fed = federation(3, folder=tmp_path)
    fed.connections[1].execute("PRAGMA query_only = ON")
    from autoflip_secure.secagg.setup_messages import AdvertiseRequest

    with pytest.raises(StorageError, match="nothing was sent"):
        fed.answer("advertise", 1, fed.signed(AdvertiseRequest(fed.session, fed.roster.hash(), 1, 2)))
    closed = sqlite3.connect(":memory:")
    closed.close()
    with pytest.raises(StorageError):
        SecAggSilo(closed, fed.identities[1], 1, fed.roster, SiloRules(0), fed.session)


def test_failed_change_leaves_nothing_behind(federation):
    fed = federation(3)
    state = fed.silos[1]._party.state
    with pytest.raises(StorageError):
        state.open_epoch(bytes(16), 1, b"", b"", [SlotSecret(b"x", b"y"), SlotSecret(b"x", None)])
    assert state.epoch_number(bytes(16)) is None
    assert not fed.connections[1].in_transaction


def test_secrets_are_not_in_any_repr(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    state = fed.silos[1]._party.state
    ready = state.epoch(fed.manifest().session)
    secret = state.spend(ready, 1, b"manifest")
    agreement_source = [secret, ready, fed.silos[1], fed.silos[1]._party, fed.identities[1], state]
    shown = "".join(map(repr, agreement_source))
    for value in (secret.seed, secret.mask_key):
        assert repr(value)[2:-1] not in shown
        assert value.hex() not in shown


def test_log_that_cannot_be_cleared_is_an_error(federation, dishonest, tmp_path):
    """A reader in another process keeps a spent secret in the log: the silo does not answer as if it were gone."""
    fed = federation(4, folder=tmp_path)
    attack = dishonest(fed)
    with pytest.raises(ProtocolError, match="not a manifest"):
        fed.answer("masked", 1, fed.signed(MaskedRequest(*attack.head, b"", attack.epoch.delivery(1))))
    fed.connections[1].execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(tmp_path / "1.db", isolation_level=None)

    def holding_the_seed():
        return [path for path in tmp_path.glob("1.db*") if attack.seeds[1] in path.read_bytes()]

    reader.execute("BEGIN")
    assert count(reader, "secagg_secret") == 4
    with pytest.raises(StorageError, match="another process keeps the log"):
        attack.masked(1)
    assert 1 not in attack.words
    assert holding_the_seed(), "else there would be nothing to tell"
    restarted = open_silo_database(tmp_path / "1.db")
    restarted.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(StorageError, match="another process keeps the log"):
        SecAggSilo(restarted, fed.identities[1], 1, fed.roster, SiloRules(0), fed.session)
    reader.execute("COMMIT")
    reader.close()
    fed.silos[1] = fed.start(1)
    assert not holding_the_seed()
    with pytest.raises(Refusal, match="slot-once"):
        attack.masked(1)


def test_answer_is_not_repeated_while_its_shares_are_on_the_disk(federation, dishonest, tmp_path):
    """The first try recorded the answer but could not clear the log; until that is done nothing leaves."""
    fed = federation(4, folder=tmp_path)
    attack, everyone = dishonest(fed), ((1, 2, 3, 4),)
    for silo in everyone[0]:
        attack.masked(silo)
    confirmations = [attack.confirm(silo, everyone) for silo in everyone[0]]
    request = attack.unmask_request(everyone, confirmations[:3])
    fed.connections[1].execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(tmp_path / "1.db", isolation_level=None)
    reader.execute("BEGIN")
    assert count(reader, "secagg_share") == 4
    for _ in range(2):
        with pytest.raises(StorageError, match="another process keeps the log"):
            fed.answer("unmask", 1, request)
    reader.execute("COMMIT")
    assert fed.answer("unmask", 1, request) == fed.answer("unmask", 1, request)
    assert count(fed.connections[1], "secagg_share") == 3
