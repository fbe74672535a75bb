"""Every way to break the privacy promise is caught by the audit or by a test; see privacy_mutants.py."""

from __future__ import annotations

import pytest

from tests.mutated_copy import REPOSITORY
from tests.privacy import privacy_mutants

QUICK = ("no noise (sigma = 0)", "sampling at twice the rate that is charged")


def test_mutants_are_of_the_code_as_it_is() -> None:
    """A text that is no longer there would test nothing."""
    for mutant in privacy_mutants.MUTANTS:
        assert mutant.audit or mutant.tests, mutant.what
        for file, old, _ in mutant.changes:
            assert (REPOSITORY / "autoflip_secure" / file).read_text().count(old) == 1, (mutant.what, old)
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name}(" in (REPOSITORY / file).read_text(), test


@pytest.mark.slow
def test_mutants_are_caught() -> None:
    """Two of them, one by the audit and one by a test; `python -m tests.privacy.privacy_mutants` tries all."""
    chosen = [mutant for mutant in privacy_mutants.MUTANTS if mutant.what in QUICK]
    assert len(chosen) == len(QUICK)
    verdicts = privacy_mutants.judge(chosen)
    assert all(verdict.caught for verdict in verdicts), privacy_mutants.table(verdicts)
    assert "| yes |" in privacy_mutants.table(verdicts)
