"""Bounds on opened sums: honest silos never trip them, nobody gets past them, and runs go on or stop as they say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.autoflip.sum_bounds import length_limit, most_sampled, out_of_fields, out_of_range, sum_length
from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.errors import Abort, CannotContinue, ConfigError
from autoflip_secure.federation import client_app
from autoflip_secure.federation.cohort_watch import CohortWatch
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.engines import run_federation
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.federation.run_state import load_checkpoint
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sum_watch import SumWatch
from autoflip_secure.federation.sums import decode
from autoflip_secure.federation.terms import deviation_channel, energy_channel, noise_levels, update_channel
from autoflip_secure.privacy.discrete_noise import DiscreteGaussian
from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.encoding import dequantise, quantise, spilled_words, unpack_integers, word_count
from autoflip_secure.sums.randomness import ReproducibleRandomness
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.words import ContributionWords, all_words


@pytest.fixture(autouse=True)
def _close_silos() -> Any:
    client_app.close_silos()
    yield
    client_app.close_silos()


def packed(integers: list[np.ndarray], spec: ChannelSpec, cohort: int) -> np.ndarray:
    words = np.zeros(word_count([spec], cohort), np.uint64)
    for vector in integers:
        words += all_words(ContributionWords({spec.name: vector}, [spec], cohort))
    return words


def judged(words: np.ndarray, spec: ChannelSpec, cohort: int, silos: int) -> Any:
    values = {spec.name: dequantise(unpack_integers(words, [spec], cohort)[spec.name], spec)}
    aggregate = Aggregate(0, 0, silos, values)
    return out_of_fields(words, [spec], cohort, silos, {}) or out_of_range(aggregate, [spec], cohort)


# Range


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([("update", -1), ("gradient", -1), ("deviation", 0), ("unit_energy", 0), ("count", 0)]),
    st.integers(2, 32), st.integers(3, 70), st.integers(1, 9), st.integers(0, 2**32 - 1), st.data(),
)  # fmt: skip
def test_honest_sums_are_within_whatever_silos_encode(kind, bits, cohort, length, seed, data) -> None:
    """Random and extreme values alike, whoever is missing; without noise there is no chance in it at all."""
    (name, least), draw = kind, np.random.default_rng(seed)
    spec = ChannelSpec(name, length, bits, float(draw.uniform(0.1, 100)))
    silos = data.draw(st.integers(3, cohort))
    vectors = draw.integers(least * spec.levels, spec.levels + 1, (silos, length))
    ends = draw.random((silos, length)) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    vectors = np.where(ends, spec.levels if draw.random() < 0.5 else least * spec.levels, vectors)
    assert judged(packed(list(vectors), spec, cohort), spec, cohort, silos) is None


@pytest.mark.parametrize("silos", [3, 4])
def test_every_sum_of_a_small_grid_is_judged_as_what_it_is(silos: int) -> None:
    """All integers one coordinate's field can hold: in range up to silos x levels, and one step on outside."""
    spec = ChannelSpec("update", 1, 3, 1.0)
    for value in range(-(2**4), 2**4):
        found = judged(packed([np.array([value])], spec, 4), spec, 4, silos)
        assert (found is None) == (abs(value) <= silos * spec.levels), value


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_words_that_mean_nothing_are_told_whatever_the_others_send(cohort: int, seed: int) -> None:
    draw, spec = np.random.default_rng(seed), ChannelSpec("update", 100, 16, 1.0)
    honest = [draw.integers(-spec.levels, spec.levels + 1, 100) for _ in range(cohort - 1)]
    words = packed(honest, spec, cohort) + draw.integers(0, 2**64, word_count([spec], cohort), np.uint64)
    assert judged(words, spec, cohort, cohort) is not None


def test_all_ones_are_nothing_but_minus_one() -> None:
    """2^64 - 1 in every word is -1 in each first field: within the range, hence no harm and no alarm."""
    spec = ChannelSpec("update", 9, 16, 1.0)
    ones = np.full(word_count([spec], 10), 2**64 - 1, np.uint64)
    assert unpack_integers(ones, [spec], 10)["update"].tolist() == [-1] * 3 + [0] * 6
    assert judged(ones, spec, 10, 10) is None


def test_places_after_the_last_coordinate_are_empty() -> None:
    spec = ChannelSpec("update", 1, 16, 1.0)
    words = packed([np.array([7])], spec, 4)
    assert spilled_words(words, [spec], 4) == {"update": 0}
    assert spilled_words(words + np.uint64(1 << 18), [spec], 4) == {"update": 1}
    assert spilled_words(words + np.uint64(1 << 36), [spec], 4) == {"update": 1}
    assert spilled_words(words + np.uint64(1 << 60), [spec], 4) == {"update": 1}


def test_squares_are_never_negative() -> None:
    spec = ChannelSpec("deviation", 2, 24, 1.0)
    found = judged(packed([np.array([5, -1])], spec, 4), spec, 4, 3)
    assert (found.channel, found.entries) == ("deviation", 1)


# Length


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(3, 20), st.floats(0.05, 50), st.floats(0, 30), st.integers(0, 2**32 - 1))
def test_the_longest_honest_sum_is_within_its_limit(size, silos, norm, deviation, seed) -> None:
    """All silos send one vector of the largest norm; rounding and noise are drawn. It is no loose limit either."""
    draw, spec = np.random.default_rng(seed), ChannelSpec("update", size, 16, 64.0)
    direction = draw.normal(size=size)
    vector = norm * direction / np.linalg.norm(direction)
    total = np.zeros(size)
    for _ in range(silos):
        rounded = quantise(vector, spec, draw.integers(0, 2**32, size, np.uint32))
        total += dequantise(rounded, spec)
    noise_std = 0.0
    if deviation > 1:
        random = ReproducibleRandomness(seed, "noise")
        total += dequantise(DiscreteGaussian(deviation).sample(size, random), spec)
        noise_std = deviation * spec.step
    limit = length_limit(silos * norm, silos, spec, noise_std)
    assert np.linalg.norm(total) <= limit
    if size > 100:
        assert limit < 3 * math.hypot(silos * norm, noise_std * math.sqrt(size), spec.step * math.sqrt(size * silos))


@pytest.mark.parametrize(("patients", "rate"), [(10, 0.5), (1000, 0.1), (4000, 0.1), (60_000, 0.01), (50, 1.0)])
def test_a_sample_is_never_larger_than_the_bound(patients: int, rate: float) -> None:
    from scipy.stats import binom

    bound = most_sampled(patients, rate)
    assert binom.sf(bound, patients, rate) <= 2.0**-40
    assert bound <= patients
    assert patients < 4000 or bound < 2 * patients * rate


def test_all_silos_aligned_at_the_norm_are_just_within(make_config, model, records, task, make_manifest) -> None:
    """What honest code scales to --update-norm, squares and unit energies too, is never cut."""
    config = make_config(update_norm=0.01, prune="autoflip")
    live = int(model.mask.sum())
    specs = (update_channel(config, live), deviation_channel(live), energy_channel(UnitMap.of(model.spec).count))
    manifest = make_manifest(config, model, channels=specs)
    one = Contributor(config, task, SiloData(records), 1, "cpu")
    sent = one._vectors(manifest, model)
    free = Contributor(make_config(prune="autoflip"), task, SiloData(records), 1, "cpu")._vectors(manifest, model)
    assert np.linalg.norm(free["update"]) > 0.02
    assert 0.0099 < np.linalg.norm(sent["update"].astype(np.float64)) <= 0.01
    np.testing.assert_allclose(sent["deviation"], sent["update"].astype(np.float64) ** 2, rtol=1e-3, atol=1e-12)
    told: list[Any] = []
    watch = SumWatch(config, 80, lambda event, **fields: told.append((event, fields)))
    silos = len(manifest.cohorts[0])
    words = np.zeros(word_count(specs, silos), np.uint64)
    for _ in range(silos):
        words += all_words(ContributionWords(one.contribute(manifest, model).values, specs, silos))
    opened = CohortSum(0, manifest.cohorts[0], words)
    aggregate = decode(manifest, opened)
    (passed,) = watch.passed(manifest, [opened], [aggregate])
    assert told == []
    for name in ("update", "deviation", "unit_energy"):
        np.testing.assert_array_equal(passed.sum(name), aggregate.sum(name))


# The watch


def sums_of(manifest: Any, values: list[np.ndarray]) -> tuple[list[CohortSum], list[Aggregate]]:
    (spec,) = manifest.channels
    found = []
    for index, cohort in enumerate(manifest.cohorts):
        integers = np.rint(values[index] / spec.step).astype(np.int64)
        found.append(CohortSum(index, cohort, packed([integers], spec, len(cohort))))
    return found, [decode(manifest, each) for each in found]


def watched(config: Any, told: list[dict[str, Any]]) -> SumWatch:
    return SumWatch(config, 80, lambda event, **fields: told.append({"event": event, **fields}))


def test_a_long_sum_is_cut_to_what_all_silos_could_do(make_config, model, make_manifest) -> None:
    config, told = make_config(update_norm=1.0), []
    manifest = make_manifest(config, model)
    length = manifest.channels[0].length
    for norm, cut in ((3.9, False), (60.0, True)):
        told.clear()
        opened, aggregates = sums_of(manifest, [np.full(length, norm / math.sqrt(length))])
        (passed,) = watched(config, told).passed(manifest, opened, aggregates)
        assert bool(told) == cut
        assert np.linalg.norm(passed.sum("update")) == pytest.approx(4.0 if cut else norm, rel=1e-3)
    assert (told[0]["event"], told[0]["channel"]) == ("sum_out_of_bounds", "update")
    assert told[0]["factor"] == pytest.approx(4 / 60, rel=1e-2)


def test_under_distributed_noise_clip_and_sample_are_the_bound(make_config, model, make_manifest) -> None:
    """Whatever a range holds, a round moves by no more than all patients of a sample; two cohorts together too."""
    config, told = make_config(dp_epsilon=8.0, silos=8, cohorts=2, prune="autoflip", rounds=40), []
    manifest = replace(make_manifest(config, model), cohorts=((1, 2, 3, 4), (5, 6, 7, 8)), minimum=(4, 4))
    length = manifest.channels[0].length
    end = 3 * manifest.channels[0].limit
    opened, aggregates = sums_of(manifest, [np.full(length, end), np.full(length, end)])
    passed = watched(config, told).passed(manifest, opened, aggregates)
    honest = manifest.privacy.clip * most_sampled(88, manifest.privacy.sampling_rate)
    noise = sum(aggregate.noise_std["update"] ** 2 for aggregate in aggregates) ** 0.5 * math.sqrt(length)
    assert sum_length(aggregates, "update") > 3 * sum_length(passed, "update")
    assert sum_length(passed, "update") < 3 * math.hypot(honest, noise)
    assert {event["cohort"] for event in told} <= {0, 1, None}
    assert all(0 < event["factor"] < 1 for event in told)
    undeclared = SumWatch(config, 0, lambda event, **fields: None).passed(manifest, opened, aggregates)
    assert sum_length(undeclared, "update") == sum_length(aggregates, "update"), "a census that may lie bounds nothing"


def test_only_the_cohort_that_is_outside_is_left_out(make_config, model, make_manifest) -> None:
    config, told = make_config(silos=16, cohort_filter=True, rounds=4), []
    manifest = make_manifest(config, model)
    spec, draw = manifest.channels[0], np.random.default_rng(0)
    shared = draw.normal(size=spec.length) * 0.1
    values = [4 * (shared + 0.01 * draw.normal(size=spec.length)) for _ in range(4)]
    values[2] = values[2] + 5.0
    opened, aggregates = sums_of(manifest, values)
    passed = watched(config, told).passed(manifest, opened, aggregates)
    assert [aggregate.outside for aggregate in passed] == [False, False, True, False]
    assert [(event["cohort"], event["factor"]) for event in told] == [(2, 0.0)]
    live, schedule = np.ones(spec.length, np.bool_), Schedule(config)
    filtered = CohortWatch(config, schedule, lambda event, **fields: None).passed(1, schedule.plan(1), passed, live)
    assert {aggregate.cohort for aggregate in filtered} == {0, 1, 3}
    unfiltered = CohortWatch(make_config(), Schedule(make_config()), lambda event, **fields: None)
    assert [a.cohort for a in unfiltered.passed(1, schedule.plan(1), passed, live)] == [0, 1, 3]


def test_where_all_are_outside_there_is_no_sum(make_config, model, make_manifest) -> None:
    config = make_config()
    manifest = make_manifest(config, model)
    opened, aggregates = sums_of(manifest, [np.full(manifest.channels[0].length, 5.0)])
    with pytest.raises(Abort, match="outside") as caught:
        watched(config, []).passed(manifest, opened, aggregates)
    assert caught.value.blamed == (), "the secure sum hides who it was"


@pytest.mark.parametrize("phase", ["census", "evaluate"])
def test_noised_counts_are_within(phase: str, make_config, model, make_manifest) -> None:
    """Counts near 0 whose noise makes them negative are honest; the range of a hundred draws holds."""
    from autoflip_secure.federation.terms import count_channel, metric_channel

    config, told = make_config(dp_epsilon=1.0), []
    channel = count_channel(20.0) if phase == "census" else metric_channel(7, 20.0)
    terms = {"dataset": "holdout" if phase == "evaluate" else "train", "sampling_rate": 1.0, "noise_multiplier": 20.0}
    manifest = make_manifest(config, model, phase=phase, channels=(channel,), terms={**terms, "clip": 1.2})
    levels = noise_levels(manifest, channel, 0)
    assert levels is not None
    for number in range(100):
        random = ReproducibleRandomness(number, "noise")
        drawn = [DiscreteGaussian(levels.drawn**0.5).sample(channel.length, random) for _ in range(4)]
        opened = [CohortSum(0, manifest.cohorts[0], packed(drawn, channel, 4))]
        watched(config, told).passed(manifest, opened, [decode(manifest, opened[0])])
    assert told == []


# Runs


@pytest.mark.parametrize(
    "options",
    [
        {"prune": "autoflip", "aggregation": "secagg"},
        {"prune": "autoflip", "silos": 16, "cohort_filter": True},
        {"dp_epsilon": 8.0, "insecure_reproducible_noise": True, "rounds": 8, "explore_rounds": 2, "prune": "autoflip"},
        {"dp_epsilon": 1.0, "insecure_reproducible_noise": True, "dropout": 0.05, "silos": 8, "rounds": 6},
        {"dp_epsilon": 4.0, "dp_trust": "local", "insecure_reproducible_noise": True},
        {"prune": "fedmask"},
        {"prune": "feddst"},
    ],
)
def test_honest_runs_are_the_same_bit_for_bit(options, make_config, make_federation, monkeypatch) -> None:
    config, models = make_config(**options), []
    for name in ("bounded", "as it comes"):
        if models:
            monkeypatch.setattr(SumWatch, "passed", lambda watch, manifest, sums, aggregates: list(aggregates))
        folder = make_federation(config, name=name)
        run_federation(folder, config, lambda line: None)
        client_app.close_silos()
        models.append(folder.model.read_bytes())
        assert not [e for e in read_json_lines(folder.events) if e["event"] == "sum_out_of_bounds"]
    assert models[0] == models[1]


def test_a_silo_that_sends_wild_words_stops_the_run_and_changes_no_model(make_config, make_federation) -> None:
    config = make_config(bad_silos="wild-words:0.25", aggregation="secagg")
    folder = make_federation(config)
    with pytest.raises(CannotContinue, match="outside what its silos can add up to"):
        run_federation(folder, config, lambda line: None)
    state = load_checkpoint(folder.checkpoint)
    clean = make_config()
    other = make_federation(clean, name="clean")
    run_federation(other, clean, lambda line: None)
    events = list(read_json_lines(folder.events))
    assert state.round == 0
    assert sum(event["event"] == "abort" for event in events) == 10
    assert {event["stage"] for event in events if event["event"] == "abort"} == {"opened"}
    assert sum(event["event"] == "sum_out_of_bounds" for event in events) == 10


def test_with_the_filter_wild_words_cost_their_cohort_only(make_config, make_federation) -> None:
    config = make_config(
        silos=16, cohort_filter=True, rounds=3, aggregation="secagg", bad_silos="wild-words:0.06", prune="autoflip"
    )
    folder = make_federation(config)
    lines: list[dict[str, Any]] = []
    run_federation(folder, config, lines.append)
    events = list(read_json_lines(folder.events))
    (bad,) = next(event["silos"] for event in events if event["event"] == "bad_silos")
    outside = [event for event in events if event["event"] == "sum_out_of_bounds"]
    assert len(lines) == 3
    assert [event["round"] for event in outside] == [0, 1, 2]
    assert all(bad in event["silos"] and len(event["silos"]) == 4 for event in outside)
    assert lines[-1]["accuracy"] > 0.5


def test_the_report_tells_what_was_done_to_sums() -> None:
    from autoflip_secure.report.record import RunRecord
    from autoflip_secure.report.run_sections import trouble_section

    told = {"event": "sum_out_of_bounds", "round": 2, "phase": "train", "channel": "update", "silos": [1, 4, 9]}
    events = ({**told, "factor": 0.25}, {**told, "round": 4, "factor": 0.0})
    page = str(trouble_section(RunRecord(({"round": 0},), events, {})))
    for words in ("honest silos do not add up to (2)", "scaled by 0.250", "left out", "1, 4, 9"):
        assert words in page
    assert "do not add up" not in str(trouble_section(RunRecord(({"round": 0},), (), {})))


@pytest.mark.parametrize(
    "options", [{"dp_epsilon": 8.0}, {"dp_epsilon": 8.0, "dp_trust": "local"}, {"prune": "fedmask"}]
)
def test_a_norm_that_would_do_nothing_is_refused(options: dict[str, Any], make_config) -> None:
    with pytest.raises(ConfigError, match=r"--update-norm 2\.0"):
        make_config(update_norm=2.0, **options)
