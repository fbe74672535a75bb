"""Ways to cut silos into blocks."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

__all__ = ["partitions"]

Parts = tuple[tuple[int, ...], ...]


def partitions(silos: Sequence[int]) -> st.SearchStrategy[Parts]:
    """Ascending silos in any number of parts, each ascending."""
    labels = st.lists(st.integers(1, len(silos)), min_size=len(silos), max_size=len(silos))
    return labels.map(
        lambda drawn: tuple(
            tuple(silo for silo, of_it in zip(silos, drawn, strict=True) if of_it == label)
            for label in dict.fromkeys(drawn)
        )
    )
