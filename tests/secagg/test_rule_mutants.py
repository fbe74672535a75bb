"""Every rule that silos and coordinator enforce has a test that fails without it; see rule_mutants.py."""

from __future__ import annotations

import re

import pytest

from tests.mutated_copy import REPOSITORY, run_script
from tests.secagg import rule_mutants


def test_every_rule_has_a_mutant():
    """As the protocol lists them, and as the code refuses by them."""
    text = (REPOSITORY / "protocols" / "secagg" / "README.md").read_text()
    listed = set(re.findall(r"\[([a-z]+(?:-[a-z]+)*)[\],]", text.split("## Rules of a silo")[1].split("\n## ")[0]))
    package = REPOSITORY / "autoflip_secure"
    paths = (path for part in ("secagg", "parties") for path in (package / part).glob("*.py"))
    source = "".join(path.read_text() for path in paths if not path.name.startswith("run_key"))
    refused = set(re.findall(r'refusal\(\s*"([a-z-]+)"', source)) | set(
        re.findall(r"refused by rule ([a-z-]+):", source)
    )
    assert len(refused) > 20
    assert listed | refused <= {mutant.rule for mutant in rule_mutants.MUTANTS}


def test_mutants_are_of_the_code_as_it_is():
    """A text that is no longer there would test nothing."""
    for mutant in rule_mutants.MUTANTS:
        source = (REPOSITORY / mutant.source).read_text()
        assert [source.count(old) for old, _ in mutant.changes] == [1] * len(mutant.changes), mutant
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name}(" in (REPOSITORY / file).read_text(), mutant


@pytest.mark.slow
def test_no_mutant_survives():
    done = run_script("tests.secagg.rule_mutants")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| NO" not in done.stdout
