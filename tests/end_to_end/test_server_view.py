"""What reaches the coordinator: exactly the recorded messages, and in them no silo's numbers in clear."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from autoflip_secure.ckks.messages import EncryptReply, KeyAdvertisement, OpenReply
from autoflip_secure.ckks.packing import from_bytes, polynomials_of, words_of
from autoflip_secure.ckks.parameters import DEGREE, parameters_for
from autoflip_secure.ckks.ring import ring
from autoflip_secure.ckks.silo import STAGES
from autoflip_secure.ckks.state import SiloState
from autoflip_secure.ckks.summation import read_sum
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.errors import Abort
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

REPLY = ("status", "reply", "error", "head")


def digest(fields: dict[str, object]) -> str:
    return hashlib.sha256(msgpack.packb([fields[name] for name in REPLY])).hexdigest()


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


def view_of(run: Path, sent: Counter[str]) -> list[dict[str, Any]]:
    """What a run recorded, once it is sure to be what silos sent, in records of these fields alone."""
    view = read_server_view(run / "server_view")
    assert Counter(digest(message["fields"]) for message in view) == sent
    assert {frozenset(message) for message in view} == {frozenset({"stage", "round", "attempt", "from", "fields"})}
    assert {frozenset(m["fields"]) for m in view} == {frozenset(REPLY)}
    return view


def replies_of(view: list[dict[str, Any]], stage: str) -> list[bytes]:
    return [m["fields"]["reply"] for m in view if (m["stage"], m["fields"]["status"]) == (stage, "ok")]


def test_the_view_holds_every_byte_that_left_a_silo_and_nothing_else(run_sim, tmp_path: Path, sent) -> None:
    run_sim("--dp-epsilon", "8", "--record-server-view", "--dropout", "0.1", "--colluders", "0", "--seed", "5")
    view = view_of(tmp_path / "run", sent)
    assert {message["stage"] for message in view} == {"join", "advertise", "share", "masked", "confirm", "unmask"}
    links = {UnmaskReply.from_bytes(Signed.from_bytes(reply).payload).link for reply in replies_of(view, "unmask")}
    assert {len(link) for link in links} == {0, 32}, "shares and one link, or none where all noise is needed"


def test_every_field_that_the_coordinator_receives_of_a_ckks_sum(run_sim, tmp_path: Path, sent) -> None:
    """Keys, ciphertexts and parts of openings, who sent them, and signatures: no byte is left over."""
    options = ("--dp-epsilon", "8", "--colluders", "0", "--dropout", "0.1", "--reserve", "1", "--seed", "5")
    run_sim("--aggregation", "ckks", *options, "--silos", "8", "--record-server-view")
    view = view_of(tmp_path / "run", sent)
    assert {message["stage"] for message in view} == {"join", "keys", "encrypt", "open"}
    for message in view:
        if message["fields"]["status"] != "ok":
            assert (message["fields"]["status"], message["fields"]["reply"]) == ("dropped", b"")
    assert {len(reply) for reply in replies_of(view, "join")} == {1}, "a number below 128"
    for reply in replies_of(view, "keys"):
        assert list(vars(Signed.from_bytes(reply))) == ["payload", "signature"]
        advertised = vars(KeyAdvertisement.from_bytes(Signed.from_bytes(reply).payload))
        assert list(advertised) == ["session", "roster_hash", "epoch", "silo", "slots", "keys"]
        assert len(advertised["keys"]) == 32 * advertised["slots"]
    kinds = {"encrypt": EncryptReply, "open": OpenReply}
    fields = {"encrypt": ["silo", "signature"], "open": ["silo", "link", "signature"]}
    links = set()
    for message in view:
        stage, reply = message["stage"], message["fields"]["reply"]
        if stage in kinds and reply:
            coefficients = coefficient_bytes(tmp_path / "run", message)
            end = kinds[stage].from_bytes(reply[coefficients:])
            assert list(vars(end)) == fields[stage]
            assert reply == reply[:coefficients] + end.to_bytes()
            assert end.silo == message["from"]
            links |= {len(end.link)} if stage == "open" else set()
    assert links == {0, 32}, "one link, or none where all noise is needed"


def manifest_of(run: Path, round: int, attempt: int) -> Manifest:
    """The manifest of an attempt, with the slot and keys that it was sent with left out."""
    records = list(msgpack.Unpacker((run / "server_view/public.msgpack").open("rb")))[:-1]
    record = next(r for r in records if (r["round"], r["attempt"]) == (round, attempt))
    return Manifest.from_bytes(record["manifest"])


def coefficient_bytes(run: Path, message: dict[str, Any]) -> int:
    """Bytes of coefficients in a silo's ciphertexts, and in its part of their opening."""
    manifest = manifest_of(run, message["round"], message["attempt"])
    silos = len(manifest.cohorts[manifest.cohort_of(message["from"])])
    count = polynomials_of(manifest.channels, silos) * DEGREE
    return count * parameters_for(manifest.channels, silos).coefficient_bytes


def test_ciphertexts_and_parts_of_openings_tell_nothing_apart(run_sim, tmp_path: Path) -> None:
    """Each is uniform modulo q, and a silo's ciphertext with its own part of the opening is no plaintext."""
    run_sim("--aggregation", "ckks", "--prune", "none", "--record-server-view")
    view = read_server_view(tmp_path / "run/server_view")
    found = {stage: {m["from"]: m for m in view if (m["stage"], m["round"]) == (stage, 0)} for stage in STAGES[1:]}
    one = found["encrypt"][1]
    manifest, count = manifest_of(tmp_path / "run", 0, 0), coefficient_bytes(tmp_path / "run", one)
    parameters = parameters_for(manifest.channels, 6)
    lattice = ring(parameters.modulus_bits)

    def words(stage: str, silo: int) -> NDArray[np.uint64]:
        data = found[stage][silo]["fields"]["reply"][:count]
        return from_bytes(data, parameters.coefficient_bytes).reshape(-1, DEGREE)

    for stage in STAGES[1:]:
        sent = words(stage, 1)
        ones = np.unpackbits(sent.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : parameters.coefficient_bytes]).mean()
        assert abs(ones - 0.5) < 5 / np.sqrt(parameters.modulus_bits * sent.size)
    total = lattice.add(words("encrypt", 1), words("open", 1))
    with pytest.raises(Abort):
        read_sum(lattice, parameters, total)
    for silo in range(2, 7):
        total = lattice.add(total, lattice.add(words("encrypt", silo), words("open", silo)))
    opened = words_of(read_sum(lattice, parameters, total), manifest.channels, 6)
    mean = unpack_sum(opened, manifest.channels, 6)["update"] / 6
    moved = [ModelPayload.from_bytes(model).weights for model in models_of(tmp_path / "run")[:2]]
    np.testing.assert_allclose(moved[1] - moved[0], mean, atol=1e-6)


def models_of(run: Path) -> list[bytes]:
    """Models that travelled with the rounds, in order."""
    return [record["model"] for record in list(msgpack.Unpacker((run / "server_view/public.msgpack").open("rb")))[:-1]]


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


@pytest.mark.parametrize("aggregation", ["secagg", "ckks"])
def test_no_secret_and_no_record_appears_in_what_the_coordinator_keeps(
    run_sim, tmp_path: Path, aggregation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file outside silos/ is searched for each silo's identity key, slot secrets and training records."""
    lattice_keys = []
    record_encrypted = SiloState.record_encrypted

    def recording(state: SiloState, ready: Any, slot: int, lattice: bytes, root: bytes | None) -> None:
        lattice_keys.append(lattice[:64])
        record_encrypted(state, ready, slot, lattice, root)

    monkeypatch.setattr(SiloState, "record_encrypted", recording)
    run_sim("--aggregation", aggregation, "--dp-epsilon", "8", "--record-server-view")
    run = tmp_path / "run"
    assert len(lattice_keys) == (5 * 6 if aggregation == "ckks" else 0)
    kept = b"".join(p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and "silos" not in p.parts)
    secrets = [secret for number in range(1, 7) for secret in _secrets_of(silo_folder(run, number), aggregation)]
    assert len(secrets) > 6 * 25
    secrets += lattice_keys
    for secret in secrets:
        assert secret not in kept
        assert secret.hex().encode() not in kept


SECRETS = {
    "secagg": (
        "SELECT seed FROM secagg_secret",
        "SELECT mask_key FROM secagg_secret",
        "SELECT shares FROM secagg_share",
        "SELECT root FROM secagg_chain",
    ),
    "ckks": ("SELECT agreement FROM ckks_secret",),
}


def _secrets_of(home: Path, aggregation: str) -> list[bytes]:
    """Identity key, some records, and what is kept of the slots that were not used yet: seeds, keys, held shares."""
    found = [(home / "identity.key").read_bytes()[-32:]]
    found += [record.tobytes() for record in read_silo(home / "data").train.x[:20]]
    database = open_silo_database(home / "state.sqlite")
    for query in SECRETS[aggregation]:
        found += [blob for (blob,) in database.execute(query).fetchall()]
    return found
