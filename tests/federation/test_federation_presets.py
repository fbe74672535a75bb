"""Presets: each is a valid configuration of data and networks that exist, and gives way to what is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from autoflip_secure.config import ResolvedConfig, RunConfig, load_config_file
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


@pytest.fixture
def record() -> str:
    """What a run writes."""
    return resolved_on_its_task(RunConfig.create(dataset="mnist", model="cnn6", silos=12, local_epochs=2)).to_toml()


def without(text: str, *names: str) -> str:
    """The text less the lines that start so."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(names))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("gone", ["warm_start", "prune_steps", "dataset"])
def test_a_record_that_was_edited_is_still_one(gone: str, ending: str, record: str, tmp_path: Path) -> None:
    text = without(record, gone).replace("rounds = 60", "rounds = 50")
    (tmp_path / "edited.toml").write_text(text.replace("\n", ending))
    config = config_from({"prune": "none"}, tmp_path / "edited.toml")
    assert (resolved_on_its_task(config).prune, config.rounds) == ("none", 50)


def test_a_record_cut_short_is_still_one_and_without_its_mark_the_user_s(record: str, tmp_path: Path) -> None:
    mark = record.splitlines(keepends=True)[0]
    for text in (mark + "silos = 12\nprune_floor = 0.2\n", without(record, "#")):
        (tmp_path / "c.toml").write_text(text)
        assert config_from({"prune": "none"}, tmp_path / "c.toml").model_fields_set == {"prune"}
    (tmp_path / "c.toml").write_text("silos = 12\nprune_floor = 0.2\n")
    with pytest.raises(ConfigError, match=r"^--prune-floor 0\.2: --prune none"):
        resolved_on_its_task(config_from({"prune": "none"}, tmp_path / "c.toml"))


def test_a_record_from_before_an_option_was_there_is_still_one(record: str, tmp_path: Path) -> None:
    """It has no mark either."""
    (tmp_path / "old.toml").write_text(without(record, "#", "warm_start", "prune_steps", "prune_round_to"))
    assert config_from({"prune": "none"}, tmp_path / "old.toml").model_fields_set == {"prune"}


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


SOURCES = ("preset", "file", "options")


@pytest.mark.parametrize("weaker", ["local_steps", "local_epochs"])
@pytest.mark.parametrize("stronger", ["local_steps", "local_epochs"])
@pytest.mark.parametrize(("lower", "upper"), [(0, 1), (0, 2), (1, 2)])
def test_of_steps_and_epochs_the_stronger_source_s_count(
    lower: int, upper: int, weaker: str, stronger: str, tmp_path: Path
) -> None:
    said = {SOURCES[lower]: {weaker: 7}, SOURCES[upper]: {stronger: 3}}
    preset = {"local_steps": "quick-mnist", "local_epochs": "paper-mnist"}[weaker] if lower == 0 else None
    (tmp_path / "mine.toml").write_text("".join(f"{name} = {n}\n" for name, n in said.get("file", {}).items()))
    config = config_from(said.get("options", {}), tmp_path / "mine.toml", preset)
    other = ({"local_steps", "local_epochs"} - {stronger}).pop()
    assert (getattr(config, stronger), getattr(config, other)) == (3, None)
    resolved_on_its_task(config)


@pytest.mark.parametrize("place", ["file", "options"])
def test_one_source_that_says_both_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("local-steps = 4\nlocal-epochs = 2\n" if place == "file" else "")
    both = {"local_steps": 4, "local_epochs": 2} if place == "options" else {}
    with pytest.raises(ConfigError, match=r"^--local-epochs 2: give either"):
        resolved_on_its_task(config_from(both, tmp_path / "mine.toml", "paper-mnist"))


def test_a_preset_of_epochs_goes_with_a_record_of_steps(record: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(record)
    config = resolved_on_its_task(config_from({}, tmp_path / "config.toml", "paper-mnist"))
    assert config.local_steps == 2 * 5000 // 32 + 1
    config = resolved_on_its_task(config_from({"local_epochs": 1}, tmp_path / "config.toml", "paper-mnist"))
    assert config.local_steps == 5000 // 32 + 1


def test_the_record_of_a_run_with_epochs_holds_their_steps(record: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(record)
    config = ResolvedConfig.create(**load_config_file(tmp_path / "config.toml"))
    assert resolved_on_its_task(config_from({}, tmp_path / "config.toml")) == config
    (tmp_path / "config.toml").write_text(record + "local_epochs = 3\n")
    with pytest.raises(ConfigError, match=r"^--local-epochs 3: give either"):
        resolved_on_its_task(config_from({}, tmp_path / "config.toml"))


def test_an_older_record_that_holds_both_is_read_and_resumed(record: str, tmp_path: Path) -> None:
    """Records had no mark when they held both. A resumed run keeps what its silos agreed to, word for word."""
    (tmp_path / "config.toml").write_text(without(record, "#") + "local_epochs = 2\n")
    resumed = ResolvedConfig.create(**load_config_file(tmp_path / "config.toml"))
    assert (resumed.local_steps, resumed.local_epochs) == (313, 2)
    again = resolved_on_its_task(config_from({}, tmp_path / "config.toml"))
    assert (again.local_steps, again.local_epochs) == (313, None)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--preset paper-x: unknown; use one of paper-mnist"):
        preset_options("paper-x")
