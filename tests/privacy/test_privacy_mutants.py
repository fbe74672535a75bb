"""Every way to break the privacy promise is caught by the audit or by a test; see privacy_mutants.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).with_name("privacy_mutants.py")
REPOSITORY = SCRIPT.parents[2]
QUICK = ("no noise (sigma = 0)", "sampling at twice the rate that is charged")


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("privacy_mutants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_mutants_are_of_the_code_as_it_is(mutants: ModuleType) -> None:
    """A text that is no longer there would test nothing."""
    for mutant in mutants.MUTANTS:
        assert mutant.audit or mutant.tests, mutant.what
        for file, old, _ in mutant.changes:
            assert (REPOSITORY / "autoflip_secure" / file).read_text().count(old) == 1, (mutant.what, old)
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name}(" in (REPOSITORY / file).read_text(), test


@pytest.mark.slow
def test_mutants_are_caught(mutants: ModuleType) -> None:
    """Two of them, one by the audit and one by a test; `python tests/privacy/privacy_mutants.py` tries all."""
    chosen = [mutant for mutant in mutants.MUTANTS if mutant.what in QUICK]
    assert len(chosen) == len(QUICK)
    verdicts = mutants.judge(chosen)
    assert all(verdict.caught for verdict in verdicts), mutants.table(verdicts)
    assert "| yes |" in mutants.table(verdicts)
