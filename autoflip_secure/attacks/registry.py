"""All attacks by name; what an attack needs is imported when it is loaded."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType

from autoflip_secure.attacks.outcome import Attack
from autoflip_secure.errors import ConfigError

__all__ = ["MODULES", "load_attack"]

MODULES = MappingProxyType(
    {
        "label-sets": "label_sets",
        "gradient-inversion": "gradient_inversion",
        "membership": "membership",
        "differences": "differences",
        "malicious-coordinator": "malicious_coordinator",
        "malicious-silos": "malicious_silos",
        "mask-leakage": "mask_leakage",
        "side-channels": "side_channels",
        "supply-and-storage": "secret_search",
    }
)
"""Module of autoflip_secure.attacks by the attack's name, in the order of the table."""


def load_attack(name: str) -> Attack:
    """The attack of this name.

    Raises
    ------
    ConfigError
        There is none; the message lists all names.
    """
    if name not in MODULES:
        raise ConfigError(f"{name}: no such attack; there are {', '.join(MODULES)}")
    attack: Attack = import_module(f"autoflip_secure.attacks.{MODULES[name]}").ATTACK
    return attack
