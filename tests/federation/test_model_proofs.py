"""The coordinator shows what it opened: what most silos refuse is not used, and what they took is used whatever stops.

Whole runs over real silos, and the coordinator's half alone against silos that answer as they like.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoflip_secure.errors import Abort, CannotContinue, ProtocolError
from autoflip_secure.federation import coordinator as coordinator_module
from autoflip_secure.federation import model_proofs, sum_proof
from autoflip_secure.federation.client_app import close_silos
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.followed_model import FollowedModel
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.model_proofs import ModelProofs
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.sum_proof import FOLLOW_STAGE, Position, SumProof
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.sums.secure_sum import CohortSum
from tests.federation.proved_runs import PROVED, ProvedRun, Stopped
from tests.federation.test_sum_proof import MANIFEST, PROOF, same

MakeRun = Callable[..., ProvedRun]


@pytest.fixture(autouse=True)
def _close_silos() -> Iterator[None]:
    close_silos()
    yield
    close_silos()


@pytest.fixture
def proved(make_config, tmp_path: Path, task, records) -> MakeRun:
    """proved(name="run", **options) -> a run of three rounds that is not begun."""

    def make(name: str = "run", **options: Any) -> ProvedRun:
        return ProvedRun(tmp_path / name, make_config(**{**PROVED, "rounds": 3, **options}), task, records)

    return make


@pytest.fixture(scope="module")
def undisturbed(make_config, tmp_path_factory: pytest.TempPathFactory, task, records) -> bytes:
    """The model that comes out of the same run where nothing goes wrong."""
    config = make_config(**{**PROVED, "rounds": 3})
    return ProvedRun(tmp_path_factory.mktemp("undisturbed") / "run", config, task, records).go_on().model.to_bytes()


# A tag that is wrong


def spoil_tags(monkeypatch: pytest.MonkeyPatch, silo: int, times: int) -> list[int]:
    """So often, a silo tags with another key; returns the list that its uses are noted in."""
    honest, spoilt = sum_proof.TaggedWords, []

    def tagged(words: Any, key: bytes, digest: bytes, cohort: int, who: int) -> Any:
        if who == silo and len(spoilt) < times:
            spoilt.append(who)
            key = bytes(32)
        return honest(words, key, digest, cohort, who)

    monkeypatch.setattr(sum_proof, "TaggedWords", tagged)
    return spoilt


def test_a_sum_with_a_wrong_tag_is_not_used_and_made_anew(proved: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = proved()
    spoilt = spoil_tags(monkeypatch, silo=3, times=1)
    learnt: list[bytes] = []
    record = coordinator_module.SumRunner._record_abort

    def noted(self: Any, state: Any, manifest: Any, abort: Abort) -> None:
        learnt.append(state.model.to_bytes())
        record(self, state, manifest, abort)

    monkeypatch.setattr(coordinator_module.SumRunner, "_record_abort", noted)
    state = run.go_on()
    assert spoilt == [3]
    (abort,) = run.events("abort")
    assert (abort["round"], abort["attempt"], abort["stage"]) == (0, 0, FOLLOW_STAGE)
    assert abort["blamed"] == [], "nobody can be named"
    assert [event["attempt"] for event in run.events("sum")] == [0, 1, 0, 0]
    assert SumProof.from_bytes(run.proof(0)).manifest.attempt == 1, "the one that was taken is kept"
    assert learnt == [coordinator_module.ModelStep(run.config, *_parts(run)).state.model.to_bytes()], "nothing"
    assert all("refused by rule proof" in run.log(silo) for silo in run.silos())
    assert run.positions() == [3] * 4
    for silo in run.silos():
        assert run.followed(silo).model.to_bytes() == state.model.to_bytes()


def _parts(run: ProvedRun) -> tuple[Any, Any, Any]:
    from autoflip_secure.federation.provisioning import load_task
    from autoflip_secure.federation.schedule import Schedule

    return load_task(run.folder), Schedule(run.config), lambda *_, **__: None


def test_a_silo_whose_tag_is_always_wrong_stops_the_run(proved: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = proved()
    begun: list[bytes] = []

    def spoil(coordinator: Coordinator) -> None:
        if coordinator.state.round == 1:
            begun.append(coordinator.state.model.to_bytes())
            spoil_tags(monkeypatch, silo=2, times=1000)

    with pytest.raises(CannotContinue, match="the last at stage follow: silos do not find their contributions"):
        run.go_on(spoil)
    assert len(run.events("abort")) == 10
    assert run.positions() == [1] * 4
    monkeypatch.undo()
    resumed: list[bytes] = []
    state = run.go_on(lambda coordinator: resumed.append(coordinator.state.model.to_bytes()))
    assert state.round == 3
    assert run.positions() == [3] * 4
    assert [run.followed(silo).model.to_bytes() for silo in run.silos()] == [state.model.to_bytes()] * 4


def test_one_silo_that_refuses_does_not_stop_the_others(proved: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown the sum again before the next round, and goes on with the others."""
    run, refused = proved(), []
    take = FollowedModel.take

    def refuse_once(self: FollowedModel, proof: bytes) -> None:
        if self._folder.parent.parent == run.home(2) and not refused:
            refused.append(proof)
            raise ProtocolError("not now")
        take(self, proof)

    monkeypatch.setattr(FollowedModel, "take", refuse_once)
    state = run.go_on()
    assert refused == [run.proof(0)]
    assert (state.attempts_aborted, run.positions()) == (0, [3] * 4)
    assert [event["silos"] for event in run.events("sum")] == [[[1, 2, 3, 4]]] * 3


# A coordinator that stops


def stop_in_round(number: int) -> Callable[[dict[str, Any]], None]:
    def watch(line: dict[str, Any]) -> None:
        if line["round"] == number:
            raise Stopped

    return watch


def test_stopped_between_sum_and_checkpoint_it_goes_on_with_the_same_sum(proved: MakeRun, undisturbed: bytes) -> None:
    run = proved()
    with pytest.raises(Stopped):
        run.go_on(watch=stop_in_round(1))
    assert run.positions() == [2] * 4
    shown, lines = run.proof(1), run.lines()
    assert lines == [2] * 4
    state = run.go_on()
    assert run.proof(1) == shown
    assert run.lines() == [3] * 4, "round 1 was not paid for twice"
    assert [event["round"] for event in run.events("sum")] == [0, 1, 2]
    assert state.model.to_bytes() == undisturbed


def test_stopped_before_anybody_was_shown_the_sum_it_shows_it(
    proved: MakeRun, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = proved()
    write = ModelProofs.show.__globals__["write_atomically"]

    def stop(path: Path, data: bytes) -> None:
        write(path, data)
        if path == run.folder.proofs / "000001.msgpack":
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("autoflip_secure.federation.model_proofs.write_atomically", stop)
        with pytest.raises(Stopped):
            run.go_on()
    assert run.positions() == [1] * 4
    state = run.go_on()
    assert run.positions() == [3] * 4
    assert run.lines() == [3] * 4
    assert state.model.to_bytes() == undisturbed


def test_stopped_when_some_were_shown_the_sum_it_shows_it_to_the_rest(
    proved: MakeRun, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = proved()
    call = StageExchange.__call__

    def stop(self: StageExchange, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        first = stage == FOLLOW_STAGE and self.round == 1 and any(requests.values())
        for answered in call(self, stage, requests):
            yield answered
            if first and answered[0] == 1:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(StageExchange, "__call__", stop)
        with pytest.raises(Stopped):
            run.go_on()
    assert run.positions() == [2, 1, 1, 1]
    assert run.go_on().model.to_bytes() == undisturbed
    assert (run.positions(), run.lines()) == ([3] * 4, [3] * 4)


def test_replies_that_do_not_arrive_are_asked_for_again(
    proved: MakeRun, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All silos took the sum, and another would part them from the run for good."""
    run, lost = proved(), []
    call = StageExchange.__call__

    def lose(self: StageExchange, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        losing = stage == FOLLOW_STAGE and self.round == 1 and any(requests.values()) and len(lost) < 3
        for silo, reply in call(self, stage, requests):
            if losing and silo > 1:
                lost.append(silo)
            else:
                yield silo, reply

    monkeypatch.setattr(StageExchange, "__call__", lose)
    state = run.go_on()
    assert lost == [2, 3, 4]
    assert state.attempts_aborted == 0
    assert [event["round"] for event in run.events("sum")] == [0, 1, 2], "no second sum of round 1"
    assert (run.positions(), run.lines()) == ([3] * 4, [3] * 4)
    assert state.model.to_bytes() == undisturbed


def test_a_stale_sum_that_silos_refused_does_not_stop_the_next_coordinator(
    proved: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stopped after it wrote the sum with the wrong tag."""
    run = proved()
    with pytest.raises(Stopped):
        run.go_on(watch=stop_in_round(0))
    for silo in run.silos():
        shutil.rmtree(run.home(silo) / "followed")
    words = SumProof.from_bytes(run.proof(0))
    changed = words.sums[0].words.copy()
    changed[0] += np.uint64(1)
    stale = SumProof(words.manifest, (CohortSum(0, words.sums[0].silos, changed, {}),))
    (run.folder.proofs / "000000.msgpack").write_bytes(stale.to_bytes())
    state = run.go_on()
    assert (state.round, run.positions()) == (3, [3] * 4)
    assert run.proof(0) != stale.to_bytes()


def test_a_sum_that_is_no_longer_kept_is_named(proved: MakeRun) -> None:
    run = proved()

    def lose(coordinator: Coordinator) -> None:
        if coordinator.state.round == 1:
            (run.folder.proofs / "000000.msgpack").unlink()
            shutil.rmtree(run.home(4) / "followed")

    with pytest.raises(ProtocolError, match=r"the opened sum 0 is not in .*proofs any more: silos that missed it"):
        run.go_on(lose)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """(silo, model that was sent along) of each time that one is asked for numbers."""
    found: list[tuple[int, bytes]] = []
    answer = Silo.answer

    def listening(self: Silo, request: Request) -> Reply:
        if request.stage == "masked":
            found.append((self.id, request.attachment))
        return answer(self, request)

    monkeypatch.setattr(Silo, "answer", listening)
    return found


def test_a_model_is_not_sent_to_who_has_it(proved: MakeRun, sent: list[tuple[int, bytes]]) -> None:
    run = proved()
    state = run.go_on()
    assert len(sent) == 4 * state.round
    assert {model for _, model in sent} == {b""}


def test_a_silo_whose_own_model_differs_in_last_bits_is_sent_the_model(
    proved: MakeRun, sent: list[tuple[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, position = proved(), FollowedModel.position

    def elsewhere(self: FollowedModel) -> Position:
        found = position(self)
        return replace(found, model_hash=bytes(32)) if self._folder.parent.parent == run.home(4) else found

    monkeypatch.setattr(FollowedModel, "position", elsewhere)
    state = run.go_on()
    assert (state.round, state.attempts_aborted) == (3, 0)
    assert {silo for silo, model in sent if model} == {4}
    assert all(model for silo, model in sent if silo == 4)


def test_a_silo_that_is_not_sent_the_model_trains_none_but_its_own(
    proved: MakeRun, sent: list[tuple[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator takes its word for the model that it names."""
    run = proved(silos=5, min_cohort=0.8, colluders=0)
    model = FollowedModel.model

    def other(self: FollowedModel) -> ModelPayload:
        found = model.fget(self)
        bit = np.float32(1e-7) if self._folder.parent.parent == run.home(4) and len(sent) > 0 else np.float32(0)
        return replace(found, weights=np.where(found.mask, found.weights + bit, found.weights))

    monkeypatch.setattr(FollowedModel, "model", property(other))
    monkeypatch.setattr(ModelProofs, "have", lambda self, model_hash: frozenset(run.silos()))
    state = run.go_on()
    assert state.round == 3
    assert "this silo's own model, as none was sent, is not the one the manifest names" in run.log(4)
    assert run.lines()[3] < run.lines()[0]


# The coordinator's half alone

FEW = replace(PROOF, manifest=replace(MANIFEST, minimum=(1, 1)))
"""Sums that two silos are enough for."""


class Silos:
    """Answers of silos that are said, by stage `follow`; `shown` is what each was shown."""

    def __init__(self, positions: dict[int, int]) -> None:
        self.nodes = {silo: 100 + silo for silo in positions}
        self.positions, self.shown = positions, {silo: [] for silo in positions}
        self.last: dict[int, bytes] = {}
        self.silent: set[int] = set()
        self.stuck: set[int] = set()
        self.refusing: set[int] = set()

    def __call__(self, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        if stage != FOLLOW_STAGE:
            return
        for silo, request in requests.items():
            self.shown[silo].append(request)
            if silo in self.silent or (request and silo in self.refusing):
                continue
            if request and silo not in self.stuck and request != self.last.get(silo):
                self.positions[silo] += 1
                self.last[silo] = request
            last = hashlib.sha256(self.last[silo]).digest() if silo in self.last else bytes(32)
            yield silo, Position(self.positions[silo], bytes(32), last).to_bytes()


@pytest.fixture
def half(tmp_path: Path) -> Callable[..., tuple[ModelProofs, Silos]]:
    """half(positions) -> the coordinator's half, and the silos it asks."""

    def make(*positions: int) -> tuple[ModelProofs, Silos]:
        silos = Silos(dict(enumerate(positions, start=1)))
        entries = tuple(RosterEntry(silo, str(silo), Identity.generate().public) for silo in silos.nodes)
        roster = Roster(Identity.generate().public, entries)
        for number in range(max(positions, default=0) + 5):
            (tmp_path / f"{number:06d}.msgpack").write_bytes(b"%d" % number)
        start = np.zeros(3, np.float32)
        return ModelProofs(tmp_path, silos, lambda: roster, bytes(16), start, counted=False), silos  # type: ignore[arg-type]

    return make


def test_each_silo_is_shown_what_it_misses_in_order(half) -> None:
    proofs, silos = half(0, 2, 3)
    proofs.prepare(3)
    assert silos.shown == {1: [b"", b"0", b"1", b"2"], 2: [b"", b"2"], 3: [b""]}
    proofs.prepare(4)
    assert {silo: shown[-1] for silo, shown in silos.shown.items()} == dict.fromkeys(silos.shown, b"3")


@pytest.mark.parametrize("which", ["stuck", "silent", "refusing"])
def test_a_silo_that_does_not_go_on_is_left_behind_until_the_next_sum(which: str, half) -> None:
    proofs, silos = half(1, 1, 1)
    getattr(silos, which).add(2)
    proofs.prepare(2)
    asked = len(silos.shown[2])
    assert asked <= 2, "it would be asked for ever"
    assert silos.positions == {1: 2, 2: 1, 3: 2}
    getattr(silos, which).clear()
    proofs.prepare(2)
    assert silos.shown[2][asked:] == [b"", b"1"]
    assert silos.positions[2] == 2


@pytest.mark.parametrize(("refusing", "used"), [((), True), ((4,), True), ((3, 4), False), ((1, 2, 3, 4), False)])
def test_a_sum_is_used_where_most_silos_take_it(refusing: tuple[int, ...], used: bool, half) -> None:
    proofs, silos = half(0, 0, 0, 0)
    proofs.prepare(0)
    silos.refusing = set(refusing)
    if used:
        proofs.show(0, FEW)
    else:
        with pytest.raises(Abort, match="a tag is wrong") as caught:
            proofs.show(0, FEW)
        assert caught.value.stage == FOLLOW_STAGE


def test_where_nobody_answers_the_sum_is_kept_and_the_run_stops(half, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silos may have taken it: another in its place would part them from the run for good."""
    monkeypatch.setattr(model_proofs, "PAUSE", 0.0)
    proofs, silos = half(1, 1, 1)
    proofs.prepare(1)
    silos.silent = {1, 2, 3}
    with pytest.raises(CannotContinue, match="0 silos took the opened sum 1, which needs 2; it is kept"):
        proofs.show(1, FEW)
    silos.silent = set()
    found = proofs.pending(1)
    assert found is not None
    assert same(found, FEW)


@pytest.mark.parametrize("refusing", [set(), {2}])
def test_silos_that_say_nothing_have_no_say(refusing: set[int], half) -> None:
    proofs, silos = half(1, 1, 1, 1, 1)
    proofs.prepare(1)
    silos.silent, silos.refusing = {3, 4, 5}, refusing
    if not refusing:
        proofs.show(1, FEW)
        return
    with pytest.raises(Abort, match="a tag is wrong"):
        proofs.show(1, FEW)


def test_the_first_sum_is_shown_with_the_weights_that_the_run_starts_from(half) -> None:
    proofs, silos = half(0, 0, 0)
    proofs.prepare(0)
    proofs.show(0, FEW)
    assert SumProof.from_bytes(silos.shown[1][-1]).start == bytes(12)
    proofs.show(1, FEW)
    assert SumProof.from_bytes(silos.shown[1][-1]).start == b""


def test_silos_that_are_elsewhere_are_not_asked_about_a_sum(half) -> None:
    """What they say would be no word on it."""
    proofs, silos = half(2, 2, 9, 4)
    proofs.prepare(2)
    silos.refusing = {2}
    with pytest.raises(Abort):
        proofs.show(2, FEW)
    assert [len(silos.shown[silo]) for silo in (3, 4)] == [1, 1]


def test_what_is_pending_is_what_most_silos_have_taken(half) -> None:
    proofs, silos = half(2, 3, 3, 2)
    (proofs._folder / "000002.msgpack").write_bytes(FEW.to_bytes())
    silos.last = dict.fromkeys((2, 3), FEW.to_bytes())
    proofs.prepare(2)
    found = proofs.pending(2)
    assert found is not None
    assert same(found, FEW)
    (proofs._folder / "000002.msgpack").unlink()
    assert proofs.pending(2) is None


def test_after_an_aborted_attempt_silos_are_asked_where_they_are(half) -> None:
    """One that lost its account of the model says so; until then it would refuse every attempt."""
    proofs, silos = half(2, 2, 2)
    proofs.prepare(2)
    silos.positions[3] = 0
    proofs.prepare(2)
    assert silos.positions[3] == 0
    proofs.ask_anew()
    proofs.prepare(2)
    assert silos.positions == dict.fromkeys((1, 2, 3), 2)


def test_a_census_is_the_first_sum(half) -> None:
    proofs, _ = half(0, 0, 0)
    assert [proofs.number(*of) for of in (("explore", 0), ("train", 3))] == [0, 3]
    proofs._counted = True
    assert [proofs.number(*of) for of in (("census", 0), ("explore", 0), ("train", 3))] == [0, 1, 4]
