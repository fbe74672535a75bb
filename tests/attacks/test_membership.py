"""Membership inference: the mathematics on made-up scores, the game it is played in, and real federations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from autoflip_secure.attacks.clipped_steps import clipped_steps
from autoflip_secure.attacks.membership import EVERY_ROUND, FINAL, Found, _proved, outcomes_of, scores_of
from autoflip_secure.attacks.membership_federations import SILOS, deal, run_all
from autoflip_secure.attacks.membership_picture import draw, roc
from autoflip_secure.attacks.membership_scores import area, leave_one_out, lira, rmia, true_positives
from autoflip_secure.attacks.membership_signals import label_logits
from autoflip_secure.attacks.membership_sums import whitened
from autoflip_secure.attacks.settings import PrivacyProfile, charges_of, run_federation
from autoflip_secure.data.records import Records
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.seeds import torch_stream


def _made_up(
    runs: int, records: int, shift: float, *, slope: float = 0.0, spread: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of records of different levels; higher by shift, slope * level and some more where a run had it."""
    generator = np.random.default_rng(1)
    member = generator.random((runs, records)) < 0.5
    level = generator.normal(0, 3, records)
    rise = shift + slope * level + spread * generator.random(records)
    return level + np.where(member, rise, 0) + generator.normal(0, 1, (runs, records)), member


def test_lira_with_many_shadows_is_the_published_ratio_of_two_gaussians() -> None:
    logits, member = _made_up(401, 300, 1.0, spread=2.0)
    target, shadows, had = logits[0], logits[1:], member[1:]
    inside = np.where(had, shadows, 0).sum(0) / had.sum(0)
    outside = np.where(had, 0, shadows).sum(0) / (~had).sum(0)
    variance = (np.where(had, shadows - inside, shadows - outside) ** 2).mean()
    published = norm.logpdf(target, inside, variance**0.5) - norm.logpdf(target, outside, variance**0.5)
    assert np.abs(lira(target, shadows, had) - published).max() < 0.3
    assert np.corrcoef(lira(target, shadows, had), published)[0, 1] > 0.99


@pytest.mark.parametrize("runs", [4, 8, 32])
def test_lira_comes_near_the_best_test_there_is_and_finds_nothing_where_nothing_is(runs: int) -> None:
    logits, member = _made_up(runs, 4000, 1.5)
    best = norm.cdf(1.5 / 2**0.5)
    error = (1 + 1 / (runs - 1)) ** 0.5  # the level of a record is known from so many shadows only
    assert area(leave_one_out(lira, member, logits), member) == pytest.approx(norm.cdf(1.5 / 2**0.5 / error), abs=0.015)
    assert area(leave_one_out(lira, member, logits), member) < best + 0.01
    nothing, member = _made_up(runs, 4000, 0.0)
    assert area(leave_one_out(lira, member, nothing), member) == pytest.approx(0.5, abs=0.02)


def test_lira_learns_from_other_records_which_ones_shift_most() -> None:
    logits, member = _made_up(8, 4000, 1.5, slope=-0.5)
    scores = leave_one_out(lira, member, logits)
    low = logits.mean(0) < np.quantile(logits.mean(0), 0.25)
    assert area(scores[:, low], member[:, low]) > 0.95
    assert true_positives(scores, member, 0.01) > 0.25


def test_lira_does_without_shadows_of_both_kinds() -> None:
    logits, member = _made_up(3, 50, 1.0)
    scores = leave_one_out(lira, np.zeros_like(member), logits)
    assert np.isfinite(scores).all()
    assert not scores.any(), "no shadow had a record, so that nothing is known of what having one does"


def test_rmia_counts_the_public_records_that_a_record_outdoes() -> None:
    half, more = 0.0, np.log(3.0)  # probabilities 1/2 and 3/4
    had = np.array([[True], [False]])
    ratio_above, ratio_below = np.array([more]), np.array([half])
    public, shadows_public = np.array([half, half, more, np.log(9.0)]), np.zeros((2, 4))
    shadows = np.array([[half], [half]])
    # Ratios of the public records: 1, 1, 1.5, 1.8; of the record: 1.5 and 1.
    assert rmia(ratio_above, shadows, had, public, shadows_public).tolist() == [0.5]
    assert rmia(ratio_below, shadows, had, public, shadows_public).tolist() == [0.0]


def test_rates_and_area_by_hand() -> None:
    member = np.array([True, True, True, False, False, False, False])
    scores = np.array([4.0, 3.0, 1.0, 3.5, 3.0, 1.0, 0.0])
    assert true_positives(scores, member, 0.0) == pytest.approx(1 / 3)
    assert true_positives(scores, member, 0.25) == pytest.approx(1 / 3), "tied with one that is not a member"
    assert true_positives(scores, member, 0.5) == pytest.approx(2 / 3)
    assert area(scores, member) == pytest.approx((4 + 2.5 + 1.5) / 12)
    wrong, right = roc(scores, member)
    assert wrong.tolist()[:2] == [0.0, 0.25]
    assert right[:3] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_label_logits_are_the_log_odds_of_the_label() -> None:
    spec = dense_spec("mlp", (1, 8, 8), 10)
    network = build(spec, torch_stream(0, "test"))
    records = Records(np.random.default_rng(0).random((20, 1, 8, 8)).astype(np.float32), np.arange(20) % 10)
    confidence = torch.softmax(network(torch.from_numpy(records.x)).double(), 1).detach().numpy()
    likely = confidence[np.arange(20), records.y]
    found = label_logits(spec, flatten_parameters(network).numpy(), records)
    assert found == pytest.approx(np.log(likely / (1 - likely)), abs=1e-6)


def test_every_coin_is_its_own_and_public_records_are_nobodys() -> None:
    game = deal(500, 40)
    assert game.member.mean() == pytest.approx(0.5, abs=0.02)
    assert np.abs(np.corrcoef(game.member) - np.eye(40)).max() < 0.2
    assert set(game.silo) == set(range(SILOS))
    assert game.wrong.sum() == 50
    candidates = {record.tobytes() for record in game.records.x}
    assert sum(record.tobytes() in candidates for record in game.public.x) <= 1, "the digits hold few twins"


def test_a_leak_breaks_a_promise_and_succeeds_without_one() -> None:
    leaking, member = _made_up(8, 400, 3.0)
    silent, _ = _made_up(8, 400, 0.0)
    leaks = Found(leave_one_out(lira, member, leaking), member)
    keeps = Found(leave_one_out(lira, member, silent), member)
    proved = PrivacyProfile.of([[Mechanism(1.0, 4.0, 1)]], 1e-5)
    assert {o.verdict for o in outcomes_of("x", "sum", leaks, None, True, None)} == {"succeeds"}
    assert {o.verdict for o in outcomes_of("x", "sum + DP 1", leaks, proved, True, None)} == {"broken"}
    kept = list(outcomes_of("x", "sum + DP 1", keeps, proved, True, None))
    assert {o.verdict for o in kept} <= {"held", "not refuted"}
    assert [o.bound for o in kept] == [proved.true_positives(0.01), proved.area()]
    assert {o.promise for o in kept} == {f"epsilon {proved.epsilons[-1]:.2f} for one record, whole privacy profile"}
    (_, compared) = outcomes_of("x", "sum", leaks, None, True, keeps)
    assert compared.note.startswith("nothing is promised without DP; +0."), compared.note


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    logits, member = _made_up(4, 100, 1.0)
    draw(tmp_path / "pictures" / "roc.png", {"records": {"plain": Found(logits, member)}})
    assert (tmp_path / "pictures" / "roc.png").stat().st_size > 1000


@pytest.mark.parametrize(("noise", "least", "most"), [(0.01, 0.9, 1.0), (1.0, 0.6, 0.95), (1e4, 0.25, 0.75)])
def test_a_sum_points_to_the_records_in_it_as_far_as_noise_lets_it(noise: float, least: float, most: float) -> None:
    game = deal(300, 2)
    spec, clip = dense_spec("mlp", (1, 8, 8), 10), 0.5
    weights = flatten_parameters(build(spec, torch_stream(0, "test"))).numpy()
    model = ModelPayload(spec, weights, np.random.default_rng(0).random(weights.size) < 0.7, 300)
    weights[~model.mask] = 0.0
    steps, public = (
        torch.from_numpy(clipped_steps(model, records, clip, np.flatnonzero(model.mask)).astype(np.float32))
        for records in (game.records, game.public)
    )
    assert steps.norm(dim=1).max() <= clip * (1 + 1e-5)
    member = np.arange(len(game.records)) % 15 == 0
    total = steps[torch.from_numpy(member)].sum(dim=0)
    total += noise * clip * torch.randn(total.shape, generator=torch_stream(1, "noise"))
    scores = whitened(total, steps, public, noise * clip, 20 / len(game.public))
    assert least <= area(scores[None], member[None]) <= most


def test_a_step_is_what_the_service_adds_to_a_sum() -> None:
    game, spec = deal(20, 1), dense_spec("mlp", (1, 8, 8), 10)
    network = build(spec, torch_stream(0, "test"))
    weights = flatten_parameters(network).numpy()
    model = ModelPayload(spec, weights, np.ones(weights.size, np.bool_), 20)
    with ClippedGradientSum(network) as gradients:
        x, y = torch.from_numpy(game.records.x), torch.from_numpy(game.records.y)
        for row, step in enumerate(clipped_steps(model, game.records, 0.3, np.arange(weights.size))):
            expected = -gradients(x[row : row + 1], y[row : row + 1], 0.3)
            assert step == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_wrong_labels_are_found_in_a_silos_update_hardly_in_the_model_and_not_under_dp(tmp_path: Path) -> None:
    game = deal(400, 5)
    plain = scores_of(game, run_all(game, "plain", "--model mlp --rounds 4 --local-steps 40", tmp_path / "plain"))
    runs = run_all(game, "sum + DP 1", "--model mlp --rounds 4", tmp_path / "private")
    private, proved = scores_of(game, runs), _proved(runs)
    wrong = "membership of a wrong label, {}"
    single, model = plain[wrong.format(EVERY_ROUND)], plain[wrong.format(FINAL)]
    assert single.area() > 0.9
    assert single.area() > model.area() + 0.03, "the model holds one silo's record among all others'"
    assert model.area() > 0.65
    hidden = private[wrong.format(EVERY_ROUND)]
    assert hidden.area() == pytest.approx(0.5, abs=0.2)
    assert proved is not None
    assert hidden.true_positives(0.01) < proved.true_positives(0.01) + 0.1
    reported = [json.loads((run / "summary.json").read_text())["epsilon_spent"] for run in runs]
    assert proved.epsilons[-1] == pytest.approx(max(reported))
    assert [len(charges_of(run)) for run in runs] == [SILOS] * len(runs)


@pytest.mark.slow
def test_runs_that_share_a_process_are_those_of_processes_of_their_own(tmp_path: Path) -> None:
    """Nothing of an earlier run is left in a later one: without DP a run is the same to the last bit."""
    game = deal(300, 2)
    options = "--model mlp --rounds 3 --local-steps 5"
    runs = run_all(game, "sum", options, tmp_path / "together", keep_data=True)
    data = tmp_path / "together" / "data-run-001"
    run_federation(f"{options} --dataset folder:{data}", "sum", 0, tmp_path / "alone")
    assert (runs[1] / "model.safetensors").read_bytes() == (tmp_path / "alone" / "model.safetensors").read_bytes()
    assert (runs[0] / "model.safetensors").read_bytes() != (runs[1] / "model.safetensors").read_bytes()
