"""Every check of enrolment and bundles has a test that fails without it; see enrolment_mutants.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("enrolment_mutants.py")
REPOSITORY = SCRIPT.parents[2]


def test_mutants_are_of_the_code_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("enrolment_mutants", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for mutant in module.MUTANTS:
        assert (REPOSITORY / mutant.source).read_text().count(mutant.old) == 1, mutant
        for test in mutant.test_ids:
            file, name = test.split("::")
            assert f"def {name}(" in (REPOSITORY / file).read_text(), mutant


@pytest.mark.slow
def test_no_mutant_survives() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
