"""python -m autoflip_secure.privacy.audit : attack the promise, and report how much of it the attack could show.

One-run auditing (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846): records made for the purpose (canaries) are put
into one silo or left out by a coin each, the real silo code runs once, and an adversary guesses each coin from what it
sees. How many guesses are right bounds epsilon from below. A bound above the promise proves the promise broken; a bound
below it proves nothing, but how far below says how much a mistake in noise, clipping or accounting could hide.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from autoflip_secure.options import run_command
from autoflip_secure.privacy.accounting import Mechanism
from autoflip_secure.privacy.audit_bound import best_bound
from autoflip_secure.privacy.audit_guesses import declare_guesses
from autoflip_secure.privacy.audit_settings import AuditReport, AuditSettings
from autoflip_secure.sums.randomness import SecretRandomness

__all__ = ["app", "audit", "main", "sentence"]

EXIT_BROKEN = 3

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def audit(settings: AuditSettings, progress: Callable[[int, int], None] = lambda done, planned: None) -> AuditReport:
    """Attack once.

    Parameters
    ----------
    progress : callable
        progress(done, planned), after each round.

    Raises
    ------
    ConfigError
        Settings that no run could have.
    """
    started = time.perf_counter()
    run = _white_box if settings.setting == "white-box" else _black_box
    return run(settings, started, progress)


def _coins(count: int) -> NDArray[np.bool_]:
    return (SecretRandomness().words(count) & np.uint64(1)).astype(np.bool_)


def _white_box(settings: AuditSettings, started: float, progress: Callable[[int, int], None]) -> AuditReport:
    from autoflip_secure.privacy.audit_canaries import CanaryFederation

    included = _coins(settings.count)
    with tempfile.TemporaryDirectory(prefix="autoflip-audit-") as folder:
        federation = CanaryFederation(Path(folder), settings, included)
        try:
            terms = federation.terms
            promised = Mechanism(terms.sampling_rate, terms.noise_multiplier, federation.planned)
            declared = declare_guesses(settings.count, promised, settings.delta, settings.confidence)
            scores, releases = federation.scores(progress)
        finally:
            federation.close()
        verdict = best_bound(scores, included, declared, settings.delta, settings.confidence)
        honest, present = federation.honest, federation.present
    saw = (
        f"the sum of every round over {present} silos with the noise of {honest} honest ones, less what is removed, "
        "and model, mask and all other data of its own choice"
        if settings.trust == "distributed"
        else "the update of the silo itself in every round, and model, mask and all other data of its own choice"
    )
    return AuditReport(
        settings, releases, promised.count, promised.sampling_rate, promised.noise_multiplier, honest,
        verdict.epsilon, verdict.guesses.count, verdict.right, saw, time.perf_counter() - started,
    )  # fmt: skip


def _black_box(settings: AuditSettings, started: float, progress: Callable[[int, int], None]) -> AuditReport:
    from autoflip_secure.privacy.audit_black_box import black_box

    return black_box(settings, _coins(settings.count), started, progress)


def sentence(report: AuditReport) -> str:
    """The result in one line."""
    settings = report.settings
    if report.broken:
        return (
            f"BROKEN PROMISE: the run claims epsilon {settings.epsilon:g}, the audit shows at least "
            f"{report.audited:.3g} ({settings.confidence:.0%} confidence, delta {settings.delta:g})"
        )
    return (
        f"claimed epsilon {settings.epsilon:g}, audited at least {report.audited:.3g} "
        f"({settings.confidence:.0%} confidence, delta {settings.delta:g}), {report.ratio:.0%} of the claim"
    )


def _details(report: AuditReport) -> str:
    settings = report.settings
    return "\n".join(
        (
            f"{report.right} of {report.guesses} guesses right, about {settings.count} canaries",
            f"{settings.setting}, trust {settings.trust}: the adversary saw {report.saw}",
            f"{report.releases} releases ({report.planned} paid for), sampling rate {report.sampling_rate:g}, noise "
            f"multiplier {report.noise_multiplier:.4g}, {report.seconds:.0f} s",
        )
    )


def _show(done: int, planned: int) -> None:
    end = "\n" if done >= planned else ""
    print(f"\rrelease {done} of {planned}", end=end, file=sys.stderr, flush=True)


@app.command()
def _audit(
    epsilon: Annotated[float, typer.Option(help="the promise to try")] = 8.0,
    delta: Annotated[float, typer.Option(help="its failure probability")] = 1e-5,
    trust: Annotated[str, typer.Option(help="distributed | local")] = "distributed",
    setting: Annotated[str, typer.Option(help="white-box | black-box (sees the final model only)")] = "white-box",
    canaries: Annotated[int | None, typer.Option(help="records put in or left out [10000; black-box: 1000]")] = None,
    silos: Annotated[int, typer.Option(help="silos of the federation")] = 10,
    rounds: Annotated[int | None, typer.Option(help="rounds of the run [as a run on images]")] = None,
    sampling_rate: Annotated[float | None, typer.Option(help="Poisson sampling rate [as a run on images]")] = None,
    colluders: Annotated[int | None, typer.Option(help="silos on the adversary's side [as a run]")] = None,
    absent: Annotated[int, typer.Option(help="silos missing from every sum")] = 0,
    confidence: Annotated[float, typer.Option(help="of the lower bound")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON instead of words")] = False,
) -> int:
    """Attack a private run and bound its epsilon from below. Exit code 3 where that is above the promise."""
    settings = AuditSettings(
        epsilon, delta, trust, setting, canaries, silos, rounds, sampling_rate, colluders, absent, confidence=confidence
    )
    report = audit(settings, _show)
    if as_json:
        print(json.dumps(report.to_json()), flush=True)
    else:
        print(f"{sentence(report)}\n{_details(report)}", flush=True)
    if report.broken:
        print(sentence(report), file=sys.stderr)
        return EXIT_BROKEN
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 (bad input), 3 (a broken promise, or the run cannot go on)."""
    return run_command(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
