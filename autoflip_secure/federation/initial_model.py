"""The model a run starts from. Coordinator and silos compute it from configuration and task, each on its own."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.task import Task
from autoflip_secure.federation.global_masks import pruning_controller
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import ModelSpec, build, dense_spec
from autoflip_secure.seeds import torch_stream

__all__ = ["ROUNDING", "initial_model", "is_close", "start_hash", "whole_model"]

ROUNDING = 1e-5
"""Largest distance of a weight between two machines: their processors may round the last bits of drawn values apart."""


def initial_model(config: ResolvedConfig, task: Task) -> ModelPayload:
    """Round 0's model: drawn from the run's seed, and pruned where the method prunes before anything is learnt.

    `records` is what the task says; where it does not, a census sets another before round 0.
    """
    spec = dense_spec(config.model, task.input_shape, task.outputs)
    start = flatten_parameters(build(spec, torch_stream(config.seed, "init"))).numpy()
    return pruning_controller(config, Schedule(config), spec, start).draw(whole_model(spec, start, task))


def whole_model(spec: ModelSpec, start: NDArray[np.floating], task: Task) -> ModelPayload:
    """The initial network before anything is pruned."""
    return ModelPayload(spec, start.astype(np.float32), np.ones(start.size, bool), task.nominal_records or 0)


def start_hash(model: ModelPayload) -> bytes:
    """SHA-256 of architecture, weights, mask and votes, 32 bytes; not of the number of records: it may be counted."""
    return hashlib.sha256(replace(model, records=0).to_bytes()).digest()


def is_close(model: ModelPayload, expected: ModelPayload) -> bool:
    """Whether two machines may have drawn these two from the same seed."""
    votes, wanted = ((0 if v is None else v) for v in (model.votes, expected.votes))
    return (
        model.spec == expected.spec
        and np.array_equal(model.mask, expected.mask)
        and np.array_equal(votes, wanted)
        and bool(np.abs(model.weights - expected.weights).max(initial=0.0) <= ROUNDING)
    )
