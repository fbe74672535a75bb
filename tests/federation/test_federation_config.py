"""RunConfig: one declaration of every option, its validation, its file form, and what its digest covers."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.config import (
    LOCAL_ONLY_FIELDS,
    ResolvedConfig,
    RunConfig,
    flag_of,
    load_config_file,
)
from autoflip_secure.errors import ConfigError

OTHER: dict[str, Any] = {
    "dataset": "digits",
    "data_dir": Path("/data"),
    "model": "mlp",
    "silos": 7,
    "partition": "iid",
    "rounds": 9,
    "local_steps": 3,
    "local_epochs": 2,
    "participation": 0.5,
    "batch_size": 8,
    "learning_rate": 0.25,
    "momentum": 0.5,
    "lr_decay": 0.9,
    "optimizer": "adam",
    "prox_mu": 0.1,
    "server_optimizer": "adam",
    "server_learning_rate": 0.1,
    "target_accuracy": 0.9,
    "aggregation": "none",
    "colluders": 2,
    "min_cohort": 0.9,
    "block": 3,
    "epoch_slots": 10,
    "bits": 20,
    "update_limit": 2.0,
    "dp_epsilon": 3.0,
    "dp_delta": 1e-6,
    "dp_trust": "local",
    "clip": 0.2,
    "adaptive_clip": 0.5,
    "sampling_rate": 0.3,
    "reserve": 0.1,
    "evaluations": 4,
    "insecure_reproducible_noise": True,
    "prune": "none",
    "score": "energy",
    "prune_threshold": 0.4,
    "prune_flops": 0.6,
    "prune_threshold_kind": "absolute",
    "prune_hysteresis": 0.2,
    "prune_floor": 0.3,
    "prune_round_to": 8,
    "explore_rounds": 2,
    "explore_steps": 5,
    "explore_participation": 0.5,
    "explore_every": 7,
    "cohorts": 3,
    "agreement_every": 4,
    "eta": 0.3,
    "guidance_level": "unit",
    "prune_steps": 2,
    "warm_start": False,
    "dropout": 0.2,
    "engine": "ray",
    "device": "cpu",
    "workers": 3,
    "seed": 11,
    "evaluate_every": 2,
    "run_dir": Path("/run"),
    "record_server_view": True,
    "stage_timeout": 5.0,
    "join_timeout": 7.0,
    "cohort_filter": True,
    "allow_cohort_rotation": True,
    "bad_silos": "noise:0.2",
    "update_norm": 2.0,
    "prove_models": True,
}
"""A valid value of every field that is not its default."""

OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "silos": (2, 2001, -1, "many"),
    "rounds": (0, 100_001),
    "local_steps": (0,),
    "local_epochs": (0, 1001),
    "participation": (0, 1.01, float("nan")),
    "batch_size": (0,),
    "learning_rate": (0, -1, float("inf")),
    "momentum": (-0.1, 1),
    "lr_decay": (0, 1.1),
    "optimizer": ("adagrad",),
    "prox_mu": (-1,),
    "server_optimizer": ("yogi",),
    "server_learning_rate": (0,),
    "target_accuracy": (0, 1.1),
    "aggregation": ("plain",),
    "colluders": (-1,),
    "min_cohort": (0, 1.1),
    "block": (0, -1, "many"),
    "epoch_slots": (0, 4097),
    "bits": (7, 25),
    "update_limit": (0, float("inf")),
    "update_norm": (0, float("inf")),
    "dp_epsilon": (0, -1, float("nan"), float("inf")),
    "dp_delta": (0, 1),
    "dp_trust": ("none",),
    "clip": (0,),
    "adaptive_clip": (0, 1),
    "sampling_rate": (0, 1.1),
    "reserve": (-0.1, 1.1),
    "evaluations": (0,),
    "prune": ("lottery",),
    "score": ("luck",),
    "prune_threshold_kind": ("relative",),
    "prune_hysteresis": (-0.1, 1),
    "prune_floor": (-0.1, 1.1),
    "prune_round_to": (0, 65),
    "prune_threshold": (-0.1, 1),
    "prune_flops": (0, 1.1),
    "explore_rounds": (0,),
    "explore_steps": (0,),
    "explore_participation": (0, 1.1),
    "explore_every": (-1,),
    "cohorts": (0, 17),
    "agreement_every": (-1,),
    "eta": (-0.1, 1.1),
    "guidance_level": ("layer",),
    "prune_steps": (0, 101),
    "dropout": (-0.1, 1),
    "engine": ("slurm",),
    "device": ("tpu",),
    "workers": (-1, 257),
    "seed": (-1, 2**63),
    "evaluate_every": (0,),
    "stage_timeout": (0,),
    "join_timeout": (-1,),
}


def test_the_table_of_other_values_is_whole() -> None:
    assert set(OTHER) == set(RunConfig.model_fields)
    defaults = RunConfig()
    assert [name for name, value in OTHER.items() if getattr(defaults, name) == value] == []


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in OUT_OF_RANGE.items() for v in values])
def test_a_value_out_of_range_is_refused_by_the_flag_s_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{flag_of(name)}: ") as caught:
        RunConfig.create(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(OUT_OF_RANGE) - {"aggregation", "prune", "engine", "device", "dp_trust"}))
def test_resolved_configurations_keep_every_range(name: str, make_config) -> None:
    """The subclass declares its types anew, without the ranges: they must not be lost by that."""
    good = make_config().model_dump()
    with pytest.raises(ConfigError, match=flag_of(name)):
        ResolvedConfig.create(**{**good, name: OUT_OF_RANGE[name][0]})


def test_a_resolved_configuration_has_no_open_option(make_config) -> None:
    good = make_config().model_dump()
    for name in set(ResolvedConfig.__annotations__) - {"model_config"}:
        with pytest.raises(ConfigError, match=flag_of(name)):
            ResolvedConfig.create(**{**good, name: None})


def test_an_unknown_option_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="epsilom"):
        RunConfig.create(epsilom=3)


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        RunConfig().rounds = 3  # type: ignore[misc]


def test_trust_is_none_without_a_budget() -> None:
    assert RunConfig.create(dp_trust="local").trust == "none"
    assert RunConfig.create(dp_epsilon=1, dp_trust="local").trust == "local"
    assert RunConfig.create(dp_epsilon=1).trust == "distributed"


@pytest.mark.parametrize("name", sorted(RunConfig.model_fields))
def test_the_digest_covers_what_a_run_computes_and_nothing_else(name: str) -> None:
    changed = RunConfig.create(**{name: OTHER[name]}).digest() != RunConfig().digest()
    assert changed == (name not in LOCAL_ONLY_FIELDS)


def test_local_fields_are_those_that_compute_nothing() -> None:
    """The list is part of the protocol: what is added to it is no longer agreed between coordinator and silos."""
    assert {
        "data_dir", "run_dir", "engine", "device", "workers", "record_server_view", "stage_timeout",
        "join_timeout",
    } == LOCAL_ONLY_FIELDS  # fmt: skip


def test_the_digest_of_a_resolved_configuration_survives_the_wire(make_config) -> None:
    config = make_config(dp_epsilon=0.1 + 0.2, learning_rate=1 / 3, run_dir=Path("/somewhere"))
    again = ResolvedConfig.create(**json.loads(config.model_dump_json()))
    assert again == config
    assert again.digest() == config.digest()


@given(st.sets(st.sampled_from(sorted(OTHER))))
def test_the_file_form_round_trips(names: set[str]) -> None:
    config = RunConfig.create(**{name: OTHER[name] for name in names})
    text = config.to_toml()
    assert RunConfig.create(**tomllib.loads(text)) == config


def test_a_resolved_file_reads_as_both_kinds(make_config, tmp_path: Path) -> None:
    config = make_config(dp_epsilon=8, dp_trust="local")
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert ResolvedConfig.create(**load_config_file(tmp_path / "config.toml")) == config
    assert RunConfig.create(**load_config_file(tmp_path / "config.toml")).digest() == config.digest()


def test_files_may_write_options_as_flags(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("dp-epsilon = 3\n")
    assert load_config_file(tmp_path / "c.toml") == {"dp_epsilon": 3}


@pytest.mark.parametrize(("content", "named"), [(b"a = = 1", "line 1, column"), (b"\xff\xfe", "UTF-8")])
def test_a_file_that_is_not_toml_is_named(content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.toml") as caught:
        load_config_file(tmp_path / "c.toml")
    assert named in str(caught.value)


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.toml"):
        with pytest.raises(ConfigError, match="--config: cannot read"):
            load_config_file(path)


@pytest.mark.parametrize("name", ["aggregation", "prune"])
@pytest.mark.parametrize("value", [3, None, True, ["secagg"], {"a": 1}])
def test_a_choice_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=flag_of(name)):
        RunConfig.create(**{name: value})
