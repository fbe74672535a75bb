"""Every check of enrolment and bundles has a test that fails without it; see enrolment_mutants.py."""

from __future__ import annotations

import pytest

from tests.deployment import enrolment_mutants
from tests.mutated_copy import REPOSITORY, run_script


def test_mutants_are_of_the_code_as_it_is() -> None:
    for mutant in enrolment_mutants.MUTANTS:
        assert (REPOSITORY / mutant.source).read_text().count(mutant.old) == 1, mutant
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name}(" in (REPOSITORY / file).read_text(), mutant


@pytest.mark.slow
def test_no_mutant_survives() -> None:
    done = run_script("tests.deployment.enrolment_mutants")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
