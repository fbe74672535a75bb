"""Presets: each is a valid configuration of data and networks that exist, and gives way to what is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoflip_secure.config import RunConfig
from autoflip_secure.data.names import DATASETS
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.names import MODEL_NAMES
from autoflip_secure.options import config_from
from autoflip_secure.presets import PRESETS, preset_options

TASK = Task("digits", "multiclass", (1, 28, 28), 10, tuple("0123456789"), "cnn6", nominal_records=60_000)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resolves_and_has_a_schedule(name: str) -> None:
    config = RunConfig.create(**preset_options(name))
    assert config.dataset in DATASETS
    assert config.model in MODEL_NAMES
    text = config.model == "char-lstm"
    task = replace(TASK, name=config.dataset, **({"input_shape": (80,), "default_model": "char-lstm"} if text else {}))
    natural = 99 if config.partition == "natural" else None
    resolved = resolve(config, task, natural_silos=natural)
    Schedule(resolved)
    assert resolved.silos == config.silos
    if name.startswith("paper"):
        assert (resolved.silos, resolved.participation, resolved.prune_threshold) == (20, 0.25, 0.3)
        assert resolved.local_steps == -(-5 * 3000 // 32)
        assert resolved.rate(10) == pytest.approx(3e-4 * 0.99**10)


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
