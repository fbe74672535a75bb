"""Crafted models do what their arithmetic says, real silos refuse lies, and without the defence each lie works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from autoflip_secure.attacks import lying_coordinator, model_attacks, protocol_lies, survivor_lies
from autoflip_secure.attacks.chosen_masks import chosen_mask, drawn_mask
from autoflip_secure.attacks.crafted_models import Imprint, dead_model, fished_class, hidden_weights
from autoflip_secure.attacks.disaggregation import cosine
from autoflip_secure.attacks.lying_coordinator import LyingCoordinator, institution_policy
from autoflip_secure.attacks.malicious_coordinator import ATTACK, ONE_STEP, OPTIONS
from autoflip_secure.attacks.model_attacks import (
    most_varied_first,
    own_update,
    recover_records,
    single_class_cosines,
    sole_classes,
)
from autoflip_secure.attacks.settings import IN_BLOCKS
from autoflip_secure.attacks.survivor_lies import split_view
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.plan import SessionPlan
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.session import Session
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.parties.rules import dropped_silos
from autoflip_secure.parties.signing import sign_message
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.privacy.plan import PrivacyPlan
from autoflip_secure.secagg import silo as secagg_silo
from autoflip_secure.secagg import silo_round
from autoflip_secure.secagg.dealing import REVEALED_BYTES
from autoflip_secure.secagg.round_messages import UnmaskReply
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.training.local import mean_gradient, train_locally

SPEC = dense_spec("mlp", (1, 8, 8), 10)
Make = Callable[..., LyingCoordinator]


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load("digits", None, 0)


@pytest.fixture
def lying(tmp_path: Path, data: LoadedData) -> Iterator[Make]:
    """lying(setting, **options) -> a coordinator whose silos joined."""
    made: list[LyingCoordinator] = []

    def make(setting: str, **options: Any) -> LyingCoordinator:
        options = {**OPTIONS, **({} if "DP" in setting else ONE_STEP), **options}
        made.append(LyingCoordinator(tmp_path / str(len(made)), data, setting, options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def given_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of 12 uses that is given instead of solved for."""

    def plan(config: Any, *_: Any, **__: Any) -> SessionPlan:
        numbers = (12, 2.0, 0, 0.0, 0.0)
        head = (config.trust, 8.0, config.dp_delta, config.colluders, config.clip, config.sampling_rate)
        return SessionPlan(config, PrivacyPlan(*head, *numbers, accountant="rdp"))

    monkeypatch.setattr(lying_coordinator, "session_plan", plan)


def gradient(model: ModelPayload, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    return mean_gradient(network, torch.from_numpy(x), torch.from_numpy(y)).numpy()


# Arithmetic


def test_a_dead_model_moves_its_output_biases_and_nothing_else(data: LoadedData) -> None:
    model = dead_model(SPEC, 100)
    network = build(SPEC)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    x, y = torch.from_numpy(data.public_test.x), torch.from_numpy(data.public_test.y)
    train_locally(network, x, y, steps=5, batch_size=32, learning_rate=0.3, generator=torch.Generator())
    moved = flatten_parameters(network).numpy() != 0
    assert moved[-10:].all()
    assert not moved[:-10].any()


def test_a_fished_model_is_moved_by_one_class_only(data: LoadedData) -> None:
    public, hidden = data.public_test, hidden_weights(SPEC)
    network = build(SPEC, torch.Generator().manual_seed(0))
    start = ModelPayload(SPEC, flatten_parameters(network).numpy(), np.ones(hidden.size, bool), 100)
    model, others = fished_class(start, 3), public.y != 3
    assert not gradient(model, public.x[others], public.y[others])[hidden].any()
    assert gradient(model, public.x[~others], public.y[~others])[hidden].any()


def test_a_record_alone_in_its_bin_is_read_off_and_two_are_not(data: LoadedData) -> None:
    x, y = data.public_test.x, data.public_test.y
    mine = x[y == 4].reshape(-1, 64).astype(np.float64)
    imprint = Imprint.over(mine, 4, 64, 30.0, np.random.default_rng(0))
    where = mine @ imprint.direction
    one = int(np.argmin(np.abs(where[:, None] - imprint.centres[None]).min(1)))
    unit = int(np.argmin(np.abs(where[one] - imprint.centres)))
    model = imprint.model(SPEC, 100)
    for records, exact in (([one], True), ([one, one + 1], False)):
        shown = mine[records].copy()
        if not exact:  # a second record at the same place along the measurement
            direction = imprint.direction / (imprint.direction @ imprint.direction)
            shown[1] += (where[one] - shown[1] @ imprint.direction) * direction
        found = gradient(model, shown.reshape(-1, 1, 8, 8).astype(np.float32), np.full(len(records), 4))
        weights, biases = Imprint.rows(SPEC, model.mask, found[model.mask])
        units, read = Imprint.read(weights, biases, 1e-6)
        guess = read[list(units).index(unit)]
        assert (np.linalg.norm(guess - mine[one]) < 1e-3) == exact


def test_a_sum_with_hardly_any_noise_shows_the_records_of_every_second_unit_as_well(data: LoadedData) -> None:
    """Units that are wired with the other sign show their records negated, and that is turned round."""
    of_class = data.train.y == 4
    x, mine = data.train.x[of_class], model_attacks._flat(data.public_test.x[data.public_test.y == 4])
    imprint = Imprint.over(mine, 4, 64, float(len(x)), np.random.default_rng(0))
    model = imprint.model(SPEC, 100)
    network = build(SPEC)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    with ClippedGradientSum(network) as clipped:
        summed = -clipped(torch.from_numpy(x), torch.full((len(x),), 4), 0.1, torch.from_numpy(model.mask))
    weights, biases = Imprint.rows(SPEC, model.mask, summed[model.mask])
    uptake = model_attacks._uptake(
        model, imprint, mine, "cross_entropy", np.random.default_rng(1), clip=0.1, rate=1.0, rounds=1
    )
    shown = model_attacks._denoised(weights, biases, 1e-7, mine, uptake)
    records = model_attacks._flat(x)
    apart = np.linalg.norm(records[:, None] - shown[None], axis=2) / np.linalg.norm(records, axis=1)[:, None]
    found = apart.min(0) < model_attacks.NEARLY
    assert found[::2].sum() >= 8
    assert found[1::2].sum() >= 8


def test_what_units_take_up_is_foretold_with_their_signs_and_for_the_share_that_is_drawn(data: LoadedData) -> None:
    mine = model_attacks._flat(data.public_test.x[data.public_test.y == 4])
    imprint = Imprint.over(mine, 4, 64, 100.0, np.random.default_rng(0))
    model = imprint.model(SPEC, 100)
    whole, half = (
        model_attacks._uptake(
            model, imprint, mine, "cross_entropy", np.random.default_rng(1), clip=0.1, rate=rate, rounds=10
        )
        for rate in (1.0, 0.5)
    )
    assert (whole.mean[::2] > 0).all()
    assert (whole.mean[1::2] < 0).all()
    np.testing.assert_allclose(half.mean, whole.mean / 2)
    np.testing.assert_allclose(half.variance, whole.variance * (0.25 + 0.25 / 10))


def test_masks_keep_the_share_that_was_asked_for_and_all_outputs(data: LoadedData) -> None:
    network = build(SPEC, torch.Generator().manual_seed(0))
    hidden = hidden_weights(SPEC)
    model = ModelPayload(SPEC, flatten_parameters(network).numpy(), np.ones(hidden.size, bool), 100)
    classes = {1: [0, 1, 2], 2: [3, 4], 3: [5, 6, 7, 8, 9]}
    chosen = chosen_mask(model, 0.2, 2, classes, data.public_test, data.task)
    for made in (chosen, drawn_mask(model, 0.2, np.random.default_rng(0))):
        assert made.mask[hidden].sum() == round(0.2 * hidden.sum())
        assert made.mask[~hidden].all()
        np.testing.assert_array_equal(made.weights[made.mask], model.weights[made.mask])


# Models, put to real silos


def test_silos_of_an_attack_have_an_institutions_policy(lying: Make) -> None:
    policy = institution_policy(lying("sum").config)
    assert not policy.simulated
    assert policy.trusts == ("none",)
    assert policy.aggregations == ("secagg",)
    assert policy.min_block == 1


def test_where_the_run_has_blocks_so_has_the_policy(lying: Make) -> None:
    assert institution_policy(lying("sum", **IN_BLOCKS).config).min_block == IN_BLOCKS["block"]


def test_without_dp_a_crafted_model_shows_records_in_the_sum(lying: Make, data: LoadedData) -> None:
    found = recover_records(lying("sum"), data.public_test, range(1, 4), np.random.default_rng(0))
    assert found.hits >= 30
    assert np.mean(found.explained) > 0.3


@pytest.mark.slow
@pytest.mark.usefixtures("given_plan")
def test_the_class_that_is_tried_first_is_the_one_that_differs_most_from_its_mean() -> None:
    x = np.array([[0.0, 0.0], [0.0, 0.2], [0.0, 0.0], [3.0, 0.0], [1.0, 1.0], [1.0, 2.0]], np.float32)
    assert most_varied_first(Records(x, np.array([4, 4, 0, 0, 9, 9]))).tolist() == [0, 9, 4]


def test_under_dp_it_shows_hardly_more_than_the_mean_picture_of_the_class(lying: Make, data: LoadedData) -> None:
    private = lying("sum + DP 8", rounds=8, sampling_rate=0.5)
    found = recover_records(private, data.public_test, range(1, 4), np.random.default_rng(0))
    assert found.hits == 0
    assert np.mean(found.explained) < 0.05


def test_without_dp_a_model_of_one_class_makes_the_sum_one_silos_update(lying: Make) -> None:
    coordinator = lying("sum")
    honest, crafted = single_class_cosines(coordinator, sole_classes(coordinator)[:1], range(1, 3))
    assert honest[0] < 0.9
    assert crafted[0] > 0.999


def test_a_split_view_gives_the_victims_update_in_clear_and_noise_in_a_secure_sum(lying: Make) -> None:
    for setting, opens in (("plain", True), ("sum", False)):
        coordinator = lying(setting)
        good = coordinator.first_model()
        total, opened = split_view(coordinator, 2, good, dead_model(good.spec, good.records), round=1)
        hidden = hidden_weights(good.spec)
        found = cosine(total[hidden], own_update(coordinator, 2, good)[hidden])
        assert opened == opens
        assert (found > 0.999) if opens else (abs(found) < 0.06)


# Lies, each with its defence and without


def test_small_sums_are_refused_and_open_without_the_rules(lying: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = lying("sum")
    tally = protocol_lies.size_lies(coordinator, 16, np.random.default_rng(0), round=1)
    assert (tally.told, tally.accepted) == (16, 0)
    assert protocol_lies.set_up_lies(coordinator, 6, np.random.default_rng(0)).accepted == 0
    monkeypatch.setattr(silo_round, "check_manifest", lambda *_: None)
    monkeypatch.setattr(SiloPolicy, "check_manifest", lambda *_: None)
    monkeypatch.setattr(Session, "_check_least", lambda *_: None)
    monkeypatch.setattr(Session, "_check_cohort", lambda *_: None)
    assert protocol_lies.size_lies(coordinator, 16, np.random.default_rng(0), round=2).accepted == 16


def test_another_model_is_refused_and_trained_where_its_hash_is_not_looked_at(
    lying: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = lying("sum")
    assert protocol_lies.model_lies(coordinator, 6, np.random.default_rng(0), round=1).accepted == 0
    monkeypatch.setattr(Session, "_open_model", lambda self, manifest, attachment: ModelPayload.from_bytes(attachment))
    assert protocol_lies.model_lies(coordinator, 6, np.random.default_rng(0), round=2).accepted == 6


def test_a_second_model_for_a_round_is_refused_and_trained_without_the_rule(
    lying: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = lying("sum")
    assert protocol_lies.second_models(coordinator, 6, np.random.default_rng(0), round=1).accepted == 0
    monkeypatch.setattr(Session, "_check_one_model", lambda *_: None)
    assert protocol_lies.second_models(coordinator, 6, np.random.default_rng(0), round=2).accepted == 6


@pytest.mark.slow
@pytest.mark.usefixtures("given_plan")
def test_more_epsilon_is_refused_and_given_where_the_plan_is_not_looked_at(
    lying: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = lying("sum + DP 8", rounds=8, sampling_rate=0.5)
    assert protocol_lies.budget_lies(coordinator, 18, np.random.default_rng(0), round=1).accepted == 0
    assert protocol_lies.join_lies(coordinator, 3, np.random.default_rng(1)).accepted == 0
    assert protocol_lies.rounds_beyond(coordinator, 3, round=2).accepted == 0
    monkeypatch.setattr(Session, "_check_plan", lambda *_: None)
    assert protocol_lies.rounds_beyond(coordinator, 1, round=2).accepted == 1


def test_other_survivors_to_other_silos_open_nothing_and_everything_without_the_rules(
    lying: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = lying("sum")
    tally = survivor_lies.survivor_lies(coordinator, 4, np.random.default_rng(0), round=1)
    assert tally.requests.told > 16
    assert (tally.requests.accepted, tally.slots.accepted) == (0, 0)

    def unmask(party: Any, ready: Any, request: Any, raw: bytes) -> bytes:
        """Whatever is asked for, however often."""
        state = party.state.slot(ready, request.slot)
        manifest = Manifest.from_bytes(state.manifest)
        shares = msgpack.unpackb(party.state.shares(ready, request.slot), strict_map_key=False)
        present = [silo for part in request.survivors for silo in part]
        dropped = dropped_silos(manifest, request.survivors, ready.members)
        seeds = tuple(shares[silo][:REVEALED_BYTES] for silo in present)
        keys = tuple(shares[silo][REVEALED_BYTES:] for silo in dropped)
        return sign_message(party.identity, UnmaskReply(party.silo, request.digest, seeds, keys, b""))

    monkeypatch.setattr(secagg_silo.silo_round, "unmask", unmask)
    tally = survivor_lies.survivor_lies(coordinator, 4, np.random.default_rng(0), round=2)
    assert tally.requests.accepted > 0
    assert tally.slots.accepted > 0


def test_an_honest_slot_breaks_nothing(lying: Make) -> None:
    coordinator = lying("sum")
    model = coordinator.first_model()
    epoch = coordinator.open_epoch(1)
    manifest = coordinator.manifest(model, 1)
    manifest = manifest.with_slot(epoch=epoch.number, slot=epoch.take_slot(), epoch_hash=epoch.epoch_hash, attempt=0)
    slot, everybody = survivor_lies.Slot(epoch, manifest), manifest.cohorts
    for silo in everybody[0]:
        reply = protocol_lies.send_masked(coordinator, epoch, silo, manifest, model.to_bytes())
        assert reply is not None
        slot.take_masked(silo, reply)
    assert all(slot.confirm(coordinator, silo, everybody) for silo in everybody[0])
    signers = [(silo, signature) for silo, (_, signature) in slot.signed.items()]
    assert all(slot.unmask(coordinator, silo, everybody, signers) for silo in everybody[0])
    assert slot.breaks() == []
    slot.keys = {1: set(everybody[0])}
    assert slot.breaks() == ["both secrets of silo 1"]


def test_the_sum_of_real_silos_is_that_of_their_vectors(lying: Make) -> None:
    sums = {}
    for setting in ("plain", "sum"):
        coordinator = lying(setting)
        sums[setting] = coordinator.sum(coordinator.first_model(), 1).channels["update"]
        if setting == "plain":
            assert len(coordinator.vectors) == 5
            alone = sum(vector.update for vector in coordinator.vectors)
            np.testing.assert_allclose(alone, sums["plain"], atol=1e-9)
    np.testing.assert_array_equal(sums["plain"], sums["sum"])


def test_the_attack_has_a_page() -> None:
    assert ATTACK.name == "malicious-coordinator"
    assert (Path(__file__).parents[2] / "threat_models" / ATTACK.page).exists()
