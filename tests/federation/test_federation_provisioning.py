"""A federation on disk, and the app that answers for its silos: who gets what, and that nothing escapes as an error."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from autoflip_secure.config import ResolvedConfig, load_config_file
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.errors import StorageError
from autoflip_secure.federation import client_app
from autoflip_secure.federation.audit_log import Head
from autoflip_secure.federation.client_app import STAGES, make_client_app, silo_folder
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.provisioning import RunFolder, load_task, provision
from autoflip_secure.federation.wire import RECORD, Reply, Request, message_type_of, read_reply, request_message
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster


@pytest.fixture(autouse=True)
def _close_silos() -> Iterator[None]:
    client_app.close_silos()
    yield
    client_app.close_silos()


def silos_of(folder: RunFolder, config: ResolvedConfig) -> list[Path]:
    return [silo_folder(folder.path, number) for number in range(1, config.silos + 1)]


def test_every_silo_gets_its_own_key_and_the_same_roster(make_config, make_federation) -> None:
    config = make_config()
    folder = make_federation(config)
    roster = folder.roster()
    assert roster.silos == (1, 2, 3, 4)
    assert roster.coordinator == folder.coordinator_identity().public
    homes = silos_of(folder, config)
    keys = [Identity.load(home / "identity.key").public for home in homes]
    assert [entry.public for entry in roster.entries] == keys
    assert len({*keys, roster.coordinator}) == 5
    assert {Roster.from_bytes((home / "roster.bin").read_bytes()) for home in homes} == {roster}


def test_every_silo_gets_the_policy_and_the_task_of_the_run(make_config, make_federation) -> None:
    config = make_config(dp_epsilon=3.0)
    folder = make_federation(config)
    for home in silos_of(folder, config):
        assert SiloPolicy.read(home / "policy.toml") == SiloPolicy.accepting(config)
        assert (home / "task.json").read_text() == folder.task.read_text()
    assert ResolvedConfig.create(**load_config_file(folder.config)) == config


def test_records_are_divided_and_public_ones_are_kept_apart(make_config, make_federation, records) -> None:
    config = make_config()
    folder = make_federation(config)
    parts = [read_silo(home / "data") for home in silos_of(folder, config)]
    assert all(part.holdout is None for part in parts)
    together = np.concatenate([part.train.x for part in parts])
    assert sorted(map(bytes, together)) == sorted(map(bytes, records.x))
    np.testing.assert_array_equal(Records.load(folder.public_test).x, records.x)
    assert load_task(folder).nominal_records == 80


@pytest.mark.parametrize("options", [{}, {"dp_epsilon": 3.0}])
def test_without_public_records_each_silo_holds_some_back(options, make_config, make_federation, records) -> None:
    config = make_config(**options)
    folder = make_federation(config, public_test=False)
    assert not folder.public_test.exists()
    parts = [read_silo(home / "data") for home in silos_of(folder, config)]
    assert all(part.holdout is not None for part in parts)
    together = [bytes(x) for part in parts for r in (part.train, part.holdout) if r is not None for x in r.x]
    assert sorted(together) == sorted(map(bytes, records.x)), "a record is in both parts, or in none"
    assert load_task(folder).nominal_records == 64, "the step is scaled by the records that are trained on"


@pytest.mark.parametrize(("partition", "silos", "trained_on"), [("natural", 4, 60), ("natural", 3, 60), ("iid", 4, 48)])
def test_holdouts_of_natural_silos_belong_to_them_alone(
    partition, silos, trained_on, make_config, task, records, tmp_path: Path
) -> None:
    """Spread in another way, records have no holdout yet, and the public total says what is left after one."""
    rows = np.arange(80).reshape(4, 20)
    natural = tuple(NamedRecords(f"h{i}", records.take(row[:15]), records.take(row[15:])) for i, row in enumerate(rows))
    whole = Records.concatenate([silo.records for silo in natural])
    config = make_config().model_copy(update={"partition": partition, "silos": silos})
    folder = RunFolder(tmp_path / "run")
    provision(folder, config, LoadedData(replace(task, nominal_records=60), whole, None, natural))
    parts = [read_silo(home / "data") for home in silos_of(folder, config)]
    assert load_task(folder).nominal_records == trained_on == sum(len(part.train) for part in parts)
    brought = {bytes(x) for silo in natural for x in silo.holdout.x}
    held = {bytes(x) for part in parts for x in part.holdout.x}
    assert (held == brought) == (partition == "natural")


def test_under_dp_a_record_decides_for_itself_where_it_goes(make_config, task, records, tmp_path: Path) -> None:
    """One record less moves no other; without DP classes are divided by their sizes."""
    config = make_config(dp_epsilon=3.0)

    def held_back(name: str, first: Records) -> set[bytes]:
        rest = tuple(NamedRecords(f"h{i}", records.take(np.arange(20 * i, 20 * i + 20))) for i in (1, 2, 3))
        folder = RunFolder(tmp_path / name)
        natural = (NamedRecords("h0", first), *rest)
        data = LoadedData(task, None, None, natural)
        provision(folder, config.model_copy(update={"partition": "natural"}), data)
        holdout = read_silo(silo_folder(folder.path, 1) / "data").holdout
        assert holdout is not None
        return {bytes(x) for x in holdout.x}

    whole = held_back("whole", records.take(np.arange(20)))
    fewer = held_back("fewer", records.take(np.arange(1, 20)))
    assert whole - fewer <= {bytes(records.x[0])}
    assert fewer <= whole


def test_a_session_is_new_each_time(make_config, make_federation) -> None:
    config = make_config()
    sessions = {make_federation(config, name=name).session() for name in ("a", "b")}
    assert len(sessions) == 2
    assert {len(session) for session in sessions} == {16}


def test_epochs_are_remembered(make_config, make_federation) -> None:
    folder = make_federation(make_config())
    assert folder.last_epoch() == 0
    folder.announce_epoch(3)
    assert RunFolder(folder.path).last_epoch() == 3


def test_the_configuration_is_written_last(make_config, task, records, tmp_path: Path, monkeypatch) -> None:
    """A run directory that was not finished is not taken for a run."""
    monkeypatch.setattr(Records, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(StorageError, match="No space left"):
        provision(folder, make_config(), LoadedData(task, records, records, None))
    assert not folder.config.exists()


# The app


def context(partition: int) -> Context:
    node = {"partition-id": partition, "num-partitions": 4}
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})


def delivered(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    return message


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_answered(stage: str, make_config, make_federation) -> None:
    app = make_client_app(make_federation(make_config()).path)
    message = delivered(request_message(1, Request(stage, 0, 0, b"")))
    reply = app(message, context(0))
    said = read_reply(reply)
    assert (said.status, said.reply, said.error) == ("refused", b"", "ProtocolError")
    assert Head.from_bytes(said.head).count == 2, "the log was opened, and holds a line about this reply"
    assert reply.metadata.reply_to_message_id == message.metadata.message_id


def test_malformed_requests_are_refused(make_config, make_federation) -> None:
    app = make_client_app(make_federation(make_config()).path)
    for content in (RecordDict(), RecordDict({RECORD: ConfigRecord({"stage": "clear"})})):
        reply = app(delivered(Message(content, 1, message_type_of("clear"))), context(0))
        assert read_reply(reply) == Reply("refused", b"", "ProtocolError")


@pytest.mark.parametrize("file", ["policy.toml", "identity.key", "roster.bin", "task.json", "state.sqlite"])
def test_a_silo_that_cannot_be_opened_says_no_more_than_that(file: str, make_config, make_federation, capsys) -> None:
    folder = make_federation(make_config())
    (silo_folder(folder.path, 2) / file).write_bytes(b"\xffpatient Miller\x00" * 100)
    app = make_client_app(folder.path)
    answers: list[Any] = []
    for partition in (0, 1):
        reply = app(delivered(request_message(1, Request("clear", 0, 0, b""))), context(partition))
        assert not reply.has_error()
        answers.append(read_reply(reply))
    assert answers[0].status == "refused"
    assert (answers[1].reply, answers[1].status) == (b"", "failed")
    assert "Miller" not in str(vars(answers[1]))


def test_silos_are_opened_once_and_forgotten_on_closing(make_config, make_federation) -> None:
    folder = make_federation(make_config())
    app = make_client_app(folder.path)
    for _ in range(2):
        app(delivered(request_message(1, Request("clear", 0, 0, b""))), context(2))
    assert list(client_app._open_silos) == [silo_folder(folder.path, 3)]
    opened = client_app._open_silos[silo_folder(folder.path, 3)]
    client_app.close_silos()
    assert not client_app._open_silos
    with pytest.raises(Exception, match="closed"):
        opened._database.execute("SELECT 1")
