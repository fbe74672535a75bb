"""One secure sum of a run: the manifest it states, retries on fresh attempts, the reserve, and what it decodes to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoflip_secure.errors import Abort, BudgetExhausted, CannotContinue, PolicyRefusal
from autoflip_secure.federation.run_state import RunState
from autoflip_secure.federation.schedule import RoundPlan, Schedule
from autoflip_secure.federation.server_step import ServerMoments
from autoflip_secure.federation.sums import LEAST_RESERVE, MAX_ATTEMPTS, SumRunner, reserve_attempts, scatter
from autoflip_secure.federation.terms import count_channel, deviation_channel, energy_channel, update_channel
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.privacy.plan import GRID_SHARE, PrivacyPlan
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.words import ContributionWords, all_words

SESSION, DIGEST = bytes(range(16)), bytes(range(32))


class FakeSum:
    """Aborts as often as told, then sums one vector of `value` grid steps a present silo."""

    def __init__(self, aborts: int, present: int, value: int = 3, refusals: tuple[str, ...] = ()) -> None:
        self.aborts, self.present, self.value, self.refusals = aborts, present, value, refusals
        self.manifests: list[Manifest] = []

    def sum(self, manifest: Manifest, exchange: Any) -> tuple[CohortSum, ...]:
        self.manifests.append(manifest)
        if self.aborts:
            self.aborts -= 1
            exchange.refusals.update(self.refusals)
            exchange.exhausted |= {silo for silo, said in enumerate(self.refusals, 1) if said == "BudgetExhausted"}
            raise Abort("too few silos", stage="masked", blamed=(2,))
        sums = []
        for index, cohort in enumerate(manifest.cohorts):
            silos = cohort[: self.present]
            vector = {c.name: np.full(c.length, self.value, np.int64) for c in manifest.channels}
            words = all_words(ContributionWords(vector, manifest.channels, len(cohort))) * np.uint64(len(silos))
            sums.append(CohortSum(index, silos, words))
        return tuple(sums)


class FakeExchange:
    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.begun: list[tuple[int, int, bytes]] = []
        self.blocks: Any = ()
        self.exhausted: set[int] = set()

    def begin(self, round: int, attempt: int, attachment: bytes) -> None:
        self.begun.append((round, attempt, attachment))
        self.refusals.clear()
        self.blocks, self.exhausted = (), set()


class FakeView:
    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []
        self.sums: list[dict[str, Any]] = []

    def opened(self, **values: Any) -> None:
        self.sums.append(values)

    def public(self, **values: Any) -> None:
        self.shown.append(values)


Start = Callable[..., tuple[SumRunner, RunState, list[dict[str, Any]]]]


@pytest.fixture
def start(make_config, model) -> Start:
    """start(secure_sum, reserve=None, view=None, **options) -> runner, state of round 5, events."""

    def begin(secure_sum: FakeSum, *, reserve: int | None = None, view: Any = None, **options: Any) -> Any:
        config = make_config(**options)
        events: list[dict[str, Any]] = []
        private = config.trust != "none"
        privacy = PrivacyPlan(
            config.trust, config.dp_epsilon or float("inf"), config.dp_delta, config.colluders, config.clip,
            config.sampling_rate, 10 if private else 0, 2.0 if private else 0.0,
        )  # fmt: skip
        runner = SumRunner(
            config, SESSION, DIGEST, secure_sum, FakeExchange(), view,  # type: ignore[arg-type]
            lambda name, **fields: events.append({"event": name, **fields}), reserve, privacy,
            Roster(bytes(32), tuple(RosterEntry(n, f"silo {n}", bytes([n]) * 32) for n in range(1, config.silos + 1))),
        )  # fmt: skip
        return runner, RunState(5, model, ServerMoments.zeros(model.mask.size)), events

    return begin


def terms_of(runner: SumRunner) -> PrivacyTerms:
    config = runner.config
    if config.trust == "none":
        return PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, config.colluders, config.dp_delta)
    return PrivacyTerms(config.trust, "train", 0.1, 1, 2.0, config.clip, config.colluders, config.dp_delta)


def run(runner: SumRunner, state: RunState, plan: RoundPlan | None = None, phase: str = "train") -> list[Aggregate]:
    channels = [update_channel(runner.config, int(state.model.mask.sum()))]
    return runner.run(state, phase, plan or Schedule(runner.config).plan(1), channels, terms_of(runner))


def test_the_manifest_states_the_round(start: Start) -> None:
    secure_sum = FakeSum(0, 4)
    runner, state, _ = start(secure_sum)
    run(runner, state)
    (manifest,) = secure_sum.manifests
    sent = state.model.to_bytes()
    assert (manifest.session, manifest.round, manifest.attempt, manifest.phase) == (SESSION, 5, 0, "train")
    assert manifest.model_hash == hashlib.sha256(sent).digest()
    assert manifest.mask_hash == state.model.mask_hash()
    assert manifest.config_hash == DIGEST
    assert (manifest.cohorts, manifest.minimum, manifest.threshold) == (((1, 2, 3, 4),), (4,), 3)
    assert runner.exchange.begun == [(5, 0, sent)]  # type: ignore[attr-defined]


def test_a_grid_that_is_too_coarse_for_the_noise_is_made_finer(start: Start) -> None:
    """The manifest of every attempt has the narrower range, and sums are read by it."""
    secure_sum = FakeSum(1, 4)
    runner, state, _ = start(secure_sum, dp_epsilon=8.0)
    terms = replace(terms_of(runner), noise_multiplier=0.4)
    coarse = update_channel(runner.config, int(state.model.mask.sum()), expected_batch=1e6)
    (aggregate,) = runner.run(state, "train", Schedule(runner.config).plan(1), [coarse], terms)
    (first,), (second,) = (manifest.channels for manifest in secure_sum.manifests)
    assert first == second
    assert first.limit < 0.9 * coarse.limit
    assert state.facts["grid_delta"] <= GRID_SHARE * runner.config.dp_delta
    assert abs(aggregate.channels["update"][0] / (4 * secure_sum.value * first.step) - 1) < 1e-6


def test_an_abort_is_retried_as_a_fresh_attempt_of_the_same_round(start: Start) -> None:
    secure_sum = FakeSum(3, 4)
    runner, state, events = start(secure_sum)
    run(runner, state)
    assert [m.attempt for m in secure_sum.manifests] == [0, 1, 2, 3]
    assert {replace(m, attempt=0) for m in secure_sum.manifests} == {secure_sum.manifests[0]}
    assert [begun[1] for begun in runner.exchange.begun] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert (state.attempts_aborted, state.spare_attempts_used) == (3, 3)
    assert [event["event"] for event in events] == ["abort"] * 3 + ["sum"]
    assert events[0] == {
        "event": "abort", "phase": "train", "round": 5, "attempt": 0, "stage": "masked", "reason": "too few silos",
        "blamed": [2],
    }  # fmt: skip
    assert events[-1] == {"event": "sum", "phase": "train", "round": 5, "attempt": 3, "silos": [[1, 2, 3, 4]]}


def test_retries_are_charged_by_their_steps_on_training_records_only(start: Start) -> None:
    secure_sum = FakeSum(2, 4)
    runner, state, _ = start(secure_sum, reserve=9, dp_epsilon=8.0, dp_trust="local")
    plan = Schedule(runner.config).plan(1)
    channels = [update_channel(runner.config, int(state.model.mask.sum()))]
    runner.run(state, "train", plan, channels, replace(terms_of(runner), steps=5))
    assert (state.spare_attempts_used, state.spare_steps) == (2, 10)
    secure_sum.aborts = 1
    scored = replace(terms_of(runner), dataset="holdout", sampling_rate=1.0, clip=1.0)
    runner.run(state, "evaluate", plan, [count_channel(2.0)], scored)
    assert (state.spare_attempts_used, state.spare_steps) == (3, 10)


def test_attempts_without_end_stop_the_run_and_keep_the_model(start: Start) -> None:
    secure_sum = FakeSum(99, 4)
    runner, state, _ = start(secure_sum)
    before = state.model
    with pytest.raises(CannotContinue, match=f"round 5: {MAX_ATTEMPTS} attempts.*at stage masked: too few silos; the"):
        run(runner, state)
    assert len(secure_sum.manifests) == MAX_ATTEMPTS
    assert state.model is before


def test_a_run_that_stops_says_what_silos_answered(start: Start) -> None:
    runner, _, _ = start(FakeSum(0, 4))
    runner.exchange.refusals.update({"ConfigError": 3, "other": 1})
    told = runner._told(Abort("too few silos", stage="masked"))
    assert told == (
        "at stage masked: too few silos (silos refused: 3 of ConfigError, 1 of other; their silo.log says why)"
    )


def test_the_reserve_bounds_retries_over_the_whole_run(start: Start) -> None:
    secure_sum = FakeSum(2, 4)
    runner, state, _ = start(secure_sum, reserve=3, dp_epsilon=8.0)
    run(runner, state)
    secure_sum.aborts = 1
    run(runner, state)
    assert state.spare_attempts_used == 3
    secure_sum.aborts = 1
    with pytest.raises(CannotContinue, match="more attempts aborted than the 3 that the plan pays for") as caught:
        run(runner, state)
    assert not isinstance(caught.value, BudgetExhausted)
    assert "--reserve" in str(caught.value)
    assert state.spare_attempts_used == 4


def test_without_dp_nothing_is_reserved(start: Start) -> None:
    runner, state, _ = start(FakeSum(MAX_ATTEMPTS - 1, 4))
    run(runner, state)
    assert state.spare_attempts_used == MAX_ATTEMPTS - 1


def test_an_exhausted_silo_ends_the_run_as_such(start: Start) -> None:
    secure_sum = FakeSum(1, 4, refusals=("BudgetExhausted", "BudgetExhausted", "PolicyRefusal"))
    runner, state, events = start(secure_sum, reserve=5, dp_epsilon=8.0)
    with pytest.raises(BudgetExhausted, match="round 5: 2 silos have no privacy budget left"):
        run(runner, state)
    assert len(secure_sum.manifests) == 1
    assert events[-1]["event"] == "abort"


def test_one_exhausted_silo_of_each_block_ends_the_run(start: Start) -> None:
    """Before others pay for attempts that could give no sum."""
    said = ("BudgetExhausted", "", "", "BudgetExhausted")
    options = {"reserve": 5, "dp_epsilon": 8.0, "silos": 6, "min_cohort": 0.5, "colluders": 0}
    runner, state, _ = start(FakeSum(1, 6, refusals=said), block=3, **options)
    with pytest.raises(BudgetExhausted, match="2 silos have no privacy budget left"):
        run(runner, state)
    runner, state, _ = start(FakeSum(1, 6, refusals=("BudgetExhausted", "BudgetExhausted")), block=3, **options)
    assert run(runner, state), "the other block goes on"
    assert runner.exchange.exhausted == {1, 2}, "known in later attempts, so that their block is not asked"
    runner, state, _ = start(FakeSum(1, 6, refusals=said), **options)
    with pytest.raises(BudgetExhausted):
        run(runner, state)  # of six silos five are needed: a share threshold


def test_other_refusals_are_retried(start: Start) -> None:
    runner, state, _ = start(FakeSum(1, 4, refusals=("PolicyRefusal",)), reserve=5, dp_epsilon=8.0)
    assert run(runner, state)


@pytest.mark.parametrize(("share", "rounds", "spare"), [(0.04, 200, 8), (0.04, 10, 1), (0.0, 50, 0), (1.0, 7, 7)])
def test_the_reserve_is_a_share_of_the_rounds(make_config, share: float, rounds: int, spare: int) -> None:
    assert reserve_attempts(make_config(reserve=share), rounds) == spare + LEAST_RESERVE


def test_sums_are_decoded_by_channel_and_cohort(start: Start) -> None:
    secure_sum = FakeSum(0, 4, value=5)
    runner, state, _ = start(secure_sum, silos=10)
    plan = RoundPlan("train", ((1, 2, 3, 4), (5, 6, 7, 8, 9)), (3, 4))
    live = int(state.model.mask.sum())
    channels = [update_channel(runner.config, live), energy_channel(7)]
    aggregates = runner.run(state, "train", plan, channels, terms_of(runner))
    assert [(a.round, a.cohort, a.silos) for a in aggregates] == [(5, 0, 4), (5, 1, 4)]
    for aggregate in aggregates:
        for channel in channels:
            np.testing.assert_array_equal(aggregate.sum(channel.name), np.full(channel.length, 20) * channel.step)
        assert set(aggregate.noise_std.values()) == {0.0}


@pytest.mark.parametrize(("silos", "present"), [(10, 10), (10, 8), (4, 4)])
def test_the_sum_states_the_noise_of_those_who_took_part(start: Start, silos: int, present: int) -> None:
    """Each silo adds its share for the honest minimum, so more survivors mean more noise."""
    runner, state, _ = start(FakeSum(0, present), silos=silos, dp_epsilon=8.0)
    (aggregate,) = run(runner, state)
    least = Schedule(runner.config).plan(1).minimum[0]
    expected = 2.0 * runner.config.clip * (present / least) ** 0.5
    assert aggregate.noise_std["update"] == pytest.approx(expected, rel=1e-3)
    assert aggregate.noise_std["update"] >= expected


def test_the_grid_s_cost_is_kept_for_the_summary(start: Start) -> None:
    runner, state, _ = start(FakeSum(0, 4), dp_epsilon=8.0)
    run(runner, state)
    first = state.facts["grid_delta"]
    assert 0 < first < 1e-8
    state.facts["grid_delta"] = 1.0
    run(runner, state)
    assert state.facts["grid_delta"] == 1.0, "the largest counts"


def test_a_coarse_grid_is_refused_before_anything_is_sent(start: Start) -> None:
    secure_sum = FakeSum(0, 4)
    runner, state, _ = start(secure_sum, dp_epsilon=8.0, bits=8)
    with pytest.raises(PolicyRefusal, match="--bits"):
        run(runner, state)
    assert not secure_sum.manifests


def test_what_the_coordinator_shows_is_recorded_at_each_attempt(start: Start) -> None:
    view = FakeView()
    secure_sum = FakeSum(1, 4)
    runner, state, _ = start(secure_sum, view=view)
    run(runner, state)
    assert [(shown["round"], shown["attempt"]) for shown in view.shown] == [(5, 0), (5, 1)]
    assert [Manifest.from_bytes(shown["manifest"]) for shown in view.shown] == secure_sum.manifests
    assert {shown["model"] for shown in view.shown} == {state.model.to_bytes()}
    assert [(opened["aggregate"].round, opened["attempt"]) for opened in view.sums] == [(5, 1)], "what was opened"


def test_live_coordinates_are_put_back_and_others_are_zero(model) -> None:
    live = int(model.mask.sum())
    values = {"update": np.arange(1.0, live + 1), "deviation": -np.arange(1.0, live + 1), "unit_energy": np.ones(5)}
    full = scatter(Aggregate(0, 0, 3, values), model)
    for name in ("update", "deviation"):
        assert full.sum(name).shape == model.mask.shape
        np.testing.assert_array_equal(full.sum(name)[model.mask], values[name])
        assert not full.sum(name)[~model.mask].any()
    np.testing.assert_array_equal(full.sum("unit_energy"), values["unit_energy"])
    assert set(values["update"]) == set(full.channels["update"]) - {0.0}


def test_a_count_stays_as_it_is(model) -> None:
    aggregate = Aggregate(0, 0, 3, {"count": np.array([7.0])})
    np.testing.assert_array_equal(scatter(aggregate, model).sum("count"), [7.0])
    assert {deviation_channel(3).name, count_channel(1.0).name} == {"deviation", "count"}
