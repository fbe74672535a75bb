"""Valid inputs of every parser: what one recorded run left, homes of a made-up federation, and made-up data files."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from autoflip_secure.attacks.recorded_view import RecordedView
from autoflip_secure.attacks.settings import run_federation
from autoflip_secure.federation.join import JoinRequest
from autoflip_secure.federation.run_state import load_checkpoint
from autoflip_secure.federation.server_view import read_server_view
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.wire import Message
from autoflip_secure.storage import open_silo_database

__all__ = ["NAMES", "Samples", "function_of", "idx_bytes", "leaf_json", "npz_bytes"]

OPTIONS = (
    "--dataset digits --model mlp --silos 4 --rounds 3 --explore-rounds 1 --colluders 0 --reserve 0.5 --prove-models"
)
NAMES = ("hospital-a", "hospital-b", "hospital-c")
FEDERATION = (
    'name = "cardiology"\nsilos = ["hospital-a", "hospital-b", "hospital-c"]\n\n[coordinator]\nhosts = ["127.0.0.1"]\n'
    'port = 8000\n\n[task]\ntask = "classification"\nclasses = [0, 1]\nfeatures = 3\n'
)
SURVIVAL = 'task = "survival"\nfeatures = 2\ncuts = [4.0]\nhazards = [0.03, 0.03]\npatient = "id"\npatients = 90\n'

FIELDS: dict[str, Any] = {
    **dict.fromkeys(("silo", "epoch", "slot", "threshold", "cohort"), 1),
    **dict.fromkeys(("slots",), 2),
    **dict.fromkeys(("holders",), 0),
    "session": bytes(16),
    **dict.fromkeys(("roster_hash", "digest", "words_hash", "box_key", "keys_hash", "parcels_hash"), b"\x07" * 32),
    **dict.fromkeys(("mask_keys_hash", "commitments_hash", "coefficients_hash", "opening", "link"), b"\x07" * 32),
    **dict.fromkeys(("keys", "mask_keys", "commitments"), b"\x09" * 64),
    "signature": bytes(64),
    "survivors": ((1, 2, 3), (4, 5)),
    "receipts": ((1, bytes(32), bytes(64)), (2, bytes(32), bytes(64))),
    "confirmations": ((1, bytes(64)), (2, bytes(64))),
    "recipients": (1, 2, 3),
    **dict.fromkeys(("seed_shares", "key_shares"), (b"", b"\x05" * 49)),
    "coordinator": bytes(32),
    **dict.fromkeys(("public", "key_name"), b"\x07" * 32),
    "asked": "take",
    "statements": (b"blob",),
    "box": bytes(60),
    "boxes": (bytes(60), bytes(60)),
    "entries": ((1, "a", b"\x01" * 32), (2, "b", b"\x02" * 32), (3, "c", b"\x03" * 32)),
}
"""What a field of a protocol message may hold, by name; fields not named hold bytes, or a list of bytes."""


def function_of(name: str) -> Any:
    """What `module:Class.method` names. Imported by name, since parsers lie in every part of the package."""
    module, _, path = name.partition(":")
    found: Any = import_module(f"autoflip_secure.{module}")
    for part in path.split("."):
        found = getattr(found, part)
    return found


def message_of(kind: type[Message]) -> Message:
    """A valid message of a kind, of made-up fields."""
    values = []
    for each in fields(kind):  # type: ignore[arg-type]
        default = (b"blob", b"") if str(each.type).startswith("tuple") else b"blob"
        values.append(FIELDS.get(each.name, default))
    return kind(*values)


def npz_bytes(*, compressed: Any = False, **arrays: Any) -> bytes:
    """A file of numpy.savez."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def idx_bytes(values: np.ndarray) -> bytes:
    """An idx file, not yet compressed."""
    code = {"uint8": 0x08, "int32": 0x0C}[values.dtype.name]
    shape = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, code, values.ndim]) + shape + values.astype(values.dtype.newbyteorder(">")).tobytes()


def leaf_json(x: list[Any], y: list[Any]) -> bytes:
    """A file of LEAF with one user."""
    return json.dumps({"users": ["u"], "num_samples": [len(x)], "user_data": {"u": {"x": x, "y": y}}}).encode()


class Samples:
    """Samples, each made where it is first asked for.

    Parameters
    ----------
    folder : Path
        An empty folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def run(self) -> Path:
        """The folder of a run under DP that was recorded."""
        path = self.folder / "run"
        run_federation(OPTIONS, "sum + DP 8", 0, path)
        return path

    def file(self, name: str) -> list[bytes]:
        """A file of the run."""
        return [(self.run / name).read_bytes()]

    @cached_property
    def view(self) -> RecordedView:
        """What its coordinator saw."""
        return RecordedView(self.run)

    @cached_property
    def replies(self) -> dict[str, list[bytes]]:
        """A few answers of silos by stage, and their audit heads under `head`."""
        found: dict[str, list[bytes]] = {"head": []}
        for message in read_server_view(self.run / "server_view"):
            stage, content = message["stage"], message["fields"]
            if content["status"] == "ok" and len(found.setdefault(stage, [])) < 3:
                found[stage].append(content["reply"])
                found["head"].append(content["head"])
        return found

    @cached_property
    def proofs(self) -> list[bytes]:
        """Opened sums as silos are shown them: of a round that explores, and of one that trains."""
        return [path.read_bytes() for path in sorted((self.run / "proofs").iterdir())[:2]]

    @cached_property
    def manifests(self) -> list[bytes]:
        """One of each phase."""
        by_phase = {asked.manifest.phase: asked.manifest.to_bytes() for asked in self.view.asked}
        return list(by_phase.values())

    @cached_property
    def models(self) -> list[bytes]:
        """Two models that travelled."""
        return [self.view.asked[0].model.to_bytes(), self.view.asked[-1].model.to_bytes()]

    @cached_property
    def roster(self) -> Roster:
        """Of the run."""
        return Roster.from_bytes((self.run / "federation" / "roster.bin").read_bytes())

    @cached_property
    def joined(self) -> bytes:
        """Statement of the run that silo 1 joined."""
        database = open_silo_database(self.run / "silos" / "silo-001" / "state.sqlite")
        try:
            body: bytes = database.execute("SELECT request FROM sessions").fetchone()[0]
        finally:
            database.close()
        return body

    @cached_property
    def join_request(self) -> JoinRequest:
        """The same, read."""
        return JoinRequest.from_body(self.joined)

    @cached_property
    def traffic(self) -> list[bytes]:
        """The traffic in the run's checkpoint."""
        return [json.dumps(load_checkpoint(self.run / "checkpoint").traffic.to_json()).encode()]

    @cached_property
    def ledger(self) -> list[bytes]:
        """A silo's database in one file, without a write-ahead log beside it."""
        path = self.folder / "ledger.sqlite"
        database = open_silo_database(self.run / "silos" / "silo-001" / "state.sqlite")
        try:
            database.execute("VACUUM INTO ?", (str(path),))
        finally:
            database.close()
        return [path.read_bytes()]

    @cached_property
    def homes(self) -> Path:
        """Homes of an authority, a coordinator and three silos that are enrolled."""
        folder = self.folder / "homes"
        folder.mkdir()
        (folder / "FEDERATION.toml").write_text(FEDERATION)
        authority = function_of("deployment.authority:init_authority")(folder / "FEDERATION.toml", folder / "authority")
        coordinator = function_of("deployment.coordinator_home:init_coordinator")(folder / "coordinator")
        silos = [function_of("deployment.silo_home:init_silo")(folder / name, name) for name in NAMES]
        authority.enrol([coordinator.request, *(silo.request for silo in silos)])
        return folder

    def home_text(self, *names: str) -> list[bytes]:
        """Files of the homes."""
        return [(self.homes / name).read_bytes() for name in names]

    def messages(self, kinds: Sequence[type[Message]]) -> list[bytes]:
        """A made-up message of each kind."""
        return [message_of(kind).to_bytes() for kind in kinds]

    @cached_property
    def heads(self) -> list[bytes]:
        """What a silo is shown of all audit logs."""
        read, silos = function_of("federation.audit_log:Head.from_bytes"), self.replies["head"][:4]
        shown = function_of("federation.audit_heads:HeadList")(read(silos[0]), dict(enumerate(map(read, silos), 1)))
        parts: dict[int, bytes] = shown.shown()
        return [parts[1]]

    @cached_property
    def jpeg(self) -> bytes:
        """A picture of 32 x 32 in three colours."""
        from PIL import Image

        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        return buffer.getvalue()

    @cached_property
    def archive(self) -> bytes:
        """A tar of two pictures, one a part; not yet compressed."""
        import tarfile

        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in ("train/cat/0001.jpg", "test/dog/0001.jpg"):
                member = tarfile.TarInfo(name)
                member.size = len(self.jpeg)
                archive.addfile(member, io.BytesIO(self.jpeg))
        return buffer.getvalue()


def packed_idx(values: np.ndarray) -> bytes:
    """A gzipped idx file."""
    return gzip.compress(idx_bytes(values), 1)


def sealed(body: bytes, sign: Any) -> bytes:
    """A msgpack pair of a statement and its signature, as a coordinator that may say anything makes it."""
    return bytes(msgpack.packb([body, sign(body)]))
