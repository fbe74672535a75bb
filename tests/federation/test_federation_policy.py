"""A silo's own policy: what the coordinator may not talk it out of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.terms import count_channel, deviation_channel, energy_channel, update_channel

SECAGG = {"aggregation": "secagg", "dp_epsilon": 8.0}


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"aggregation": "none"}, "policy aggregations: 'none'"),
        ({"aggregation": "ckks"}, "policy aggregations: 'ckks' is not among"),
        ({"dp_epsilon": None}, "policy trusts: 'none'"),
        ({"dp_epsilon": 8.01}, "policy epsilon: the run asks for 8.01, the cap is 8"),
        ({"dp_delta": 1.01e-5}, "policy delta"),
    ],
)
def test_the_default_policy_denies(options: dict[str, Any], rule: str, make_config) -> None:
    SiloPolicy().check_run(make_config(**SECAGG))
    with pytest.raises(PolicyRefusal, match=rule):
        SiloPolicy().check_run(make_config(**{**SECAGG, **options}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"insecure_reproducible_noise": True}, "noise drawn from a seed"),
        ({"dropout": 0.1}, "drop out on purpose"),
        ({"aggregation": "none"}, "sums in clear"),
    ],
)
def test_what_exists_for_tests_is_denied_outside_of_simulations(
    options: dict[str, Any], words: str, make_config
) -> None:
    config = make_config(**{**SECAGG, **options})
    policy = SiloPolicy(aggregations=("secagg", "none"))
    with pytest.raises(PolicyRefusal, match=f"policy simulated: .*{words}"):
        policy.check_run(config)
    policy.model_copy(update={"simulated": True}).check_run(config)
    assert SiloPolicy().simulated is False


def test_sums_in_clear_are_no_matter_for_locally_noised_updates(make_config) -> None:
    config = make_config(**{**SECAGG, "aggregation": "none"}, dp_trust="local")
    SiloPolicy(aggregations=("none",)).check_run(config)


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_both_trust_modes_pass_by_default(trust: str, make_config) -> None:
    SiloPolicy().check_run(make_config(**SECAGG, dp_trust=trust))


@pytest.mark.parametrize(
    ("limits", "options", "rule"),
    [
        ({"aggregations": ("none",)}, {}, "policy aggregations"),
        ({"aggregations": ("ckks",)}, {}, "policy aggregations"),
        ({"trusts": ("local",)}, {}, "policy trusts: 'distributed'"),
        ({"epsilon": 3.0}, {}, "policy epsilon"),
        ({"delta": 1e-6}, {}, "policy delta"),
        ({"colluders": 1}, {}, "policy colluders: 0 tolerated, at least 1"),
    ],
)
def test_each_limit_refuses_a_run_by_its_name(limits: dict[str, Any], options: dict[str, Any], rule: str, make_config):
    with pytest.raises(PolicyRefusal, match=rule):
        SiloPolicy(**limits).check_run(make_config(**SECAGG, **options))


@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_either_protected_sum_passes_where_it_is_listed(aggregation: str, make_config) -> None:
    config = make_config(**{**SECAGG, "aggregation": aggregation})
    SiloPolicy(aggregations=("secagg", "ckks")).check_run(config)
    SiloPolicy(aggregations=(aggregation,)).check_run(config)


def test_a_run_at_the_limit_passes(make_config) -> None:
    policy = SiloPolicy(epsilon=3.0, delta=1e-6, colluders=1, trusts=("local",))
    policy.check_run(make_config(**{**SECAGG, "dp_epsilon": 3.0}, dp_delta=1e-6, colluders=1, dp_trust="local"))


def test_accepting_accepts_exactly_its_run(make_config) -> None:
    config = make_config(aggregation="secagg", dp_epsilon=3.0, dp_delta=1e-6, colluders=1, silos=10, min_cohort=0.9)
    policy = SiloPolicy.accepting(config)
    policy.check_run(config)
    assert policy.budget(config.trust) == 3.0
    assert policy.simulated
    other = ({"aggregation": "none"}, {"aggregation": "ckks"})
    for worse in ({"dp_epsilon": 3.1}, {"dp_delta": 2e-6}, {"colluders": 0}, *other):
        with pytest.raises(PolicyRefusal):
            policy.check_run(config.model_copy(update=worse))
    with pytest.raises(PolicyRefusal, match="policy trusts"):
        policy.check_run(make_config(aggregation="secagg"))


def test_only_an_accepted_run_without_dp_has_no_budget() -> None:
    both = SiloPolicy(epsilon=2.0, trusts=("none", "local"))
    assert (both.budget("none"), both.budget("local")) == (math.inf, 2.0)
    assert SiloPolicy(epsilon=2.0).budget("none") == 2.0


@pytest.mark.parametrize(
    ("caps", "promised", "run", "year"),
    [
        ({}, None, 8.0, 8.0),
        ({}, 3.0, 3.0, 8.0),
        ({"epsilon_per_run": 2.0}, 3.0, 2.0, 8.0),
        ({"epsilon_per_run": 4.0}, 3.0, 3.0, 8.0),
        ({"epsilon_per_run": 9.0, "epsilon_per_year": 9.0}, None, 8.0, 8.0),
        ({"epsilon_per_year": 5.0}, None, 8.0, 5.0),
        ({"epsilon": math.inf, "epsilon_per_year": 5.0, "epsilon_per_run": 1.0}, None, 1.0, 5.0),
    ],
)
def test_the_least_cap_binds(caps: dict[str, float], promised: float | None, run: float, year: float) -> None:
    policy = SiloPolicy(trusts=("none", "local"), **caps)
    assert (policy.budget_per_run("local", promised), policy.budget_per_year("local")) == (run, year)
    assert policy.budget_per_run("none") == policy.budget_per_year("none") == math.inf
    strict = SiloPolicy(**caps)
    assert (strict.budget_per_run("none", promised), strict.budget_per_year("none")) == (run, year)


def test_caps_round_trip_and_absent_ones_are_not_written(tmp_path: Path) -> None:
    for policy in (SiloPolicy(), SiloPolicy(epsilon_per_run=2.0, epsilon_per_year=4.0)):
        (tmp_path / "policy.toml").write_text(policy.to_toml())
        assert SiloPolicy.read(tmp_path / "policy.toml") == policy
    assert "per_year" not in SiloPolicy().to_toml()


@pytest.mark.parametrize(
    ("changes", "limits", "rule"),
    [
        ({"terms": {"trust": "none"}}, {}, "policy trusts: 'none'"),
        ({"terms": {"delta": 1e-4}}, {}, "policy delta"),
        ({}, {"colluders": 1}, "policy colluders"),
        ({"minimum": (3,)}, {}, "policy min_cohort: 3 of 4 silos would do, at least 80%"),
        ({}, {"min_cohort": 1.0, "colluders": 0}, None),
        ({"cohorts": ((1, 2, 3), (4, 5, 6, 7)), "minimum": (3, 3)}, {}, "policy min_cohort: 3 of 4"),
        ({"cohorts": ((1, 2, 3), (4, 5, 6, 7)), "minimum": (3, 4)}, {}, None),
    ],
)
def test_each_limit_refuses_a_round_by_its_name(changes, limits, rule, make_config, make_manifest, model) -> None:
    manifest = make_manifest(make_config(**SECAGG), model, **changes)
    if rule is None:
        SiloPolicy(**limits).check_manifest(manifest)
    else:
        with pytest.raises(PolicyRefusal, match=rule):
            SiloPolicy(**limits).check_manifest(manifest)


def test_squares_are_refused_under_distributed_noise_only(make_config, make_manifest, model) -> None:
    for trust in ("distributed", "local"):
        config = make_config(**SECAGG, dp_trust=trust)
        plain = update_channel(config, 5)
        SiloPolicy().check_manifest(make_manifest(config, model, channels=(plain, count_channel(20.0))))
        for square in (energy_channel(4), deviation_channel(5)):
            manifest = make_manifest(config, model, channels=(plain, square))
            if trust == "local":
                SiloPolicy().check_manifest(manifest)
            else:
                with pytest.raises(PolicyRefusal, match="linear channels only"):
                    SiloPolicy().check_manifest(manifest)


@pytest.mark.parametrize("options", [{}, {"dp_epsilon": 3.0, "dp_trust": "local"}, {"dp_epsilon": 0.1}])
def test_policies_round_trip_through_their_file(options: dict[str, Any], make_config, tmp_path: Path) -> None:
    policy = SiloPolicy.accepting(make_config(**options))
    (tmp_path / "policy.toml").write_text(policy.to_toml())
    assert SiloPolicy.read(tmp_path / "policy.toml") == policy


@pytest.mark.parametrize(
    "text",
    [
        "epsilon = 0",
        "epsilon = = 3",
        "epsilom = 3",
        'trusts = "local"',
        "delta = 2",
        "colluders = -1",
        "epsilon=nan",
        "epsilon_per_run = 0",
        "epsilon_per_year = -1",
        "epsilon_per_year = nan",
    ],
)
def test_a_policy_that_is_not_one_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        SiloPolicy.read(tmp_path / "policy.toml")


def test_a_missing_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        SiloPolicy.read(tmp_path / "policy.toml")


def test_a_policy_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        SiloPolicy.read(tmp_path / "policy.toml")
