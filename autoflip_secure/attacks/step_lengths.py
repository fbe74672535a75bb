"""How far models of a run moved in a round, beside the furthest that honest silos could have moved them.

Read from the public models and manifests alone, after everything that the coordinator did with a sum: what `sum_watch`
promises of sums is looked for in the model.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.recorded_view import Asked, RecordedView
from autoflip_secure.autoflip.sum_bounds import length_limit
from autoflip_secure.config import ResolvedConfig, load_config_file
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.federation.sum_watch import SumWatch
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
        Folder of a run with --record-server-view, and with averaging at the server; where noise is distributed, of a
        task whose number of patients is public.
    """
    folder, view = RunFolder(run), RecordedView(run)
    config = ResolvedConfig.create(**load_config_file(folder.config))
    watch = SumWatch(config, load_task(folder).nominal_records or 0, lambda *_, **__: None)
    momentum = 0.0 if config.trust == "none" else config.momentum
    trained = {asked.round: asked for asked in view.asked if asked.manifest.phase == "train"}
    rounds = [trained[number] for number in sorted(trained)]
    models = [*(asked.model for asked in rounds), ModelPayload.from_bytes(view.final_model)]
    ratios: list[float] = []
    # Not known after rounds that explored, and after one that was pruned until there was one more.
    velocity: NDArray[np.float64] | None = None if rounds[0].round else np.zeros(models[0].weights.size)
    for asked, (before, after) in zip(rounds, pairwise(models), strict=True):
        if not _alike(before, after):
            velocity = None
            continue
        moved = after.weights.astype(np.float64) - before.weights
        updates = [spec for spec in asked.manifest.channels if spec.name == "update"]
        if updates and (velocity is not None or momentum == 0.0):
            step = moved if velocity is None else moved - momentum * velocity
            rounded = ROUNDED * float(np.linalg.norm(after.weights))
            ratios.append(float(np.linalg.norm(step)) / (_furthest(config, watch, asked, updates[0]) + rounded))
        velocity = moved
    return max(ratios), len(ratios)


def _alike(before: ModelPayload, after: ModelPayload) -> bool:
    return before.spec == after.spec and np.array_equal(before.mask, after.mask)


def _furthest(config: ResolvedConfig, watch: SumWatch, asked: Asked, spec: ChannelSpec) -> float:
    """L2 norm of the longest step that a sum of all silos' honest updates makes (`autoflip.sum_bounds`)."""
    manifest, terms = asked.manifest, asked.manifest.privacy
    silos = sum(len(cohort) for cohort in manifest.cohorts)
    honest = watch.honest_length(manifest, spec, silos)
    if honest is None:
        longest = silos * spec.limit * math.sqrt(spec.length)
    else:
        levels = [noise_levels(manifest, spec, cohort) for cohort in range(len(manifest.cohorts))]
        drawn = [0.0 if level is None else level.drawn for level in levels]
        noise = math.sqrt(sum(len(cohort) * own for cohort, own in zip(manifest.cohorts, drawn, strict=True)))
        longest = length_limit(honest, silos, spec, noise * spec.step)
    if terms.trust == "distributed":
        return config.rate(asked.round) * longest / (terms.sampling_rate * asked.model.records)
    return longest / silos
