"""The clip that follows a quantile of gradient norms: what it costs, where it goes, and that a run can be resumed."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.errors import ConfigError, PolicyRefusal, StorageError
from autoflip_secure.federation import client_app
from autoflip_secure.federation.adaptive_clip import RANGE, AdaptiveClip
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.engines import run_federation
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.federation.model_step import ModelStep
from autoflip_secure.federation.plan import session_plan
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.provisioning import load_task
from autoflip_secure.federation.run_state import RunState, load_checkpoint
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.sums import SumRunner
from autoflip_secure.federation.terms import (
    CLIP_BIT,
    CLIP_BIT_NOISE,
    check_grid,
    check_terms,
    clip_bits_channel,
    honest_silos,
    noise_steps,
    update_channel,
)
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.privacy.ledger_lines import LedgerLine
from autoflip_secure.privacy.plan import GRID_SHARE
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.sums.encoding import unpack_sum
from autoflip_secure.sums.words import ContributionWords, all_words

LENGTH = 26_010
PRIVATE = {"silos": 10, "dp_epsilon": 8.0, "adaptive_clip": 0.5}


def asked(make_config, make_manifest, model, *, multiplier=2.0, clip=0.1, batch=400.0, **options):
    """Manifest of an adaptive round."""
    config = make_config(**{**PRIVATE, **options})
    channels = (update_channel(config, LENGTH, clip), clip_bits_channel(batch, multiplier))
    terms = {"noise_multiplier": multiplier, "clip": clip}
    return make_manifest(config, model, channels=channels, terms=terms)


def honest_noise(manifest, channel) -> float:
    """Standard deviation of the honest minimum's noise, in the channel's own unit."""
    return noise_steps(manifest, channel, 0) * channel.step * honest_silos(manifest, 0) ** 0.5


@given(
    multiplier=st.floats(0.5, 30),
    clip=st.floats(1e-3, 1e3),
    batch=st.floats(0.1, 1e4),
    colluders=st.integers(0, 3),
)
def test_update_and_bits_together_have_the_manifest_s_multiplier(
    multiplier, clip, batch, colluders, make_config, make_manifest, model
):
    """A patient moves them by (clip, 1/2) at most; in units of their noise, in squares, that is the round's 1 / z^2."""
    config = {"colluders": colluders}
    manifest = asked(make_config, make_manifest, model, multiplier=multiplier, clip=clip, batch=batch, **config)
    check_terms(manifest)
    update, bits = manifest.channels
    moved = (clip / honest_noise(manifest, update)) ** 2 + (CLIP_BIT / honest_noise(manifest, bits)) ** 2
    assert 0.93 < moved * multiplier**2 <= 1
    assert honest_noise(manifest, update) <= 1.16 * multiplier * clip * 1.01
    assert honest_noise(manifest, bits) >= CLIP_BIT_NOISE * bits.limit


def test_noise_of_the_bits_is_a_twentieth_of_the_batch(make_config, make_manifest, model) -> None:
    manifest = asked(make_config, make_manifest, model, batch=400.0)
    update, bits = manifest.channels
    assert honest_noise(manifest, bits) == pytest.approx(20, rel=0.01)
    assert honest_noise(manifest, update) == pytest.approx(2.0 * 0.1, rel=0.002), "and the update hardly pays for it"
    alone = replace(manifest, channels=(update,))
    assert honest_noise(manifest, update) > honest_noise(alone, update)
    assert check_grid(alone, 240, 8.0) < check_grid(manifest, 240, 8.0) <= GRID_SHARE * 1e-5, "both grids count"


def test_noise_in_grid_steps_does_not_depend_on_the_clip(make_config, make_manifest, model) -> None:
    drawn = {
        noise_steps(manifest, manifest.channels[0], 0)
        for manifest in (asked(make_config, make_manifest, model, clip=clip) for clip in (0.001, 0.1, 10.0))
    }
    assert max(drawn) == pytest.approx(min(drawn), rel=1e-9)


def test_the_ledger_line_says_multiplier_and_clip_of_the_round(make_config, make_manifest, model) -> None:
    line = LedgerLine.of(asked(make_config, make_manifest, model, multiplier=2.0, clip=0.037))
    assert (line.noise_multiplier, line.sensitivity) == (2.0, 0.037)


def test_bits_that_would_not_be_covered_are_refused(make_config, make_manifest, model) -> None:
    manifest = asked(make_config, make_manifest, model)
    update, bits = manifest.channels
    SiloPolicy(channels=("update", "clip_bits")).check_manifest(manifest)
    for changes in (
        {"channels": (bits,)},
        {"phase": "evaluate", "privacy": replace(manifest.privacy, dataset="holdout", sampling_rate=1.0, clip=2.0)},
        {"privacy": replace(manifest.privacy, trust="local")},
        {"privacy": replace(manifest.privacy, trust="none")},
    ):
        with pytest.raises(PolicyRefusal, match="clip bits go with"):
            check_terms(replace(manifest, **changes))
    too_quiet = replace(manifest, channels=(update, replace(bits, limit=2.0 * CLIP_BIT / CLIP_BIT_NOISE)))
    with pytest.raises(PolicyRefusal, match="leave nothing of the round's 2"):
        check_grid(too_quiet, 240, 8.0)


def test_adaptive_clips_need_distributed_noise(make_config) -> None:
    for options in ({}, {"dp_epsilon": 8.0, "dp_trust": "local"}):
        with pytest.raises(ConfigError, match=r"--adaptive-clip 0.5: .* --dp-trust distributed"):
            make_config(adaptive_clip=0.5, **options)
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="--adaptive-clip"):
            make_config(dp_epsilon=8.0, adaptive_clip=wrong)


def test_a_silo_s_bits_tell_who_is_within_the_clip(make_config, make_manifest, model, task, records) -> None:
    """Rounding and noise are drawn from the seed, so they are the same for all clips and cancel."""
    config = make_config(dp_epsilon=8.0, adaptive_clip=0.5, sampling_rate=1.0, insecure_reproducible_noise=True)
    silo = Contributor(config, task, SiloData(records), 1, "cpu")
    live = int(model.mask.sum())

    def bits(clip: float) -> float:
        channels = (update_channel(config, live, clip), clip_bits_channel(400.0, 0.01))
        manifest = make_manifest(config, model, channels=channels, terms={"noise_multiplier": 0.01, "clip": clip})
        values = silo.contribute(manifest, model).values
        words = all_words(ContributionWords({"clip_bits": values["clip_bits"]}, channels[1:], 4))
        return float(unpack_sum(words, channels[1:], 4)["clip_bits"][0])

    module = build(model.spec)
    load_flat_parameters(module, torch.from_numpy(model.weights))
    norms = []
    for x, y in zip(torch.from_numpy(records.x), torch.from_numpy(records.y), strict=True):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(x[None]), y[None]).backward()
        gradient = np.concatenate([p.grad.numpy().ravel() for p in module.parameters()])[model.mask]
        norms.append(np.linalg.norm(gradient.astype(np.float64)))
    middle = float(np.median(norms)) * 1.001
    within = int((np.array(norms) <= middle).sum())
    none = bits(1e-6)
    assert bits(1e6) - none == pytest.approx(len(records), abs=0.01)
    assert bits(middle) - none == pytest.approx(within, abs=0.01)


def aggregate(bits: float, update: np.ndarray | None = None, noise: float = 0.0) -> Aggregate:
    channels = {"clip_bits": np.array([bits]), "update": np.zeros(3) if update is None else update}
    return Aggregate(0, 0, 5, channels, {"update": noise})


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("first", [0.02, 30.0])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_clip_finds_the_quantile(quantile: float, first: float, noisy: bool) -> None:
    """Norms are log-normal around 1; the first clip is far off, on either side."""
    generator = np.random.default_rng(3)
    expected, clip = 400.0, AdaptiveClip(first, quantile, first)
    seen = []
    for _ in range(300):
        norms = np.exp(0.5 * generator.normal(size=generator.poisson(expected)))
        bits = (norms <= clip.value).sum() - 0.5 * len(norms)
        bits += CLIP_BIT_NOISE * expected * generator.normal() if noisy else 0.0
        clip.follow([aggregate(0.25 * bits), aggregate(0.75 * bits)], expected)
        seen.append(clip.value)
    target = math.exp(0.5 * {0.2: -0.8416, 0.5: 0.0, 0.8: 0.8416}[quantile])
    assert np.mean(np.log(seen[-100:])) == pytest.approx(math.log(target), abs=0.1)


def test_the_clip_stays_in_public_bounds_and_a_fixed_one_stays() -> None:
    clip = AdaptiveClip(0.1, 0.5, 0.1)
    for bits, bound in ((-1e9, 0.1 * RANGE), (1e9, 0.1 / RANGE)):
        for _ in range(300):
            clip.follow([aggregate(bits)], 10.0)
        assert clip.value == pytest.approx(bound)
    fixed = AdaptiveClip(0.1, None, 0.1)
    fixed.follow([aggregate(-5.0)], 10.0)
    assert fixed.value == 0.1
    assert fixed.channels(400.0, 2.0) == []


def test_steps_and_what_is_pooled_over_rounds_are_in_units_of_one_clip() -> None:
    clip = AdaptiveClip(0.1, 0.5, 0.4)
    pooled = clip.in_first_units(aggregate(1.0, np.array([4.0, 0.0, -8.0]), noise=2.0))
    assert pooled.sum("update").tolist() == [1.0, 0.0, -2.0]
    assert pooled.noise_std["update"] == 0.5
    assert pooled.sum("clip_bits").tolist() == [1.0]
    same = aggregate(1.0)
    assert AdaptiveClip(0.1, 0.5, 0.1).in_first_units(same) is same


def test_the_first_clip_does_not_set_the_size_of_a_step(make_config) -> None:
    """Rate times clip is what a step is, so a clip that is ten times off must not make it ten times off."""
    usual = make_config(dp_epsilon=3.0)
    for clip in (usual.clip / 10, usual.clip, usual.clip * 10):
        config = make_config(dp_epsilon=3.0, adaptive_clip=0.5, clip=clip)
        assert config.learning_rate * clip == pytest.approx(usual.learning_rate * usual.clip)
        assert make_config(dp_epsilon=3.0, clip=clip).learning_rate == usual.learning_rate
    assert make_config(dp_epsilon=3.0, adaptive_clip=0.5, clip=1.0, learning_rate=0.3).learning_rate == 0.3


def test_a_resumed_run_goes_on_with_its_clip(make_config, make_federation) -> None:
    """And each round is announced, noised and written down with the clip it had."""
    config = make_config(
        dp_epsilon=8.0, adaptive_clip=0.3, rounds=3, sampling_rate=1.0, insecure_reproducible_noise=True
    )
    whole, stopped = make_federation(config, name="whole"), make_federation(config, name="stopped")
    noise: list[float] = []
    step = ModelStep.step

    def listening(self: ModelStep, number: int, aggregates: list[Aggregate]) -> None:
        noise.append(aggregates[0].noise_std["update"])
        step(self, number, aggregates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelStep, "step", listening)
        run_federation(whole, config, lambda line: None)
    client_app.close_silos()
    assert noise == pytest.approx([noise[0]] * 3), "steps carry the same noise, whatever the clip"
    original = SumRunner.run

    def stop_in_second(self: SumRunner, state: RunState, *arguments: object) -> list[Aggregate]:
        sums = original(self, state, *arguments)  # type: ignore[arg-type]
        if state.round == 1:
            raise StorageError("stopped")
        return sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SumRunner, "run", stop_in_second)
        with pytest.raises(StorageError):
            run_federation(stopped, config, lambda line: None)
    client_app.close_silos()
    run_federation(stopped, config, lambda line: None)
    client_app.close_silos()
    clips = [[line["clip"] for line in read_json_lines(folder.metrics)] for folder in (whole, stopped)]
    assert clips[0] == clips[1]
    assert clips[0][0] == config.clip
    assert len(set(clips[0])) == 3, "the clip moved in every round"
    assert load_checkpoint(stopped.checkpoint).facts["clip"] not in clips[0]
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    ledger = sqlite3.connect(whole.path / "silos/silo-001/state.sqlite")
    rows = ledger.execute("SELECT sensitivity, noise_multiplier FROM privacy_ledger ORDER BY line").fetchall()
    ledger.close()
    assert [sensitivity for sensitivity, _ in rows] == clips[0]
    plan = session_plan(config, load_task(whole), Schedule(config), public_test=True)
    assert {multiplier for _, multiplier in rows} == {plan.privacy.noise_multiplier}, "the bits cost nothing more"
