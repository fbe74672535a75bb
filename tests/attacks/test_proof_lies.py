"""Silos that ask for proofs believe no made-up model, mask or sum, and every one of them without the check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.attacks.lying_coordinator import LyingCoordinator, institution_policy
from autoflip_secure.attacks.malicious_coordinator import FEW_LARGE, ONE_STEP, OPTIONS, PROVED_ROUNDS
from autoflip_secure.attacks.proof_lies import Draw, made_up_masks, made_up_models, model_lies, proof_outcomes
from autoflip_secure.attacks.proved_run import ProvedRun
from autoflip_secure.attacks.sum_lies import MadeUpSums, sum_lies
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.federation.followed_model import FollowedModel
from autoflip_secure.federation.initial_model import is_close
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.session import Session
from autoflip_secure.federation.sum_proof import SumProof

PROVED = {**OPTIONS, "rounds": PROVED_ROUNDS, "prove_models": True}
Made = Callable[[ProvedRun, Records, np.random.Generator], list[Draw]]


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load("digits", None, 0)


@pytest.fixture(scope="module")
def public(data: LoadedData) -> Records:
    assert data.public_test is not None
    return data.public_test


@pytest.fixture
def run(tmp_path: Path, data: LoadedData) -> Iterator[ProvedRun]:
    """After an honest round."""
    with closing(LyingCoordinator(tmp_path / "federation", data, "sum", {**PROVED, **ONE_STEP})) as lying:
        proved = ProvedRun(lying)
        proved.go_on(proved.open())
        yield proved


def test_silos_of_the_attack_ask_for_proofs_as_policies_do_by_default(run: ProvedRun) -> None:
    assert institution_policy(run.lying.config).proved_models
    assert SiloPolicy().proved_models


@pytest.mark.parametrize("made_up", [made_up_models, made_up_masks])
def test_made_up_models_are_refused_and_trained_where_nobody_follows_the_model(
    run: ProvedRun, public: Records, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = made_up(run, public, np.random.default_rng(0))
    tally = model_lies(run, draws, 3 * len(draws))
    assert (tally.told, tally.accepted) == (3 * len(draws), 0)
    sent: list[ModelPayload] = []
    monkeypatch.setattr(FollowedModel, "check", lambda _, manifest, model: sent.append(model))
    monkeypatch.setattr(FollowedModel, "model", property(lambda _: sent[-1]))
    monkeypatch.setattr(Session, "_check_one_model", lambda *_: None)
    assert model_lies(run, draws, len(draws)).accepted == len(draws)


def test_sums_that_silos_did_not_make_are_refused_and_the_true_one_is_taken(run: ProvedRun) -> None:
    before = run.round
    tally = sum_lies(run, 39, np.random.default_rng(0))
    assert tally.told > 30
    assert tally.accepted == 0
    assert run.round == before + 1


def test_without_the_check_of_tags_a_sum_of_another_attempt_is_taken(
    run: ProvedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, less = run.open(), run.open(attempt=1, missing=5)
    lie = replace(whole, sums=less.sums).to_bytes()
    assert not run.believes(1, lie)
    monkeypatch.setattr(SumProof, "holds", lambda *_: True)
    assert run.believes(1, lie)


def test_no_lie_happens_to_be_true(run: ProvedRun, public: Records) -> None:
    random, honest = np.random.default_rng(1), run.step.state.model
    for made_up in (made_up_models, made_up_masks):
        for draw in made_up(run, public, random):
            models = [draw() for _ in range(40)]
            assert not any(is_close(model, honest) and model.records == honest.records for model in models)
    whole, less = run.open(), run.open(attempt=1, missing=5)
    true = {proof.to_bytes() for proof in (whole, less)}
    for make in MadeUpSums(whole, less, run.proofs, random).draws:
        assert not true & {make().to_bytes() for _ in range(40)}


@pytest.mark.slow
def test_under_dp_nothing_made_up_is_believed_either(tmp_path: Path, data: LoadedData, public: Records) -> None:
    options = {**PROVED, **FEW_LARGE}
    with closing(LyingCoordinator(tmp_path / "federation", data, "sum + DP 8", options)) as lying:
        rows = list(proof_outcomes(lying, public, "sum + DP 8", quick=True))
    assert [row.value for row in rows] == [0.0] * 3
    assert all(row.trials >= 100 for row in rows)
