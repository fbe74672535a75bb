"""Malicious silos: what each kind sends, lies in the protocol with and without bounds on sums, and spoilt models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoflip_secure.attacks import lying_silos, malicious_silos
from autoflip_secure.attacks.bad_silos import (
    TARGET,
    BadSilos,
    huge_counts,
    patch_side,
    poisoned,
    triggered,
    wild_integers,
)
from autoflip_secure.attacks.lying_silos import LyingFederation, told_of
from autoflip_secure.attacks.spoilt_runs import spoilt_run
from autoflip_secure.config import RunConfig
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.bad_contributor import BadContributor
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.initial_model import whole_model
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.terms import count_channel, energy_channel, metric_channel, update_channel
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.seeds import stream, torch_stream
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms

SIDE = 8


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("squares", "multiclass", (1, SIDE, SIDE), 3, ("a", "b", "c"), "mlp", 90)


@pytest.fixture(scope="module")
def records() -> Records:
    draw = stream(0, "records")
    y = draw.integers(0, 3, 90)
    x = draw.random((90, 1, SIDE, SIDE)) * 0.3
    x[np.arange(90), 0, y] += 0.6
    return Records(x.astype(np.float32), y.astype(np.int64))


@pytest.fixture(scope="module")
def config(task: Task) -> Any:
    options: dict[str, Any] = {"silos": 4, "rounds": 4, "colluders": 0, "partition": "iid", "update_norm": 0.1}
    return resolve(RunConfig.create(dataset="digits", **options), task, natural_silos=None)


@pytest.fixture(scope="module")
def model(task: Task) -> ModelPayload:
    spec = dense_spec("mlp", task.input_shape, task.classes)
    return whole_model(spec, flatten_parameters(build(spec, torch_stream(0, "init"))).numpy(), task)


def asked(model: ModelPayload, channels: tuple[ChannelSpec, ...], phase: str = "train") -> Manifest:
    dataset = "holdout" if phase == "evaluate" else "train"
    return Manifest(
        bytes(16), 0, 1, bytes(32), 1, 0, phase, ((1, 2, 3, 4),), (3,), 3, bytes(32), model.mask_hash(), bytes(32),
        channels, PrivacyTerms("none", dataset, 1.0, 5, 0.0, 0.0, 0, 1e-5),
    )  # fmt: skip


# What bad silos send


def test_the_trigger_is_a_corner_and_nothing_else() -> None:
    images = np.zeros((2, 1, 28, 28), np.float32)
    marked = triggered(images)
    assert patch_side(28) == 4
    assert marked.sum() == 2 * 16
    assert marked[:, :, -4:, -4:].all()
    assert not images.any()


def test_half_of_a_backdoor_silo_s_records_are_poisoned(records: Records) -> None:
    x, y = poisoned(records.x, records.y, stream(0, "poison"))
    changed = (x != records.x).any(axis=(1, 2, 3))
    assert 40 <= changed.sum() <= 45
    assert (y[changed] == TARGET).all()
    np.testing.assert_array_equal(y[~changed], records.y[~changed])
    np.testing.assert_array_equal(x[changed], triggered(records.x[changed]))


def test_a_backdoor_is_trained_and_boosted_beyond_the_norm_that_binds_honest_code(config, task, records, model) -> None:
    manifest = asked(model, (update_channel(config, int(model.mask.sum())),))
    bad = BadSilos.parse("backdoor:0.25:5")
    sent = BadContributor(bad, config, task, SiloData(records), 1, "cpu")._vectors(manifest, model)["update"]
    spoilt = Records(*poisoned(records.x, records.y, stream(config.seed, "backdoor", 1)))
    trained = Contributor(config, task, SiloData(spoilt), 1, "cpu")._vectors(manifest, model)["update"]
    np.testing.assert_allclose(sent, 5 * trained, rtol=1e-6)
    assert np.linalg.norm(trained.astype(np.float64)) <= config.update_norm
    assert np.linalg.norm(sent) > 4 * config.update_norm


def test_a_free_rider_sends_nothing_or_a_little_noise(config, task, records, model) -> None:
    live, units = int(model.mask.sum()), sum(model.spec.widths)
    manifest = asked(model, (update_channel(config, live), energy_channel(units)))
    for text, deviation in (("free-riding:0.25", 0.0), ("free-riding:0.25:0.01", 0.01)):
        bad = BadContributor(BadSilos.parse(text), config, task, SiloData(records), 1, "cpu")
        sent = bad._vectors(manifest, model)
        assert sent.keys() == {"update", "unit_energy"}
        assert sent["update"].std() == pytest.approx(deviation, rel=0.1)
        assert sent["unit_energy"].sum() <= (sent["update"] ** 2).sum() + 1e-12


def test_a_million_patients_are_claimed_where_patients_are_counted(config, task, records, model) -> None:
    bad = BadContributor(
        BadSilos.parse("huge-count:0.25"), config, task, SiloData(records.take(np.arange(90) < 60), records), 1, "cpu"
    )
    count = bad._vectors(asked(model, (count_channel(0.0),), "census"), model)["count"]
    metric = bad._vectors(asked(model, (metric_channel(7, 0.0),), "evaluate"), model)["metric"]
    assert count.tolist() == [1e6]
    assert metric.tolist() == [1e6, *[0.0] * 6]
    assert huge_counts(np.zeros(1), "count", 1e9, 2.0**20)[0] == 2.0**20, "no more than the range holds"


def test_wild_words_are_uniform_in_every_byte() -> None:
    words = wild_integers(4000, np.random.default_rng(0)).view(np.uint8)
    assert abs(np.bincount(words, minlength=256) / words.size - 1 / 256).max() < 0.002


@pytest.mark.parametrize(
    ("text", "strength"),
    [("backdoor:0.2", 5.0), ("backdoor:0.2:30", 30.0), ("free-riding:0.5", 0.0), ("huge-count:0.1", 1e6),
     ("wild-words:0.1", 1.0), ("free-riding:0.1:0.01", 0.01)],
)  # fmt: skip
def test_forms(text: str, strength: float) -> None:
    assert BadSilos.parse(text).strength == strength


@pytest.mark.parametrize("text", ["wild-words:0.1:2", "free-riding:0.1:-1", "huge-count:0.1:0", "backdoor:0.1:nan"])
def test_what_is_wrong_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--bad-silos"):
        BadSilos.parse(text)


def test_a_backdoor_needs_images() -> None:
    run = RunConfig.create(dataset="breast-cancer", bad_silos="backdoor:0.2")
    with pytest.raises(ConfigError, match="square in an image"):
        resolve(run, load("breast-cancer", None, 0).task, natural_silos=None)


# Lies in the protocol


def test_wrong_shares_spoil_nothing_and_slander_nobody() -> None:
    told = told_of("wrong shares", 12, seed=3)
    assert all(t.exact or not t.opened for t in told)
    assert sum(t.named for t in told) > 4
    assert not any(t.slandered for t in told)


@pytest.mark.parametrize("lie", ["rogue keys", "wild words", "a vector far out of range"])
def test_bounds_tell_what_the_secure_sum_cannot(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silo that masks with other keys than it shared spoils the sum like one that sends words of no meaning."""
    told = told_of(lie, 12, seed=3)
    spoilt = [t for t in told if t.opened and t.moved]
    assert len(spoilt) > 5
    assert not any(t.in_bounds for t in spoilt)
    assert not any(t.slandered for t in told)
    monkeypatch.setattr(lying_silos, "out_of_fields", lambda *arguments: None)
    monkeypatch.setattr(lying_silos, "out_of_range", lambda *arguments: None)
    assert all(t.in_bounds for t in told_of(lie, 12, seed=3) if t.opened), "without them nothing is noticed"


def test_fields_tell_where_the_range_alone_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four silos' fields are no wider than their range added up."""
    monkeypatch.setattr(lying_silos, "out_of_fields", lambda *arguments: None)
    told = [
        LyingFederation(4, "wild words", frozenset({2}), np.random.default_rng(seed)).attempt(frozenset())
        for seed in range(6)
    ]
    assert any(t.in_bounds and t.moved for t in told)


def test_what_stays_within_the_bound_of_the_sum_is_not_noticed() -> None:
    told = [t for t in told_of("a vector at the sum's own bound", 8, seed=3) if t.moved]
    assert told
    assert all(t.in_bounds for t in told)


# Whole runs


def test_settings_rest_on_those_of_every_attack() -> None:
    from autoflip_secure.attacks.settings import SETTINGS

    assert {base for base, _ in malicious_silos.VARIANTS.values()} <= set(SETTINGS)
    tried = {setting for _, _, names in (*malicious_silos.PLAYED, *malicious_silos.ALSO) for setting in names}
    assert tried <= set(malicious_silos.VARIANTS)


@pytest.mark.slow
def test_a_backdoor_in_the_sum_fools_and_a_clean_run_does_not(tmp_path: Path) -> None:
    options = "--model mlp --silos 6 --rounds 8 --colluders 0 --partition iid"
    clean = spoilt_run("digits", options, "sum", 0, tmp_path / "clean")
    spoilt = spoilt_run("digits", f"{options} --bad-silos backdoor:0.17:5", "sum", 0, tmp_path / "spoilt")
    assert clean.fooled.mean() < 0.2
    assert spoilt.fooled.mean() > 0.8
    assert clean.wrong.mean() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["sum", "sum + DP 8"])
def test_no_silos_move_the_model_further_than_all_could_honestly(tmp_path: Path, setting: str) -> None:
    options = "--model mlp --silos 6 --rounds 6 --colluders 0 --partition iid --prune none"
    options += " --update-norm 0.2" if setting == "sum" else ""
    reversed_far = "--bad-silos scaling:0.34:-1000"
    clean, bounded, unbounded = (
        spoilt_run("digits", f"{options} {bad}", setting, 0, tmp_path / str(place), bounds=bounds)
        for place, (bad, bounds) in enumerate((("", True), (reversed_far, True), (reversed_far, False)))
    )
    assert clean.steps == bounded.steps == 6
    assert 0.05 < clean.longest_step <= 1.0
    assert 0.9 < bounded.longest_step <= 1.0
    assert unbounded.longest_step > 1.1, "without the bounds the same silos go further"
