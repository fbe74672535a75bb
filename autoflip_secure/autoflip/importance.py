"""What each parameter of the dense network was worth at first and at last, whatever was removed on the way."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from autoflip_secure.autoflip.compaction import Compaction
from autoflip_secure.models.layout import ParameterLayout

__all__ = ["ImportanceRecord"]

Half = NDArray[np.float16]
NAMES = ("places", "first_map", "last_guidance", "first_score", "last_score")


@dataclass(frozen=True, eq=False)
class ImportanceRecord:
    """Importance in the layout of the dense network, shape (dense size,). All of it is public: made from sums.

    Guidance and scores are of half precision: they are drawn, and no mask is chosen by them.

    Attributes
    ----------
    places : int32 (size,)
        Place of each parameter of the current network in the dense one.
    first_map : float32
        The first explored map, within [0, 1]; empty before it.
    last_guidance : float16
        Guidance, within [0, 1], at the last decision that each parameter lived to see, or now.
    first_score, last_score : float16
        Keep-scores at the first decision, and at the last that each parameter lived to see, over the largest score of
        that decision; empty before it.
    """

    places: NDArray[np.int32]
    first_map: NDArray[np.float32]
    last_guidance: Half
    first_score: Half
    last_score: Half

    @classmethod
    def start(cls, guidance: NDArray[np.floating]) -> ImportanceRecord:
        """Nothing known yet but the guidance to begin with, shape (dense size,)."""
        none = np.zeros(0, np.float16)
        places = np.arange(guidance.size, dtype=np.int32)
        return cls(places, np.zeros(0, np.float32), guidance.astype(np.float16), none, none)

    @classmethod
    def restored(cls, arrays: dict[str, NDArray[Any]]) -> ImportanceRecord:
        """Undo `arrays`."""
        return cls(*(arrays[name] for name in NAMES))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State for a checkpoint."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def first_here(self) -> NDArray[np.float32]:
        """The first map in the current network's layout, shape (size,); there must be one."""
        return self.first_map[self.places]

    def explored(self, found: NDArray[np.float32]) -> ImportanceRecord:
        """Remember a first map, given in the current layout."""
        first = np.zeros(self.last_guidance.size, np.float32)
        first[self.places] = found
        return replace(self, first_map=first)

    def decided(self, guidance: NDArray[np.floating], scores: NDArray[np.floating]) -> ImportanceRecord:
        """Remember what a decision rests on, before anything is removed; both of shape (size,)."""
        largest = float(scores.max())
        scaled = (scores / largest if largest else scores).astype(np.float16)
        last = self.last_score.copy() if self.last_score.size else np.zeros(self.last_guidance.size, np.float16)
        last[self.places] = scaled
        first = self.first_score if self.first_score.size else last
        return replace(self, last_guidance=self._placed(guidance), first_score=first, last_score=last)

    def compact(self, compaction: Compaction) -> ImportanceRecord:
        """Follow a network whose dead units went."""
        return replace(self, places=self.places[compaction.kept])

    @property
    def holds_anything(self) -> bool:
        """Whether a map was explored or a decision made by scores."""
        return bool(self.first_map.size or self.first_score.size)

    def to_bytes(
        self, layout: ParameterLayout, guidance: NDArray[np.floating] | None, mask: NDArray[np.bool_]
    ) -> bytes:
        """Safetensors: what is known of first_map, guidance, first_score and last_score as float16, and the mask as
        uint8, 0 for whatever was masked or removed. The metadata's `layout` names the dense tensors and their sizes, as
        JSON.

        Parameters
        ----------
        layout : ParameterLayout
            Of the dense network.
        guidance : float array (size,), optional
            The guidance now; left out where nothing was learnt of it.
        mask : bool (size,)
            The mask in the end.
        """
        lives = np.zeros(layout.size, np.uint8)
        lives[self.places[mask]] = 1
        known = {
            "first_map": self.first_map.astype(np.float16),
            "guidance": np.zeros(0, np.float16) if guidance is None else self._placed(guidance),
            "first_score": self.first_score,
            "last_score": self.last_score,
        }
        sizes = [[name, where.stop - where.start] for name, where, _ in layout.slices()]
        tensors = {name: values for name, values in known.items() if values.size} | {"mask": lives}
        return save(tensors, metadata={"layout": json.dumps(sizes)})

    def _placed(self, guidance: NDArray[np.floating]) -> Half:
        placed = self.last_guidance.copy()
        placed[self.places] = guidance
        return placed
