"""--record-server-view: every byte the coordinator received, one msgpack file a message, in order of arrival.

Attacks run on these files, and a test hashes them against what the silos say they sent: nothing else may arrive. Beside
them lies what the coordinator made of them: opened.msgpack has the sums, public.msgpack the models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from autoflip_secure.storage import storing
from autoflip_secure.sums.channels import Aggregate

__all__ = ["ServerView", "read_server_view"]


class ServerView:
    """Writes RUN/server_view/NNNNNN.msgpack, and public.msgpack with what the coordinator itself produced.

    Resumed runs go on with the next free number.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._next = 1 + max((int(path.stem) for path in folder.glob("[0-9]*.msgpack")), default=-1)

    def received(self, *, stage: str, round: int, attempt: int, sender: int, fields: dict[str, Any]) -> None:
        """Record one message as it arrived; `sender` is the silo's id (0: not known yet)."""
        message = {"stage": stage, "round": round, "attempt": attempt, "from": sender, "fields": fields}
        path = self._folder / f"{self._next:06d}.msgpack"
        with storing(path):
            path.write_bytes(msgpack.packb(message))
        self._next += 1

    def public(self, *, round: int, attempt: int, manifest: bytes, model: bytes) -> None:
        """Append a manifest and the model (weights, mask) the coordinator sent with it."""
        record = msgpack.packb({"round": round, "attempt": attempt, "manifest": manifest, "model": model})
        self._append(record)

    def opened(self, *, attempt: int, silos: tuple[int, ...], aggregate: Aggregate) -> None:
        """Append what one cohort's sum came to; `silos` are the ids whose vectors are in it."""
        channels = {name: vector.astype(np.float64).tobytes() for name, vector in aggregate.channels.items()}
        record = {"round": aggregate.round, "attempt": attempt, "cohort": aggregate.cohort, "silos": list(silos)}
        self._append(msgpack.packb({**record, "channels": channels}), "opened.msgpack")

    def close(self, final_model: bytes) -> None:
        """Append the final model."""
        self._append(msgpack.packb({"final_model": final_model}))

    def _append(self, record: bytes, name: str = "public.msgpack") -> None:
        path = self._folder / name
        with storing(path), path.open("ab") as file:
            file.write(record)


def _number(path: Path) -> int:
    return int(path.stem)


def read_server_view(folder: Path) -> list[dict[str, Any]]:
    """All recorded messages, in order."""
    return [msgpack.unpackb(path.read_bytes()) for path in sorted(folder.glob("[0-9]*.msgpack"), key=_number)]
