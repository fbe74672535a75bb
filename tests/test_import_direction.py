"""Imports point down: sim, cli -> federation -> {autoflip, secagg, ckks, privacy, training,
data} -> models, parties, sums -> base."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autoflip_secure"

ALLOWED = {
    "base": set(),
    "sums": {"base"},
    "models": {"base"},
    "data": {"base"},
    "autoflip": {"base", "sums", "models"},
    # Both kinds of secure sum: what they share lies in parties, and neither knows the other.
    "parties": {"base", "sums"},
    "secagg": {"base", "sums", "parties"},
    "ckks": {"base", "sums", "parties"},
    "privacy": {"base", "sums", "models"},
    "training": {"base", "models"},
    # What bad silos send, arrays to arrays; a simulated silo's contribution is wrapped in it by federation.
    "bad_silos": {"base"},
    "federation": {
        *("base", "config", "sums", "models", "data", "bad_silos", "autoflip"),
        *("parties", "secagg", "ckks", "privacy", "training"),
    },
    "config": {"base"},
    "presets": {"base"},
    "options": {"base", "config", "presets"},
    "report": {"base", "config", "federation"},
    "sim": {"base", "config", "options", "data", "models", "autoflip", "training", "federation", "report"},
    "ledger_cli": {"base", "privacy", "federation"},
    "audit_cli": {"base", "privacy", "federation"},
    "export": {"base", "models", "data", "autoflip", "federation"},
    # Homes of the parties, and the processes that run in them.
    "deployment": {
        *("base", "config", "options", "sums", "models", "data", "autoflip"),
        *("parties", "privacy", "federation", "report"),
    },
    "provision_cli": {"base", "home_option", "deployment"},
    "process_cli": {"base", "deployment"},
    "coordinator_cli": {"base", "home_option", "deployment", "process_cli"},
    "silo_cli": {"base", "home_option", "deployment", "process_cli", "review_cli"},
    "run_cli": {"base", "config", "options", "home_option", "deployment", "federation", "report"},
    "review_cli": {"base", "home_option", "models", "parties", "privacy", "federation"},
    "home_option": {"base"},
    # The live page over the files of all of them.
    "dashboard": {"base", "parties", "privacy", "federation", "report"},
    "cli": {
        *("base", "config", "options", "sim", "federation", "report", "export", "dashboard"),
        *("audit_cli", "ledger_cli", "provision_cli", "coordinator_cli", "silo_cli", "run_cli"),
    },
    # Adversaries: they use what an adversary could install, whole runs of the command line too, and no part of the
    # service imports them.
    "attacks": {
        *("base", "config", "options", "bad_silos", "sums", "models", "data", "autoflip"),
        *("parties", "secagg", "ckks", "privacy", "training", "federation", "sim"),
    },
    # The attack on a whole run: it lies in privacy/, and nothing else imports it.
    "audit": {"base", "config", "options", "sums", "models", "data", "parties", "secagg", "privacy", "federation"},
}
BASE = {"errors", "seeds", "storage", "__init__"}


def part_of(module: str) -> str:
    """secagg.prg -> secagg; errors, seeds, storage -> base; privacy.audit* and attacks.bad_silos apart."""
    names = module.split(".")
    if names[1:2] == ["privacy"] and len(names) > 2 and names[2].startswith("audit"):
        return "audit"
    if names[1:] == ["attacks", "bad_silos"]:
        return "bad_silos"
    name = names[1] if len(names) > 1 else "__init__"
    return "base" if name in BASE else name


def imports_of(path: Path) -> set[str]:
    """Our own modules a file imports, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "autoflip_secure":
                found |= {f"autoflip_secure.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("autoflip_secure.")}


def third_party_of(path: Path) -> set[str]:
    """First names of all modules a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_points_up_or_across(path: Path) -> None:
    own = part_of("autoflip_secure." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    for module in imports_of(path):
        target = part_of(module)
        assert target == own or target in ALLOWED[own], f"{path.name} ({own}) imports {module} ({target})"


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("autoflip", {"cryptography", "flwr", "opacus", "tenseal", "socket"}),
        ("secagg", {"torch", "flwr", "opacus", "tenseal"}),
        ("ckks", {"torch", "flwr", "opacus"}),
        ("parties", {"torch", "flwr", "opacus", "tenseal"}),
        ("sums", {"torch", "flwr", "opacus", "tenseal"}),
        ("privacy", {"flwr", "tenseal"}),
        ("models", {"cryptography", "flwr", "opacus"}),
    ],
)
def test_parts_stay_free_of_what_is_not_theirs(part: str, forbidden: set[str]) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        assert not third_party_of(path) & forbidden, path


def test_every_part_is_listed() -> None:
    parts = {part_of("autoflip_secure." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts)) for p in FILES}
    assert parts <= set(ALLOWED), parts - set(ALLOWED)
