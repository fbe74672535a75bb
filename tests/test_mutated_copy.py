"""What judges mutants tells them from the code as it is, one right after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutated_copy import TESTS_FAILED, TextNotThere, mutated, repository_copy, run_pytest

SOURCE = Path("autoflip_secure/deployment/armour.py")
CHECK = " if is_hex(text) else b"
TEST = ("tests/deployment/test_enrolment.py::test_a_signature_has_one_text",)


def test_each_run_is_of_the_text_as_it_is_then() -> None:
    with repository_copy(["deployment"]) as copy:
        code, output = run_pytest(copy, TEST)
        assert code == 0, output
        # All within the second that times of files are told by, and two of the same length.
        for without in (" if text else b", " if 1+1  else b"):
            with mutated(copy, [(SOURCE, CHECK, without)]):
                code, output = run_pytest(copy, TEST)
            assert code == TESTS_FAILED
            assert "FAILED tests/deployment/test_enrolment.py::test_a_signature_has_one_text" in output
        assert run_pytest(copy, TEST)[0] == 0
        for broken in (" if is_hex(text) els b", f"{CHECK}'' if __import__('os').abort() else b"):
            with mutated(copy, [(SOURCE, CHECK, broken)]):
                assert run_pytest(copy, TEST)[0] not in (0, TESTS_FAILED)
        assert run_pytest(copy, TEST)[0] == 0
        with pytest.raises(TextNotThere), mutated(copy, [(SOURCE, "no such text", "")]):
            pass
