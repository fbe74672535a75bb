"""Named settings: the AutoFLIP paper's tasks as published, and their scaled-down forms for two cores.

A preset is a set of options. What is given on the command line or in a file wins over it, and the run's own
config.toml holds every option it came to.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from autoflip_secure.errors import ConfigError

__all__ = ["PRESETS", "preset_options"]

Options = Mapping[str, Any]

_PAPER: Options = {
    "silos": 20, "participation": 0.25, "colluders": 0,
    "local_epochs": 5, "batch_size": 32, "optimizer": "adam", "learning_rate": 3e-4, "lr_decay": 0.99,
    "prune_threshold": 0.3, "prune_flops": 0.48, "rounds": 200,
}  # fmt: skip
"""Interno et al. (arXiv 2405.10271). Five of 20 silos a round: no colluders, so that a round survives a dropout.
The number of rounds and the FLOP target are ours; the paper's savings follow from its threshold alone."""

_QUICK: Options = {"silos": 10, "local_steps": 10, "rounds": 20, "prune_flops": 0.48}

PRESETS: Mapping[str, Options] = MappingProxyType(
    {
        "paper-mnist": {**_PAPER, "dataset": "mnist", "model": "cnn6", "partition": "pathological:2"},
        "paper-cifar10": {**_PAPER, "dataset": "cifar10", "model": "efficientnet-b3", "partition": "pathological:2"},
        "paper-cifar10-resnet": {
            **_PAPER, "dataset": "cifar10", "model": "resnet-small", "partition": "pathological:2",
        },
        "paper-cifar100": {**_PAPER, "dataset": "cifar100", "model": "resnet18", "partition": "dirichlet:0.5"},
        "paper-tiny-imagenet": {
            **_PAPER, "dataset": "tiny-imagenet", "model": "mobilenet-v2", "partition": "dirichlet:0.5",
        },
        "paper-femnist": {**_PAPER, "dataset": "femnist", "model": "femnist-cnn", "partition": "natural"},
        "paper-mnist-writers": {**_PAPER, "dataset": "mnist-writers", "model": "femnist-cnn", "partition": "natural"},
        "paper-shakespeare": {**_PAPER, "dataset": "shakespeare", "model": "char-lstm", "partition": "natural"},
        "quick-mnist": {
            **_QUICK, "dataset": "mnist5k", "model": "cnn6", "partition": "pathological:2",
            "optimizer": "adam", "learning_rate": 1e-3,
        },
        "quick-cifar10": {
            **_QUICK, "dataset": "cifar10", "model": "resnet-small", "partition": "pathological:2",
            "optimizer": "adam", "learning_rate": 1e-3,
        },
        "quick-femnist": {
            **_QUICK, "dataset": "mnist-writers", "model": "cnn6", "partition": "natural",
            "optimizer": "adam", "learning_rate": 1e-3,
        },
        "quick-shakespeare": {
            **_QUICK, "dataset": "shakespeare", "model": "char-lstm", "partition": "natural",
            "optimizer": "adam", "learning_rate": 3e-3,
        },
    }
)  # fmt: skip


def preset_options(name: str | None) -> dict[str, Any]:
    """Options of a preset; none without a name.

    Raises
    ------
    ConfigError
        No preset has this name.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: unknown; use one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])
