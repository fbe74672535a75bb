"""The figure of crafted models: records, and what the sums showed of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]


def draw(pictures: dict[str, list[Any]], folder: Path) -> None:
    """Records and what crafted models showed of them, the best eight of each setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best = 8
    figure, axes = plt.subplots(2 * len(pictures), best, figsize=(best, 2.2 * len(pictures)), squeeze=False)
    for row, (setting, pairs) in enumerate(pictures.items()):
        for column, pair in enumerate(pairs[:best]):
            for line, values in enumerate(pair):
                side = round(len(values) ** 0.5)
                axes[2 * row + line, column].imshow(values.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
        for line, what in enumerate(("records", "read")):
            axes[2 * row + line, 0].set_ylabel(f"{setting}\n{what}", fontsize=6)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.3)
    figure.savefig(folder / "malicious-coordinator.png", dpi=70)
    plt.close(figure)
