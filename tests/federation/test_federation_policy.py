"""A silo's own policy: what the coordinator may not talk it out of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.terms import count_channel, deviation_channel, energy_channel, update_channel
from autoflip_secure.sums.channels import CHANNEL_NAMES

SECAGG = {"aggregation": "secagg", "dp_epsilon": 8.0}


def unproved(**limits: Any) -> SiloPolicy:
    """A policy that takes models as they come, so that nothing but its limits refuses."""
    return SiloPolicy(**{"proved_models": False, "min_block": 1, **limits})


def test_the_default_policy_asks_for_proofs_of_models(make_config) -> None:
    with pytest.raises(PolicyRefusal, match=r"rule proved_models: .*--prove-models"):
        SiloPolicy(min_block=1).check_run(make_config(**SECAGG))
    SiloPolicy(min_block=1).check_run(make_config(**SECAGG, prove_models=True))
    assert not SiloPolicy.accepting(make_config(**SECAGG)).proved_models
    assert SiloPolicy.accepting(make_config(**SECAGG, prove_models=True)).proved_models


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"aggregation": "none"}, "rule aggregations: .*'none'"),
        ({"aggregation": "ckks"}, "rule aggregations: .*'ckks'; accepted are secagg"),
        ({"dp_epsilon": None}, "rule trusts: .*'none'"),
        ({"dp_epsilon": 8.01}, "rule epsilon: the run asks for 8.01; the cap is 8"),
        ({"dp_delta": 1.01e-5}, "rule delta"),
    ],
)
def test_the_default_policy_denies(options: dict[str, Any], rule: str, make_config) -> None:
    unproved().check_run(make_config(**SECAGG))
    with pytest.raises(PolicyRefusal, match=rule):
        unproved().check_run(make_config(**{**SECAGG, **options}))


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
    policy = unproved(aggregations=("secagg", "none"))
    with pytest.raises(PolicyRefusal, match=f"rule simulated: .*{words}"):
        policy.check_run(config)
    policy.model_copy(update={"simulated": True}).check_run(config)
    assert unproved().simulated is False


def test_sums_in_clear_are_no_matter_for_locally_noised_updates(make_config) -> None:
    config = make_config(**{**SECAGG, "aggregation": "none"}, dp_trust="local")
    unproved(aggregations=("none",)).check_run(config)


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_both_trust_modes_pass_by_default(trust: str, make_config) -> None:
    unproved().check_run(make_config(**SECAGG, dp_trust=trust))


@pytest.mark.parametrize(
    ("limits", "options", "rule"),
    [
        ({"aggregations": ("none",)}, {}, "rule aggregations"),
        ({"aggregations": ("ckks",)}, {}, "rule aggregations"),
        ({"trusts": ("local",)}, {}, "rule trusts: .*'distributed'"),
        ({"epsilon": 3.0}, {}, "rule epsilon"),
        ({"delta": 1e-6}, {}, "rule delta"),
        ({"colluders": 1}, {}, "rule colluders: 0 tolerated; at least 1"),
    ],
)
def test_each_limit_refuses_a_run_by_its_name(limits: dict[str, Any], options: dict[str, Any], rule: str, make_config):
    with pytest.raises(PolicyRefusal, match=rule):
        unproved(**limits).check_run(make_config(**SECAGG, **options))


@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_either_protected_sum_passes_where_it_is_listed(aggregation: str, make_config) -> None:
    config = make_config(**{**SECAGG, "aggregation": aggregation})
    unproved(aggregations=("secagg", "ckks")).check_run(config)
    unproved(aggregations=(aggregation,)).check_run(config)


def test_a_run_at_the_limit_passes(make_config) -> None:
    policy = unproved(epsilon=3.0, delta=1e-6, colluders=1, trusts=("local",))
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
    with pytest.raises(PolicyRefusal, match="rule trusts"):
        policy.check_run(make_config(aggregation="secagg"))


def test_only_an_accepted_run_without_dp_has_no_budget() -> None:
    both = unproved(epsilon=2.0, trusts=("none", "local"))
    assert (both.budget("none"), both.budget("local")) == (math.inf, 2.0)
    assert unproved(epsilon=2.0).budget("none") == 2.0


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
    policy = unproved(trusts=("none", "local"), **caps)
    assert (policy.budget_per_run("local", promised), policy.budget_per_year("local")) == (run, year)
    assert policy.budget_per_run("none") == policy.budget_per_year("none") == math.inf
    strict = unproved(**caps)
    assert (strict.budget_per_run("none", promised), strict.budget_per_year("none")) == (run, year)


def test_caps_round_trip_and_absent_ones_are_not_written(tmp_path: Path) -> None:
    for policy in (unproved(), unproved(epsilon_per_run=2.0, epsilon_per_year=4.0)):
        (tmp_path / "policy.toml").write_text(policy.to_toml())
        assert SiloPolicy.read(tmp_path / "policy.toml") == policy
    assert "per_year" not in unproved().to_toml()


@pytest.mark.parametrize(
    ("changes", "limits", "rule"),
    [
        ({"terms": {"trust": "none"}}, {}, "rule trusts: .*'none'"),
        ({"terms": {"delta": 1e-4}}, {}, "rule delta"),
        ({}, {"colluders": 1}, "rule colluders"),
        ({"minimum": (3,)}, {"min_cohort": 0.8}, "rule min_cohort: 3 of 4 silos would do; at least 80%"),
        ({}, {"min_cohort": 1.0, "colluders": 0}, None),
        ({"cohorts": ((1, 2, 3), (4, 5, 6, 7)), "minimum": (3, 3)}, {"min_cohort": 0.8}, "rule min_cohort"),
        ({"cohorts": ((1, 2, 3), (4, 5, 6, 7)), "minimum": (3, 4)}, {"min_cohort": 0.8}, None),
    ],
)
def test_each_limit_refuses_a_round_by_its_name(changes, limits, rule, make_config, make_manifest, model) -> None:
    manifest = make_manifest(make_config(**SECAGG), model, **changes)
    if rule is None:
        unproved(**limits).check_manifest(manifest)
    else:
        with pytest.raises(PolicyRefusal, match=rule):
            unproved(**limits).check_manifest(manifest)


def test_squares_are_refused_under_distributed_noise_only(make_config, make_manifest, model) -> None:
    for trust in ("distributed", "local"):
        config = make_config(**SECAGG, dp_trust=trust)
        plain = update_channel(config, 5)
        policy = unproved(channels=("update", "count", "unit_energy", "deviation"))
        policy.check_manifest(make_manifest(config, model, channels=(plain, count_channel(20.0))))
        for square in (energy_channel(4), deviation_channel(5)):
            manifest = make_manifest(config, model, channels=(plain, square))
            if trust == "local":
                policy.check_manifest(manifest)
            else:
                with pytest.raises(PolicyRefusal, match="linear channels only"):
                    policy.check_manifest(manifest)


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


# Least sizes, channels, networks and code


def test_the_default_policy_lets_an_approved_run_send_what_learning_takes() -> None:
    policy = unproved()
    assert policy.approval == "each"
    assert set(policy.channels) == {"update", "count", "metric"}
    assert (policy.models, policy.code, policy.min_silos, policy.min_threshold) == ((), (), 3, 3)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"prune": "autoflip", "dp_trust": "local"}, {"deviation", "unit_energy"}),
        ({"adaptive_clip": 0.5}, {"clip_bits"}),
        ({"prune": "feddst", "dp_epsilon": None}, {"gradient"}),
        ({"prune": "fedmask", "dp_epsilon": None}, {"mask"}),
    ],
)
def test_each_further_channel_has_to_be_named(options: dict[str, Any], channels: set[str], make_config) -> None:
    config = make_config(**{**SECAGG, "rounds": 8, **options})
    needed = unproved(trusts=("none", "local", "distributed"), channels=("update", *channels))
    needed.check_run(config)
    for missing in channels:
        allowed = tuple(set(needed.channels) - {missing})
        with pytest.raises(PolicyRefusal, match=f"rule channels: {missing} would leave") as refused:
            needed.model_copy(update={"channels": allowed}).check_run(config)
        assert refused.value.rule == "channels"


def test_counts_and_scores_are_channels_of_a_run_that_has_them(make_config) -> None:
    policy, config = unproved(channels=("update",)), make_config(**SECAGG)
    assert list(policy.run_refusals(config)) == []
    for asked, name in (({"counted": True}, "count"), ({"scored": True}, "metric")):
        (refused,) = policy.run_refusals(config, **asked)
        assert f"{name} would leave" in str(refused)


def test_listed_networks_bind_also_what_is_approved(make_config) -> None:
    config = make_config(**SECAGG)
    for models, refused in (((), False), ((config.model,), False), (("lenet",), True)):
        rules = [each.rule for each in unproved(models=models).run_refusals(config)]
        assert rules == (["models"] if refused else [])


@pytest.mark.parametrize(
    ("sizes", "least"), [(((1, 2, 3, 4), (5, 6, 7, 8, 9)), (4, 3)), (((1, 2, 3), (4, 5, 6, 7)), (3, 3))]
)
def test_each_cohort_is_held_against_its_own_size(sizes: Any, least: Any, make_config, make_manifest, model) -> None:
    manifest = make_manifest(make_config(**SECAGG), model, cohorts=sizes, minimum=least)
    with pytest.raises(PolicyRefusal, match=f"rule min_cohort: {least[1]} of {len(sizes[1])} silos would do"):
        unproved(min_cohort=0.8).check_manifest(manifest)


@pytest.mark.parametrize("least", [3, 4, 5])
def test_fewest_silos_and_shares_are_limits_of_runs_and_rounds(least: int, make_config, make_manifest, model) -> None:
    config = make_config(**SECAGG)
    for policy in (unproved(min_silos=least), unproved(min_threshold=least)):
        has = 4 if policy.min_silos > 3 else 3
        manifest = make_manifest(config, model, minimum=(4,), threshold=3)
        rules = [each.rule for each in policy.run_refusals(config)]
        assert bool(rules) == (least > has)
        assert list(policy.run_refusals(config, enrolled=30)) == [] or policy.min_silos > has, "t is 21 of 30"
        if rules:
            with pytest.raises(PolicyRefusal, match=f"rule {rules[0]}: "):
                policy.check_manifest(manifest)
        else:
            policy.check_manifest(manifest)


@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_sums_are_opened_with_the_policy_s_fewest_silos(aggregation: str, institution) -> None:
    silo = institution(policy={"min_silos": 4}, aggregation=aggregation)
    assert silo.join().status == "ok", silo.refusal
    secure_sum = silo.silo._open_session().secure_sum
    rules = secure_sum._rules if aggregation == "ckks" else secure_sum._party.rules
    assert rules.minimum == 4


LOOSE: dict[str, Any] = {
    "aggregations": ("secagg", "ckks", "none"),
    "trusts": ("none", "local", "distributed"),
    "channels": tuple(sorted(CHANNEL_NAMES)),
    "epsilon": 20.0,
    "delta": 1e-3,
    "colluders": 0,
    "min_cohort": 0.5,
    "min_silos": 3,
    "min_threshold": 3,
    "rotating_cohorts": True,
    "proved_models": False,
    "min_block": 1,
    "models": ("mlp",),
}
TIGHTER = st.fixed_dictionaries(
    {},
    optional={
        "aggregations": st.sets(st.sampled_from(LOOSE["aggregations"])).map(tuple),
        "trusts": st.sets(st.sampled_from(LOOSE["trusts"])).map(tuple),
        "channels": st.sets(st.sampled_from(LOOSE["channels"])).map(tuple),
        "epsilon": st.floats(0.1, 20),
        "delta": st.floats(1e-9, 1e-3),
        "colluders": st.integers(0, 9),
        "min_cohort": st.floats(0.5, 1),
        "min_silos": st.integers(3, 20),
        "min_threshold": st.integers(3, 20),
        "rotating_cohorts": st.booleans(),
        "proved_models": st.booleans(),
        "min_block": st.integers(1, 5),
        "models": st.sampled_from([("mlp",), ("lenet",)]),
    },
)
RUNS: tuple[dict[str, Any], ...] = (
    {},
    {**SECAGG, "silos": 10, "colluders": 2},
    {**SECAGG, "dp_trust": "local", "prune": "autoflip", "dp_epsilon": 3.0},
    {"silos": 16, "cohort_filter": True, "allow_cohort_rotation": True},
    {"aggregation": "ckks", "prune": "fedmask", "min_cohort": 1.0},
    {**SECAGG, "silos": 10, "block": 3, "min_cohort": 0.6},
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tighter=TIGHTER, options=st.sampled_from(RUNS))
def test_a_tighter_policy_lets_nothing_more_in(tighter: dict[str, Any], options: dict[str, Any], make_config) -> None:
    config = make_config(**options)
    loose = unproved(approval="standing", **LOOSE)
    assert [each.rule for each in loose.run_refusals(config)] == []
    refused = [each.rule for each in unproved(approval="standing", **{**LOOSE, **tighter}).run_refusals(config)]
    assert set(refused) <= set(tighter), "a setting refuses by its own name"
    assert len(refused) == len(set(refused))


def test_all_rules_that_fail_are_told_each_once(make_config) -> None:
    config = make_config(aggregation="ckks", dropout=0.5, seed=3)
    strict = unproved(colluders=1, min_silos=5, min_threshold=4, channels=("count",), models=("lenet",), delta=1e-6)
    assert [refused.rule for refused in strict.run_refusals(config)] == [
        "aggregations", "trusts", "delta", "colluders", "models", "min_silos", "min_threshold", "channels", "simulated",
    ]  # fmt: skip
