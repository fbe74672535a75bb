"""Every check of a silo's policy has a test that fails without it; see policy_mutants.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from autoflip_secure.federation.policy_rules import Rule

SCRIPT = Path(__file__).with_name("policy_mutants.py")
REPOSITORY = SCRIPT.parents[2]
QUICK = ("at each stage", "of the joined run", "a link is not what it points to", "approved for other code")


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("policy_mutants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_rule_has_a_mutant(mutants: ModuleType) -> None:
    assert set(Rule) <= {mutant.rule for mutant in mutants.MUTANTS}


def test_mutants_are_of_the_code_as_it_is(mutants: ModuleType) -> None:
    """A text that is no longer there would test nothing."""
    for mutant in mutants.MUTANTS:
        source = (REPOSITORY / mutant.source).read_text()
        assert [source.count(old) for old, _ in mutant.changes] == [1] * len(mutant.changes), mutant
        assert mutant.tests
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name.split('[')[0]}(" in (REPOSITORY / file).read_text(), mutant


@pytest.mark.slow
def test_no_mutant_survives(mutants: ModuleType) -> None:
    """A few of them; `python tests/federation/policy_mutants.py` tries all."""
    chosen = [mutant for mutant in mutants.MUTANTS if mutant.what in QUICK]
    assert len(chosen) == len(QUICK)
    verdicts = mutants.rule_mutants.judge(chosen)
    assert all(verdict.killed for verdict in verdicts), mutants.rule_mutants.table(verdicts)
