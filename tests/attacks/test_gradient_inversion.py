"""Gradient inversion: what an unprotected gradient shows, what clipping and noise leave of it, and how it is scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autoflip_secure.attacks.first_layer import by_division, by_row_space
from autoflip_secure.attacks.gradient_inversion import FEW, ROWS, SOME, _beyond_the_mean, chance_of, invert
from autoflip_secure.attacks.gradient_match import GradientMatch, SeenGradient, label_counts
from autoflip_secure.attacks.inversion_figure import draw
from autoflip_secure.attacks.outcome import Scale
from autoflip_secure.attacks.picture_scores import Likeness, matched, psnr, ssim
from autoflip_secure.attacks.reconstruction import PublicPrior, by_angle, by_deep_leakage, by_prior
from autoflip_secure.attacks.settings import SETTINGS
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.training.local import train_locally

RATE = 0.3
CLIP = 0.1


@pytest.fixture(scope="module")
def digits() -> tuple[Records, Records]:
    """(private, public) records."""
    data = load("digits", None, 0)
    assert data.train is not None
    assert data.public_test is not None
    return data.train, data.public_test


@pytest.fixture(scope="module")
def prior(digits: tuple[Records, Records]) -> PublicPrior:
    return PublicPrior.of(digits[1].x, digits[1].y, 10)


@pytest.fixture
def model() -> ModelPayload:
    spec = dense_spec("mlp", (1, 8, 8), 10)
    start = flatten_parameters(build(spec, torch.Generator().manual_seed(0))).numpy()
    return ModelPayload(spec, start, np.ones(start.size, bool), 0)


def pruned(model: ModelPayload, share: float = 0.3) -> ModelPayload:
    mask = np.random.default_rng(1).random(model.mask.size) > share
    return replace(model, weights=np.where(mask, model.weights, np.float32(0)), mask=mask)


def after_one_step(model: ModelPayload, records: Records) -> SeenGradient:
    """What a silo's own local training sends without any protection."""
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    train_locally(
        network, torch.from_numpy(records.x), torch.from_numpy(records.y), steps=1, batch_size=len(records),
        learning_rate=RATE, generator=torch.Generator().manual_seed(0), live=torch.from_numpy(model.mask),
    )  # fmt: skip
    update = (flatten_parameters(network).numpy() - model.weights)[model.mask].astype(np.float64)
    return SeenGradient(model, update * (-len(records) / RATE))


def clipped(model: ModelPayload, records: Records, noise: float) -> SeenGradient:
    """What silos send under DP, as it lies in the sum: `noise` in clipping norms."""
    network = build(model.spec)
    load_flat_parameters(network, torch.from_numpy(model.weights))
    with ClippedGradientSum(network) as gradients:
        x, y = torch.from_numpy(records.x), torch.from_numpy(records.y)
        total = gradients(x, y, CLIP, torch.from_numpy(model.mask))[model.mask]
    total = total + np.random.default_rng(2).normal(0, noise * CLIP, total.shape)
    return SeenGradient(model, total, noise * CLIP, CLIP)


def likeness(pictures: NDArray[np.float32], records: Records, prior: PublicPrior) -> Likeness:
    return Likeness.of(matched(pictures, records.x), records.x, prior.means[records.y])


@pytest.mark.parametrize("kind", ["one step", "clipped"])
def test_true_records_explain_what_was_seen_and_others_do_not(
    kind: str, model: ModelPayload, digits: tuple[Records, Records]
) -> None:
    model, records = pruned(model), digits[0].take(np.arange(5))
    seen = after_one_step(model, records) if kind == "one step" else clipped(model, records, 0.0)
    match = GradientMatch([seen, seen], records.y, torch.float64)
    truth, others = (torch.from_numpy(r.x).double() for r in (records, digits[0].take(np.arange(5, 10))))
    match.reweigh(truth)
    assert float(match.distance(truth).detach()) < 1e-6
    assert float(match.angle(truth).detach()) < 1e-6
    match.reweigh(others)
    assert float(match.distance(others).detach()) > 0.1


@pytest.mark.parametrize("records", [1, 4, 12])
def test_the_last_bias_tells_how_many_records_have_which_label(
    records: int, model: ModelPayload, digits: tuple[Records, Records]
) -> None:
    own = digits[0].take(np.arange(records))
    counts = label_counts(after_one_step(model, own), records, digits[1].x, digits[1].y)
    assert counts.tolist() == np.bincount(own.y, minlength=10).tolist()


def test_label_counts_add_up_under_any_noise(model: ModelPayload, digits: tuple[Records, Records]) -> None:
    counts = label_counts(clipped(model, digits[0].take(np.arange(7)), 30.0), 7, digits[1].x, digits[1].y)
    assert counts.sum() == 7
    assert counts.min() >= 0


def test_one_record_is_the_quotient_of_the_first_layers_gradients(
    model: ModelPayload, digits: tuple[Records, Records]
) -> None:
    record = digits[0].take(np.array([3]))
    pictures = by_division(after_one_step(model, record))
    assert len(pictures) == 64
    assert np.median(np.abs(pictures - record.x)) < 1e-3


def test_the_row_space_gives_up_every_record_of_an_unprotected_sum(
    model: ModelPayload, digits: tuple[Records, Records], prior: PublicPrior
) -> None:
    records = digits[0].take(np.arange(8))
    found = rebuilt_from_row_space(after_one_step(model, records), records, prior)
    assert found.found == 8
    assert found.psnr > 30


def test_clipping_alone_does_not_help_and_noise_does(
    model: ModelPayload, digits: tuple[Records, Records], prior: PublicPrior
) -> None:
    """The defence is the noise: without it the same attack on the same clipped sums succeeds."""
    records = digits[0].take(np.arange(4))
    bare = rebuilt_from_row_space(clipped(model, records, 0.0), records, prior)
    noised = rebuilt_from_row_space(clipped(model, records, 1.3), records, prior)
    assert bare.found == 4
    assert noised.found == 0
    assert noised.psnr < noised.mean_psnr


def rebuilt_from_row_space(seen: SeenGradient, records: Records, prior: PublicPrior) -> Likeness:
    labels = np.sort(records.y)
    match = GradientMatch([seen], labels, torch.float64)
    return likeness(by_row_space([seen], match, prior, labels, steps=200, seed=0), records, prior)


def test_deep_leakage_finds_record_and_label(
    model: ModelPayload, digits: tuple[Records, Records], prior: PublicPrior
) -> None:
    record = digits[0].take(np.array([5]))
    match = GradientMatch([after_one_step(model, record)], np.array([0]), torch.float64)
    pictures, labels = by_deep_leakage(match, steps=200, seed=0)
    assert labels.tolist() == record.y.tolist()
    assert likeness(pictures, record, prior).psnr > 30


def test_matched_angles_find_a_record_from_its_class_mean(
    model: ModelPayload, digits: tuple[Records, Records], prior: PublicPrior
) -> None:
    record = digits[0].take(np.array([7]))
    match = GradientMatch([after_one_step(pruned(model), record)], record.y)
    found = likeness(by_angle(match, prior.means[record.y], steps=200), record, prior)
    assert found.found == 1
    assert found.psnr > found.mean_psnr + 6


def test_the_public_prior_rebuilds_from_sums_and_falls_back_on_class_means_under_noise(
    model: ModelPayload, digits: tuple[Records, Records], prior: PublicPrior
) -> None:
    records = digits[0].take(np.arange(3))
    labels = np.sort(records.y)

    def rebuilt(seen: SeenGradient) -> Likeness:
        return likeness(by_prior(GradientMatch([seen], labels), prior, labels, steps=200, seed=0), records, prior)

    bare, noised = rebuilt(after_one_step(model, records)), rebuilt(clipped(model, records, 8.0))
    assert bare.found == 3
    assert noised.found == 0
    assert abs(noised.psnr - noised.mean_psnr) < 1, "a sum of noise adds nothing to what is public"


def test_pictures_are_matched_one_to_one() -> None:
    truth = np.random.default_rng(0).random((6, 1, 8, 8)).astype(np.float32)
    order = np.array([3, 1, 5, 0, 2, 4])
    spare = np.zeros((2, 1, 8, 8), np.float32)
    assert np.array_equal(matched(np.concatenate([spare, truth[order]]), truth), truth)
    with pytest.raises(ValueError, match="5 pictures for 6 records"):
        matched(truth[:5], truth)


def test_scores_of_known_pictures() -> None:
    truth = np.random.default_rng(0).random((2, 1, 16, 16))
    assert psnr(truth + 0.1, truth) == pytest.approx([20.0, 20.0])
    assert ssim(truth, truth) == pytest.approx([1.0, 1.0])
    assert np.all(ssim(1 - truth, truth) < 0)


def test_a_class_mean_with_a_little_noise_is_no_reconstruction(
    digits: tuple[Records, Records], prior: PublicPrior
) -> None:
    records = digits[0].take(np.arange(200))
    means = prior.means[records.y]
    guess = means + np.random.default_rng(0).normal(0, 0.02, means.shape).astype(np.float32)
    noised, true = Likeness.of(guess, records.x, means), Likeness.of(records.x, records.x, means)
    assert (noised.found, true.found) == (0, 200)
    assert -0.5 < np.mean(noised.gains) < 0
    assert min(true.gains) > 50
    judged = [_beyond_the_mean(ROWS[0], "sum + DP 8", [likeness]) for likeness in (noised, true)]
    assert [outcome.verdict for outcome in judged] == ["held", "broken"]


def test_chance_grows_with_the_number_of_guesses() -> None:
    few, many = (chance_of(replace(SOME, records=n), [(slice(0, 10 * n), [])]) for n in (1, 20))
    assert 0 <= few < many < 0.5


def test_the_figure_is_small(tmp_path: Path) -> None:
    panels = [(silos, dict.fromkeys(SETTINGS, silos.truth.x[:6])) for silos in (FEW, SOME)]
    draw(panels, tmp_path / "pictures" / "inverted.png")
    assert 5_000 < (tmp_path / "pictures" / "inverted.png").stat().st_size < 200_000


@pytest.mark.slow
def test_a_real_run_shows_records_without_protection_and_none_in_noised_sums(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.method == "row space")
    silos, scale = replace(SOME, silos=5), Scale(True, tmp_path)
    found = {}
    for setting in ("plain", "sum", "sum + DP 8"):
        part, seen = silos.seen(setting, scale)[0]
        truth = silos.truth.take(np.arange(part.start, part.stop))
        found[setting] = likeness(invert(row, silos, setting, part, seen), truth, silos.prior)
    assert found["plain"].found == 4
    assert found["sum"].found >= 15, "a secure sum of few records and one step is a batch like any other"
    assert found["sum + DP 8"].found == 0
