"""How far models of a run moved in a round, beside the furthest that honest silos could have moved them.

Read from the public models and manifests alone, after everything that the coordinator did with a sum: what `sum_watch`
promises of sums is looked for in the model.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from autoflip_secure.attacks.recorded_view import Asked, RecordedView
from autoflip_secure.autoflip.sum_bounds import length_limit, most_sampled
from autoflip_secure.config import ResolvedConfig, load_config_file
from autoflip_secure.data.splits import HOLDOUT_FRACTION
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.federation.terms import noise_levels
from autoflip_secure.sums.channels import ChannelSpec

__all__ = ["longest_step"]

ROUNDED = 2.0**-22
"""Of a model's length: what writing three models in single precision may add to a step."""


def longest_step(run: Path) -> tuple[float, int]:
    """The longest step of a run over the longest that all its silos together could honestly take then, and how many
    steps were measured.

    Rounds after which the network was pruned are left out: their model has other parameters. Under DP the server's
    momentum is taken out first, so that a step is what one round's sum made.

    Parameters
    ----------
    run : Path
        Folder of a run with --record-server-view, and with averaging at the server.
    """
    folder, view = RunFolder(run), RecordedView(run)
    config = ResolvedConfig.create(**load_config_file(folder.config))
    patients = load_task(folder).nominal_records or 0
    trained = {asked.round: asked for asked in view.asked if asked.manifest.phase == "train"}
    models = [trained[number].model for number in sorted(trained)] + [ModelPayload.from_bytes(view.final_model)]
    momentum = 0.0 if config.trust == "none" else config.momentum
    ratios, velocity = [], None
    for asked, (before, after) in zip((trained[number] for number in sorted(trained)), pairwise(models), strict=True):
        if not _alike(before, after):
            velocity = None
            continue
        moved = after.weights.astype(np.float64) - before.weights
        # The first round's momentum is 0; that of the first one after pruning is not known.
        step = (
            moved if momentum == 0.0 or asked.round == 0 else None if velocity is None else moved - momentum * velocity
        )
        velocity = moved
        updates = [spec for spec in asked.manifest.channels if spec.name == "update"]
        if updates and step is not None:
            rounded = ROUNDED * float(np.linalg.norm(after.weights))
            ratios.append(float(np.linalg.norm(step)) / (_furthest(config, patients, asked, updates[0]) + rounded))
    return max(ratios), len(ratios)


def _alike(before: ModelPayload, after: ModelPayload) -> bool:
    return before.spec == after.spec and np.array_equal(before.mask, after.mask)


def _furthest(config: ResolvedConfig, patients: int, asked: Asked, spec: ChannelSpec) -> float:
    """L2 norm of the longest step that a sum of all silos' honest updates makes (`autoflip.sum_bounds`)."""
    manifest, terms = asked.manifest, asked.manifest.privacy
    silos = sum(len(cohort) for cohort in manifest.cohorts)
    if terms.trust == "distributed":
        held_back = math.ceil(patients / (1 - HOLDOUT_FRACTION)) + config.silos
        levels = [noise_levels(manifest, spec, cohort) for cohort in range(len(manifest.cohorts))]
        drawn = [0.0 if level is None else level.drawn for level in levels]
        noise = math.sqrt(sum(len(cohort) * own for cohort, own in zip(manifest.cohorts, drawn, strict=True)))
        honest = terms.clip * most_sampled(held_back, terms.sampling_rate)
        expected = terms.sampling_rate * asked.model.records
        return config.rate(asked.round) * length_limit(honest, silos, spec, noise * spec.step) / expected
    if config.update_norm is not None:
        return length_limit(silos * config.update_norm, silos, spec) / silos
    return spec.limit * math.sqrt(spec.length)
