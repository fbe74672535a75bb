"""What both sides compute from a manifest alone: noise of a silo and of the sum, and how fine the grid must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.federation import terms as terms_module
from autoflip_secure.federation.terms import (
    GRADIENT_RANGE,
    METRIC_SENSITIVITY,
    check_grid,
    check_terms,
    count_channel,
    deviation_channel,
    energy_channel,
    honest_silos,
    metric_channel,
    noise_levels,
    noise_steps,
    on_fine_grid,
    update_channel,
)
from autoflip_secure.privacy.discrete_noise import MAX_STD, rounded_sensitivity
from autoflip_secure.privacy.plan import GRID_SHARE
from autoflip_secure.sums.encoding import quantise

PARAMETERS = 26_010


def total_noise(manifest, channel, cohort: int) -> float:
    """Standard deviation of the honest minimum's noise, in the channel's own unit."""
    return noise_steps(manifest, channel, cohort) * channel.step * honest_silos(manifest, cohort) ** 0.5


@given(
    multiplier=st.floats(0.5, 20),
    clip=st.floats(0.01, 10),
    colluders=st.integers(0, 3),
    length=st.integers(1, PARAMETERS),
)
def test_the_honest_minimum_reaches_the_multiplier(
    multiplier, clip, colluders, length, make_config, make_manifest, model
):
    config = make_config(silos=10, dp_epsilon=8.0, clip=clip, colluders=colluders)
    channel = update_channel(config, length)
    terms = {"noise_multiplier": multiplier, "clip": clip}
    manifest = make_manifest(config, model, channels=(channel,), terms=terms)
    ratio = total_noise(manifest, channel, 0) / (multiplier * clip)
    assert 1 <= ratio <= 1.001


def test_each_cohort_has_its_own_honest_minimum(make_config, make_manifest, model) -> None:
    config = make_config(silos=10, dp_epsilon=8.0, colluders=1)
    cohorts = {"cohorts": ((1, 2, 3, 4), (5, 6, 7, 8, 9, 10)), "minimum": (4, 5)}
    manifest = make_manifest(config, model, **cohorts)
    (channel,) = manifest.channels
    assert [honest_silos(manifest, c) for c in (0, 1)] == [3, 4]
    assert total_noise(manifest, channel, 0) == pytest.approx(total_noise(manifest, channel, 1), rel=1e-4)
    assert noise_steps(manifest, channel, 0) > noise_steps(manifest, channel, 1)


@pytest.mark.parametrize("make", [count_channel, lambda sigma: metric_channel(6, sigma)])
@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_counts_and_metrics_are_noised_in_both_modes(make, trust: str, make_config, make_manifest, model) -> None:
    config = make_config(silos=10, dp_epsilon=8.0, dp_trust=trust, colluders=2)
    channel = make(3.0)
    terms = {"noise_multiplier": 3.0, "clip": 1.0}
    manifest = make_manifest(config, model, phase="evaluate", channels=(channel,), terms=terms)
    alone = noise_steps(manifest, channel, 0) * channel.step
    assert 1 <= total_noise(manifest, channel, 0) / 3.0 <= 1.02
    if trust == "local":
        assert honest_silos(manifest, 0) == 1
        assert alone == pytest.approx(3.0, rel=0.02), "each silo alone must meet the budget"
    else:
        assert honest_silos(manifest, 0) == manifest.minimum[0] - 2


def test_local_trust_noises_no_update_again(make_config, make_manifest, model) -> None:
    config = make_config(dp_epsilon=8.0, dp_trust="local")
    manifest = make_manifest(config, model)
    for channel in (update_channel(config, 9), energy_channel(3), deviation_channel(9)):
        assert noise_steps(manifest, channel, 0) is None


def test_without_dp_nothing_is_noised(make_config, make_manifest, model) -> None:
    config = make_config()
    manifest = make_manifest(config, model)
    for channel in (update_channel(config, 9), count_channel(0.0), metric_channel(6, 0.0)):
        assert noise_steps(manifest, channel, 0) is None


def test_a_cohort_without_an_honest_silo_is_refused(make_config, make_manifest, model) -> None:
    manifest = make_manifest(make_config(dp_epsilon=8.0), model)
    for colluders, honest in ((manifest.minimum[0] - 1, 1), (manifest.minimum[0], None)):
        terms = replace(manifest.privacy, colluders=colluders)
        asked = replace(manifest, privacy=terms)
        if honest:
            assert honest_silos(asked, 0) == honest
        else:
            with pytest.raises(PolicyRefusal, match="nobody's noise is left"):
                noise_steps(asked, asked.channels[0], 0)


UNDERCOUNTING = {
    "train": [
        ({"dataset": "holdout"}, "train records"),
        ({"steps": 0}, "at least once|one gradient sum"),
    ],
    "explore": [({"dataset": "holdout"}, "train records")],
    "census": [
        ({"dataset": "holdout"}, "train records"),
        ({"sampling_rate": 0.5}, "every record once"),
        ({"steps": 2}, "every record once"),
        ({"clip": 0.99}, "scales noise to 0.99"),
    ],
    "evaluate": [
        ({"dataset": "train"}, "holdout records"),
        ({"sampling_rate": 0.5}, "every record once"),
        ({"steps": 0}, "every record once"),
        ({"clip": 0.01}, "scales noise to 0.01"),
        ({"clip": 1.0}, "changes the scores by 1.118"),
    ],
}


@pytest.mark.parametrize("trust", ["local", "distributed"])
@pytest.mark.parametrize("phase", UNDERCOUNTING)
def test_terms_that_undercount_are_refused(phase: str, trust: str, make_config, make_manifest, model) -> None:
    config = make_config(dp_epsilon=8.0, dp_trust=trust)
    honest = {"dataset": "holdout" if phase == "evaluate" else "train"}
    if phase in ("census", "evaluate"):
        honest |= {"sampling_rate": 1.0, "steps": 1, "clip": METRIC_SENSITIVITY if phase == "evaluate" else 1.0}
    check_terms(make_manifest(config, model, phase=phase, terms=honest))
    for changes, named in UNDERCOUNTING[phase]:
        with pytest.raises(PolicyRefusal, match=named):
            check_terms(make_manifest(config, model, phase=phase, terms={**honest, **changes}))


def test_only_local_trust_takes_several_steps(make_config, make_manifest, model) -> None:
    check_terms(make_manifest(make_config(), model, terms={"steps": 5}))
    check_terms(make_manifest(make_config(dp_epsilon=8.0, dp_trust="local"), model, terms={"steps": 5}))
    with pytest.raises(PolicyRefusal, match="one gradient sum a round"):
        check_terms(make_manifest(make_config(dp_epsilon=8.0), model, terms={"steps": 5}))


def test_noised_channels_are_as_fine_as_rounding_is_accounted_for(make_config, make_manifest, model) -> None:
    for options in ({"dp_epsilon": 8.0}, {"dp_epsilon": 8.0, "dp_trust": "local"}, {}):
        config = make_config(**options)
        for bits in (25, 26):
            channel = replace(update_channel(config, 9), bits=bits)
            manifest = make_manifest(config, model, channels=(count_channel(2.0), channel))
            if bits == 26 and options:
                with pytest.raises(PolicyRefusal, match="at most 25 bits"):
                    check_terms(manifest)
            else:
                check_terms(manifest)


def test_counts_without_dp_need_no_sensitivity(make_config, make_manifest, model) -> None:
    check_terms(make_manifest(make_config(), model, phase="census"))


def test_sixteen_bits_are_fine_enough_and_eight_are_not(make_config, make_manifest, model) -> None:
    gaps = {}
    for bits in (16, 20):
        config = make_config(silos=10, dp_epsilon=8.0, bits=bits)
        manifest = make_manifest(config, model, channels=(update_channel(config, PARAMETERS),))
        gaps[bits] = check_grid(manifest, 240, 8.0)
        assert 0 < gaps[bits] <= GRID_SHARE * config.dp_delta
    assert gaps[20] <= gaps[16]
    config = make_config(silos=10, dp_epsilon=8.0, bits=8)
    manifest = make_manifest(config, model, channels=(update_channel(config, PARAMETERS),))
    with pytest.raises(PolicyRefusal, match="use more --bits"):
        check_grid(manifest, 240, 8.0)


def test_the_grid_of_every_channel_and_cohort_counts(make_config, make_manifest, model) -> None:
    config = make_config(silos=10, dp_epsilon=8.0, bits=8)
    fine, coarse = count_channel(20.0), update_channel(config, PARAMETERS)
    for channels in ((fine, coarse), (coarse, fine)):
        with pytest.raises(PolicyRefusal):
            check_grid(make_manifest(config, model, channels=channels), 240, 8.0)
    check_grid(make_manifest(config, model, channels=(fine,)), 240, 8.0)


def test_the_grid_is_checked_for_every_number_of_missing_silos(
    make_config, make_manifest, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer survivors fewer silos' noise counts, and more of its parts."""
    config = make_config(silos=10, dp_epsilon=8.0, bits=16)
    terms = {"colluders": 1}
    manifest = make_manifest(config, model, cohorts=(tuple(range(1, 11)),), minimum=(6,), terms=terms)
    levels = noise_levels(manifest, manifest.channels[0], 0)
    assert levels is not None
    checked = []

    def recording(parts, honest: int, *rest) -> float:
        checked.append((tuple(parts), honest))
        return 1e-12 * honest

    monkeypatch.setattr(terms_module, "discretisation_delta", recording)
    assert check_grid(manifest, 10, 8.0) == 9e-12
    assert checked == [(levels.stds[: d + 1], 9 - d) for d in range(5)]
    assert all(sum(std**2 for std in parts) * honest >= levels.owed[0] * 9 * (1 - 1e-12) for parts, honest in checked)


@given(multiplier=st.floats(0.3, 20), minimum=st.integers(5, 10), colluders=st.integers(0, 4))
def test_survivors_owe_what_the_multiplier_asks_of_their_number(
    multiplier, minimum, colluders, make_config, make_manifest, model
) -> None:
    config = make_config(silos=10, dp_epsilon=8.0)
    terms = {"noise_multiplier": multiplier, "colluders": colluders}
    manifest = make_manifest(config, model, cohorts=(tuple(range(1, 11)),), minimum=(minimum,), terms=terms)
    channel = manifest.channels[0]
    levels = noise_levels(manifest, channel, 0)
    assert levels is not None
    assert levels.drawn**0.5 == noise_steps(manifest, channel, 0)
    assert len(levels.owed) == 10 - minimum + 1
    for missing, owed in enumerate(levels.owed):
        ratio = (owed * (10 - missing - colluders)) ** 0.5 * channel.step / (multiplier * config.clip)
        assert 1 <= ratio <= 1.001


def test_more_releases_cost_more_of_delta(make_config, make_manifest, model) -> None:
    config = make_config(silos=10, dp_epsilon=8.0, bits=12)
    manifest = make_manifest(config, model)
    few, many = (check_grid(manifest, releases, 1.0) for releases in (1, 100))
    assert few < many
    assert check_grid(manifest, 100, 1.0) < check_grid(manifest, 100, 4.0)


LARGE_BATCH = 600.0


@pytest.mark.parametrize("live", [PARAMETERS, 10_446, 1_909])
@pytest.mark.parametrize("bits", [16, 17, 18])
def test_little_noise_on_large_batches_gets_a_narrower_range(
    live: int, bits: int, make_config, make_manifest, model
) -> None:
    """As in 20 rounds on 60,000 records at epsilon 8: more bits would widen the range and not the noise in steps."""
    config = make_config(silos=10, dp_epsilon=8.0, colluders=1, bits=bits)
    usual = update_channel(config, live, expected_batch=LARGE_BATCH)
    asked = make_manifest(config, model, channels=(usual,), terms={"noise_multiplier": 0.5})
    with pytest.raises(PolicyRefusal, match="use more --bits"):
        check_grid(asked, 25, 8.0)
    finer = on_fine_grid(asked, 25, 8.0)
    gap = check_grid(finer, 25, 8.0)
    (channel,) = finer.channels
    assert 0.8 * GRID_SHARE * config.dp_delta < gap, "narrower than is needed"
    assert GRADIENT_RANGE * config.clip < channel.limit < usual.limit
    assert replace(finer, channels=asked.channels) == asked, "nothing else of the manifest moves"
    assert replace(channel, limit=usual.limit) == usual


def test_a_grid_that_is_fine_enough_stays_as_it_is(make_config, make_manifest, model) -> None:
    for options in ({"dp_epsilon": 8.0}, {"dp_epsilon": 8.0, "dp_trust": "local"}, {}):
        config = make_config(silos=10, **options)
        manifest = make_manifest(config, model, channels=(update_channel(config, PARAMETERS, expected_batch=40.0),))
        assert on_fine_grid(manifest, 240, 8.0) is manifest


@pytest.mark.parametrize(("silos", "bits", "multiplier", "batch"), [(10, 8, 2.0, LARGE_BATCH), (4, 11, 4.0, 0.0)])
def test_a_range_keeps_room_for_clips_and_noise_however_few_the_bits(
    silos: int, bits: int, multiplier: float, batch: float, make_config, make_manifest, model
) -> None:
    """Then the grid stays too coarse, and more bits are what helps."""
    config = make_config(silos=silos, dp_epsilon=8.0, bits=bits)
    asked = make_manifest(config, model, terms={"noise_multiplier": multiplier})
    noise = multiplier / (silos * honest_silos(asked, 0)) ** 0.5
    asked = replace(asked, channels=(update_channel(config, PARAMETERS, None, batch, noise),))
    assert on_fine_grid(asked, 240, 8.0) is asked
    with pytest.raises(PolicyRefusal, match="use more --bits"):
        check_grid(asked, 240, 8.0)


def test_noise_below_the_grid_is_refused(make_config, make_manifest, model) -> None:
    config = make_config(silos=10, dp_epsilon=8.0, bits=8)
    manifest = make_manifest(config, model, terms={"noise_multiplier": 1e-4})
    with pytest.raises(ConfigError, match="bits"):
        check_grid(manifest, 1, 8.0)


def test_noise_beyond_the_sampler_is_refused_before_it_costs_anything(make_config, make_manifest, model) -> None:
    config = make_config(silos=10, dp_epsilon=8.0, bits=24)
    channel = update_channel(config, int(model.mask.sum()))
    manifest = make_manifest(config, model, terms={"noise_multiplier": 10.0}, channels=(channel,))
    with pytest.raises(PolicyRefusal, match=r"above 2e\+05; use fewer --bits"):
        check_grid(manifest, 1, 8.0)


def test_the_range_has_room_for_the_noise(make_config) -> None:
    config = make_config(dp_epsilon=0.5, clip=0.1)
    assert update_channel(config, 100, noise=3.0).limit == pytest.approx(8 * 3.0 * 0.1)


def test_update_channels_have_public_ranges(make_config) -> None:
    distributed = make_config(dp_epsilon=8.0, clip=0.5, update_limit=3.0, bits=20)
    assert vars(update_channel(distributed, 7)) == {"name": "update", "length": 7, "bits": 20, "limit": 2.0}
    for options in ({}, {"dp_epsilon": 8.0, "dp_trust": "local"}):
        assert update_channel(make_config(update_limit=3.0, **options), 7).limit == 3.0


@given(st.floats(0, 1e5), st.integers(2000, 10**6))
def test_a_larger_batch_has_a_larger_range_and_rounding_stays_cheap(make_config, batch: float, live: int) -> None:
    config = make_config(dp_epsilon=8.0, clip=0.1)
    channel = update_channel(config, live, expected_batch=batch)
    assert 4 * config.clip <= channel.limit <= max(4.0, 0.25 * batch) * config.clip * (1 + 1e-9)
    if channel.limit > 4 * config.clip:
        steps = config.clip / channel.step
        assert rounded_sensitivity(steps, live, 1e-14) <= 1.03 * steps


@given(st.floats(0, 2**24))
def test_counts_have_whole_steps_and_noise_the_sampler_can_draw(multiplier: float) -> None:
    channel = count_channel(multiplier)
    per_record = 1 / channel.step
    assert per_record == pytest.approx(round(per_record))
    assert channel.limit >= 4095
    assert multiplier * per_record <= MAX_STD or per_record == pytest.approx(1)


@given(st.integers(0, 4095))
def test_counts_are_exact_on_their_grid(count: int) -> None:
    channel = count_channel(20.0)
    for dither in (0, 2**32 - 1):
        integers = quantise(np.array([float(count)]), channel, np.array([dither], np.uint32))
        assert abs(integers[0] * channel.step - count) <= channel.step


def test_large_silos_are_counted_whole() -> None:
    channel = count_channel(20.0)
    integers = quantise(np.array([10_000.0]), channel, np.array([0], np.uint32))
    assert integers[0] * channel.step == pytest.approx(10_000)
