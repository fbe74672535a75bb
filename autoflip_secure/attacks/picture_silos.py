"""Silos with a few pictures each, made and run for gradient inversion, and the gradients their coordinator saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoflip_secure.attacks.outcome import Scale
from autoflip_secure.attacks.settings import epsilon_of, run_federation

if TYPE_CHECKING:
    from autoflip_secure.attacks.gradient_match import SeenGradient
    from autoflip_secure.attacks.reconstruction import PublicPrior
    from autoflip_secure.attacks.recorded_view import OpenedSum, SingleVector
    from autoflip_secure.data.records import Records

__all__ = ["PictureSilos"]

RATE = 0.3
"""Learning rate without DP: the default of images, which is public."""

CLASSES = 10


@cache
def _pictures() -> tuple[Records, Records]:
    """(training, public test) records of mnist5k; reading them takes seconds."""
    from autoflip_secure.data.registry import load

    data = load("mnist5k", None, 0)
    assert data.train is not None
    assert data.public_test is not None
    return data.train, data.public_test


@dataclass(frozen=True)
class PictureSilos:
    """Silos with a few pictures each, and how they train.

    Attributes
    ----------
    model : str
    silos, records : int
        Number of silos, and of records of each.
    steps : int
        Local steps; each on a batch of 32 or on all records.
    seed : int
    """

    model: str
    silos: int
    records: int
    steps: int = 1
    seed: int = 0

    @cached_property
    def truth(self) -> Records:
        """Records of all silos, silo by silo. Scores are taken against them; no attack sees them."""
        train, _ = _pictures()
        drawn = np.random.default_rng(self.seed).choice(len(train), self.silos * self.records, replace=False)
        return train.take(drawn)

    @cached_property
    def public(self) -> Records:
        """The public test records."""
        return _pictures()[1]

    @cached_property
    def prior(self) -> PublicPrior:
        """Of the public records."""
        from autoflip_secure.attacks.reconstruction import PublicPrior

        return PublicPrior.of(self.public.x, self.public.y, CLASSES)

    def seen(self, setting: str, scale: Scale) -> list[tuple[slice, list[SeenGradient]]]:
        """Run it on the command line, and read the view of its coordinator.

        Under DP the sampling rate is 1 and there is one cohort: every record is in every sum. Two rounds share the
        budget.

        Returns
        -------
        list of (slice, list of SeenGradient)
            Of every single vector (plain) or of the sum: which of `truth` is in it, and its gradient round by round.
        """
        from autoflip_secure.attacks.recorded_view import RecordedView

        name = f"{self.model}-{self.silos}-{self.records}-{self.steps}-{self.seed}"
        folder, run = scale.work / f"inverted-{name}", scale.work / f"inverted-{name}-{setting.replace(' ', '')}"
        if not folder.exists():
            self._write(folder)
        options = f"--dataset folder:{folder} --model {self.model} --rounds 2"
        if epsilon_of(setting) is None:
            options += f" --local-steps {self.steps} --explore-steps {self.steps} --learning-rate {RATE}"
        else:
            options += " --sampling-rate 1 --cohorts 1"
        run_federation(options, setting, self.seed, run)
        view = RecordedView(run)
        if setting == "plain":
            own = {silo: [v for v in view.single_vectors if v.silo == silo] for silo in range(1, self.silos + 1)}
            return [
                (slice((silo - 1) * self.records, silo * self.records), self._gradients(vectors))
                for silo, vectors in own.items()
            ]
        return [(slice(0, self.silos * self.records), self._gradients(view.sums))]

    def _gradients(self, opened: Sequence[OpenedSum | SingleVector]) -> list[SeenGradient]:
        from autoflip_secure.attacks.gradient_match import SeenGradient

        found = []
        for one in opened:
            if "update" not in one.channels:
                continue
            terms, update = one.asked.manifest.privacy, one.channels["update"]
            if terms.trust == "none":  # a step is the rate times the mean gradient of a silo's records
                gradient = SeenGradient(one.asked.model, update * (-self.records / (RATE * self.steps)))
            else:
                gradient = SeenGradient(one.asked.model, -update, terms.noise_multiplier * terms.clip, terms.clip)
            found.append(gradient)
        return found

    def _write(self, path: Path) -> None:
        for silo in range(self.silos):
            part = self.truth.take(np.arange(silo * self.records, (silo + 1) * self.records))
            (path / f"silo-{silo + 1:03d}").mkdir(parents=True)
            np.savez(path / f"silo-{silo + 1:03d}" / "train.npz", X=part.x, y=part.y)
        np.savez(path / "public_test.npz", X=self.public.x, y=self.public.y)
        shape = list(self.truth.input_shape)
        (path / "dataset.toml").write_text(
            f'task = "classification"\nclasses = {list(range(CLASSES))}\nfeatures = {int(np.prod(shape))}\n'
            f"shape = {shape}\nrecords = {len(self.truth)}\n"
        )
