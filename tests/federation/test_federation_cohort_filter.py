"""The cohort filter in a run: fixed cohorts that silos hold the coordinator to, and what it does against bad silos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoflip_secure.attacks.bad_silos import BadSilos
from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.registry import load
from autoflip_secure.data.silo_folder import SiloData
from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.federation import client_app
from autoflip_secure.federation.audit_heads import HeadList
from autoflip_secure.federation.audit_log import Head
from autoflip_secure.federation.bad_contributor import BadContributor
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.cohort_watch import CohortWatch
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.engines import run_federation
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.rotation import determined, rotation_bound
from autoflip_secure.federation.run_state import load_checkpoint
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.terms import deviation_channel, energy_channel, update_channel
from autoflip_secure.federation.wire import Request
from autoflip_secure.sums.channels import Aggregate

FILTER: dict[str, Any] = {"silos": 16, "cohort_filter": True, "rounds": 4}


@pytest.fixture(autouse=True)
def _close_silos() -> Any:
    client_app.close_silos()
    yield
    client_app.close_silos()


# Cohorts


@pytest.mark.parametrize(("silos", "cohorts", "size"), [(20, None, 4), (20, 4, 5), (20, 6, 3), (12, None, 3)])
def test_cohorts_are_the_same_in_every_round_and_bear_no_squares(make_config, silos, cohorts, size) -> None:
    config = make_config(**{**FILTER, "silos": silos, "cohorts": cohorts, "prune": "autoflip", "rounds": 12})
    schedule = Schedule(config)
    plans = [schedule.plan(round) for round in range(config.rounds)]
    assert {plan.cohorts for plan in plans} == {plans[0].cohorts}
    assert sorted(silo for cohort in plans[0].cohorts for silo in cohort) == list(range(1, silos + 1))
    assert min(map(len, plans[0].cohorts)) == size
    assert (schedule.sends_energy, schedule.moments) == (False, 1)
    assert min(plans[0].minimum) >= 3


def test_default_colluders_are_what_a_cohort_bears(make_config) -> None:
    chosen = make_config(**{**FILTER, "silos": 20, "colluders": None})
    assert chosen.colluders == 1
    assert Schedule(chosen).plan(0).minimum == (4,) * 5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cohorts": 3}, "--cohorts 3"),
        ({"silos": 10}, "--colluders"),
        ({"participation": 0.5}, "--participation 0.5"),
        ({"explore_participation": 0.5}, "--explore-participation 0.5"),
    ],
)
def test_what_the_filter_cannot_bear_is_refused(make_config, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Schedule(make_config(**{**FILTER, **options}))


def test_rotation_goes_with_the_filter_only(make_config) -> None:
    with pytest.raises(ConfigError, match="--allow-cohort-rotation"):
        make_config(allow_cohort_rotation=True)


def test_rotation_draws_cohorts_anew_and_its_bound_holds(make_config) -> None:
    config = make_config(**{**FILTER, "silos": 20, "rounds": 12, "allow_cohort_rotation": True})
    schedule = Schedule(config)
    assert len({schedule.plan(round).cohorts for round in range(12)}) == 12
    bound = rotation_bound(schedule)
    assert bound.least == 5
    assert bound.least <= bound.all < 12
    assert bound.one <= bound.all
    rows = [np.isin(range(1, 21), c) for round in range(bound.all) for c in schedule.plan(round).cohorts]
    constant = np.arange(20.0) ** 2
    found = np.linalg.lstsq(np.array(rows, float), np.array(rows, float) @ constant, rcond=None)[0]
    np.testing.assert_allclose(found, constant, atol=1e-6)
    fixed = rotation_bound(Schedule(make_config(**{**FILTER, "silos": 20})))
    assert (fixed.one, fixed.all) == (None, None)
    assert "after" in bound.sentence()


def test_what_sums_determine() -> None:
    assert determined(np.array([[1.0, 1, 0], [1, 0, 0]])).tolist() == [True, True, False]
    assert not determined(np.array([[1.0, 1, 0], [0, 1, 1]])).any()


# Silos


def ask(silo: Silo, folder: Any, config: ResolvedConfig, manifest: Any, model: Any) -> Any:
    heads = HeadList(Head.signed(1, bytes(32), folder.coordinator_identity()), {1: silo._audit.head})
    content = replace(manifest, heads_hash=heads.hash()).to_bytes()
    return silo.answer(Request("clear", manifest.round, manifest.attempt, content, model.to_bytes(), heads.shown()[1]))


@pytest.mark.parametrize("private", [False, True])
def test_a_silo_refuses_other_cohorts_than_it_joined(
    private: bool, make_config, make_federation, make_manifest, model, task
) -> None:
    options = {"dp_epsilon": 8.0, "dp_trust": "local"} if private else {}
    config = make_config(**{**FILTER, **options})
    folder = make_federation(config)
    silo = Silo(silo_folder(folder.path, 1))
    from autoflip_secure.privacy.accounting import Mechanism

    planned = {"train": [Mechanism(config.sampling_rate, 2.0, 40)]} if private else {}
    request = JoinRequest(folder.session(), config, task.to_json(), planned)
    reply = silo.answer(Request(JOIN_STAGE, 0, 0, request.sign(folder.coordinator_identity())))
    log = silo_folder(folder.path, 1) / "silo.log"
    assert reply.status == "ok", log.read_text()
    honest = make_manifest(config, model, session=folder.session(), config_hash=request.digest())
    assert ask(silo, folder, config, honest, model).status == "ok", log.read_text()
    mine = next(i for i, cohort in enumerate(honest.cohorts) if 1 in cohort)
    other = (mine + 1) % len(honest.cohorts)
    cohorts = [list(cohort) for cohort in honest.cohorts]
    away = next(silo for silo in cohorts[mine] if silo != 1)
    cohorts[mine][cohorts[mine].index(away)], cohorts[other][0] = cohorts[other][0], away
    swapped = tuple(tuple(sorted(cohort)) for cohort in cohorts)
    whole = (tuple(range(1, 17)),)
    for attack in (
        replace(honest, round=2, cohorts=swapped),
        replace(honest, round=2, cohorts=whole, minimum=(13,)),
        replace(honest, round=2, cohorts=(honest.cohorts[mine],), minimum=(4,)),
    ):
        assert ask(silo, folder, config, attack, model).status == "refused"
        assert "other cohorts than the joined run fixes" in log.read_text().splitlines()[-1]
    assert ask(silo, folder, config, replace(honest, round=2), model).status == "ok", log.read_text()


def test_an_institution_refuses_to_spoil_and_to_rotate(make_config) -> None:
    policy = {"aggregations": ("none",), "trusts": ("none", "distributed"), "proved_models": False, "min_block": 1}
    with pytest.raises(PolicyRefusal, match="spoil"):
        SiloPolicy(**policy).check_run(make_config(bad_silos="noise:0.25", prune="none"))
    rotating = make_config(**{**FILTER, "allow_cohort_rotation": True})
    with pytest.raises(PolicyRefusal, match="rotating_cohorts"):
        SiloPolicy(**policy).check_run(rotating)
    SiloPolicy(**policy, rotating_cohorts=True).check_run(rotating)


@pytest.mark.parametrize("epsilon", [None, 8.0])
@pytest.mark.parametrize("drawn", [{"participation": 0.8}, {"explore_participation": 0.8}, {}])
def test_an_institution_refuses_rounds_without_it_under_dp_too(
    make_config, epsilon: float | None, drawn: dict[str, float]
) -> None:
    config = make_config(silos=20, prune="autoflip", colluders=0, dp_epsilon=epsilon, **drawn)
    policy = {"aggregations": ("none",), "trusts": ("none", "distributed"), "epsilon": 8.0}
    refusals = [str(rule) for rule in SiloPolicy(**policy).run_refusals(config)]
    assert any("rotating_cohorts" in rule for rule in refusals) == bool(drawn)
    assert not any(
        "rotating_cohorts" in str(r) for r in SiloPolicy(**policy, rotating_cohorts=True).run_refusals(config)
    )


# Bad silos


@pytest.mark.parametrize(
    ("text", "named"), [("noise:0.01", "is none"), ("noise:0.7", "0..0.5"), ("theft:0.2", "label-flip")]
)
def test_bad_silos_that_make_no_sense_are_refused(make_config, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_config(bad_silos=text)


@pytest.mark.parametrize("kind", ["noise", "scaling", "label-flip"])
def test_what_a_bad_silo_sends(kind: str, make_config, make_manifest, model, records, task) -> None:
    config = make_config()
    live, units = int(model.mask.sum()), sum(model.spec.widths)
    manifest = make_manifest(
        config, model, channels=(deviation_channel(live), update_channel(config, live), energy_channel(units))
    )
    bad = BadSilos.parse(f"{kind}:0.25")
    honest = Contributor(config, task, SiloData(records), 1, "cpu")._vectors(manifest, model)
    sent = BadContributor(bad, config, task, SiloData(records), 1, "cpu")._vectors(manifest, model)
    assert {name: v.shape for name, v in sent.items()} == {name: v.shape for name, v in honest.items()}
    if kind == "noise":
        assert np.linalg.norm(sent["update"]) == pytest.approx(10 * np.linalg.norm(honest["update"]), rel=1e-6)
        cosine = sent["update"] @ honest["update"] / np.linalg.norm(sent["update"]) / np.linalg.norm(honest["update"])
        assert abs(cosine) < 0.1
        np.testing.assert_allclose(sent["deviation"], sent["update"] ** 2)
        assert sent["unit_energy"].sum() <= sent["deviation"].sum()
    elif kind == "scaling":
        np.testing.assert_allclose(sent["update"], 10 * honest["update"])
        np.testing.assert_allclose(sent["unit_energy"], 100 * honest["unit_energy"])
    else:
        flipped = replace(records, y=task.classes - 1 - records.y)
        expected = Contributor(config, task, SiloData(flipped), 1, "cpu")._vectors(manifest, model)
        np.testing.assert_array_equal(sent["update"], expected["update"])
        assert not np.array_equal(sent["update"], honest["update"])


def test_under_distributed_noise_the_gradient_sum_is_what_is_spoilt(
    make_config, make_manifest, model, records, task
) -> None:
    config = make_config(dp_epsilon=8.0, insecure_reproducible_noise=True)
    manifest = make_manifest(config, model)
    sent = {}
    for kind in ("noise", "scaling"):
        bad = BadSilos.parse(f"{kind}:0.25")
        sent[kind] = BadContributor(bad, config, task, SiloData(records), 1, "cpu")._vectors(manifest, model)["update"]
    honest = Contributor(config, task, SiloData(records), 1, "cpu")._vectors(manifest, model)["update"]
    np.testing.assert_allclose(sent["scaling"], 10 * honest, rtol=1e-5)
    assert np.linalg.norm(sent["noise"]) == pytest.approx(10 * np.linalg.norm(honest), rel=1e-5)


# What is judged


@pytest.mark.parametrize("options", [{"dp_epsilon": 8.0}, {"dp_epsilon": 8.0, "dp_trust": "local"}])
def test_masked_coordinates_say_nothing(make_config, options: dict[str, Any]) -> None:
    """They carry no noise: were they counted, the noise taken off would hide how long a spoilt cohort's mean is."""
    config = make_config(**{**FILTER, **options})
    schedule = Schedule(config)
    draw, size = np.random.default_rng(0), 4000
    live = np.arange(size) % 2 == 0
    shared = draw.normal(size=size) * 0.1
    noised = [shared + draw.normal(size=size) * std for std in (0.5, 0.5, 0.5, 5.0)]
    distributed = config.trust == "distributed"
    noise = {"update": 2.0} if distributed else {}
    sums = [Aggregate(1, c, 4, {"update": 4 * np.where(live, m, 0.0)}, noise) for c, m in enumerate(noised)]
    told: list[dict[str, Any]] = []
    watch = CohortWatch(config, schedule, lambda event, **fields: told.append({"event": event, **fields}))
    left = watch.passed(1, schedule.plan(1), sums, live, 0.0 if distributed else 4 * 0.5**2)
    assert [event["cohort"] for event in told] == [3]
    assert told[0]["weight"] < 0.2
    assert [a.mean_noise_std("update") for a in left[:3]] == pytest.approx([left[0].mean_noise_std("update")] * 3)
    assert 0.5 < left[0].mean_noise_std("update") < 0.8, "scaled with the sum it is of"


@pytest.mark.parametrize("options", [{"cohort_filter": True}, {"bad_silos": "noise:0.25"}, {"optimizer": "adam"}])
def test_masks_are_not_filtered_and_not_spoilt(options: dict[str, Any]) -> None:
    run = RunConfig.create(prune="fedmask", silos=16, **options)
    with pytest.raises(ConfigError, match="fedmask"):
        resolve(run, load("digits", None, 0).task, natural_silos=None)


# Through the secure sum


def test_a_run_with_the_filter_names_the_spoilt_cohorts(make_config, make_federation) -> None:
    config = make_config(
        **{**FILTER, "aggregation": "secagg", "prune": "autoflip", "bad_silos": "noise:0.125:30", "seed": 1}
    )
    folder = make_federation(config)
    lines: list[dict[str, Any]] = []
    run_federation(folder, config, lines.append)
    events = list(read_json_lines(folder.events))
    bad = set(next(e for e in events if e["event"] == "bad_silos")["silos"])
    cohorts = next(e for e in events if e["event"] == "cohort_filter")["cohorts"]
    assert len(bad) == 2
    assert len(lines) == 4
    spoilt = {index for index, cohort in enumerate(cohorts) if bad & set(cohort)}
    left: list[float] = []
    for round in range(4):
        named = {e["cohort"]: e["weight"] for e in events if e["event"] == "cohort_filtered" and e["round"] == round}
        assert spoilt <= set(named)
        left += [named[index] for index in spoilt]
    # A bad silo's noise is a multiple of its own update, which shrinks as it learns: rounds differ.
    assert max(left) < 0.5
    assert sum(left) / len(left) < 0.2
    assert [line["cohorts"] for line in lines] == [4] * 4
    assert [line["silos"] for line in lines] == [16] * 4
    assert any(line["agreement"] is not None for line in lines)


def test_what_rounds_tell_of_fixed_cohorts_is_in_the_checkpoint(make_config, make_federation) -> None:
    """A resumed run must not start to learn anew which cohorts are apart; rotating ones have nothing to keep."""
    config = make_config(**{**FILTER, "prune": "none", "bad_silos": "label-flip:0.25"})
    folder = make_federation(config)
    run_federation(folder, config, lambda line: None)
    kept = load_checkpoint(folder.checkpoint).facts["cohorts"]
    assert 0 < kept["rounds"] <= config.rounds, "lengths may differ too much in a round"
    watch = CohortWatch(config, Schedule(config), lambda event, **fields: None, kept)
    assert watch.facts() == kept
    rotating = make_config(**{**FILTER, "allow_cohort_rotation": True})
    assert CohortWatch(rotating, Schedule(rotating), lambda event, **fields: None).facts() is None
