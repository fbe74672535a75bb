"""Presets: each is a valid configuration of data and networks that exist, and gives way to what is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.names import DATASETS
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.names import MODEL_NAMES
from autoflip_secure.options import config_from
from autoflip_secure.presets import PRESETS, preset_options

TASK = Task("digits", "multiclass", (1, 28, 28), 10, tuple("0123456789"), "cnn6", nominal_records=60_000)


METHODS = get_args(RunConfig.model_fields["prune"].annotation)


def resolved_on_its_task(config: RunConfig) -> ResolvedConfig:
    text = config.model == "char-lstm"
    task = replace(TASK, name=config.dataset, **({"input_shape": (80,), "default_model": "char-lstm"} if text else {}))
    resolved = resolve(config, task, natural_silos=99 if config.partition == "natural" else None)
    Schedule(resolved)
    return resolved


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resolves_and_has_a_schedule(name: str) -> None:
    config = RunConfig.create(**preset_options(name))
    assert config.dataset in DATASETS
    assert config.model in MODEL_NAMES
    resolved = resolved_on_its_task(config)
    assert resolved.silos == config.silos
    if name.startswith("paper"):
        assert (resolved.silos, resolved.participation, resolved.prune_threshold) == (20, 0.25, 0.3)
        assert resolved.local_steps == -(-5 * 3000 // 32)
        assert resolved.rate(10) == pytest.approx(3e-4 * 0.99**10)


@pytest.mark.parametrize("prune", METHODS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_with_every_method(name: str, prune: str) -> None:
    """What it says of pruning is no choice of the user's, so a method that ignores it is no contradiction."""
    options = {"prune": prune}
    if prune == "fedmask":
        with pytest.raises(ConfigError, match=r"^--optimizer adam: --prune fedmask .*; give --optimizer sgd$"):
            resolved_on_its_task(config_from(options, None, name))
        options["optimizer"] = "sgd"
    config = config_from(options, None, name)
    assert config == RunConfig.create(**{**preset_options(name), **options})
    assert resolved_on_its_task(config).prune == prune


def test_what_is_given_beside_a_preset_counts_as_given() -> None:
    config = config_from({"prune": "none", "prune_flops": 0.3}, None, "quick-mnist")
    with pytest.raises(ConfigError, match=r"^--prune-flops 0\.3: --prune none"):
        resolved_on_its_task(config)


@pytest.mark.parametrize("prune", METHODS)
def test_the_record_of_a_run_can_be_given_as_it_is_and_with_another_method(prune: str, tmp_path: Path) -> None:
    """config.toml holds every option, those that the run did not use too."""
    first = resolved_on_its_task(RunConfig.create(dataset="mnist", model="cnn6", warm_start=True, silos=12))
    (tmp_path / "config.toml").write_text(first.to_toml())
    assert resolved_on_its_task(config_from({}, tmp_path / "config.toml")) == first
    assert resolved_on_its_task(config_from({"prune": prune}, tmp_path / "config.toml")).prune == prune
    if prune == "eflprune":
        with pytest.raises(ConfigError, match=r"^--explore-every 5: --prune eflprune"):
            resolved_on_its_task(config_from({"prune": prune, "explore_every": 5}, tmp_path / "config.toml"))


def test_a_file_that_the_user_wrote_counts_as_given(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('prune = "random"\nexplore-every = 5\n')
    with pytest.raises(ConfigError, match=r"^--explore-every 5: --prune random"):
        resolved_on_its_task(config_from({}, tmp_path / "mine.toml"))


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("silos = 12\nrounds = 7\n")
    config = config_from({"rounds": 3}, file, "quick-mnist")
    assert (config.rounds, config.silos, config.dataset, config.prune_flops) == (3, 12, "mnist5k", 0.48)


def test_steps_replace_a_preset_s_epochs() -> None:
    config = config_from({"local_steps": 4}, None, "paper-mnist")
    assert (config.local_steps, config.local_epochs) == (4, None)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--preset paper-x: unknown; use one of paper-mnist"):
        preset_options("paper-x")
