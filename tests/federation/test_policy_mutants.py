"""Every check of a silo's policy has a test that fails without it; see policy_mutants.py."""

from __future__ import annotations

import pytest

from autoflip_secure.federation.policy_rules import Rule
from tests.federation import policy_mutants
from tests.mutated_copy import REPOSITORY

QUICK = ("at each stage", "of the joined run", "a link is not what it points to", "approved for other code")


def test_every_rule_has_a_mutant() -> None:
    assert set(Rule) <= {mutant.rule for mutant in policy_mutants.MUTANTS}


def test_mutants_are_of_the_code_as_it_is() -> None:
    """A text that is no longer there would test nothing."""
    for mutant in policy_mutants.MUTANTS:
        source = (REPOSITORY / mutant.source).read_text()
        assert [source.count(old) for old, _ in mutant.changes] == [1] * len(mutant.changes), mutant
        assert mutant.tests
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name.split('[')[0]}(" in (REPOSITORY / file).read_text(), mutant


@pytest.mark.slow
def test_no_mutant_survives() -> None:
    """A few of them; `python -m tests.federation.policy_mutants` tries all."""
    chosen = [mutant for mutant in policy_mutants.MUTANTS if mutant.what in QUICK]
    assert len(chosen) == len(QUICK)
    verdicts = policy_mutants.rule_mutants.judge(chosen)
    assert all(verdict.killed for verdict in verdicts), policy_mutants.rule_mutants.table(verdicts)
