"""What is on a silo's disk, when, and who may read it."""

from __future__ import annotations

import sqlite3
import stat

import numpy as np
import pytest

from autoflip_secure.ckks import silo as silo_module
from autoflip_secure.ckks.coordinator import CkksCoordinator
from autoflip_secure.ckks.messages import KeyRequest
from autoflip_secure.ckks.parameters import DEGREE
from autoflip_secure.ckks.silo import CkksSilo
from autoflip_secure.ckks.state import SiloState
from autoflip_secure.errors import Abort, ProtocolError, Refusal, StorageError
from autoflip_secure.parties.rules import SiloRules
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.words import PackedWords

OTHER_SESSION = bytes(16)


def test_keys_of_an_epoch(federation):
    """An X25519 key a slot from the start, a lattice key of 4096 words from `encrypt` until the slot is opened; all
    new in every slot, epoch and silo."""
    fed, seen = federation(3, slots=2), []

    def exchange(stage, requests):
        if stage == "open":
            for silo in requests:
                agreement, lattice = fed.secrets(silo, slot=len(fed.requests["open", silo]) % 2)
                assert (len(agreement), len(lattice)) == (32, 8 * DEGREE)
                seen.extend((agreement, lattice))
        yield from fed.exchange()(stage, requests)

    for left in (1, 0, 1, 0):
        fed.coordinator.sum(fed.manifest(), exchange)
        assert [list(map(len, fed.secrets(silo))) for silo in fed.everyone] == [[32] * left] * 3
    assert fed.epochs == [1, 2]
    assert len(set(seen)) == len(seen) == 4 * 3 * 2


def test_new_epoch_deletes_old_keys_from_the_files(federation):
    """Those of slots that nobody used, and those of one that was never opened."""
    fed = federation(3)
    fed.caught_at("open")
    old = {silo: [*fed.secrets(silo), *fed.chains(silo)] for silo in fed.everyone}
    assert list(map(len, old[1])) == [32] * 4 + [8 * DEGREE, 32]
    assert all(fed.on_disk(silo, old[silo]) == old[silo] for silo in fed.everyone), "else there is nothing to delete"
    fed.coordinator.rekey()
    fed.caught_at("encrypt")
    for silo in fed.everyone:
        assert not fed.on_disk(silo, old[silo]), "before the new keys are used"
        new = fed.secrets(silo)
        assert len(new) == 4
        assert fed.on_disk(silo, new) == new
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1, 2]


def test_a_new_run_deletes_the_keys_of_others_and_keeps_their_epoch_numbers(federation):
    fed = federation(3)
    fed.caught_at("open")
    old = fed.secrets(1)
    assert fed.on_disk(1, [*old, fed.roots[1]]) == [*old, fed.roots[1]]
    fed.start(1, OTHER_SESSION).forget_other_runs()
    assert not fed.secrets(1)
    assert not fed.on_disk(1, [*old, fed.roots[1]])
    connection = fed.connections[1]
    assert connection.execute("SELECT count(*) FROM ckks_slot").fetchone() == (0,)
    assert connection.execute("SELECT newest_epoch FROM ckks_session").fetchall() == [(1,)]


def test_a_run_does_not_forget_itself(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    for silo in fed.everyone:
        before = list(fed.connections[silo].iterdump())
        fed.silos[silo] = fed.start(silo)
        fed.silos[silo].forget_other_runs()
        assert list(fed.connections[silo].iterdump()) == before
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1]


def test_sessions_do_not_disturb_each_other(federation):
    """Two runs with the same files in turn; each has its own keys, epochs and slots."""
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    first, keys = fed.silos, fed.secrets(1)
    fed.silos = {silo: fed.on(fed.connections[silo], silo, OTHER_SESSION) for silo in fed.everyone}
    other = CkksCoordinator(
        fed.coordinator_identity, fed.roster, OTHER_SESSION, slots=4, first_epoch=1,
        on_epoch=lambda number: None, events=lambda name, details: None,
    )  # fmt: skip
    fed.assert_exact(other.sum(fed.manifest(session=OTHER_SESSION), fed.exchange()), (1, 2, 3))
    assert len(fed.secrets(1)) == 2 * len(keys)
    fed.silos = first
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1]


def test_slot_is_spent_on_disk_before_training_starts(federation):
    fed, seen = federation(3), []
    honest = fed.contribute

    def contribute(silo):
        def words(manifest):
            other = open_silo_database(fed.database(silo))
            seen.append(other.execute("SELECT slot, stage FROM ckks_slot").fetchall())
            kept = other.execute("SELECT count(*), count(lattice), count(root) FROM ckks_secret").fetchone()
            assert kept == (4, 0, 0)
            return honest(silo)(manifest)

        return words

    fed.contribute = contribute
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert seen == [[(0, "spent")]] * 3


def test_opening_is_on_disk_before_it_is_computed(federation, monkeypatch):
    """And the slot's keys are off it: in the files as another process finds them, not only in the tables."""
    fed, seen, honest, kept = federation(3), [], silo_module.open_part, {}

    def spy(*arguments):
        opened = [silo for silo in fed.everyone if fed.stage_of(silo) == "opened"]
        seen.append(opened)
        assert not any(fed.secrets(silo, slot=0) or fed.chains(silo) for silo in opened)
        assert not any(fed.on_disk(silo, kept[silo]) for silo in opened)
        return honest(*arguments)

    def exchange(stage, requests):
        if stage == "open":
            kept.update({silo: [*fed.secrets(silo, slot=0), *fed.chains(silo)] for silo in fed.everyone})
            assert all(fed.on_disk(silo, kept[silo]) == kept[silo] for silo in fed.everyone)
        yield from fed.exchange()(stage, requests)

    monkeypatch.setattr(silo_module, "open_part", spy)
    fed.coordinator.sum(fed.manifest(), exchange)
    assert seen == [[1], [1, 2], [1, 2, 3]]


def test_no_transaction_is_open_while_training(federation):
    fed = federation(3)
    honest = fed.contribute

    def contribute(silo):
        def words(manifest):
            connection = fed.connections[silo]
            assert not connection.in_transaction
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS ledger (spent REAL)")
            connection.execute("COMMIT")
            return honest(silo)(manifest)

        return words

    fed.contribute = contribute
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))


def test_contribution_is_not_changed_in_place(federation):
    fed = federation(3)
    mine = np.arange(3, dtype=np.uint64)
    fed.contribute = lambda silo: lambda manifest: PackedWords(mine)
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange())
    np.testing.assert_array_equal(mine, [0, 1, 2])
    np.testing.assert_array_equal(item.words, [0, 3, 6])


def test_database_files_are_for_the_owner_only(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    files = list(fed.folder.iterdir())
    assert len(files) >= 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_database_that_cannot_be_written(federation):
    fed = federation(3)
    fed.connections[1].execute("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="nothing was sent"):
        fed.answer("keys", 1, fed.signed(KeyRequest(*fed.head(1), 2)))
    closed = sqlite3.connect(":memory:")
    closed.close()
    with pytest.raises(StorageError):
        fed.on(closed, 1)


def test_database_of_another_version(federation, tmp_path):
    connection = open_silo_database(tmp_path / "old.db")
    connection.execute("CREATE TABLE ckks_secret (session BLOB, epoch INTEGER, slot INTEGER, agreement BLOB)")
    fed = federation(3)
    with pytest.raises(StorageError, match="start a new run"):
        CkksSilo(connection, fed.identities[1], 1, fed.roster, SiloRules(0), fed.session)


def test_keys_that_another_process_made(federation):
    """A process that knows the former epoch looks at the disk before it uses what it remembers."""
    fed, answering = federation(3), {}

    def exchange(stage, requests):
        if stage == "keys":
            answering.update(fed.silos)
            fed.silos = {silo: fed.start(silo) for silo in fed.everyone}
            yield from fed.exchange()(stage, requests)
            fed.silos = dict(answering)
        else:
            yield from fed.exchange()(stage, requests)

    for _ in range(2):
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3))
        fed.coordinator.rekey()
    assert fed.epochs == [1, 2]


def test_failed_change_leaves_nothing_behind(federation):
    """The former epoch is deleted and the new one stored in one step."""
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    before, state = list(fed.connections[1].iterdump()), fed.silos[1]._state
    for advertisement, agreements in (("text for bytes", [bytes(32)]), (b"", [bytes(32), "text for bytes"])):
        with pytest.raises(StorageError):
            state.open_epoch(fed.session, 2, advertisement, agreements)
        assert list(fed.connections[1].iterdump()) == before
        assert not fed.connections[1].in_transaction


def test_log_that_cannot_be_cleared_is_an_error(federation, dishonest):
    """A reader in another process keeps deleted keys in the log: the silo does not answer as if they were gone."""
    fed = federation(4)
    attack = dishonest(fed)
    attack.encrypt(1)
    secrets = fed.secrets(1)
    fed.connections[1].execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(fed.database(1), isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM ckks_epoch").fetchone() == (1,)
    request = fed.signed(KeyRequest(*fed.head(attack.epoch + 1), 4))
    with pytest.raises(StorageError, match="another process keeps the log"):
        fed.answer("keys", 1, request)
    assert fed.on_disk(1, secrets) == secrets, "else there would be nothing to tell"
    restarted = open_silo_database(fed.database(1))
    restarted.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(StorageError, match="another process keeps the log"):
        fed.on(restarted, 1)
    reader.execute("COMMIT")
    reader.close()
    fed.silos[1] = fed.start(1)
    assert not fed.on_disk(1, secrets)
    with pytest.raises(Refusal, match="epoch-order"):
        fed.answer("keys", 1, request)


def test_part_is_not_computed_while_the_chain_is_in_the_log(federation, dishonest):
    fed = federation(4)
    attack = dishonest(fed)
    attack.encrypt(1)
    fed.connections[1].execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(fed.database(1), isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM ckks_slot").fetchone() == (1,)
    with pytest.raises(StorageError, match="another process keeps the log"):
        attack.open(1, (fed.everyone,))
    reader.execute("COMMIT")
    with pytest.raises(Refusal, match="open-once"):
        attack.open(1, (fed.everyone,))


def test_state_of_a_session_without_keys():
    state = SiloState(sqlite3.connect(":memory:", isolation_level=None))
    with pytest.raises(ProtocolError, match="has no keys in the session"):
        state.epoch(bytes(16))


def test_silo_that_lost_its_files_is_missing_and_comes_back(federation):
    fed = federation(4)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    fed.connections[2].close()
    for path in fed.folder.glob("2.db*"):
        path.unlink()
    fed.silos[2] = fed.start(2)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 3, 4))
    with pytest.raises(Abort):
        fed.coordinator.sum(fed.manifest(minimum=4), fed.exchange())
    fed.assert_exact(fed.coordinator.sum(fed.manifest(minimum=4), fed.exchange()), (1, 2, 3, 4))
