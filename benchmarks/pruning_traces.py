"""What the figures of `pruning.py` need of a run's folder, small enough for a row of its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

__all__ = ["EDGES", "importance_of", "traces_of"]

Row = dict[str, Any]

EDGES = np.concatenate([[0.0], np.logspace(-4, 0, 17)])
"""Borders of the histograms of guidance; most of it is far below its largest value."""
MOST_LAYERS = 6
POINTS = 300
FIELDS = {"guidance": ("first_map", "guidance"), "score": ("first_score", "last_score")}


def traces_of(run: Path) -> Row:
    """Upload of a silo up to each scored round, all of it, in bytes; update variance by round, where squares are
    summed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    variance = [line["update_variance"] for line in lines]
    return {
        "uploads": [round(line["upload_bytes_total_per_silo"]) for line in lines if "accuracy" in line],
        "variance": [None if v is None else float(f"{v:.3g}") for v in variance] if any(variance) else None,
    }


def importance_of(run: Path) -> Row:
    """`importance` from importance.safetensors: for guidance and for the keep-score histograms by layer at first and at
    last, and a few hundred parameters, as (first, last, whether it lives)."""
    with safe_open(run / "importance.safetensors", "numpy") as file:
        layout = json.loads(file.metadata()["layout"])
        arrays = {name: file.get_tensor(name) for name in set(file.keys())}
    found = {}
    for name, (first, last) in FIELDS.items():
        if first in arrays and last in arrays:
            found[name] = _drawn(arrays[first], arrays[last], arrays["mask"] > 0, layout)
    return {"importance": found}


def _drawn(first: NDArray[Any], last: NDArray[Any], lives: NDArray[np.bool_], layout: list[tuple[str, int]]) -> Row:
    starts = np.concatenate([[0], np.cumsum([size for _, size in layout])])
    weights = [i for i, (name, _) in enumerate(layout) if name.endswith(".weight")]
    largest = sorted(sorted(weights, key=lambda i: -layout[i][1])[:MOST_LAYERS])
    layers, members = [], []
    for index in largest:
        part = slice(starts[index], starts[index + 1])
        counts = {"first": first[part], "last": last[part], "last of the living": last[part][lives[part]]}
        shown = {name: np.histogram(values.astype(float), EDGES)[0].tolist() for name, values in counts.items()}
        layers.append({"layer": layout[index][0].removesuffix(".weight"), **shown})
        members.append(np.arange(part.start, part.stop))
    everything = np.concatenate(members)
    chosen = np.random.default_rng(0).choice(everything, min(POINTS, everything.size), replace=False)
    points = [[float(f"{first[i]:.3g}"), float(f"{last[i]:.3g}"), int(lives[i])] for i in np.sort(chosen)]
    return {"layers": layers, "points": points}
