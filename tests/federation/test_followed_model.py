"""A silo follows the model of an honest run to the bit, whatever the run does and whatever happens to the silo."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.errors import CannotContinue
from autoflip_secure.federation import model_proofs, run_state, sums
from autoflip_secure.federation.client_app import close_silos
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.followed_model import FollowedModel
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.model_step import ModelStep
from autoflip_secure.federation.sum_proof import FOLLOW_STAGE, KEY_STAGE, SumProof
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.run_key_messages import RunKeyRequest
from autoflip_secure.parties.run_key_store import KEPT_RUNS
from autoflip_secure.sums.sum_tag import tag_spec
from tests.federation.proved_runs import PROVED, AskedSilo, ProvedRun, Stopped, secret_total

MakeRun = Callable[..., ProvedRun]

DISTRIBUTED = {"dp_epsilon": 8.0, "dp_trust": "distributed"}
AUTOFLIP = {"prune": "autoflip", "explore_rounds": 1}
RUNS: dict[str, dict[str, Any]] = {
    "nothing is pruned": {},
    "autoflip": AUTOFLIP,
    "adaptive clip": {**DISTRIBUTED, "adaptive_clip": 0.5},
    "adam, four of five": {"server_optimizer": "adam", "participation": 0.8, "silos": 5},
}
MORE: dict[str, dict[str, Any]] = {
    "random": {"prune": "random"},
    "autoflip, explored again": {**AUTOFLIP, "explore_every": 2, "rounds": 5},
    "autoflip in cohorts": {**AUTOFLIP, "silos": 8, "cohorts": 2, "agreement_every": 2},
    "autoflip, started warm": {**AUTOFLIP, "warm_start": True},
    "feddst": {"prune": "feddst", "explore_every": 1},
    "fedmask": {"prune": "fedmask"},
    "eflprune": {"prune": "eflprune"},
    "cohort filter": {"silos": 16, "cohort_filter": True},
    "distributed DP, pruned": {**DISTRIBUTED, **AUTOFLIP, "colluders": 1, "silos": 5},
    "local DP, pruned": {"dp_epsilon": 8.0, "dp_trust": "local", **AUTOFLIP},
}


@pytest.fixture(autouse=True)
def _close_silos() -> Iterator[None]:
    close_silos()
    yield
    close_silos()


@pytest.fixture
def proved(make_config, tmp_path: Path, task, records, cheap_plan) -> MakeRun:
    """proved(name="run", task=task, scored=True, **options) -> a run that is not begun."""

    def make(name: str = "run", task: Any = task, scored: bool = True, **options: Any) -> ProvedRun:
        config = make_config(**{**PROVED, "rounds": 3, **options})
        return ProvedRun(tmp_path / name, config, task, records, scored=scored)

    return make


def follows(run: ProvedRun, *, but: tuple[int, ...] = ()) -> Callable[[Coordinator], None]:
    """Called between rounds: every silo has the coordinator's model, clip and weights of cohorts, bit for bit."""

    def check(coordinator: Coordinator) -> None:
        own = coordinator._model
        for silo in run.silos():
            if silo in but:
                continue
            followed = run.followed(silo)
            assert followed.taken == own.state.round + len(run.events("census"))
            assert followed.model.to_bytes() == own.state.model.to_bytes(), f"silo {silo}, {own.state.round}"
            assert followed._step.clip.value == own.clip.value
            assert followed._step.cohorts.facts() == own.cohorts.facts()
            for name in ("velocity", "square"):
                ours, theirs = (getattr(s.server, name).tobytes() for s in (followed._step.state, own.state))
                assert ours == theirs

    return check


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(options, id=name) for name, options in RUNS.items()),
        *(pytest.param(options, id=name, marks=pytest.mark.slow) for name, options in MORE.items()),
    ],
)
def test_every_silo_computes_the_coordinator_s_model_bit_for_bit(options: dict[str, Any], proved: MakeRun) -> None:
    run = proved(**options)
    state = run.go_on(follows(run))
    assert (state.round, state.attempts_aborted) == (run.config.rounds, 0)
    assert run.positions() == [state.round] * run.config.silos
    assert not any(run.log(silo) for silo in run.silos())


@pytest.mark.parametrize("noised", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_census_is_followed_too(noised: bool, proved: MakeRun, task) -> None:
    """Without public test records the silos score the model as well; a sum of scores moves nothing."""
    run = proved(task=secret_total(task), scored=noised, **(DISTRIBUTED if noised else {}))
    state = run.go_on(follows(run))
    assert state.model.records > 0
    assert run.positions() == [1 + state.round] * 4
    assert not any(run.log(silo) for silo in run.silos())


# What happens to a silo


def test_a_silo_that_was_away_is_shown_what_it_missed(proved: MakeRun) -> None:
    run = proved(silos=5, rounds=4)

    def comes_and_goes(coordinator: Coordinator) -> None:
        follows(run, but=(5,))(coordinator)
        run.away = frozenset({5}) if coordinator.state.round < 3 else frozenset()

    state = run.go_on(comes_and_goes)
    assert [event["silos"] for event in run.events("sum")] == [
        [[1, 2, 3, 4, 5]],
        *2 * [[[1, 2, 3, 4]]],
        [[1, 2, 3, 4, 5]],
    ]
    assert state.attempts_aborted == 0
    assert run.positions() == [4] * 5


def test_a_silo_that_joins_late_gets_the_key_and_all_sums(proved: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoflip_secure.federation.gathering.FIRST_LATE_PAUSE", 0.0)
    run = proved(silos=5, rounds=4, join_timeout=0.1, epoch_slots=2)
    run.away = frozenset({5})

    def comes(coordinator: Coordinator) -> None:
        run.away = frozenset()

    state = run.go_on(comes)
    assert state.attempts_aborted == 0
    assert run.events("sum")[-1]["silos"] == [[1, 2, 3, 4, 5]], "once there are keys of an epoch that it is in"
    assert run.positions() == [4] * 5


def test_each_round_may_be_answered_by_a_new_process(proved: MakeRun) -> None:
    run = proved(**AUTOFLIP)

    def restarted(coordinator: Coordinator) -> None:
        close_silos()
        follows(run)(coordinator)
        close_silos()

    assert run.go_on(restarted).attempts_aborted == 0


def test_those_that_are_left_follow_on_when_a_silo_leaves_for_good(proved: MakeRun) -> None:
    """With another roster they have other keys for their sums, and the same one for their tags."""
    run = proved(silos=5, rounds=4)
    keys: list[set[bytes | None]] = []

    def leaves(coordinator: Coordinator) -> None:
        keys.append({run.silo(silo)._open_session()._run_keys.key for silo in range(1, 5)})
        if coordinator.state.round == 2:
            close_silos()
            whole = run.folder.roster()
            fewer = Roster(whole.coordinator, whole.entries[:4]).to_bytes()
            for folder in (run.folder.path / "federation", *(run.home(silo) for silo in range(1, 5))):
                (folder / "roster.bin").write_bytes(fewer)
            shutil.rmtree(run.home(5))

    state = run.go_on(leaves)
    assert [event["silos"] for event in run.events("sum")] == [*2 * [[[1, 2, 3, 4, 5]]], *2 * [[[1, 2, 3, 4]]]]
    assert state.attempts_aborted == 0
    assert len(set.union(*keys)) == 1
    assert [run.followed(silo).model.to_bytes() for silo in range(1, 5)] == [state.model.to_bytes()] * 4


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def account(home: Path) -> Path:
    """The one run that a silo has followed."""
    (folder,) = (home / "followed").iterdir()
    return folder


def damage(folder: Path) -> None:
    (run,) = folder.iterdir()
    (run / run_state.ARRAYS_FILE).write_bytes(b"")


@pytest.mark.parametrize("lose", [delete, pytest.param(damage, marks=pytest.mark.slow)])
def test_a_silo_that_lost_its_account_is_shown_all_sums_again(lose: Callable[[Path], None], proved: MakeRun) -> None:
    run = proved(silos=5, rounds=5)

    def loses(coordinator: Coordinator) -> None:
        if coordinator.state.round == 2:
            lose(run.home(5) / "followed")
            close_silos()

    state = run.go_on(loses)
    assert state.attempts_aborted == 0
    assert run.events("sum")[2]["silos"] == [[1, 2, 3, 4]], "the coordinator does not know yet"
    assert run.events("sum")[3]["silos"] == [[1, 2, 3, 4, 5]]
    assert run.positions() == [5] * 5


def test_where_all_silos_lost_their_accounts_one_attempt_is_lost(proved: MakeRun) -> None:
    run = proved(rounds=3)

    def loses(coordinator: Coordinator) -> None:
        if coordinator.state.round == 2:
            for silo in run.silos():
                delete(run.home(silo) / "followed")

    assert run.go_on(loses).attempts_aborted == 1
    assert run.positions() == [3] * 4


def test_a_run_that_rests_while_its_silos_join_another_goes_on(proved: MakeRun) -> None:
    run = proved(rounds=4)

    def rests(coordinator: Coordinator) -> None:
        if coordinator.state.round == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run.go_on(rests)
    task = (run.home(1) / "task.json").read_text()
    other = JoinRequest(b"another session!", run.config, task, {}).sign(run.folder.coordinator_identity())
    for silo in run.silos():
        assert run.silo(silo).answer(Request(JOIN_STAGE, 0, 0, other)).status == "ok", run.log(silo)
        state = RunKeyRequest(b"another session!", run.folder.roster().hash(), "state").to_bytes()
        assert run.silo(silo).answer(Request(KEY_STAGE, 0, 0, state)).status == "ok", run.log(silo)
    close_silos()
    state = run.go_on()
    assert (state.round, state.attempts_aborted) == (4, 0), run.log(1)
    assert run.positions() == [4] * 4


def test_a_silo_that_lost_its_key_is_given_it_again(proved: MakeRun) -> None:
    run = proved(silos=5, rounds=5)

    def loses(coordinator: Coordinator) -> None:
        if coordinator.state.round == 2:
            close_silos()
            with sqlite3.connect(run.home(5) / "state.sqlite") as database:
                database.execute("UPDATE run_key SET key = NULL, used = 0")

    state = run.go_on(loses)
    assert state.attempts_aborted == 0
    assert run.events("sum")[2]["silos"] == [[1, 2, 3, 4]], "the coordinator does not know yet"
    assert run.events("sum")[4]["silos"] == [[1, 2, 3, 4, 5]]
    assert run.positions() == [5] * 5


def test_nobody_is_charged_while_too_few_silos_could_answer(proved: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, spent = proved(silos=5, rounds=2), []
    give = model_proofs.distribute

    def late(*arguments: Any) -> frozenset[int]:
        spent.append(run.lines())
        found = give(*arguments)
        return found if len(spent) > 3 else found - {4, 5}

    monkeypatch.setattr(model_proofs, "distribute", late)
    monkeypatch.setattr(sums, "READY_PAUSE", 0.0)
    state = run.go_on()
    assert (state.round, state.attempts_aborted) == (2, 0)
    assert spent[:4] == [[0] * 5] * 4
    assert run.lines() == [2] * 5


def test_a_run_stops_where_too_few_silos_can_go_on(proved: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, give = proved(silos=5, rounds=2), model_proofs.distribute
    monkeypatch.setattr(model_proofs, "distribute", lambda *arguments: give(*arguments) - {4, 5})
    monkeypatch.setattr(sums, "READY_PAUSE", 0.0)
    with pytest.raises(CannotContinue, match="3 silos of a cohort have the run's key and all sums so far"):
        run.go_on()
    assert run.lines() == [0] * 5


FORGED_CENSUS: dict[str, dict[str, Any]] = {
    "range": {"limit": 1e-3},
    "grid": {"bits": 8},
}


@pytest.mark.parametrize("change", FORGED_CENSUS.values(), ids=FORGED_CENSUS)
def test_how_records_are_counted_is_not_the_coordinator_s_to_choose(
    change: dict[str, Any], make_config, tmp_path: Path, task, records
) -> None:
    run = ProvedRun(tmp_path / "run", make_config(**{**PROVED, "rounds": 2}), secret_total(task), records)
    run.go_on()
    close_silos()
    shutil.rmtree(run.home(1) / "followed")
    silo, shown = AskedSilo(run, run.home(1)), SumProof.from_bytes(run.proof(0)).manifest
    count, tag = shown.channels
    forged = replace(shown, channels=(replace(count, **change), tag))
    before, start = silo.lines, silo.session.followed.model
    assert silo.contribute(forged, start).status == "refused"
    assert "the channels of round 0 are not those that follow" in silo.log
    assert silo.lines == before
    assert silo.contribute(shown, start).status == "ok", silo.log


# One silo, asked as the coordinator asks it


@pytest.fixture(scope="module")
def stopped(make_config, tmp_path_factory: pytest.TempPathFactory, task, records) -> ProvedRun:
    """A run of four rounds whose silos have taken two opened sums; more were opened, and kept."""
    run = ProvedRun(tmp_path_factory.mktemp("stopped") / "run", make_config(**{**PROVED, **AUTOFLIP}), task, records)

    def keep(coordinator: Coordinator) -> None:
        if coordinator.state.round == 2:
            close_silos()
            shutil.copytree(run.home(1), run.folder.path / "kept")

    run.go_on(keep)
    return run


@pytest.fixture
def silo(stopped: ProvedRun, tmp_path: Path) -> AskedSilo:
    return AskedSilo(stopped, shutil.copytree(stopped.folder.path / "kept", tmp_path / "silo"))


def refuse_to_store(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full when it comes to the file of this name."""
    write = run_state.write_atomically

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(run_state, "write_atomically", full)


@pytest.mark.parametrize("name", [run_state.MODEL_FILE, run_state.STATE_FILE])
def test_on_a_full_disk_nothing_is_taken(name: str, silo: AskedSilo, monkeypatch: pytest.MonkeyPatch) -> None:
    before = silo.session.followed.model.to_bytes()
    with monkeypatch.context() as patch:
        refuse_to_store(patch, name)
        assert silo.follow(silo.run.proof(2)) == Reply("refused", error="StorageError")
        assert "No space left on device" in silo.log
        assert silo.position == 2
        assert silo.session.followed.model.to_bytes() == before
    assert silo.follow(silo.run.proof(2)).status == "ok"
    assert silo.position == 3


def test_what_fails_half_way_leaves_the_model_as_it_was(silo: AskedSilo, monkeypatch: pytest.MonkeyPatch) -> None:
    before = silo.session.followed.model.to_bytes()
    advance = ModelStep.advance

    def fail(self: ModelStep, *arguments: Any) -> None:
        advance(self, *arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ModelStep, "advance", fail)
        assert silo.follow(silo.run.proof(2)) == Reply("failed")
        assert silo.position == 2
        assert silo.session.followed.model.to_bytes() == before
    assert silo.follow(silo.run.proof(2)).status == "ok"
    assert silo.position == 3


def test_the_last_sum_once_more_changes_nothing(silo: AskedSilo) -> None:
    before = silo.session.followed.model.to_bytes()
    stamp = run_state.checkpoint_stamp(account(silo.home))
    assert silo.follow(silo.run.proof(1)).status == "ok"
    assert (silo.position, run_state.checkpoint_stamp(account(silo.home))) == (2, stamp)
    assert silo.session.followed.model.to_bytes() == before


def test_what_another_process_took_is_seen(silo: AskedSilo) -> None:
    other = AskedSilo(silo.run, silo.home)
    assert silo.position == 2
    assert other.follow(silo.run.proof(2)).status == "ok"
    assert silo.position == 3
    assert silo.session.followed.model.to_bytes() == other.session.followed.model.to_bytes()
    assert silo.follow(silo.run.proof(3)).status == "ok"
    assert other.position == 4


def test_another_run_is_followed_from_its_beginning(silo: AskedSilo) -> None:
    followed = silo.session.followed
    other = replace(silo.session._request, session=b"another session!")
    assert FollowedModel(silo.home, silo.session._request, followed._keys).taken == 2
    assert FollowedModel(silo.home, other, followed._keys).taken == 0


def test_a_run_of_another_configuration_under_its_session_is_another_run(silo: AskedSilo) -> None:
    request, keys = silo.session._request, silo.session.followed._keys
    steeper = replace(request, config=request.config.model_copy(update={"learning_rate": 50.0}))
    assert FollowedModel(silo.home, steeper, keys).taken == 0


def test_a_coordinator_that_was_upgraded_goes_on_with_the_run(silo: AskedSilo) -> None:
    """Also for a silo that has not seen the sums made before."""
    request, keys = silo.session._request, silo.session.followed._keys
    upgraded = FollowedModel(silo.home, replace(request, code=b"c" * 32), keys)
    assert upgraded.taken == 2
    upgraded.take(silo.run.proof(2))
    assert upgraded.taken == 3


def test_only_runs_of_late_are_kept(silo: AskedSilo) -> None:
    request, keys = silo.session._request, silo.session.followed._keys
    for number in range(12):
        (silo.home / "followed" / f"{number:02d}").mkdir()
        os.utime(silo.home / "followed" / f"{number:02d}", (number, number))
    FollowedModel(silo.home, request, keys)
    left = sorted(each.name for each in (silo.home / "followed").iterdir())
    assert len(left) == KEPT_RUNS
    assert request.run_digest().hex() in left
    assert {"11", "10"} <= set(left)
    assert "00" not in left


def test_no_sum_comes_after_the_last(silo: AskedSilo) -> None:
    for number in (2, 3):
        assert silo.follow(silo.run.proof(number)).status == "ok"
    assert silo.follow(silo.run.proof(0)).status == "refused"
    assert "refused by rule proof: sums were shown of a round after the run's last" in silo.log
    assert silo.position == 4


def test_a_run_that_proves_nothing_has_no_such_stages(institution) -> None:
    joined = institution(aggregation="secagg")
    assert joined.join().status == "ok", joined.refusal
    for stage in (KEY_STAGE, FOLLOW_STAGE):
        assert joined._answer(Request(stage, 0, 0, b"")) == Reply("refused", error="ProtocolError")
        assert f"does not prove its models, so it has no stage {stage}" in joined.refusal


def test_a_run_that_proves_nothing_has_no_tags(institution, make_manifest) -> None:
    joined = institution()
    assert joined.join().status == "ok", joined.refusal
    channels = make_manifest(joined.config, joined.model).channels
    assert joined.contribute(channels=(*channels, tag_spec())) == Reply("refused", error="PolicyRefusal")
    assert "refused by rule channels: tag would leave" in joined.refusal
    assert joined.lines() == 0
