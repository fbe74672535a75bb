"""The figure of gradient inversion: true pictures beside what each setting lets a coordinator make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.picture_silos import PictureSilos

__all__ = ["draw"]

SHOWN = 5
"""Records of each federation."""


def draw(panels: Sequence[tuple[PictureSilos, Mapping[str, NDArray[np.float32]]]], path: Path) -> None:
    """One row a record: original, what was rebuilt in each setting, and the public mean of its class.

    Parameters
    ----------
    panels : sequence of (silos, pictures by setting)
        Pictures matched to the first records of the silos' `truth`.
    path : Path
        A PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = list(panels[0][1])
    columns = ["original", *settings, "class mean"]
    across = len(panels) * (len(columns) + 1) - 1  # a gap between two panels
    figure, axes = plt.subplots(SHOWN, across, figsize=(0.62 * across + 0.6, 0.66 * SHOWN + 0.9), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for panel, (silos, pictures) in enumerate(panels):
        left = panel * (len(columns) + 1)
        shown = [silos.truth.x, *(pictures[s] for s in settings), silos.prior.means[silos.truth.y]]
        for column, (title, images) in enumerate(zip(columns, shown, strict=True)):
            axes[0, left + column].set_title(title.replace(" + ", "\n+ ").replace("class ", "class\n"), fontsize=7)
            for row in range(min(SHOWN, len(images))):
                axes[row, left + column].imshow(images[row, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        middle = (left + len(columns) / 2) / across
        many = "1 record" if silos.records == 1 else f"{silos.records} records"
        figure.text(
            middle, 0.985, f"{silos.model}, {many} a silo, {silos.silos} silos", ha="center", va="top", fontsize=8
        )
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.84, wspace=0.06, hspace=0.06)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
