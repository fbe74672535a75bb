"""kill -9 of a silo before every statement it gives its database, and disks that fail there.

The silo's process is a fork that really dies. Afterwards a new process on the same files is asked again, for the same
and for something else: in one slot, and for one epoch, a silo never speaks twice.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.ckks import silo as silo_module
from autoflip_secure.ckks.parameters import DEGREE
from autoflip_secure.errors import AutoflipSecureError, Refusal, StorageError
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.words import PackedWords

VICTIM = 1
ROOT = bytes(range(32))
STAGES = ["keys", "encrypt", "open"]


def words_of(manifest):
    size = word_count(manifest.channels, len(manifest.cohorts[0]))
    return PackedWords(np.full(size, 7, np.uint64), ROOT)


def something_else(fed, stage, request):
    """Another request for the same epoch or slot, signed as well."""
    message = fed.read_request(stage, request)
    if stage == "keys":
        return fed.signed(replace(message, slots=message.slots + 1))
    if stage == "encrypt":
        manifest = Manifest.from_bytes(message.manifest)
        return fed.signed(replace(message, manifest=replace(manifest, attempt=9).to_bytes()))
    return fed.signed(replace(message, survivors=(message.survivors[0][:-1],)))


@pytest.fixture
def setting(federation):
    """setting(stage): a federation of four, its request to silo 1, another one, and that silo's files as bytes."""

    def make(stage):
        fed = federation(4)
        fed.contribute = lambda silo: words_of
        asked = fed.caught_at(stage)[VICTIM]
        fed.connections[VICTIM].close()
        files = {path: path.read_bytes() for path in fed.folder.glob(f"{VICTIM}.db*")}
        return fed, asked, something_else(fed, stage, asked), files

    return make


def restore(fed, files):
    """Put the victim's files back as they were."""
    for path in fed.folder.glob(f"{VICTIM}.db*"):
        path.unlink()
    for path, content in files.items():
        path.write_bytes(content)


def answer_and_die(fed, stage, request, before):
    """Answer in a child that is killed before its statement number `before` (from 0).

    Returns the reply where the child lived long enough to send one, else None.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            silo = fed.start(VICTIM)
            left = [before]

            def count(statement):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            fed.connections[VICTIM].set_trace_callback(count)
            reply = silo.answer(stage, request, words_of)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(reply)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reply = pipe.read()
    os.waitpid(child, 0)
    return reply or None


def asked_again(fed, stage, request):
    """What a new process says; None where it refuses."""
    silo = fed.start(VICTIM)
    try:
        return silo.answer(stage, request, words_of)
    except AutoflipSecureError:
        return None
    finally:
        fed.connections[VICTIM].close()


@pytest.mark.parametrize("stage", STAGES)
def test_killed_before_every_statement(setting, stage):
    fed, request, other, files = setting(stage)
    counts, sent = [], None
    while sent is None:
        restore(fed, files)
        sent = answer_and_die(fed, stage, request, before=len(counts))
        said = [sent, asked_again(fed, stage, request), asked_again(fed, stage, other)]
        counts.append(sum(reply is not None for reply in said))
    assert max(counts) == 1, f"killed before statement {counts.index(max(counts))} it spoke twice"
    # Killed early it answers afterwards; killed after the durable step it has nothing left to say.
    first_silent = counts.index(0)
    assert counts == [1] * first_silent + [0] * (len(counts) - first_silent - 1) + [1]
    assert first_silent >= 3
    assert len(counts) - first_silent >= 2


def test_old_keys_are_off_the_disk_after_a_kill(setting):
    """Also where it was killed after the deletion was committed and before the log was cleared."""
    fed, _, _, files = setting("encrypt")
    newer = fed.signed(replace(fed.read_request("keys", fed.requests["keys", VICTIM][0]), epoch=9))
    restore(fed, files)
    fed.start(VICTIM)
    secrets = fed.secrets(VICTIM)
    assert len(secrets) == 4
    assert fed.on_disk(VICTIM, secrets) == secrets
    fed.connections[VICTIM].close()
    kills, gone, sent = 0, 0, None
    while sent is None:
        restore(fed, files)
        sent = answer_and_die(fed, "keys", newer, before=kills)
        kills += 1
        fed.start(VICTIM)
        if fed.secrets(VICTIM) != secrets:
            gone += 1
            assert not fed.on_disk(VICTIM, secrets), f"killed before statement {kills - 1}"
        fed.connections[VICTIM].close()
    assert 2 <= gone < kills


def test_slot_is_opened_or_has_its_keys_after_a_kill(setting):
    """Never both: once the opening is noted, nothing of the slot is on the disk, wherever the process was killed."""
    fed, request, _, files = setting("open")
    restore(fed, files)
    fed.start(VICTIM)
    secrets = [*fed.secrets(VICTIM, slot=0), ROOT]
    assert list(map(len, secrets)) == [32, 8 * DEGREE, 32]
    assert fed.on_disk(VICTIM, secrets) == secrets
    fed.connections[VICTIM].close()
    kills, stages, sent = 0, [], None
    while sent is None:
        restore(fed, files)
        sent = answer_and_die(fed, "open", request, before=kills)
        kills += 1
        fed.start(VICTIM)
        stages.append(fed.stage_of(VICTIM))
        expected = secrets if stages[-1] == "encrypted" else []
        assert fed.on_disk(VICTIM, secrets) == expected, f"killed before statement {kills - 1}"
        assert len(fed.secrets(VICTIM, slot=0)) == (2 if expected else 0)
        fed.connections[VICTIM].close()
    assert set(stages) == {"encrypted", "opened"}
    assert stages == sorted(stages)


class FailingConnection:
    """A connection to a disk that fails at the statement of a number (from 0), and at all later ones if it is gone."""

    def __init__(self, connection, at, gone):
        self.connection, self.left, self.gone = connection, at, gone

    def execute(self, statement, *values):
        self.left -= 1
        if self.left == -1 or (self.gone and self.left < 0):
            raise sqlite3.OperationalError("disk I/O error")
        return self.connection.execute(statement, *values)

    def executemany(self, statement, rows):
        for row in rows:
            self.execute(statement, row)


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_disk_that_fails_at_every_statement(setting, stage, gone):
    """A named error and no reply; what the silo says afterwards, on a disk that works, it says once."""
    fed, request, other, files = setting(stage)
    errors, sent = 0, None
    while sent is None:
        restore(fed, files)
        connection = open_silo_database(fed.database(VICTIM))
        failing = FailingConnection(connection, 10**6, gone)
        silo = fed.on(failing, VICTIM)
        failing.left = errors
        try:
            sent = silo.answer(stage, request, words_of)
        except StorageError:
            errors += 1
        connection.close()
        said = [sent, asked_again(fed, stage, request), asked_again(fed, stage, other)]
        assert sum(reply is not None for reply in said) <= 1
    assert errors >= 4


def test_contribution_that_fails_spends_the_slot(federation, dishonest):
    """Whatever it raises, also what no handler of errors catches."""
    attack = dishonest(federation(4))
    fed = attack.fed
    for slot, error in enumerate((ArithmeticError("diverged"), KeyboardInterrupt(), SystemExit(1))):
        manifest = replace(attack.manifest, slot=slot)

        def contribute(bound, error=error):
            raise error

        with pytest.raises(type(error)):
            fed.silos[VICTIM].answer("encrypt", attack.encrypt_request(manifest), contribute)
        for _ in range(2):
            assert fed.stage_of(VICTIM, slot) == "spent"
            with pytest.raises(Refusal, match="slot-once"):
                attack.encrypt(VICTIM, manifest)
            with pytest.raises(Refusal, match="opened-unsent"):
                attack.open(VICTIM, (fed.everyone,), manifest)
            fed.silos[VICTIM] = fed.start(VICTIM)
        assert not fed.connections[VICTIM].in_transaction


class LateError(Exception):
    pass


def test_words_that_fail_while_they_are_read(federation, dishonest):
    """A source that breaks down half way: the slot is spent, nothing was sent, neither root nor lattice key is kept."""
    attack = dishonest(federation(4))

    class Broken(PackedWords):
        def fill(self, start, out):
            raise LateError

    attack.fed.contribute = lambda silo: lambda manifest: Broken(np.zeros(3, np.uint64), ROOT)
    with pytest.raises(LateError):
        attack.encrypt(VICTIM)
    assert attack.fed.stage_of(VICTIM) == "spent"
    assert not attack.fed.on_disk(VICTIM, [ROOT])
    assert list(map(len, attack.fed.secrets(VICTIM, slot=0))) == [32]


def test_part_that_fails_while_it_is_computed(federation, dishonest, monkeypatch):
    """The opening is noted first: after a failure the silo gives no other part with other noise, nor could it."""
    attack = dishonest(federation(4))
    attack.encrypt(VICTIM)
    secrets = attack.fed.secrets(VICTIM, slot=0)
    assert attack.fed.on_disk(VICTIM, secrets) == secrets

    def broken(*arguments):
        raise LateError

    monkeypatch.setattr(silo_module, "open_part", broken)
    with pytest.raises(LateError):
        attack.open(VICTIM, (attack.fed.everyone,))
    monkeypatch.undo()
    assert attack.fed.stage_of(VICTIM) == "opened"
    assert not attack.fed.on_disk(VICTIM, secrets)
    with pytest.raises(Refusal, match="open-once"):
        attack.open(VICTIM, (attack.fed.everyone,))
