"""One federation in one process, without messages: what `agreement_privacy.py` measures on.

Gradients are clipped per record as silos clip them (checked against `ClippedGradientSum` at every start), sampled with
the rate of the run, summed by silo or cohort, and noised with continuous Gaussians of the standard deviation that the
sums of a real run carry once excess noise is removed: each of s survivors adds variance V / (s - c), c colluders.
The pooled sum does not depend on who holds which record, so one trajectory of the model serves every partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from autoflip_secure.autoflip.units import UnitMap
from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.federation_data import LoadedData
from autoflip_secure.data.partition import partition
from autoflip_secure.data.records import Records
from autoflip_secure.data.registry import load
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.plan import session_plan
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.terms import ROUNDING_SHARE, update_channel
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import ModelSpec, build, dense_spec
from autoflip_secure.privacy.discrete_noise import per_silo_std
from autoflip_secure.privacy.gradient_sum import CLIP_MARGIN, ClippedGradientSum
from autoflip_secure.privacy.per_record import PerRecordGradients
from autoflip_secure.privacy.plan import PrivacyPlan
from autoflip_secure.seeds import stream, torch_stream
from autoflip_secure.sums.channels import Aggregate

__all__ = [
    "Grouping",
    "SummedGradients",
    "aggregates_of",
    "cohort_noise",
    "configuration",
    "data",
    "groupings",
    "holders",
    "plan_of",
    "sample",
    "sigma",
    "spec",
    "start_weights",
]

Values = NDArray[np.float64]
OPACUS_GUARD = 1e-6
DATASET, MODEL = "mnist5k", "cnn-tanh"


@cache
def data() -> LoadedData:
    """The embedded data set."""
    torch.set_num_threads(1)
    return load(DATASET, None, 0)


def spec() -> ModelSpec:
    """The dense network."""
    return dense_spec(MODEL, data().task.input_shape, data().task.classes)


def start_weights(seed: int) -> Values:
    """W_0 of a run with this seed."""
    return flatten_parameters(build(spec(), torch_stream(seed, "init"))).numpy().astype(np.float64)


def configuration(**options: object) -> ResolvedConfig:
    """The defaults of a run with these options."""
    return resolve(RunConfig.create(dataset=DATASET, model=MODEL, **options), data().task, natural_silos=None)


@cache
def _solved(trust: str, epsilon: float) -> PrivacyPlan:
    config = configuration(dp_epsilon=epsilon, dp_trust=trust)
    return session_plan(config, data().task, Schedule(config), public_test=True).privacy


def plan_of(config: ResolvedConfig) -> PrivacyPlan:
    """Privacy plan of the whole default schedule at this epsilon; it does not depend on silos or cohorts."""
    assert config.dp_epsilon is not None
    return _solved(config.trust, config.dp_epsilon)


def sigma(config: ResolvedConfig) -> float:
    """Noise multiplier of every use of the training records."""
    return plan_of(config).noise_multiplier


@dataclass(frozen=True, eq=False)
class Grouping:
    """Who holds which record, and which silos are summed together.

    Attributes
    ----------
    partition : str
    config : ResolvedConfig
        Of a run with these silos and cohorts.
    silo : int64 (records,)
        Index of the silo that holds each record of the pooled data.
    cohort : int64 (silos,)
        Cohort of each silo.
    """

    partition: str
    config: ResolvedConfig
    silo: NDArray[np.int64]
    cohort: NDArray[np.int64]

    @property
    def sizes(self) -> list[int]:
        """Silos of each cohort."""
        return np.bincount(self.cohort).tolist()

    def membership(self, records: NDArray[np.int64]) -> NDArray[np.float32]:
        """1 where a cohort (row) holds a record (column)."""
        return (self.cohort[self.silo[records]] == np.arange(self.config.cohorts)[:, None]).astype(np.float32)

    def silo_membership(self, records: NDArray[np.int64]) -> NDArray[np.float32]:
        """1 where a silo (row) holds a record (column)."""
        return (self.silo[records] == np.arange(self.config.silos)[:, None]).astype(np.float32)


def holders(how: str, silos: int, seed: int) -> NDArray[np.int64]:
    """Index of the silo that holds each record."""
    records = data().train
    assert records is not None
    # The partitioner hands out records; rows that carry their own number tell which.
    numbered = Records(np.arange(len(records), dtype=np.float32)[:, None], records.y)
    holder = np.empty(len(records), np.int64)
    for silo, part in enumerate(partition(numbered, how, silos, seed)):
        holder[part.x[:, 0].astype(np.int64)] = silo
    return holder


def groupings(
    epsilon: float, seed: int, partitions: Sequence[str], silos: Sequence[int], cohorts: Sequence[int]
) -> list[Grouping]:
    """Every combination that the rules of a run allow with its default number of colluders."""
    made = []
    for how in partitions:
        for n in silos:
            holder = holders(how, n, seed)
            for count in cohorts:
                if count == 1 and how != partitions[0]:
                    continue  # one cohort sums all records, whoever holds them
                config = configuration(dp_epsilon=epsilon, silos=n, partition=how, cohorts=count, seed=seed)
                try:
                    plan = Schedule(config).plan(0)
                except ConfigError:
                    continue  # a cohort this small is never opened
                member = np.empty(n, np.int64)
                for index, cohort in enumerate(plan.cohorts):
                    member[np.array(cohort) - 1] = index
                made.append(Grouping(how, config, holder, member))
    return made


def cohort_noise(config: ResolvedConfig, silos: int, size: int) -> float:
    """Standard deviation of a coordinate of the noised sum of a cohort of `silos`, all of them alive."""
    channel = update_channel(config, size)
    one = per_silo_std(
        sigma(config), config.clip / channel.step, size, silos - config.colluders, ROUNDING_SHARE * config.dp_delta
    )
    return one * channel.step * silos**0.5


def aggregates_of(sums: Values, sizes: Sequence[int], noise: Sequence[float], round: int) -> list[Aggregate]:
    """Cohort sums, shape (cohorts, size), as the coordinator holds them."""
    return [
        Aggregate(round, c, sizes[c], {"update": sums[c]}, {"update": noise[c]}, minimum=1) for c in range(len(sums))
    ]


def sample(seed: int, round: int, rate: float) -> NDArray[np.int64]:
    """Poisson-sampled records of all silos."""
    assert data().train is not None
    return np.flatnonzero(stream(seed, "sampling", round).random(len(data().train.y)) < rate)


class SummedGradients:
    """Clipped per-record gradients summed by any number of groups in one pass, negated like a silo's update."""

    def __init__(self) -> None:
        self._net = build(spec())
        self._gradients = PerRecordGradients(self._net)
        self._masters = self._gradients.masters()
        records = data().train
        assert records is not None
        self._x, self._y = torch.from_numpy(records.x), torch.from_numpy(records.y)
        self._check()

    def __call__(self, weights: Values, chosen: NDArray[np.int64], groups: NDArray[np.float32], clip: float) -> Values:
        """Sums over the chosen records.

        Parameters
        ----------
        groups : float32 (groups, chosen)
            Weight of each record in each group.

        Returns
        -------
        float64 (groups, size)
        """
        load_flat_parameters(self._net, torch.from_numpy(weights.astype(np.float32)))
        total = torch.zeros(len(groups), weights.size, dtype=torch.float64)
        member, start = torch.from_numpy(groups), 0
        live = [None] * len(self._masters)
        for records, targets, real in self._gradients.chunks(self._x[chosen], self._y[chosen]):
            self._gradients.fill(self._masters, records, targets, real, live)
            rows = torch.cat([p.grad_sample.reshape(len(records), -1).float() for p in self._masters], 1)[:real]
            factor = (clip * (1.0 - CLIP_MARGIN) / (rows.norm(dim=1) + OPACUS_GUARD)).clamp(max=1.0)
            total += (member[:, start : start + real] * factor) @ rows
            start += real
        return -total.numpy()

    def _check(self) -> None:
        """The sums are those of the function that silos run."""
        weights, chosen = start_weights(0), np.arange(100)
        network = build(spec())
        load_flat_parameters(network, torch.from_numpy(weights.astype(np.float32)))
        with ClippedGradientSum(network) as reference:
            expected = -reference(self._x[chosen], self._y[chosen], 0.1)
        mine = self(weights, chosen, np.ones((1, 100), np.float32), 0.1)[0]
        if not np.allclose(mine, expected, rtol=1e-3, atol=1e-6):
            raise SystemExit("the simulation's gradient sums are not those of ClippedGradientSum")


def unit_map() -> UnitMap:
    """Units of the dense network."""
    return UnitMap.of(spec())
