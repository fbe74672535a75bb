"""Privacy noise really present in secure sums, over the least that keeps the promise, before and after removal.

    python benchmarks/noise.py [--quick]

Every row is a real secure sum (SecAgg-S, all halves in this process) of contributions that hold nothing but noise,
each drawn as a silo draws it. Of one sum the variance is taken with all noise in it and with the excess removed.
Writes results/noise.json (every figure, setting, seed and the machine), noise.md and noise.png; about two minutes on
two cores, `--quick` (without 100 silos) under one. `measure()` returns the rows, `write()` makes the files.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from autoflip_secure.federation.sums import decode
from autoflip_secure.federation.terms import GRADIENT_RANGE, noise_levels
from autoflip_secure.parties.identity import remember_verifications
from autoflip_secure.parties.rules import share_threshold
from autoflip_secure.privacy.discrete_noise import DiscreteGaussian
from autoflip_secure.privacy.removable_noise import NoiseLevels
from autoflip_secure.secagg import Identity, Roster, RosterEntry, SecAggCoordinator, SecAggSilo, SiloRules
from autoflip_secure.sums.channels import Aggregate, ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.noise_chain import LINK_BYTES, fresh_root
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.words import ContributionWords, WordSource

__all__ = ["Row", "measure", "write"]

RESULTS = Path(__file__).parent / "results"
SEED = 3
LENGTH, CLIP, NOISE_MULTIPLIER, COLLUDERS = 26_010, 0.1, 1.0, 1
CHANNEL = ChannelSpec("update", LENGTH, 16, GRADIENT_RANGE * CLIP)
SESSION = bytes(range(16))
SIZES, QUICK_SIZES = (10, 30, 100), (10, 30)
# Fraction dropped, fraction that must survive, and whether silos drop at any stage or all before their vector.
CASES = ((0.0, 0.8, False), (0.1, 0.8, False), (0.2, 0.8, False), (0.3, 0.7, False), (0.2, 0.8, True))
STAGES = ("masked", "confirm", "unmask")
TARGET = 1.02


@dataclass(frozen=True)
class Row:
    """One sum.

    Attributes
    ----------
    silos, minimum, survivors, late : int
        Of the cohort; that must survive; in the sum; of these, that vanished before they revealed a link.
    at_any_stage : bool
        Whether silos dropped at random stages, or all before they sent a vector.
    before, after : float
        Variance of the noise over the least for as many survivors, by computation: without and with removal.
    before_measured, after_measured : float
        The same from the sum's coordinates.
    worst : float
        The largest `after` for any number of missing silos, by computation.
    error : float
        Standard error of a measured ratio, relative.
    parts : int
        Parts in which a silo draws its noise.
    draw_seconds, plain_seconds : float
        CPU time a silo takes to draw all parts, and noise of the same variance in one.
    remove_seconds : float
        CPU time the coordinator takes to decode the sum and remove the excess of all silos.
    link_bytes : int
        Sent by all silos together for it.
    """

    silos: int
    dropout: float
    min_cohort: float
    at_any_stage: bool
    minimum: int
    survivors: int
    late: int
    before: float
    after: float
    before_measured: float
    after_measured: float
    worst: float
    error: float
    parts: int
    draw_seconds: float
    plain_seconds: float
    remove_seconds: float
    link_bytes: int


@dataclass
class Federation:
    """Coordinator and silos of one size and minimum, with the keys for all its sums."""

    size: int
    minimum: int
    draw_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        identities = {silo: Identity.generate() for silo in range(self.size + 1)}
        entries = tuple(RosterEntry(silo, f"hospital {silo}", identities[silo].public) for silo in identities if silo)
        roster, rules = Roster(identities[0].public, entries), SiloRules(COLLUDERS, minimum_fraction=0.5)
        self.silos = {
            silo: SecAggSilo(
                sqlite3.connect(":memory:", isolation_level=None), identities[silo], silo, roster, rules, SESSION
            )
            for silo in roster.silos
        }
        self.coordinator = SecAggCoordinator(
            identities[0], roster, SESSION, slots=len(CASES), first_epoch=1, on_epoch=lambda number: None,
            events=lambda name, details: None,
        )  # fmt: skip

    @property
    def manifest(self) -> Manifest:
        """What every sum states."""
        terms = PrivacyTerms("distributed", "train", 0.1, 1, NOISE_MULTIPLIER, CLIP, COLLUDERS, 1e-5)
        return Manifest(
            session=SESSION, epoch=0, slot=0, epoch_hash=bytes(32), round=0, attempt=0, phase="train",
            cohorts=(tuple(self.silos),), minimum=(self.minimum,), threshold=share_threshold(self.size),
            model_hash=bytes(32), mask_hash=bytes(32), config_hash=bytes(32), channels=(CHANNEL,), privacy=terms,
        )  # fmt: skip

    def sum(self, gone: Mapping[int, str]) -> CohortSum:
        """One sum; silo -> the stage from which on it is away."""

        def exchange(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
            for silo, request in requests.items():
                away = silo in gone and stage in STAGES and STAGES.index(stage) >= STAGES.index(gone[silo])
                if not away:
                    yield silo, self.silos[silo].answer(stage, request, self.contribute)

        (opened,) = self.coordinator.sum(self.manifest, exchange)
        return opened

    def contribute(self, manifest: Manifest) -> WordSource:
        """Zeros with a silo's noise."""
        started = time.process_time()
        root = fresh_root()
        noise = levels_of(manifest).draw(LENGTH, CHANNEL.name, SecretRandomness(), root)
        self.draw_seconds.append(time.process_time() - started)
        return ContributionWords({CHANNEL.name: noise}, manifest.channels, self.size, root)


def levels_of(manifest: Manifest) -> NoiseLevels:
    """The parts of a silo's noise."""
    levels = noise_levels(manifest, CHANNEL, 0)
    assert levels is not None
    return levels


def measure(sizes: Iterable[int] = SIZES) -> list[Row]:
    """A row for each size and case."""
    remember_verifications(8192)
    rows = []
    for size in sizes:
        federations: dict[int, Federation] = {}
        for dropout, min_cohort, at_any_stage in CASES:
            minimum = -int(-size * min_cohort // 1)
            federation = federations.setdefault(minimum, Federation(size, minimum))
            rows.append(measure_case(federation, dropout, min_cohort, at_any_stage=at_any_stage))
    return rows


def measure_case(federation: Federation, dropout: float, min_cohort: float, *, at_any_stage: bool) -> Row:
    """One sum, with and without removal."""
    size, manifest = federation.size, federation.manifest
    random = np.random.default_rng([SEED, size])
    silos = random.permutation(size)[: round(dropout * size)] + 1
    gone = {int(silo): STAGES[random.integers(3)] if at_any_stage else "masked" for silo in silos}
    federation.draw_seconds.clear()
    opened = federation.sum(gone)
    levels, survivors = levels_of(manifest), len(opened.silos)
    before, _ = decoded(manifest, replace(opened, links={}))
    after, seconds = decoded(manifest, opened)
    plain = DiscreteGaussian(levels.drawn**0.5)
    plain.sample(1, SecretRandomness())
    started = time.process_time()
    plain.sample(LENGTH, SecretRandomness())
    plain_seconds = time.process_time() - started
    assert before.noise_over_least is not None
    assert after.noise_over_least is not None
    least = survivors * levels.owed[size - survivors] * CHANNEL.step**2
    return Row(
        silos=size,
        dropout=dropout,
        min_cohort=min_cohort,
        at_any_stage=at_any_stage,
        minimum=federation.minimum,
        survivors=survivors,
        late=sum(stage != "masked" for stage in gone.values()),
        before=before.noise_over_least,
        after=after.noise_over_least,
        before_measured=float(before.sum(CHANNEL.name).var()) / least,
        after_measured=float(after.sum(CHANNEL.name).var()) / least,
        worst=max(levels.left(missing) / owed for missing, owed in enumerate(levels.owed)),
        error=(2 / LENGTH) ** 0.5,
        parts=len(levels.stds),
        draw_seconds=float(np.median(federation.draw_seconds)),
        plain_seconds=plain_seconds,
        remove_seconds=seconds,
        link_bytes=LINK_BYTES * len(opened.links),
    )


def decoded(manifest: Manifest, opened: CohortSum) -> tuple[Aggregate, float]:
    """The aggregate, and the CPU seconds it took; tables of distributions are built before."""
    decode(manifest, opened)
    started = time.process_time()
    aggregate = decode(manifest, opened)
    return aggregate, time.process_time() - started


def table(rows: Iterable[Row]) -> str:
    """Markdown, one line a sum."""
    lines = [
        "| silos | dropped | at | must survive | in the sum (late) | before: computed | measured | after: computed "
        "| measured | parts | silo draws, ms (in one part) | coordinator removes, ms | bytes of links |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        measured = [f"{value:.3f} ± {value * row.error:.3f}" for value in (row.before_measured, row.after_measured)]
        where = "any stage" if row.at_any_stage else "masked"
        lines.append(
            f"| {row.silos} | {row.dropout:.0%} | {where} | {row.minimum} | {row.survivors} ({row.late}) "
            f"| {row.before:.3f} | {measured[0]} | {row.after:.3f} | {measured[1]} | {row.parts} "
            f"| {1e3 * row.draw_seconds:.1f} ({1e3 * row.plain_seconds:.1f}) | {1e3 * row.remove_seconds:.0f} "
            f"| {row.link_bytes} |"
        )
    return "\n".join(lines)


def report(rows: list[Row], where: Mapping[str, Any]) -> str:
    """The page: what the figures are, the target, the table."""
    worst = max(row.worst for row in rows)
    met = "met" if worst <= TARGET else "NOT met"
    return (
        "# Noise in secure sums over the least that keeps the promise\n\n"
        f"Variance of the privacy noise in a sum of {LENGTH:,} coordinates, over the least with so many survivors and "
        f"{COLLUDERS} colluding silo. *Before*: all noise the silos drew, which is for the fewest survivors allowed; "
        "*after*: the same sum without the excess. *Computed* from what each silo left in, *measured* over the "
        "coordinates of the opened sum, with its standard error. Silos that vanish after their vector (late) keep "
        "their excess in it.\n\n"
        f"Target: within 2 % of the least for any number of silos missing from a sum: {met}, {worst:.4f} at most over "
        "all numbers that are allowed (by computation).\n\n"
        f"{table(rows)}\n\n"
        "Milliseconds are CPU time, the coordinator's with decoding, and for orientation only. Made by "
        f"`python benchmarks/noise.py` with seed {SEED} (who drops; noise is the operating system's) on "
        f"{json.dumps(where)}.\n"
    )


def plot(rows: list[Row], path: Path) -> None:
    """Measured ratios by size and case, before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({row.silos for row in rows})
    figure, panels = plt.subplots(1, len(sizes), figsize=(3.4 * len(sizes), 3.6), sharey=True, squeeze=False)
    for axes, size in zip(panels[0], sizes, strict=True):
        mine = [row for row in rows if row.silos == size]
        places = np.arange(len(mine))
        axes.bar(places - 0.2, [row.before_measured for row in mine], 0.4, label="before", color="#9aa5b1")
        axes.bar(places + 0.2, [row.after_measured for row in mine], 0.4, label="after removal", color="#1f6feb")
        axes.axhline(1.0, color="black", linewidth=0.8)
        labels = [f"{row.dropout:.0%}" + ("\nany stage" if row.at_any_stage else "") for row in mine]
        axes.set_xticks(places, labels, fontsize=7)
        axes.set(title=f"{size} silos", xlabel="dropped", ylim=(0.9, None))
    panels[0][0].set_ylabel("noise variance over the least")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(rows: list[Row], name: str = "noise") -> str:
    """results/NAME.json, .md and .png; returns the page."""
    RESULTS.mkdir(exist_ok=True)
    where = machine("autoflip-secure", "numpy", "cryptography")
    settings = {"seed": SEED, "length": LENGTH, "clip": CLIP, "noise_multiplier": NOISE_MULTIPLIER,
                "colluders": COLLUDERS, "bits": CHANNEL.bits, "delta": 1e-5}  # fmt: skip
    results = {"machine": where, "settings": settings, "rows": [vars(row) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report(rows, where)
    (RESULTS / f"{name}.md").write_text(text)
    plot(rows, RESULTS / f"{name}.png")
    return text


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 and 30 silos only; writes noise-quick.*")
    quick = parser.parse_args().quick
    rows = measure(QUICK_SIZES if quick else SIZES)
    print(write(rows, "noise-quick" if quick else "noise"))


if __name__ == "__main__":
    main()
