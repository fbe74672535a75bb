"""What kind of silo each one is, from which sums it was absent: the recorded view of a run, and public records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.class_signatures import ClassSignatures
from autoflip_secure.attacks.disaggregation import class_counts, common_part, likely_classes, mean_parts, presence
from autoflip_secure.attacks.recorded_view import Asked, OpenedSum, RecordedView
from autoflip_secure.autoflip.masking import scatter_live
from autoflip_secure.config import ResolvedConfig, load_config_file
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.models.spec import ModelSpec

__all__ = ["PresentSums", "class_signatures", "sums_of"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class PresentSums:
    """Sums of updates, or single updates where the coordinator sees them, and whose they are.

    Attributes
    ----------
    asked : list of Asked
        For what each was asked, model included.
    present : float64 array, shape (sums, silos)
    vectors : list of float64 array, shape (live coordinates of the model,)
    """

    asked: list[Asked]
    present: Matrix
    vectors: list[Matrix]

    def label_sets(self, signatures: ClassSignatures, classes: int, held: int) -> list[frozenset[int]]:
        """The `held` classes that each silo most likely trains on, by the silos in their order."""
        single: list[tuple[int, ...]] = [(name,) for name in range(classes)]
        known: dict[int, Matrix] = {}
        for asked in self.asked:
            if id(asked) not in known:
                known[id(asked)] = signatures.of("update", single, asked.manifest, asked.model)
        signed = [known[id(asked)] for asked in self.asked]
        return likely_classes(class_counts(self.present, signed, self.vectors), held)

    def mean_updates(self, spec: ModelSpec) -> tuple[Matrix, Matrix]:
        """Each silo's average update while the model had this architecture, and what all have in common.

        Returns
        -------
        float64 arrays, shape (silos, parameters) and (parameters,)
        """
        rows = [i for i, asked in enumerate(self.asked) if asked.model.spec == spec]
        full = np.stack([scatter_live(self.vectors[i], self.asked[i].model.mask) for i in rows])
        return mean_parts(self.present[rows], full), common_part(self.present[rows], full)

    def usual_spec(self) -> ModelSpec:
        """The architecture of most sums."""
        counts = Counter(asked.model.spec.to_json() for asked in self.asked)
        most = counts.most_common(1)[0][0]
        return next(asked.model.spec for asked in self.asked if asked.model.spec.to_json() == most)


def sums_of(view: RecordedView, silos: int) -> PresentSums:
    """All that a coordinator saw of updates: opened sums, and with `--aggregation none` the silos' own vectors."""
    single = [OpenedSum(v.asked, 0, (v.silo,), v.channels) for v in view.single_vectors]
    seen = [each for each in single or view.sums if "update" in each.channels]
    present = presence([each.silos for each in seen], silos)
    return PresentSums([each.asked for each in seen], present, [each.channels["update"] for each in seen])


def class_signatures(run: Path) -> ClassSignatures:
    """From what the coordinator has beside its view: configuration, task, and the public test records."""
    folder = RunFolder(run)
    config = ResolvedConfig.create(**load_config_file(folder.config))
    return ClassSignatures(config, Task.from_json(folder.task.read_text()), Records.load(folder.public_test))
