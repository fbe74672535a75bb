"""What a silo computes from its records: limited to live coordinates, of the right sign and scale, with its noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation import contribution as contribution_module
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.terms import (
    count_channel,
    deviation_channel,
    energy_channel,
    honest_silos,
    metric_channel,
    noise_levels,
    noise_steps,
    update_channel,
)
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.seeds import torch_stream
from autoflip_secure.sums.channels import ChannelSpec, Contribution
from autoflip_secure.sums.encoding import unpack_sum
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness
from autoflip_secure.sums.words import ContributionWords, all_words
from autoflip_secure.training.local import batches, train_locally

SILOS = 4


@pytest.fixture
def parts(records: Records) -> list[SiloData]:
    """Four silos of different sizes; a third of each is its holdout too."""
    bounds = (0, 12, 30, 55, 80)
    silos = [records.take(np.arange(start, stop)) for start, stop in itertools.pairwise(bounds)]
    return [SiloData(s, s.take(np.arange(len(s) // 3))) for s in silos]


@pytest.fixture
def contributor(task, parts: list[SiloData]) -> Callable[[ResolvedConfig, int], Contributor]:
    return lambda config, silo: Contributor(config, task, parts[silo - 1], silo, "cpu")


def decoded(contribution: Contribution, channel: ChannelSpec) -> np.ndarray:
    words = all_words(ContributionWords({channel.name: contribution.values[channel.name]}, [channel], SILOS))
    return unpack_sum(words, [channel], SILOS)[channel.name]


def network(model: ModelPayload) -> torch.nn.Module:
    module = build(model.spec)
    load_flat_parameters(module, torch.from_numpy(model.weights))
    return module


def plain_update(config: ResolvedConfig, model: ModelPayload, data: Records, silo: int, round: int, steps: int):
    """FedAvg's local update, computed apart: SGD from the model under the mask, end minus start."""
    module = network(model)
    train_locally(
        module,
        torch.from_numpy(data.x),
        torch.from_numpy(data.y),
        steps=steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        generator=torch_stream(config.seed, "batches", round, silo),
        live=torch.from_numpy(model.mask),
    )
    return (flatten_parameters(module).numpy() - model.weights)[model.mask].astype(np.float64)


@pytest.mark.parametrize("phase", ["train", "explore"])
def test_without_dp_sums_equal_the_plain_computation(
    phase: str, make_config, make_manifest, model, parts, contributor
) -> None:
    """Update, deviation and energy of all silos together, up to one grid step a silo."""
    config = make_config(learning_rate=0.05, batch_size=8, update_limit=2.0, bits=20)
    live = int(model.mask.sum())
    units = UnitMap.of(model.spec)
    channels = [update_channel(config, live), energy_channel(units.count)]
    if phase == "explore":
        channels = [update_channel(config, live), deviation_channel(live)]
    steps = 5
    manifest = make_manifest(config, model, phase=phase, channels=tuple(channels), round=2, terms={"steps": steps})
    sums = {channel.name: np.zeros(channel.length) for channel in channels}
    expected = {channel.name: np.zeros(channel.length) for channel in channels}
    for silo in range(1, SILOS + 1):
        given = contributor(config, silo).contribute(manifest, model)
        update = plain_update(config, model, parts[silo - 1].train, silo, 2, steps)
        whole = np.zeros(model.mask.size)
        whole[model.mask] = update
        expected["update"] += update
        if phase == "explore":
            expected["deviation"] += update**2
        else:
            expected["unit_energy"] += units.unit_sum(whole**2)
        for channel in channels:
            sums[channel.name] += decoded(given, channel)
    for channel in channels:
        np.testing.assert_allclose(sums[channel.name], expected[channel.name], rtol=1e-5, atol=SILOS * channel.step)
    assert np.abs(expected["update"]).max() > 100 * channels[0].step


def test_snip_explores_along_the_gradient_at_the_model_itself(
    make_config, make_manifest, model, parts, contributor
) -> None:
    """One pass over the records whatever the optimiser: the mean over all of them, by autograd on the whole of them."""
    data = parts[3].train
    config = make_config(prune="snip", learning_rate=0.05, batch_size=5, optimizer="adam", bits=24)
    channel = update_channel(config, int(model.mask.sum()))
    manifest = make_manifest(
        config, model, phase="explore", channels=(channel,), round=0, terms={"steps": -(-len(data) // 5)}
    )
    update = decoded(contributor(config, 4).contribute(manifest, model), channel)
    module = network(model)
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(data.x)), torch.from_numpy(data.y))
    found = torch.autograd.grad(loss, list(module.parameters()))
    gradient = torch.cat([part.reshape(-1) for part in found]).numpy()
    np.testing.assert_allclose(update, -0.05 * gradient[model.mask], rtol=1e-4, atol=channel.step)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_prunefl_explores_with_the_squares_of_each_batch_s_gradient(
    optimizer: str, make_config, make_manifest, model, parts, contributor
) -> None:
    """The mean over the steps, each at the model that it is taken at; not the square of where they led to together."""
    config = make_config(prune="prunefl", learning_rate=0.05, batch_size=5, optimizer=optimizer)
    data, steps = parts[3].train, 4
    channel = deviation_channel(int(model.mask.sum()))
    manifest = make_manifest(config, model, phase="explore", channels=(channel,), round=0, terms={"steps": steps})
    squares = decoded(contributor(config, 4).contribute(manifest, model), channel)
    expected = np.zeros(channel.length)
    for before in range(steps):
        module = network(model)
        options = {"batch_size": 5, "learning_rate": 0.05, "optimizer": optimizer, "momentum": config.momentum}
        x, y, live = torch.from_numpy(data.x), torch.from_numpy(data.y), torch.from_numpy(model.mask)
        if before:
            draw = torch_stream(config.seed, "batches", 0, 4)
            train_locally(module, x, y, steps=before, generator=draw, live=live, **options)
        batch = list(batches(len(x), 5, before + 1, torch_stream(config.seed, "batches", 0, 4)))[before]
        loss = torch.nn.functional.cross_entropy(module(x[batch]), y[batch])
        found = torch.autograd.grad(loss, list(module.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in found]).numpy()[model.mask]
        expected += gradient.astype(np.float64) ** 2 / steps
    np.testing.assert_allclose(squares, expected, rtol=1e-4, atol=channel.step)
    assert expected.max() > 1000 * channel.step


def test_a_step_along_the_update_lowers_the_loss(make_config, make_manifest, model, parts, contributor) -> None:
    """The sign, in both forms: the mean update, and the gradient sum scaled by the learning rate."""
    for options in ({"learning_rate": 0.1}, {"dp_epsilon": 8.0, "clip": 1.0, "sampling_rate": 1.0}):
        config = make_config(**options, insecure_reproducible_noise=True)
        manifest = make_manifest(config, model, terms={"noise_multiplier": 1e-3} if config.dp_epsilon else {})
        data = parts[3].train
        update = decoded(contributor(config, 4).contribute(manifest, model), manifest.channels[0])
        scale = 0.1 / len(data) if config.dp_epsilon else 1.0
        moved = model.weights.copy()
        moved[model.mask] += (scale * update).astype(np.float32)

        def loss(weights: np.ndarray, data: Records = data) -> float:
            logits = network(replace(model, weights=weights))(torch.from_numpy(data.x))
            return torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.y)).item()

        assert loss(moved) < loss(model.weights)


def test_the_gradient_sum_is_minus_the_clipped_gradients(make_config, make_manifest, model, parts, contributor) -> None:
    """One record after another, by autograd: masked first, then clipped to the norm."""
    config = make_config(dp_epsilon=8.0, clip=0.5, sampling_rate=1.0, bits=24, insecure_reproducible_noise=True)
    manifest = make_manifest(config, model, terms={"noise_multiplier": 1e-5})
    data = parts[0].train
    expected = np.zeros(int(model.mask.sum()))
    clipped = 0
    for x, y in zip(torch.from_numpy(data.x), torch.from_numpy(data.y), strict=True):
        module = network(model)
        torch.nn.functional.cross_entropy(module(x[None]), y[None]).backward()
        gradient = np.concatenate([p.grad.numpy().ravel() for p in module.parameters()]).astype(np.float64)
        gradient = gradient[model.mask]
        norm = np.linalg.norm(gradient)
        clipped += norm > 0.5
        expected -= gradient * min(1.0, 0.5 / norm)
    assert clipped > 3, "nothing was clipped"
    given = decoded(contributor(config, 1).contribute(manifest, model), manifest.channels[0])
    np.testing.assert_allclose(given, expected, atol=2e-4)


def test_records_are_sampled_at_the_manifest_s_rate(make_config, make_manifest, model, contributor) -> None:
    config = make_config(dp_epsilon=8.0, clip=1.0, insecure_reproducible_noise=True)
    drawn: list[int] = []
    silo = contributor(config, 4)
    silo._load(model)
    gradients = silo._gradients(silo._network)

    def counting(x: torch.Tensor, y: torch.Tensor, clip: float, live: torch.Tensor, patient: None) -> np.ndarray:
        drawn.append(len(x))
        assert (len(y), clip) == (len(x), 0.75)
        np.testing.assert_array_equal(live.numpy(), model.mask)
        return np.zeros(model.mask.size)

    silo._gradient_sums = counting  # type: ignore[assignment]
    assert gradients is not None
    for round in range(60):
        manifest = make_manifest(config, model, round=round, terms={"sampling_rate": 0.4, "clip": 0.75})
        silo.contribute(manifest, model)
    assert len(set(drawn)) > 3, "Poisson sampling does not draw a fixed number"
    assert abs(np.mean(drawn) - 0.4 * 25) < 5 * (25 * 0.4 * 0.6 / 60) ** 0.5


def test_distributed_noise_has_the_promised_variance(make_config, make_manifest, model, contributor) -> None:
    """Sum with noise minus sum without, over all silos, against sigma clip and the honest minimum."""
    config = make_config(silos=SILOS, dp_epsilon=8.0, clip=0.5, sampling_rate=1.0, insecure_reproducible_noise=True)
    sigma = 3.0
    differences = []
    for round in range(4):
        manifest = make_manifest(config, model, round=round, terms={"noise_multiplier": sigma, "clip": 0.5})
        quiet = replace(manifest, privacy=replace(manifest.privacy, noise_multiplier=1e-6))
        channel = manifest.channels[0]
        total = np.zeros(channel.length)
        for silo in range(1, SILOS + 1):
            one = contributor(config, silo)
            total += decoded(one.contribute(manifest, model), channel)
            total -= decoded(one.contribute(quiet, model), channel)
        differences.append(total)
    noise = np.concatenate(differences)
    least = manifest.minimum[0]
    promised = sigma * 0.5 * (SILOS / honest_silos(manifest, 0)) ** 0.5
    assert honest_silos(manifest, 0) == least == 4
    relative = 5 / (2 * noise.size) ** 0.5
    assert noise.std() == pytest.approx(promised, rel=relative)
    assert noise.std() * (least / SILOS) ** 0.5 >= sigma * 0.5 * (1 - relative)
    assert abs(noise.mean()) < 5 * promised / noise.size**0.5
    correlation = np.corrcoef(differences)[0, 1]
    assert abs(correlation) < 5 / differences[0].size ** 0.5, "two rounds share their noise"


def test_silos_channels_and_attempts_draw_their_own_noise(make_config, make_manifest, model, contributor) -> None:
    config = make_config(dp_epsilon=8.0, sampling_rate=1.0, insecure_reproducible_noise=True)
    manifest = make_manifest(config, model)

    def noise_of(silo: int, **changes: Any) -> bytes:
        asked = replace(manifest, **changes)
        return contributor(config, silo).contribute(asked, model).values["update"].tobytes()

    base = noise_of(1)
    others = [noise_of(2), noise_of(1, attempt=1), noise_of(1, round=2), noise_of(1, phase="explore")]
    assert len({base, *others}) == 5
    assert noise_of(1) == base


def test_private_randomness_is_secret_unless_the_test_option_says_so(
    make_config, make_manifest, model, contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for kind in (SecretRandomness, ReproducibleRandomness):

        def recording(*arguments: Any, kind: type = kind) -> Any:
            made.append(kind.__name__)
            return kind(*arguments)

        monkeypatch.setattr(contribution_module, kind.__name__, recording)
    private = {"dp_epsilon": 8.0}
    for options, expected in (
        ({}, "ReproducibleRandomness"),
        (private, "SecretRandomness"),
        ({**private, "dp_trust": "local", "local_steps": 1}, "SecretRandomness"),
        ({**private, "insecure_reproducible_noise": True}, "ReproducibleRandomness"),
    ):
        config = make_config(**options)
        made.clear()
        contributor(config, 1).contribute(make_manifest(config, model), model)
        assert set(made) == {expected}
        if config.dp_epsilon is not None:
            # Otherwise the chain's root is the operating system's.
            chain = config.insecure_reproducible_noise
            assert len(made) == 3 + chain, "sampling, rounding, noise and its chain have streams of their own"


def test_distributed_noise_names_the_chain_of_its_removable_part(
    make_config, make_manifest, model, contributor
) -> None:
    config = make_config(silos=6, dp_epsilon=8.0, sampling_rate=1.0, colluders=0)
    manifest = make_manifest(config, model, terms={"noise_multiplier": 50.0})
    channel = manifest.channels[0]
    levels = noise_levels(manifest, channel, 0)
    one, two = (contributor(config, 1).contribute(manifest, model) for _ in range(2))
    assert len(one.removable) == 32
    assert one.removable != two.removable
    assert one.removable.hex() not in repr(one)
    drawn, excess = one.values["update"], levels.excess(channel.length, "update", one.removable, 0)
    spread = 5 * (2 / channel.length) ** 0.5
    assert drawn.var() == pytest.approx(levels.drawn, rel=spread)
    assert (drawn - excess).var() == pytest.approx(levels.left(0), rel=spread)
    foreign = levels.excess(channel.length, "update", two.removable, 0)
    assert (drawn - foreign).var() > drawn.var(), "another chain only adds"


@pytest.mark.parametrize("options", [{}, {"dp_epsilon": 8.0, "dp_trust": "local"}])
def test_without_distributed_noise_there_is_no_chain(options, make_config, make_manifest, model, contributor) -> None:
    config = make_config(**options)
    assert contributor(config, 1).contribute(make_manifest(config, model), model).removable is None


def test_two_private_contributions_differ(make_config, make_manifest, model, contributor) -> None:
    config = make_config(dp_epsilon=8.0)
    manifest = make_manifest(config, model)
    silo = contributor(config, 1)
    one, two = (silo.contribute(manifest, model).values["update"] for _ in range(2))
    assert (one != two).mean() > 0.9


def local_manifest(make_config, make_manifest, model, **terms: Any) -> tuple[ResolvedConfig, Manifest]:
    config = make_config(
        dp_epsilon=8.0, dp_trust="local", learning_rate=0.5, clip=0.25, insecure_reproducible_noise=True, bits=24
    )
    return config, make_manifest(config, model, terms={"sampling_rate": 1.0, "clip": 0.25, **terms})


def test_local_updates_carry_their_own_noise(make_config, make_manifest, model, contributor) -> None:
    """One step: learning rate x sigma x clip / expected batch, on live coordinates, before the sum."""
    config, manifest = local_manifest(make_config, make_manifest, model, steps=1, noise_multiplier=4.0)
    quiet = replace(manifest, privacy=replace(manifest.privacy, noise_multiplier=1e-9))
    silo = contributor(config, 2)
    channel = manifest.channels[0]
    noise = decoded(silo.contribute(manifest, model), channel) - decoded(silo.contribute(quiet, model), channel)
    expected_batch = model.records // config.silos
    promised = config.learning_rate * 4.0 * 0.25 / expected_batch
    assert noise.std() == pytest.approx(promised, rel=5 / (2 * noise.size) ** 0.5)
    assert noise_steps(manifest, channel, 0) is None


def test_a_silo_takes_as_many_steps_as_its_ledger_was_charged(
    make_config, make_manifest, model, contributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(contribution_module, "dp_sgd", lambda *_, **options: taken.append(options))
    monkeypatch.setattr(contribution_module, "train_locally", lambda *_, **options: taken.append(options))
    config, manifest = local_manifest(make_config, make_manifest, model, steps=7, noise_multiplier=1.5)
    for phase in ("train", "explore"):
        contributor(config, 1).contribute(replace(manifest, phase=phase), model)
    plain = make_config(prune="magnitude", local_steps=2, explore_steps=3)
    contributor(plain, 1).contribute(make_manifest(plain, model, terms={"steps": 7}), model)
    assert [options["steps"] for options in taken] == [7, 7, 7]
    private = {name: taken[0][name] for name in ("sampling_rate", "clip", "noise_multiplier", "nominal_records")}
    assert private == {"sampling_rate": 1.0, "clip": 0.25, "noise_multiplier": 1.5, "nominal_records": 20}


def test_masked_coordinates_stay_at_zero_and_are_not_sent(make_config, make_manifest, model, contributor) -> None:
    for options in ({}, {"dp_epsilon": 8.0}, {"dp_epsilon": 8.0, "dp_trust": "local"}):
        config = make_config(**options)
        silo = contributor(config, 1)
        manifest = make_manifest(config, model)
        assert decoded(silo.contribute(manifest, model), manifest.channels[0]).shape == (int(model.mask.sum()),)
        trained = flatten_parameters(silo._network).numpy()
        assert not trained[~model.mask].any()


def test_the_count_is_that_of_the_training_records(make_config, make_manifest, model, parts, contributor) -> None:
    config = make_config()
    channel = count_channel(0.0)
    manifest = make_manifest(config, model, phase="census", channels=(channel,))
    counted = [decoded(contributor(config, s).contribute(manifest, model), channel)[0] for s in range(1, SILOS + 1)]
    assert counted == pytest.approx([len(p.train) for p in parts], abs=channel.step)


def test_counts_are_noised_under_dp(make_config, make_manifest, model, contributor) -> None:
    config = make_config(dp_epsilon=8.0, dp_trust="local", insecure_reproducible_noise=True)
    channel = count_channel(3.0)
    terms = {"sampling_rate": 1.0, "noise_multiplier": 3.0, "clip": 1.0}
    silo = contributor(config, 1)
    given = []
    for round in range(300):
        manifest = make_manifest(config, model, phase="census", channels=(channel,), round=round, terms=terms)
        given.append(decoded(silo.contribute(manifest, model), channel)[0])
    assert np.std(given) == pytest.approx(3.0, rel=5 / 600**0.5)
    assert np.mean(given) == pytest.approx(12, abs=5 * 3 / 300**0.5)


def test_scores_are_counts_of_held_back_records(make_config, make_manifest, model, parts, contributor) -> None:
    config = make_config()
    channel = metric_channel(7, 0.0)
    manifest = make_manifest(config, model, phase="evaluate", channels=(channel,), terms={"dataset": "holdout"})
    counts = decoded(contributor(config, 4).contribute(manifest, model), channel)
    holdout = parts[3].holdout
    assert holdout is not None
    predicted = network(model)(torch.from_numpy(holdout.x)).argmax(dim=1).numpy()
    for label in range(3):
        right = ((predicted == label) & (holdout.y == label)).sum()
        wrong = ((predicted != label) & (holdout.y == label)).sum()
        assert counts[2 * label : 2 * label + 2] == pytest.approx([right, wrong], abs=channel.step)
    assert 0 < counts[6] < len(holdout), "the entry of the losses"


def test_a_silo_without_holdout_cannot_score(make_config, make_manifest, model, task, parts) -> None:
    config = make_config()
    silo = Contributor(config, task, SiloData(parts[0].train), 1, "cpu")
    manifest = make_manifest(config, model, phase="evaluate", channels=(metric_channel(7, 0.0),))
    with pytest.raises(ProtocolError, match="no records back"):
        silo.contribute(manifest, model)


@pytest.mark.parametrize("options", [{}, {"dp_epsilon": 8.0}])
def test_a_phase_gives_its_own_channels_and_no_others(options, make_config, make_manifest, model, contributor) -> None:
    config = make_config(**options)
    live = int(model.mask.sum())
    update = update_channel(config, live)
    for phase, channels in (
        ("train", (update, count_channel(1.0))),
        ("census", (count_channel(1.0), update)),
        ("evaluate", (count_channel(1.0),)),
    ):
        with pytest.raises(ProtocolError, match=f"phase {phase} yields channels"):
            contributor(config, 1).contribute(make_manifest(config, model, phase=phase, channels=channels), model)


def test_another_architecture_is_built_anew(make_config, make_manifest, model, contributor) -> None:
    """After compaction the kept network must not be the old one; its parameters are loaded afresh each time."""
    config = make_config(dp_epsilon=8.0, insecure_reproducible_noise=True)
    silo = contributor(config, 1)
    narrow_spec = replace(model.spec, widths=(16, 8))
    size = sum(p.numel() for p in build(narrow_spec).parameters())
    weights = torch.randn(size, generator=torch_stream(0, "narrow")).numpy()
    narrow = ModelPayload(narrow_spec, weights, np.ones(size, np.bool_), 80)
    for payload in (model, narrow, model):
        manifest = make_manifest(config, payload)
        again = contributor(config, 1).contribute(manifest, payload).values["update"]
        np.testing.assert_array_equal(silo.contribute(manifest, payload).values["update"], again)
