"""What reaches the coordinator: exactly the recorded messages, and in them no silo's numbers in clear."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np
import pytest

from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.federation import client_app
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.server_view import read_server_view
from autoflip_secure.federation.wire import Reply
from autoflip_secure.parties.signing import Signed
from autoflip_secure.secagg.round_messages import UnmaskReply
from autoflip_secure.storage import open_silo_database
from autoflip_secure.sums.encoding import unpack_sum, word_count
from autoflip_secure.sums.manifest import Manifest


def digest(fields: dict[str, object]) -> str:
    return hashlib.sha256(msgpack.packb([fields["status"], fields["reply"], fields["error"]])).hexdigest()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Digests of every reply that leaves a silo, taken at the last place a silo's code touches it."""
    seen: Counter[str] = Counter()
    original = client_app.reply_message

    def recording(reply: Reply, to: object) -> object:
        seen[digest(vars(reply))] += 1
        return original(reply, to)  # type: ignore[arg-type]

    monkeypatch.setattr(client_app, "reply_message", recording)
    return seen


def test_the_view_holds_every_byte_that_left_a_silo_and_nothing_else(run_sim, tmp_path: Path, sent) -> None:
    run_sim("--dp-epsilon", "8", "--record-server-view", "--dropout", "0.1", "--colluders", "0", "--seed", "5")
    view = read_server_view(tmp_path / "run/server_view")
    assert Counter(digest(message["fields"]) for message in view) == sent
    assert {frozenset(message) for message in view} == {frozenset({"stage", "round", "attempt", "from", "fields"})}
    assert {frozenset(m["fields"]) for m in view} == {frozenset({"status", "reply", "error"})}
    stages = {message["stage"] for message in view}
    assert stages == {"join", "advertise", "share", "masked", "confirm", "unmask"}
    replies = [m["fields"]["reply"] for m in view if (m["stage"], m["fields"]["status"]) == ("unmask", "ok")]
    links = {UnmaskReply.from_bytes(Signed.from_bytes(reply).payload).link for reply in replies}
    assert {len(link) for link in links} == {0, 32}, "shares and one link, or none where all noise is needed"


def test_recording_changes_nothing(run_sim, tmp_path: Path) -> None:
    run_sim(name="without")
    run_sim("--record-server-view", name="with")
    assert (tmp_path / "with/model.safetensors").read_bytes() == (tmp_path / "without/model.safetensors").read_bytes()


def test_public_values_are_recorded(run_sim, tmp_path: Path) -> None:
    run_sim("--record-server-view")
    records = list(msgpack.Unpacker((tmp_path / "run/server_view/public.msgpack").open("rb")))
    assert len(records) == 5 + 1
    for record in records[:-1]:
        manifest = Manifest.from_bytes(record["manifest"])
        assert manifest.model_hash == hashlib.sha256(record["model"]).digest()
        ModelPayload.from_bytes(record["model"])
    assert records[-1]["final_model"] == (tmp_path / "run/model.safetensors").read_bytes()


def test_masked_vectors_tell_nothing_and_plain_ones_all(run_sim, tmp_path: Path) -> None:
    """The words of one silo are its update under `none`, and uniform under secagg."""
    vectors = {}
    for aggregation, stage in (("none", "clear"), ("secagg", "masked")):
        run_sim("--aggregation", aggregation, "--prune", "none", "--record-server-view", name=aggregation)
        folder = tmp_path / aggregation / "server_view"
        record = next(iter(msgpack.Unpacker((folder / "public.msgpack").open("rb"))))
        channels = Manifest.from_bytes(record["manifest"]).channels
        first = next(m for m in read_server_view(folder) if m["stage"] == stage)["fields"]["reply"]
        vectors[aggregation] = (np.frombuffer(first, np.uint64, word_count(channels, 6)), channels)
    words, channels = vectors["none"]
    update = unpack_sum(words, channels, 6)["update"]
    assert 0 < np.abs(update).mean() < 0.1
    masked, channels = vectors["secagg"]
    assert np.abs(unpack_sum(masked, channels, 6)["update"]).mean() > 1, "masked words decode to something small"
    ones = np.unpackbits(masked.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 / np.sqrt(64 * masked.size)


def test_the_coordinator_opens_no_file_of_a_silo(tmp_path: Path, run_sim) -> None:
    """With silos in another process, the coordinator's process reads and writes nothing in their folders."""
    opened: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching[0] and event in {"open", "sqlite3.connect", "os.listdir", "os.scandir"}:
            opened.append(str(arguments[0]))

    import autoflip_secure.federation.finish as finish
    import autoflip_secure.federation.provisioning as provisioning

    marks: list[int] = []
    original_finish, original_provision = finish.build_summary, provisioning.write_atomically

    def marked_finish(*arguments: object) -> object:
        marks.append(len(opened))
        return original_finish(*arguments)  # type: ignore[arg-type]

    def marked_write(path: Path, data: bytes, **options: bool) -> None:
        original_provision(path, data, **options)
        if path.name == "config.toml":
            marks.append(len(opened))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "build_summary", marked_finish)
        patch.setattr(provisioning, "write_atomically", marked_write)
        sys.addaudithook(hook)
        small = (
            "--dataset",
            "digits",
            "--model",
            "mlp",
            "--silos",
            "4",
            "--rounds",
            "2",
            "--colluders",
            "0",
            "--quiet",
        )
        run_sim("--workers", "1", "--dp-epsilon", "8", "--explore-rounds", "1", small=small)
        watching[0] = False
    start, stop = marks
    during = opened[start:stop]
    assert any("checkpoint" in name for name in during), "the hook saw nothing"
    assert not [name for name in during if f"{tmp_path}/run/silos" in name]


def test_no_secret_and_no_record_appears_in_what_the_coordinator_keeps(run_sim, tmp_path: Path) -> None:
    """Every file outside silos/ is searched for each silo's identity key, slot secrets and training records."""
    run_sim("--dp-epsilon", "8", "--record-server-view")
    run = tmp_path / "run"
    kept = b"".join(p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and "silos" not in p.parts)
    secrets = [secret for number in range(1, 7) for secret in _secrets_of(silo_folder(run, number))]
    assert len(secrets) > 6 * 20
    for secret in secrets:
        assert secret not in kept
        assert secret.hex().encode() not in kept


def _secrets_of(home: Path) -> list[bytes]:
    """Identity key, some records, and seeds, mask keys and held shares of the slots that were not used yet."""
    found = [(home / "identity.key").read_bytes()[-32:]]
    found += [record.tobytes() for record in read_silo(home / "data").train.x[:20]]
    database = open_silo_database(home / "state.sqlite")
    for query in (
        "SELECT seed FROM secagg_secret",
        "SELECT mask_key FROM secagg_secret",
        "SELECT shares FROM secagg_share",
        "SELECT root FROM secagg_chain",
    ):
        found += [blob for (blob,) in database.execute(query).fetchall()]
    return found
