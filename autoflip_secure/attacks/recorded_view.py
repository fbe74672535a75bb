"""Everything a coordinator sees of a run, from what `--record-server-view` kept: no file of a silo is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.server_view import read_server_view
from autoflip_secure.sums.encoding import unpack_sum, word_count
from autoflip_secure.sums.manifest import Manifest

__all__ = ["Asked", "OpenedSum", "RecordedView", "SingleVector"]


@dataclass(frozen=True)
class Asked:
    """One attempt: what the coordinator asked for, and the model it sent along."""

    round: int
    attempt: int
    manifest: Manifest
    model: ModelPayload


@dataclass(frozen=True)
class OpenedSum:
    """What a cohort's sum came to, decoded.

    Attributes
    ----------
    silos : tuple of int
        Whose vectors are in it.
    channels : dict of float64 array
        Sums by channel name; `update` and `deviation` hold live coordinates of the model of `asked` only.
    """

    asked: Asked
    cohort: int
    silos: tuple[int, ...]
    channels: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class SingleVector:
    """One silo's own contribution, seen in the clear: only with `--aggregation none`."""

    asked: Asked
    silo: int
    channels: dict[str, NDArray[np.float64]]


class RecordedView:
    """The view of one run.

    Parameters
    ----------
    run : Path
        Folder of a run that was made with --record-server-view.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / "server_view"

    @cached_property
    def asked(self) -> list[Asked]:
        """All attempts, in order."""
        return [
            Asked(r["round"], r["attempt"], Manifest.from_bytes(r["manifest"]), ModelPayload.from_bytes(r["model"]))
            for r in self._records("public.msgpack")
            if "manifest" in r
        ]

    @cached_property
    def final_model(self) -> bytes:
        """The model file that the run ended with."""
        final: bytes = next(r["final_model"] for r in self._records("public.msgpack") if "final_model" in r)
        return final

    @cached_property
    def sums(self) -> list[OpenedSum]:
        """All sums that were opened, in order."""
        found = []
        for record in self._records("opened.msgpack"):
            channels = {name: np.frombuffer(data, np.float64) for name, data in record["channels"].items()}
            asked = next(
                a
                for a in self.asked
                if (a.round, a.attempt) == (record["round"], record["attempt"])
                and {channel.name for channel in a.manifest.channels} == channels.keys()
            )
            found.append(OpenedSum(asked, record["cohort"], tuple(record["silos"]), channels))
        return found

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """Everything that silos sent, in order of arrival (`federation.server_view`)."""
        return read_server_view(self._folder)

    @cached_property
    def single_vectors(self) -> list[SingleVector]:
        """Contributions that were sent in the clear, in order of arrival; empty with a secure sum."""
        found = []
        for message in self.messages:
            if message["stage"] != "clear" or message["fields"]["status"] != "ok":
                continue
            reply, silo = message["fields"]["reply"], message["from"]
            fitting = []  # a count and a training round may share their number
            for asked in self.asked:
                if (asked.round, asked.attempt) == (message["round"], message["attempt"]):
                    cohort = asked.manifest.cohorts[asked.manifest.cohort_of(silo)]
                    words = word_count(asked.manifest.channels, len(cohort))
                    if 8 * words <= len(reply):
                        fitting.append((words, len(cohort), asked))
            words, silos, asked = max(fitting, key=lambda fit: fit[0])
            vector = np.frombuffer(reply, np.uint64, words)
            found.append(SingleVector(asked, silo, dict(unpack_sum(vector, asked.manifest.channels, silos))))
        return found

    def _records(self, name: str) -> list[dict[str, Any]]:
        with (self._folder / name).open("rb") as file:
            return list(msgpack.Unpacker(file, max_buffer_size=0))
