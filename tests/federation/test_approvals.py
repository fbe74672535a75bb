"""Runs wait until an officer approved them; what was approved cannot be exchanged for something else."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import CannotContinue, ConfigError, ProtocolError, StorageError
from autoflip_secure.federation import admission as admission_module
from autoflip_secure.federation.approvals import MAX_UNDECIDED, ApprovalStore, Pins, officer
from autoflip_secure.federation.client_app import ClientAppFactory, close_silos, silo_folder
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.initial_model import initial_model
from autoflip_secure.federation.join import MAX_REQUEST_BYTES, JoinRequest
from autoflip_secure.federation.local_grid import LocalGrid
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.run_review import pins_of, read_admission
from autoflip_secure.federation.wire import Reply
from autoflip_secure.parties.identity import Identity
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.storage import open_silo_database

LOCAL = {"dp_epsilon": 8.0, "dp_trust": "local"}
PINS = Pins(bytes(32), bytes(32), b"roster")
PENDING = Reply("refused", error="ApprovalPending")


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def store(tmp_path: Path) -> ApprovalStore:
    return ApprovalStore(open_silo_database(tmp_path / "state.sqlite"))


@pytest.fixture
def asked(make_config, task) -> Callable[..., JoinRequest]:
    """asked(number, **changes) -> the join request of another run."""
    config = make_config()
    return lambda number=0, **changes: replace(JoinRequest(session(number), config, task.to_json(), {}), **changes)


# At the silo


def test_a_run_waits_until_it_is_approved_and_then_goes_on(institution) -> None:
    silo = institution(each=True, **LOCAL)
    assert silo.join() == PENDING
    assert "refused by rule approval: " in silo.refusal
    assert silo.request.digest().hex() in silo.refusal, "the officer finds it"
    assert silo.contribute().error == "ProtocolError", "nothing was joined"
    assert silo.join() == PENDING
    assert [run.state for run in silo.store().runs()] == ["pending"]
    silo.approve()
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute().status == "ok", silo.refusal
    assert silo.lines() == 1


def test_an_approval_outlives_restarts_and_holds_when_the_coordinator_asks_again(institution) -> None:
    silo = institution(each=True)
    silo.join()
    silo.approve()
    silo.restart()
    for _ in range(2):
        assert silo.join().status == "ok", silo.refusal
        silo.restart()
        assert silo.contribute().status == "ok", silo.refusal
    assert len(silo.store().runs()) == 1


def test_a_denied_run_stays_denied(institution) -> None:
    silo = institution(each=True)
    silo.join()
    silo.store().deny(silo.request.digest(), "officer")
    for _ in range(2):
        assert silo.join().error == "PolicyRefusal:denied"
        silo.restart()
    assert [run.state for run in silo.store().runs()] == ["denied"]
    silo.join()
    silo.approve()
    assert silo.join().status == "ok", "an officer may change their mind"


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_a_withdrawn_approval_ends_the_run_at_its_next_stage(each: bool, restarted: bool, institution) -> None:
    """With standing approval as well: every run can be denied."""
    silo = institution(each=each)
    silo.join()
    if each:
        silo.approve()
        assert silo.join().status == "ok", silo.refusal
    assert silo.contribute().status == "ok", silo.refusal
    silo.store().deny(silo.request.digest(), "officer")
    if restarted:
        silo.restart()
    assert silo.contribute(round=2).status == "refused"
    assert "refused by rule denied: " in silo.refusal
    assert silo.lines() == 1


def test_an_approval_is_for_the_code_it_was_given_for(institution, monkeypatch: pytest.MonkeyPatch) -> None:
    silo = institution(each=True)
    silo.join()
    silo.approve(code=b"c" * 32)
    assert silo.join().error == "PolicyRefusal:code"
    silo.approve()
    assert silo.join().status == "ok", silo.refusal
    monkeypatch.setattr(admission_module, "installed_digest", lambda: b"u" * 32)
    assert silo.join().error == "PolicyRefusal:code"
    assert "the installed code was changed under the running silo; restart it first" in silo.refusal


def test_an_upgrade_needs_a_new_approval(institution, monkeypatch: pytest.MonkeyPatch) -> None:
    silo = institution(each=True)
    silo.join()
    silo.approve()
    assert silo.join().status == "ok", silo.refusal
    monkeypatch.setattr("autoflip_secure.federation.silo.code_digest", lambda: b"u" * 32)
    monkeypatch.setattr(admission_module, "installed_digest", lambda: b"u" * 32)
    silo.restart()
    assert silo.contribute().status == "refused"
    assert "refused by rule code: the run was approved for code" in silo.refusal
    assert silo.join().error == "PolicyRefusal:code"
    silo.approve()
    assert silo.join().status == "ok", silo.refusal


def test_code_is_listed_beside_what_is_approved(institution) -> None:
    silo = institution(each=True, policy={"code": ("ab" * 32,)})
    assert silo.join().error == "PolicyRefusal:code", "said before the officer is asked"
    silo.approve()
    assert silo.join().error == "PolicyRefusal:code"


def test_an_approved_model_is_the_one_round_0_starts_from(institution) -> None:
    silo = institution(each=True)
    silo.join()
    silo.approve(model=b"m" * 32)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute(round=0).status == "refused"
    assert "refused by rule initial_model: " in silo.refusal
    silo.approve()
    assert silo.contribute(round=0).status == "ok", silo.refusal


def test_a_run_that_the_policy_refuses_can_be_reviewed_all_the_same(institution) -> None:
    """It may be the policy that has to change."""
    silo = institution(each=True, policy={"channels": ("count",)})
    assert silo.join().error == "PolicyRefusal:channels"
    assert [run.state for run in silo.store().runs()] == ["pending"]
    silo.approve()
    assert silo.join().error == "PolicyRefusal:channels", "an approval loosens no limit"


def test_what_was_approved_does_not_cover_anything_else(institution) -> None:
    """Another session, option, task, plan or code of the coordinator is another run."""
    silo = institution(each=True, **LOCAL)
    silo.join()
    silo.approve()
    honest = silo.request
    assert silo.join().status == "ok", silo.refusal
    options = honest.config.model_dump()
    for changes in (
        {"session": session(7)},
        {"config": ResolvedConfig.create(**{**options, "seed": 1})},
        {"config": ResolvedConfig.create(**{**options, "rounds": 5})},
        {"config": ResolvedConfig.create(**{**options, "update_limit": 2.0})},
        {"planned": {"train": [Mechanism(0.2, 2.0, 6)]}},
        {"planned": {**honest.planned, "holdout": [Mechanism(1.0, 9.0, 1)]}},
        {"code": b"c" * 32},
    ):
        assert silo.join(replace(honest, **changes)) == PENDING, changes
    assert silo.join(replace(honest, task=honest.task.replace("toy", "tox"))).error == "PolicyRefusal:task"
    assert silo.join(honest).status == "ok", silo.refusal


def test_where_a_run_is_computed_is_no_other_run(institution) -> None:
    silo = institution(each=True)
    silo.join()
    silo.approve()
    elsewhere = ResolvedConfig.create(**{**silo.config.model_dump(), "workers": 3, "stage_timeout": 9.0})
    assert silo.join(replace(silo.request, config=elsewhere)).status == "ok", silo.refusal


def test_a_request_that_nobody_signed_is_not_kept(institution) -> None:
    silo = institution(each=True)
    silo.join()
    message = replace(silo.request, session=session(9)).sign(Identity.generate())
    with pytest.raises(ProtocolError):
        silo.silo._join(message)
    with pytest.raises(ProtocolError, match="longer than"):
        silo.silo._join(bytes(MAX_REQUEST_BYTES + 1))
    assert len(silo.store().runs()) == 1


def test_a_task_of_another_federation_is_not_kept(institution) -> None:
    silo = institution(each=True)
    silo.join(silo.asked(task=silo.task.replace("toy", "tox")))
    assert silo.store().runs() == ()


def test_a_coordinator_cannot_flood_the_store(institution) -> None:
    silo = institution(each=True)
    silo.join()
    silo.approve()
    assert silo.join().status == "ok", silo.refusal
    approved = silo.request
    silo.join(silo.asked(session(200)))
    silo.store().deny(silo.request.digest(), "officer")
    for number in range(1, 3 * MAX_UNDECIDED):
        silo.join(silo.asked(session(number)))
    states = [run.state for run in silo.store().runs()]
    assert states.count("pending") == MAX_UNDECIDED
    assert sorted(set(states)) == ["approved", "denied", "pending"], "what was decided stays"
    newest = {run.request.session for run in silo.store().runs() if run.request}
    assert session(3 * MAX_UNDECIDED - 1) in newest
    assert session(1) not in newest
    assert silo.join(approved).status == "ok", silo.refusal


def test_a_running_session_can_be_denied_however_many_are_asked_for_after_it(institution) -> None:
    """Standing approval: what runs was never decided about."""
    silo = institution()
    silo.join()
    running = silo.request.digest()
    for number in range(1, 3 * MAX_UNDECIDED):
        assert silo.join(silo.asked(session(number), planned={}, code=b"c" * 31)).status == "refused"
    silo.policy(**{**vars(silo.silo._policy), "models": ()})
    for number in range(1, 3 * MAX_UNDECIDED):
        assert silo.join(silo.asked(session(number))).error == "PolicyRefusal:models"
    assert len(silo.store().runs()) == MAX_UNDECIDED
    silo.store().deny(running, "officer")


def test_simulated_silos_keep_no_approvals(institution) -> None:
    silo = institution(policy={"simulated": True, "approval": "each"})
    assert silo.join().status == "ok", silo.refusal
    with sqlite3.connect(silo.home / "state.sqlite") as database:
        assert not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'asked_runs'").fetchone()


def test_a_run_of_institutions_goes_from_approval_to_its_end(make_config, make_federation, task) -> None:
    """Over the wire, with keys, pruned: what the coordinator asks for is what every silo's policy and pins let pass."""
    config = make_config(aggregation="secagg", prune="autoflip", rounds=4, explore_rounds=1)
    folder = make_federation(config)
    homes = [silo_folder(folder.path, number) for number in folder.roster().silos]
    for home in homes:
        channels = ("update", "deviation", "unit_energy")
        (home / "policy.toml").write_text(
            SiloPolicy(trusts=("none",), channels=channels, proved_models=False, min_block=1, reply_every=0.0).to_toml()
        )
    with LocalGrid(ClientAppFactory(folder.path), len(homes), 0) as grid:
        try:
            with pytest.raises(CannotContinue, match=r"did not join .*ApprovalPending"):
                Coordinator(folder, config, grid, lambda _: None).run()
            for home in homes:
                store = ApprovalStore(open_silo_database(home / "state.sqlite"))
                (asked,) = store.runs()
                assert asked.request is not None
                store.approve(asked.digest, pins_of(read_admission(home, store), asked.request), officer())
            state = Coordinator(folder, config, grid, lambda _: None).run()
        finally:
            close_silos()
    assert (state.round, state.attempts_aborted) == (4, 0)
    assert state.model.mask.size < initial_model(config, task).mask.size, "it was pruned"


# The store


def test_decisions_are_added_and_never_changed(store: ApprovalStore, asked, tmp_path: Path) -> None:
    request = asked()
    store.offer(request)
    digest = request.digest()
    store.approve(digest, PINS, "ann")
    store.deny(digest, "bob")
    store.approve(digest, replace(PINS, model=b"n" * 32), "cid")
    assert [(each.verdict, each.who) for each in store.history(digest)] == [
        ("approved", "ann"), ("denied", "bob"), ("approved", "cid"),
    ]  # fmt: skip
    last = store.decision(digest)
    assert last is not None
    assert (last.who, last.pins) == ("cid", replace(PINS, model=b"n" * 32))
    assert store.history(digest)[1].pins is None
    database = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    for statement in ("UPDATE run_decisions SET verdict = 'approved'", "DELETE FROM run_decisions"):
        with pytest.raises(sqlite3.IntegrityError, match="decisions are never"):
            database.execute(statement)


def test_what_nobody_asked_for_cannot_be_decided(store: ApprovalStore, asked) -> None:
    for decide in (lambda digest: store.approve(digest, PINS, "ann"), lambda digest: store.deny(digest, "ann")):
        with pytest.raises(ConfigError, match="no longer kept; nothing was decided"):
            decide(asked().digest())
    assert store.decision(asked().digest()) is None


def test_a_request_is_kept_once_and_as_it_came(store: ApprovalStore, asked) -> None:
    for _ in range(3):
        store.offer(asked(1))
    store.offer(asked(2))
    assert [run.request for run in store.runs()] == [asked(1), asked(2)]
    assert [run.digest for run in store.runs()] == [asked(1).digest(), asked(2).digest()]


def test_a_body_that_is_not_the_digest_s_is_no_run(store: ApprovalStore, asked, tmp_path: Path) -> None:
    """As after an upgrade that gave the configuration another option, or in a file that was tampered with."""
    store.offer(asked(1))
    database = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    for body in (asked(2).body(), b"", b"\xc1"):
        database.execute("UPDATE asked_runs SET request = ?", (body,))
        assert [run.request for run in store.runs()] == [None]


@pytest.mark.parametrize("deciding", [False, True])
def test_a_run_is_found_by_the_start_of_its_digest(deciding: bool, store: ApprovalStore, asked) -> None:
    for number in range(3):
        store.offer(asked(number))
    wanted = asked(1).digest()
    assert store.find(wanted.hex(), deciding=deciding).digest == wanted
    assert store.find(wanted.hex()[:32].upper(), deciding=deciding).digest == wanted
    least = 32 if deciding else 4
    for wrong in ("", "xyz" * 8, wanted.hex()[: least - 1], f"--{wanted.hex()}"):
        with pytest.raises(ConfigError, match=f"give {least} or more hexadecimal digits"):
            store.find(wrong, deciding=deciding)
    with pytest.raises(ConfigError, match="no such run was asked for"):
        store.find("0" * 32, deciding=deciding)


def test_the_start_of_two_digests_names_neither(store: ApprovalStore, asked, tmp_path: Path) -> None:
    store.offer(asked(1))
    database = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    twin = asked(1).digest()[:18] + bytes(14)
    database.execute("INSERT INTO asked_runs VALUES (?, ?, 0, 0)", (twin, asked(2).body()))
    with pytest.raises(ConfigError, match="is the start of 2 runs"):
        store.find(twin.hex()[:36], deciding=True)
    assert store.find(twin.hex()[:40], deciding=True).digest == twin


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["offer", "approve", "deny", "join"])), max_size=60))
def test_the_store_stays_bounded_and_forgets_no_decision(asked, tmp_path: Path, steps: list[tuple[int, str]]) -> None:
    store = ApprovalStore(open_silo_database(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"))
    decided: dict[bytes, str] = {}
    joined = b""
    for number, action in steps:
        digest = asked(number).digest()
        if action == "offer":
            store.offer(asked(number))
        elif digest in {run.digest for run in store.runs()}:
            if action == "join":
                store.mark_joined(digest)
                joined = digest
            else:
                store.approve(digest, PINS, "ann") if action == "approve" else store.deny(digest, "ann")
                decided[digest] = {"approve": "approved", "deny": "denied"}[action]
        runs = {run.digest: run for run in store.runs()}
        assert {each: runs[each].state for each in decided} == decided
        assert sum(run.state == "pending" for run in runs.values()) <= MAX_UNDECIDED
        assert not joined or joined in runs, "what was joined last can be denied"
        assert action != "offer" or digest in runs, "what was asked for last can be reviewed"


def test_two_processes_may_offer_at_once(asked, tmp_path: Path) -> None:
    stores = [ApprovalStore(open_silo_database(tmp_path / "state.sqlite")) for _ in range(2)]
    requests = [asked(number) for number in range(MAX_UNDECIDED)]

    def offer_all(store: ApprovalStore) -> None:
        for request in requests:
            store.offer(request)

    threads = [threading.Thread(target=offer_all, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.digest for run in stores[0].runs()} == {request.digest() for request in requests}


def test_a_damaged_file_is_named(store: ApprovalStore, asked, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "state.sqlite").execute("DROP TABLE asked_runs")
    calls: list[Callable[[], Any]] = [store.runs, lambda: store.offer(asked()), lambda: store.deny(bytes(32), "ann")]
    for call in calls:
        with pytest.raises(StorageError, match="approvals cannot be read or written"):
            call()


def test_the_officer_is_the_operating_system_s_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody else")
    monkeypatch.setenv("LOGNAME", "somebody else")
    assert officer() != "somebody else"
    monkeypatch.setattr("os.getuid", lambda: 3_999_999)
    assert officer() == "user 3999999"
