"""Break each part of the privacy promise in a copy of the package and see it caught:

    python -m tests.privacy.privacy_mutants

A mutant is an exact text replacement. It is caught by the audit where that is said (exit code 3: more was learnt than
the promise allows), and by a named test. Exits with 1 where one survives or its text is no longer there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutated_copy import START, TESTS_FAILED, TextNotThere, mutated, repository_copy, run_pytest, run_python

__all__ = ["MUTANTS", "Mutant", "Verdict", "judge", "table"]

TEST_FOLDERS = ("privacy", "federation")
AUDIT = START + "from autoflip_secure.privacy.audit import main; sys.exit(main(sys.argv[2:]))"
PROMISE_BROKEN = 3

Change = tuple[str, str, str]
"""File in autoflip_secure, old text (exactly once in it), new text."""


@dataclass(frozen=True)
class Mutant:
    """One way to break the promise.

    Attributes
    ----------
    what : str
    changes : tuple of Change
    audit : tuple of str
        Arguments of the audit that shows it; empty where an audit sees too little of it.
    tests : tuple of str
        `folder/file::test` without `test_` and `.py`; one of them has to fail. Empty where the audit alone shows it.
    """

    what: str
    changes: tuple[Change, ...]
    audit: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    @property
    def test_ids(self) -> tuple[str, ...]:
        return tuple("tests/{}/test_{}.py::test_{}".format(*re.split("/|::", test)) for test in self.tests)


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: what the audit measured, the test that failed, why it could not be tried."""

    mutant: Mutant
    audited: dict[str, Any] | None = None
    failed: str = ""
    problem: str = ""

    @property
    def caught(self) -> bool:
        shown = not self.mutant.audit or (self.audited is not None and self.audited["broken"])
        failed = not self.mutant.tests or bool(self.failed)
        return shown and failed and not self.problem


def one_release(epsilon: float, canaries: int, *more: str) -> tuple[str, ...]:
    """An audit of one round (and its reserve) that samples every record: small and quick."""
    options = {"--epsilon": epsilon, "--canaries": canaries, "--rounds": 1, "--sampling-rate": 1, "--silos": 4}
    return (*(str(part) for option in options.items() for part in option), "--colluders", "0", *more)


DISCRETE, LOCAL, GRADIENTS = "privacy/discrete_noise.py", "privacy/local_sgd.py", "privacy/gradient_sum.py"
SILO = "federation/contribution.py"
STATISTICS = "privacy/privacy_noise_statistics"
CONTRIBUTION = "federation/federation_contribution"

MUTANTS = (
    Mutant("no noise (sigma = 0)",
           ((DISCRETE, "        return values\n\n    def _magn", "        return 0 * values\n\n    def _magn"),),
           one_release(4, 2000), (f"{STATISTICS}::the_sum_carries_the_noise_that_is_owed_and_no_more",)),
    Mutant("noise half as strong",
           ((DISCRETE, "table = cumulative_table(self.std)", "table = cumulative_table(self.std / 2)"),),
           one_release(2, 14000), (f"{STATISTICS}::the_sum_carries_the_noise_that_is_owed_and_no_more",)),
    Mutant("no noise under local trust",
           ((LOCAL, "p.grad = (p.summed_grad + noise).view_as(p)", "p.grad = p.summed_grad.view_as(p)"),),
           one_release(4, 2000, "--trust", "local"), (f"{STATISTICS}::local_updates_carry_the_whole_noise_each",)),
    Mutant("clip skipped",
           ((GRADIENTS, "max_grad_norm = clip * (1.0 - CLIP_MARGIN)", "max_grad_norm = 1e9"),),
           one_release(2, 2000), ("privacy/privacy_gradient_sum::no_record_exceeds_the_clip",)),
    Mutant("clip skipped under local trust",
           ((LOCAL, "max_grad_norm=clip * (1.0 - CLIP_MARGIN)", "max_grad_norm=1e9"),
            (LOCAL, "self.noise_multiplier * self.max_grad_norm", "self.noise_multiplier * 0.1")),
           one_release(2, 2000, "--trust", "local"),
           ("privacy/privacy_local_sgd::one_record_moves_a_step_by_at_most_the_clip",)),
    Mutant("accountant reset each round",
           (("privacy/ledger.py", "spent = self._composition(line.dataset, cap.condition, cap.values)",
             "spent = Counter()"),
            ("federation/session.py", "if used + terms.steps > allowed:", "if terms.steps > allowed:")),
           one_release(2, 2000),
           ("privacy/privacy_ledger::over_budget_is_refused_with_numbers_and_nothing_is_written",)),
    Mutant("noise drawn from the run's seed",
           ((SILO,
             'if manifest.privacy.trust == "none" or self._config.insecure_reproducible_noise:', "if True:"),),
           (), (f"{STATISTICS}::the_same_seed_does_not_give_the_same_noise",
                f"{CONTRIBUTION}::two_private_contributions_differ")),
    Mutant("two silos add no noise where one may collude",
           ((SILO, "integers += levels.draw(", "integers += (self._silo != 2) * levels.draw("),),
           (), (f"{STATISTICS}::the_sum_carries_the_noise_that_is_owed_and_no_more",)),
    Mutant("fixed-size shuffled batches instead of Poisson sampling",
           (("privacy/sampling.py", "return np.flatnonzero(uniform < threshold)",
             "return np.sort(np.argsort(uniform)[: round(rate * count)])"),),
           (), ("privacy/privacy_sampling::each_record_takes_part_independently_at_the_rate",
                f"{CONTRIBUTION}::records_are_sampled_at_the_manifest_s_rate")),
    Mutant("sampling at twice the rate that is charged",
           ((SILO, "self._patient, manifest.privacy.sampling_rate, sampling)",
             "self._patient, min(1.0, 2 * manifest.privacy.sampling_rate), sampling)"),),
           (), (f"{CONTRIBUTION}::records_are_sampled_at_the_manifest_s_rate",)),
    Mutant("noise scaled to the clip without what rounding adds",
           ((DISCRETE, "noise_multiplier * rounded_sensitivity(clip_steps, length, failure)",
             "noise_multiplier * clip_steps"),),
           (), ("privacy/privacy_rounding::noise_of_the_honest_silos_adds_up_inside_the_sum",)),
    Mutant("clipped before masking",
           ((GRADIENTS, "self._masters, x, y, masks, patient)",
             "self._masters, x, y, [None] * len(masks), patient)"),),
           (), ("privacy/privacy_gradient_sum::masks_before_clipping",)),
    Mutant("gradients of filling counted",
           (("privacy/per_record.py", "device=masters[0].device) < real", "device=masters[0].device) < len(x)"),),
           (), ("privacy/privacy_gradient_sum::equals_a_plain_loop_over_records",
                "privacy/privacy_gradient_sum::a_record_more_leaves_the_gradients_of_the_others_as_they_were")),
    Mutant("holdout used for training",
           ((SILO, "network = self._load(model)\n        records = self._data.train\n",
             "network = self._load(model)\n        records = self._data.holdout or self._data.train\n"),),
           (), (f"{CONTRIBUTION}::the_gradient_sum_is_minus_the_clipped_gradients",)),
)  # fmt: skip


def judge(mutants: Iterable[Mutant]) -> list[Verdict]:
    """Try mutants one after another on one copy.

    Raises
    ------
    RuntimeError
        The named tests or audits do not pass without any mutant.
    """
    mutants = tuple(mutants)
    with repository_copy(TEST_FOLDERS) as copy:
        named = sorted({test for mutant in mutants for test in mutant.test_ids})
        code, output = run_pytest(copy, named) if named else (0, "")
        if code != 0:
            raise RuntimeError(f"the named tests do not pass as it is:\n{output}")
        for arguments in sorted({mutant.audit for mutant in mutants if mutant.audit}):
            code, output, _ = _audit(copy, arguments)
            if code != 0:
                raise RuntimeError(f"the audit {' '.join(arguments)} does not pass as it is: {output}")
        return [_judge_one(copy, mutant) for mutant in mutants]


def _judge_one(copy: Path, mutant: Mutant) -> Verdict:
    try:
        with mutated(copy, ((Path("autoflip_secure", file), old, new) for file, old, new in mutant.changes)):
            return _try(copy, mutant)
    except TextNotThere as error:
        return Verdict(mutant, problem=str(error))


def _try(copy: Path, mutant: Mutant) -> Verdict:
    audited, failed = None, ""
    if mutant.audit:
        code, output, audited = _audit(copy, mutant.audit)
        if code not in (0, PROMISE_BROKEN) or audited is None:
            return Verdict(mutant, problem=f"the audit ended with {code}: {output[-500:]}")
    if mutant.tests:
        code, output = run_pytest(copy, mutant.test_ids, "-x")
        if code not in (0, TESTS_FAILED):
            return Verdict(mutant, audited, problem=f"pytest ended with {code}: {output[-500:]}")
        names = re.findall(r"^FAILED tests/\w+/test_(.+?)(?: - .*)?$", output, re.MULTILINE)
        failed = names[0] if names else ""
    return Verdict(mutant, audited, failed)


def _audit(copy: Path, arguments: Sequence[str]) -> tuple[int, str, dict[str, Any] | None]:
    done = run_python(copy, AUDIT, (*arguments, "--json"))
    told = json.loads(done.stdout) if done.returncode in (0, PROMISE_BROKEN) and done.stdout.strip() else None
    return done.returncode, done.stderr, told


def table(verdicts: Iterable[Verdict]) -> str:
    """`mutant | audited / claimed | failing test | caught`, one line a mutant."""
    lines = ["| mutant | audited / claimed epsilon | failing test | caught |", "|---|---|---|---|"]
    for verdict in verdicts:
        figures = verdict.audited
        shown = "-" if figures is None else f"{figures['audited']:.2f} / {figures['claimed']:g}"
        outcome = "yes" if verdict.caught else f"NO: {verdict.problem or 'survived'}"
        lines.append(f"| {verdict.mutant.what} | {shown} | {verdict.failed or '-'} | {outcome} |")
    return "\n".join(lines)


def main() -> int:
    verdicts = judge(MUTANTS)
    print(table(verdicts))
    return 0 if all(verdict.caught for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
