"""Every rule that silos and coordinator enforce has a test that fails without it; see ckks_rule_mutants.py."""

from __future__ import annotations

import re

import pytest

from tests.ckks import ckks_rule_mutants
from tests.mutated_copy import REPOSITORY, run_script


def test_every_rule_has_a_mutant():
    """As the protocol lists them, and as the code refuses by them; those in parties/ may have theirs with secagg's."""
    text = (REPOSITORY / "protocols" / "ckks" / "README.md").read_text()
    listed = set(re.findall(r"\[([a-z]+(?:-[a-z]+)*)\](?!\()", text.split("## Rules of a silo")[1].split("\n## ")[0]))
    package = REPOSITORY / "autoflip_secure" / "ckks"
    refused = set(re.findall(r'refusal\(\s*"([a-z-]+)"', "".join(path.read_text() for path in package.glob("*.py"))))
    assert len(listed) > 15
    assert len(refused) > 9
    own = {mutant.rule for mutant in ckks_rule_mutants.MUTANTS}
    shared = {mutant.rule for mutant in ckks_rule_mutants.engine.MUTANTS if mutant.file.startswith("../parties/")}
    assert listed | refused <= own | shared
    assert refused <= own


def test_mutants_are_of_the_code_as_it_is():
    """A text that is no longer there would test nothing."""
    for mutant in ckks_rule_mutants.MUTANTS:
        source = (REPOSITORY / mutant.source).read_text()
        assert [source.count(old) for old, _ in mutant.changes] == [1] * len(mutant.changes), mutant
        assert mutant.source.parts[1] == mutant.package == "ckks"
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name}(" in (REPOSITORY / file).read_text(), mutant


@pytest.mark.slow
def test_no_mutant_survives():
    done = run_script("tests.ckks.ckks_rule_mutants")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| NO" not in done.stdout
