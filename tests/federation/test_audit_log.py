"""Audit logs: what a line is, that it is there before a message leaves, and what is checked of others' heads."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import ProtocolError, Refusal, StorageError
from autoflip_secure.federation import audit_log
from autoflip_secure.federation.audit_heads import BLOCK, HeadList, ShownHeads, check_heads
from autoflip_secure.federation.audit_log import AuditLog, Head, read_line, witnessed_in
from autoflip_secure.federation.audit_trail import CoordinatorTrail
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.exchange import StageExchange, Traffic
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.wire import Reply, Request, read_request, reply_message
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.privacy.ledger_reading import read_ledger
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms

IDENTITY = Identity.generate()
COORDINATOR = Identity.generate()
SILOS = {silo: Identity.generate() for silo in range(1, 5)}
ROSTER = Roster(COORDINATOR.public, tuple(RosterEntry(n, f"silo-{n}", SILOS[n].public) for n in SILOS))
ZERO = "0" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def opened(path: Path, identity: Identity = IDENTITY) -> AuditLog:
    return AuditLog(path, identity, "silo 1")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Lines


def test_each_line_names_the_one_before_and_is_signed(path: Path) -> None:
    """Recomputed from the specification: SHA-256 over the bytes as they stand, Ed25519 over number and digest."""
    log = opened(path)
    heads = [log.append("reply", round=n, bytes=n, sha256=bytes([n])) for n in range(3)]
    before = ZERO
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        text, rest = raw.split(b',"digest":"')
        line = json.loads(raw)
        assert (line["n"], line["previous"]) == (number, before)
        digest = hashlib.sha256(b"autoflip-secure/audit-line|" + text).hexdigest()
        assert rest == f'{digest}","signature":"{line["signature"]}"}}'.encode()
        assert Head(number, bytes.fromhex(digest), bytes.fromhex(line["signature"])).is_of(IDENTITY.public)
        before = digest
    assert [line["kind"] for line in lines_of(path)] == ["opened", "reply", "reply", "reply"]
    assert [head.count for head in heads] == [2, 3, 4]
    assert heads[-1].digest.hex() == before
    assert lines_of(path)[0]["key"] == IDENTITY.public.hex()


def test_equal_facts_have_unlike_digests(path: Path) -> None:
    """Else who sees a head could try what its line may say."""
    log = opened(path)
    log.append("reply", round=1)
    log.append("reply", round=1)
    salts = [line["salt"] for line in lines_of(path)]
    assert len(set(salts)) == 3
    assert {len(salt) for salt in salts} == {32}


def test_the_file_is_its_owner_s_alone(path: Path) -> None:
    opened(path).append("reply")
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_key_is_nowhere_in_the_file_or_in_words(path: Path, tmp_path: Path) -> None:
    identity = Identity.create(tmp_path / "key.pem")
    log = AuditLog(path, identity, "silo 1")
    log.append("reply")
    assert "PRIVATE" not in path.read_text() + repr(log)


def test_facts_may_not_take_a_line_s_own_names(path: Path) -> None:
    log = opened(path)
    for name in ("n", "time", "salt", "previous", "digest", "signature"):
        with pytest.raises(ValueError, match=name):
            log.append("reply", **{name: 1})
    with pytest.raises(TypeError):
        log.append("reply", silos={1, 2})
    with pytest.raises(ValueError, match="JSON"):
        log.append("reply", epsilon=float("nan"))


text = st.text(max_size=20)
facts = st.dictionaries(st.sampled_from(["stage", "status", "error"]), text)


@given(st.lists(facts, max_size=6))
@settings(max_examples=40, deadline=None)
def test_whatever_a_line_says_it_is_read_again(tmp_path_factory, said) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    for each in said:
        opened(path).append("reply", **each)  # opened anew each time, as after a restart
    raws = path.read_bytes().splitlines()[1:] if said else []
    read = [read_line(raw) for raw in raws]
    assert [{k: line.fields[k] for k in each} for line, each in zip(read, said, strict=True)] == said
    assert all(line.actual == line.digest for line in read)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[1]", b"not a line", b'{"n":1}', b"\xff" * 300,
        b'{"n":0,"kind":"k","previous":"%s","digest":"%s","signature":"%s"}' % (b"0" * 64, b"0" * 64, b"0" * 128),
        b'{"n":true,"kind":"k","previous":"%s","digest":"%s","signature":"%s"}' % (b"0" * 64, b"0" * 64, b"0" * 128),
        b'{"n":1,"kind":7,"previous":"%s","digest":"%s","signature":"%s"}' % (b"0" * 64, b"0" * 64, b"0" * 128),
        b'{"n":1,"kind":"k","previous":"x","digest":"%s","signature":"%s"}' % (b"0" * 64, b"0" * 128),
        b'{"n":1,,"digest":"%s","signature":"%s"}' % (b"0" * 64, b"0" * 128),
    ],
)  # fmt: skip
def test_what_is_no_line_is_not_read(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"does not|is not|has no"):
        read_line(raw)


# Files: crashes, disks, other processes


def test_a_log_goes_on_after_a_restart(path: Path) -> None:
    first = opened(path).append("reply", round=0)
    again = opened(path)
    again.refresh()
    assert again.head == first
    assert again.append("reply", round=1).count == 3
    assert lines_of(path)[2]["previous"] == first.digest.hex()


def test_two_that_hold_the_log_open_write_in_turn(path: Path) -> None:
    one, two = opened(path), opened(path)
    counts = [log.append("reply").count for log in (one, two, two, one, two)]
    assert counts == [2, 3, 4, 5, 6]
    opened(path).refresh()


def _append_many(path: Path, key: Path, times: int) -> None:
    log = AuditLog(path, Identity.load(key), "silo 1")
    for _ in range(times):
        log.append("reply", process=os.getpid())


def test_processes_that_write_at_once_leave_one_chain(path: Path, tmp_path: Path) -> None:
    key = tmp_path / "identity.key"
    identity = Identity.create(key)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, key, 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    log = AuditLog(path, identity, "silo 1")
    log.refresh()
    assert log.head is not None
    assert log.head.count == 61
    assert len({line.get("process") for line in lines_of(path)} - {None}) == 3


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_line_that_a_crash_cut_short_is_taken_away_and_that_is_recorded(path: Path, left: int) -> None:
    log = opened(path)
    kept = log.append("reply", round=0)
    log.append("reply", round=1)
    data = path.read_bytes()
    start = data[:-1].rfind(b"\n") + 1
    piece = data[start:-1] if left == -1 else data[start : start + left]
    path.write_bytes(data[:start] + piece)
    again = opened(path)
    again.append("reply", round=2)
    *_, torn, last = lines_of(path)
    assert (torn["kind"], torn["bytes"], torn["previous"]) == ("torn", len(piece), kept.digest.hex())
    assert torn["sha256"] == hashlib.sha256(piece).hexdigest()
    assert last["round"] == 2
    opened(path).refresh()


@pytest.mark.parametrize("fails", ["pwrite", "fsync"])
def test_a_disk_that_refuses_leaves_the_lines_before_and_no_head(
    path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(path)
    before = log.append("reply", round=0)
    content = path.read_bytes()

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(audit_log.os, fails, refuse)
        with pytest.raises(StorageError, match="No space left"):
            log.append("reply", round=1)
    assert path.read_bytes() == content
    assert log.head == before
    assert log.append("reply", round=2).count == 3
    opened(path).refresh()


def test_half_a_write_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(path)
    log.append("reply", round=0)
    content, real = path.read_bytes(), os.pwrite
    calls = iter(range(10))

    def half(file: int, data: Any, start: int) -> int:
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, bytes(data[:30]), start)

    with monkeypatch.context() as patched:
        patched.setattr(audit_log.os, "pwrite", half)
        with pytest.raises(StorageError):
            log.append("reply", round=1)
    assert path.read_bytes() == content


def test_a_line_is_on_disk_when_its_head_is_given_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(audit_log.os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), real(file)))
    log = opened(path)
    for round in range(3):
        log.append("reply", round=round)
        assert synced[-1] == path.stat().st_size
    count = len(synced)
    log.append("replies", sync=False)
    assert len(synced) == count, "what the next line takes to the disk need not be waited for"


Damage = Callable[[list[bytes]], list[bytes]]
DAMAGES: dict[str, Damage] = {
    "a field": lambda lines: [lines[0], lines[1].replace(b'"round":0', b'"round":7'), *lines[2:]],
    "a deleted line": lambda lines: [lines[0], *lines[2:]],
    "swapped lines": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "a doubled line": lambda lines: [lines[0], lines[1], lines[1], *lines[2:]],
    "no line": lambda lines: [lines[0], b"nothing", *lines[2:]],
    "another signature at the end": lambda lines: [*lines[:-1], lines[-1][:-10] + b"0" * 8 + lines[-1][-2:]],
    "heads that are none": lambda lines: [lines[0], lines[1].replace(b'"round":0', b'"witnessed":{"x":1}'), *lines[2:]],
}  # fmt: skip


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_party_whose_log_is_damaged_writes_no_more(path: Path, name: str) -> None:
    log = opened(path)
    for round in range(3):
        log.append("reply", round=round)
    damaged = b"\n".join(DAMAGES[name](path.read_bytes().splitlines())) + b"\n"
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    again = opened(path)
    for act in (again.refresh, lambda: again.append("reply")):
        with pytest.raises(StorageError, match="audit verify"):
            act()
    assert path.read_bytes() == damaged, "the evidence is kept"


def test_a_line_that_was_signed_anew_breaks_the_chain(path: Path, tmp_path: Path) -> None:
    """By whoever has the key; its number and digest fit, and only the next line tells."""
    log = opened(path)
    for round in range(3):
        log.append("reply", round=round)
    other = AuditLog(tmp_path / "other.jsonl", IDENTITY, "silo 1")
    other.append("reply", round=7)
    lines = path.read_bytes().splitlines()
    lines[1] = (tmp_path / "other.jsonl").read_bytes().splitlines()[1]
    path.write_bytes(b"\n".join([lines[0], lines[1], *lines[2:]]) + b"\n")
    with pytest.raises(StorageError, match="line 2 is not the one"):
        opened(path).refresh()
    path.write_bytes(b"\n".join([(tmp_path / "other.jsonl").read_bytes().splitlines()[0], *lines[1:]]) + b"\n")
    with pytest.raises(StorageError, match="line 3 is not the one"):
        opened(path).refresh()


def test_a_log_of_another_party_is_not_gone_on_with(path: Path) -> None:
    opened(path).append("reply")
    with pytest.raises(StorageError, match="not signed by this party"):
        opened(path, Identity.generate()).append("reply")


def test_a_log_that_got_shorter_under_a_running_party_is_noticed(path: Path) -> None:
    log = opened(path)
    log.append("reply")
    older = path.read_bytes()
    log.append("reply")
    path.write_bytes(older)
    with pytest.raises(StorageError, match="shorter"):
        log.append("reply")


# Heads


def head(identity: Identity, count: int, said: str = "") -> Head:
    return Head.signed(count, hashlib.sha256(f"{count}{said}".encode()).digest(), identity)


def test_heads_round_trip_and_hold_for_their_signer_alone() -> None:
    made = head(IDENTITY, 300)
    assert Head.from_bytes(made.to_bytes()) == made
    assert made.is_of(IDENTITY.public)
    assert not made.is_of(COORDINATOR.public)
    for other in (Head(301, made.digest, made.signature), Head(300, bytes(32), made.signature)):
        assert not other.is_of(IDENTITY.public)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", msgpack.packb(1), msgpack.packb([1, bytes(32)]), msgpack.packb([0, bytes(32), bytes(64)]),
        msgpack.packb([True, bytes(32), bytes(64)]), msgpack.packb([1, bytes(31), bytes(64)]),
        msgpack.packb([1, bytes(32), bytes(65)]), msgpack.packb([1.0, bytes(32), bytes(64)]),
        msgpack.packb([1 << 53, bytes(32), bytes(64)]), msgpack.packb([1, bytes(32), bytes(64)]) + b"\0",
        b"\x93\xcd\x00\x01\xc4\x20" + bytes(32) + b"\xc4\x40" + bytes(64),
    ],
)  # fmt: skip
def test_what_is_no_head_is_not_read(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Head.from_bytes(data)


def test_the_hash_of_a_list_is_the_specification_s() -> None:
    heads = {silo: head(SILOS[silo], silo) for silo in SILOS}
    made = HeadList(head(COORDINATOR, 9), heads)

    def row(of: Head) -> list[Any]:
        return [of.count, of.digest, of.signature]

    block = msgpack.packb([[silo, *row(heads[silo])] for silo in sorted(heads)])
    ranges = [[min(heads), max(heads), hashlib.sha256(b"autoflip-secure/audit-heads-block|" + block).digest()]]
    whole = msgpack.packb([row(made.coordinator), ranges])
    assert made.hash() == hashlib.sha256(b"autoflip-secure/audit-heads|" + whole).digest()
    assert made.shown()[3] == msgpack.packb([row(made.coordinator), 0, block, ranges])


@pytest.mark.parametrize("silos", [1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 1000])
def test_every_silo_is_shown_its_block_and_the_hash_of_all(silos: int) -> None:
    made = HeadList(head(COORDINATOR, 9), {silo: head(IDENTITY, silo) for silo in range(1, silos + 1)})
    shown = made.shown()
    assert set(shown) == set(range(1, silos + 1))
    for silo in {1, min(BLOCK, silos), silos}:
        read = ShownHeads.from_bytes(shown[silo])
        assert read.hash == made.hash()
        assert read.silos[silo] == made.silos[silo]
        assert min(silos, BLOCK // 2) <= len(read.silos) <= BLOCK
        assert list(read.silos) == list(range(min(read.silos), max(read.silos) + 1)), "neighbours"
        assert {bytes(shown[other]) for other in read.silos} == {bytes(shown[silo])}
    assert max(map(len, shown.values())) <= 112 + 112 * BLOCK + 41 * -(-silos // BLOCK)


def test_a_silo_in_a_small_block_of_a_long_list_refuses() -> None:
    """Its log would be witnessed by the coordinator alone, or by few that work with it."""
    few = BLOCK // 2 - 1
    block = msgpack.packb([[silo, *head(IDENTITY, silo).row()] for silo in range(1, few + 1)])
    digest = hashlib.sha256(b"autoflip-secure/audit-heads-block|" + block).digest()
    shown = msgpack.packb([head(COORDINATOR, 9).row(), 0, block, [[1, few, digest], [few + 1, 33, bytes(32)]]])
    with pytest.raises(ProtocolError, match="smaller than blocks"):
        ShownHeads.from_bytes(shown)


def blocks_of(*parts: list[int]) -> tuple[list[bytes], list[list[Any]]]:
    """Packed blocks of these silos, and their ranges."""
    blocks = [bytes(msgpack.packb([[silo, *head(IDENTITY, silo).row()] for silo in part])) for part in parts]
    digests = [hashlib.sha256(b"autoflip-secure/audit-heads-block|" + block).digest() for block in blocks]
    return blocks, [[part[0], part[-1], digest] for part, digest in zip(parts, digests, strict=True)]


@pytest.mark.parametrize(
    "parts",
    [
        ([*range(1, 17)], [*range(2, 34)]),
        ([*range(2, 34)], [*range(1, 17)]),
        ([*range(17, 33)], [*range(1, 17)]),
        ([*range(1, 17), 40], [*range(17, 33)]),
    ],
)
def test_blocks_that_overlap_or_are_out_of_order_are_refused(parts: tuple[list[int], ...]) -> None:
    """Else one silo is shown a block that no other of it is shown, and its log is witnessed by nobody."""
    blocks, ranges = blocks_of(*parts)
    for place, block in enumerate(blocks):
        with pytest.raises(ProtocolError, match="overlap"):
            ShownHeads.from_bytes(msgpack.packb([head(COORDINATOR, 9).row(), place, block, ranges]))


@pytest.mark.parametrize("wrong", [[1, 17], [2, 16], [1, 15]])
def test_a_block_is_of_the_range_that_the_list_says(wrong: list[int]) -> None:
    blocks, ranges = blocks_of([*range(1, 17)], [*range(17, 33)])
    ranges[0][:2] = wrong
    with pytest.raises(ProtocolError):
        ShownHeads.from_bytes(msgpack.packb([head(COORDINATOR, 9).row(), 0, blocks[0], ranges]))


def test_silos_of_a_block_stand_in_their_order() -> None:
    blocks, ranges = blocks_of([1, 3, 2])
    ranges[0][:2] = [1, 3]
    with pytest.raises(ProtocolError, match="in their order"):
        ShownHeads.from_bytes(msgpack.packb([head(COORDINATOR, 9).row(), 0, blocks[0], ranges]))


def test_a_list_depends_on_every_head_of_every_block() -> None:
    heads = {silo: head(IDENTITY, silo) for silo in range(1, 71)}
    hashes = {HeadList(head(COORDINATOR, 9), heads).hash(), HeadList(head(COORDINATOR, 10), heads).hash()}
    for silo in (1, 33, 70):
        hashes.add(HeadList(head(COORDINATOR, 9), {**heads, silo: head(IDENTITY, silo, "x")}).hash())
    assert len(hashes) == 5


class Shown:
    """Silo 1 with its log, and an honest list that tests change."""

    def __init__(self, path: Path) -> None:
        self.log = AuditLog(path, SILOS[1], "silo 1")
        self.heads = {1: self.log.append("join"), **{silo: head(SILOS[silo], 5) for silo in (2, 3, 4)}}
        self.coordinator = head(COORDINATOR, 7)

    def check(self, *, data: bytes | None = None, heads_hash: bytes | None = None) -> dict[bytes, Head]:
        made = HeadList(self.coordinator, self.heads)
        shown = made.shown().get(1, made.shown()[min(self.heads)]) if data is None else data
        new = check_heads(shown, heads_hash or made.hash(), 1, ROSTER, self.log)
        self.log.append("reply", witnessed=new)
        return new


@pytest.fixture
def shown(path: Path) -> Shown:
    return Shown(path)


def test_an_honest_list_is_witnessed_and_only_what_is_new_of_it(shown: Shown) -> None:
    first = shown.check()
    assert first == {COORDINATOR.public: shown.coordinator, **{SILOS[n].public: shown.heads[n] for n in (2, 3, 4)}}
    assert shown.check() == {}, "the same heads again are no news"
    shown.heads[3] = head(SILOS[3], 6)
    assert shown.check() == {SILOS[3].public: shown.heads[3]}


def test_what_was_witnessed_is_remembered_after_a_restart(shown: Shown, path: Path) -> None:
    first = shown.check()
    again = AuditLog(path, SILOS[1], "silo 1")
    again.refresh()
    assert again.witnessed == first
    last = read_line(path.read_bytes().splitlines()[-1])
    assert witnessed_in(last) == first


def test_the_own_head_may_be_an_older_one(shown: Shown) -> None:
    """A reply may have been lost on its way."""
    shown.log.append("reply")
    shown.check()


def without_list(shown: Shown) -> dict[str, Any]:
    return {"data": b"", "heads_hash": bytes(32)}


def another_hash(shown: Shown) -> dict[str, Any]:
    return {"heads_hash": b"\x01" * 32}


def no_list(shown: Shown) -> dict[str, Any]:
    return {"data": msgpack.packb([1, 2, 3])}


def block_of_another_list(shown: Shown) -> dict[str, Any]:
    coordinator, place, _, hashes = msgpack.unpackb(HeadList(shown.coordinator, shown.heads).shown()[1])
    other = HeadList(shown.coordinator, {**shown.heads, 2: head(SILOS[2], 50)}).shown()[1]
    return {"data": msgpack.packb([coordinator, place, msgpack.unpackb(other)[2], hashes])}


def left_out(shown: Shown) -> dict[str, Any]:
    del shown.heads[1]
    return {}


def never_had(shown: Shown) -> dict[str, Any]:
    shown.heads[1] = head(SILOS[1], 2)
    return {}


def not_yet_had(shown: Shown) -> dict[str, Any]:
    shown.heads[1] = head(SILOS[1], 100)
    return {}


def stranger(shown: Shown) -> dict[str, Any]:
    shown.heads[5] = head(SILOS[4], 1)
    return {}


def forged(shown: Shown) -> dict[str, Any]:
    shown.heads[2] = head(SILOS[3], 5)
    return {}


def forged_coordinator(shown: Shown) -> dict[str, Any]:
    shown.coordinator = head(SILOS[3], 8)
    return {}


def goes_back(shown: Shown) -> dict[str, Any]:
    shown.check()
    shown.heads[2] = head(SILOS[2], 4)
    return {}


def coordinator_goes_back(shown: Shown) -> dict[str, Any]:
    shown.check()
    shown.coordinator = head(COORDINATOR, 6)
    return {}


def another_line(shown: Shown) -> dict[str, Any]:
    shown.check()
    shown.heads[2] = head(SILOS[2], 5, "rewritten")
    return {}


REFUSED: dict[Callable[[Shown], dict[str, Any]], str] = {
    without_list: "shows no heads",
    another_hash: "not those that the manifest names",
    no_list: "not a list",
    block_of_another_list: "not those of their block",
    left_out: "leaves this silo out",
    never_had: "head of 2 lines that this log never had",
    not_yet_had: "head of 100 lines that this log never had",
    stranger: "silo 5 of the list is not in the roster",
    forged: "head 5 of silo 2 is not signed by it",
    forged_coordinator: "head 8 of the coordinator is not signed by it",
    goes_back: "silo 2 is shown with 4 lines after it had 5",
    coordinator_goes_back: "the coordinator is shown with 6 lines after it had 7",
    another_line: "its past was rewritten",
}


@pytest.mark.parametrize("change", list(REFUSED), ids=lambda change: change.__name__)
def test_a_list_that_hides_something_is_refused(shown: Shown, change: Callable[[Shown], dict[str, Any]]) -> None:
    given_ = change(shown)
    before = dict(shown.log.witnessed)
    with pytest.raises(Refusal, match="refused by rule heads") as refused:
        shown.check(**given_)
    assert REFUSED[change] in str(refused.value)
    assert shown.log.witnessed == before


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_no_list_of_heads(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ShownHeads.from_bytes(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_byte_of_what_is_shown_can_be_changed(data) -> None:
    made = HeadList(Head(9, bytes(32), bytes(64)), {silo: Head(silo, bytes(32), bytes(64)) for silo in range(1, 40)})
    original = made.shown()[1]
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = ShownHeads.from_bytes(bytes(changed))
    except ProtocolError:
        return
    assert read.hash != made.hash() or read == ShownHeads.from_bytes(original)


# The coordinator


@pytest.fixture
def trail(path: Path) -> CoordinatorTrail:
    return CoordinatorTrail(AuditLog(path, COORDINATOR, "coordinator"), ROSTER)


def reply(silo: int, count: int, signer: Identity | None = None) -> Reply:
    return Reply("ok", b"numbers", head=head(signer or SILOS[silo], count).to_bytes())


def test_the_coordinator_s_lines_hold_every_reply_and_its_head(trail: CoordinatorTrail, path: Path) -> None:
    trail.joined({silo: reply(silo, 2) for silo in SILOS})
    trail.take(1, reply(1, 3))
    trail.take(2, Reply("refused", error="Refusal"))
    trail.answered("masked", 0, 0)
    join, last = lines_of(path)[-2:]
    assert set(join["witnessed"]) == {identity.public.hex() for identity in SILOS.values()}
    digest = hashlib.sha256(b"numbers").hexdigest()
    assert last["replies"] == {"1": ["ok", 7, digest], "2": ["refused", 0, hashlib.sha256(b"").hexdigest()]}
    assert list(last["witnessed"]) == [SILOS[1].public.hex()]
    assert last["witnessed"][SILOS[1].public.hex()][0] == 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (reply(1, 2), "2 lines after it had 2"),
        (reply(1, 1), "1 lines after it had 2"),
        (reply(1, 3, SILOS[2]), "not signed"),
        (Reply("ok", b"numbers"), "not the head"),
        (Reply("ok", b"numbers", head=b"\x93\x01"), "not the head"),
        (Reply("refused", head=head(SILOS[2], 3).to_bytes()), "not signed"),
    ],
)
def test_a_reply_without_the_next_head_is_not_taken(trail: CoordinatorTrail, bad: Reply, words: str) -> None:
    trail.joined({silo: reply(silo, 2) for silo in SILOS})
    with pytest.raises(ProtocolError, match=words):
        trail.take(1, bad)
    trail.take(1, reply(1, 3))


def test_a_silo_that_joins_with_a_shorter_log_is_in_no_list(path: Path, trail: CoordinatorTrail) -> None:
    trail.joined({silo: reply(silo, 9) for silo in SILOS})
    again = CoordinatorTrail(AuditLog(path, COORDINATOR, "coordinator"), ROSTER)  # as after a restart
    again.joined({1: reply(1, 10), 2: reply(2, 4), 3: reply(3, 11), 4: reply(4, 12)})
    again.freeze()
    assert again.shown_to(2) == b"", "it refuses by itself, and says so in its own log"
    assert set(ShownHeads.from_bytes(again.shown_to(1)).silos) == {1, 3, 4}
    (rejected,) = [line for line in lines_of(path) if line["kind"] == "rejected"]
    assert (rejected["silo"], "4 lines after it had 9" in rejected["reason"]) == (2, True)
    with pytest.raises(ProtocolError):
        again.take(2, reply(2, 5))


def test_the_list_is_the_one_at_the_start_of_an_attempt(trail: CoordinatorTrail) -> None:
    trail.joined({silo: reply(silo, 2) for silo in SILOS})
    first = trail.freeze()
    trail.take(1, reply(1, 3))
    shown = ShownHeads.from_bytes(trail.shown_to(1))
    assert (shown.hash, shown.silos[1].count) == (first, 2)
    assert trail.freeze() != first
    assert ShownHeads.from_bytes(trail.shown_to(2)).silos[1].count == 3


def test_silos_of_a_changed_roster_are_asked_again(trail: CoordinatorTrail) -> None:
    trail.joined({silo: reply(silo, 2) for silo in SILOS})
    smaller = Roster(COORDINATOR.public, ROSTER.entries[:3])
    trail.enrol(smaller)
    trail.freeze()
    assert trail.shown_to(1) == b""
    trail.joined({silo: reply(silo, 3) for silo in (1, 2, 3)})
    trail.freeze()
    assert set(ShownHeads.from_bytes(trail.shown_to(1)).silos) == {1, 2, 3}


# Silos and the exchange


class Joined:
    """Silo 1 of a run without DP, asked by a coordinator that shows it honest heads."""

    def __init__(self, folder: RunFolder, config: Any, make_manifest: Any, model: Any) -> None:
        self.home, self.identity = silo_folder(folder.path, 1), folder.coordinator_identity()
        self.silo, self.model = Silo(self.home), model
        self.request = JoinRequest(folder.session(), config, folder.task.read_text(), {})
        self.ask_manifest = lambda **changes: make_manifest(
            config, model, session=folder.session(), config_hash=self.request.digest(), **changes
        )

    def join(self) -> Reply:
        return self.silo.answer(Request(JOIN_STAGE, 0, 0, self.request.sign(self.identity)))

    def clear(self, **changes: Any) -> Reply:
        """Ask for numbers; `changes` are those of the request."""
        return self.silo.answer(self.clear_request(**changes))

    def clear_request(self, **changes: Any) -> Request:
        log = AuditLog(self.home / "audit.jsonl", Identity.load(self.home / "identity.key"), "")
        log.refresh()
        assert log.head is not None
        heads = HeadList(Head.signed(1, bytes(32), self.identity), {1: log.head})
        manifest = self.ask_manifest(heads_hash=heads.hash())
        values = {"attachment": self.model.to_bytes(), "heads": heads.shown()[1], **changes}
        return Request("clear", manifest.round, 0, manifest.to_bytes(), **values)

    def lines(self) -> list[dict[str, Any]]:
        return lines_of(self.home / "audit.jsonl")


@pytest.fixture
def joined(make_config, make_federation, make_manifest, model) -> Joined:
    config = make_config()
    return Joined(make_federation(config), config, make_manifest, model)


def test_every_reply_leaves_with_the_head_of_the_line_about_it(joined: Joined) -> None:
    for answer in (joined.join, joined.clear, lambda: joined.clear(attachment=b"another model")):
        given_ = answer()
        last = joined.lines()[-1]
        left = Head.from_bytes(given_.head)
        assert (last["n"], last["digest"]) == (left.count, left.digest.hex())
        assert (last["status"], last["error"], last["bytes"]) == (given_.status, given_.error, len(given_.reply))
        assert last["sha256"] == hashlib.sha256(given_.reply).hexdigest()
    assert [line["status"] for line in joined.lines()[1:]] == ["ok", "ok", "refused"]


def test_the_line_about_numbers_says_what_they_are_of_and_what_paid_for_them(joined: Joined) -> None:
    joined.join()
    reply = joined.clear()
    line = joined.lines()[-1]
    entry = read_ledger(joined.home / "state.sqlite").entries[-1]
    assert line["ledger"] == [entry.number, entry.chain.hex()]
    assert line["manifest"] == entry.line.manifest.hex()
    assert line["channels"] == [["update", int(joined.model.mask.sum())]]
    assert (line["cohort"], line["privacy"]["trust"], line["bytes"]) == (4, "none", len(reply.reply))
    assert list(line["witnessed"]) == [joined.identity.public.hex()]


def test_no_word_of_a_refusal_is_in_the_log(joined: Joined) -> None:
    joined.join()
    assert joined.clear(attachment=b"another model").error == "PolicyRefusal"
    assert "model sent is not the one" in (joined.home / "silo.log").read_text()
    assert "model sent" not in (joined.home / "audit.jsonl").read_text()


def test_without_heads_no_records_are_touched(joined: Joined) -> None:
    joined.join()
    for heads in (b"", b"nonsense"):
        given_ = joined.clear(heads=heads)
        assert (given_.status, given_.reply, given_.error) == ("refused", b"", "Refusal")
    assert read_ledger(joined.home / "state.sqlite").entries == ()
    assert (joined.home / "silo.log").read_text().count("refused by rule heads") == 2
    assert "witnessed" not in joined.lines()[-1]


def test_a_silo_whose_disk_refuses_a_line_sends_nothing(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    joined.join()
    before = joined.lines()

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(audit_log.os, "pwrite", refuse)
        assert joined.clear() == Reply("refused", b"", "StorageError", b"")
    assert joined.lines() == before
    assert "No space left" in (joined.home / "silo.log").read_text()


@pytest.mark.parametrize("simulated", [False, True])
def test_an_institution_waits_for_its_disk(joined: Joined, simulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the reply leaves. Silos of a simulation share a machine, and do not."""
    synced: list[int] = []
    monkeypatch.setattr(audit_log.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    joined.join()
    joined.silo._policy = joined.silo._policy.model_copy(update={"simulated": simulated})
    synced.clear()
    joined.silo.answer(Request("clear", 0, 0, b""))
    assert synced == ([] if simulated else [(joined.home / "audit.jsonl").stat().st_size])


def test_a_silo_whose_log_was_tampered_with_answers_nothing(joined: Joined) -> None:
    joined.join()
    request = joined.clear_request()
    joined.silo.close()
    path = joined.home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"status":"ok"', b'"status":"no"'))
    joined.silo = Silo(joined.home)
    for answer in (joined.join, lambda: joined.silo.answer(request)):
        assert answer() == Reply("refused", b"", "StorageError", b"")
    assert read_ledger(joined.home / "state.sqlite").entries == (), "no record was touched"
    assert joined.silo._session is None, "nor was a run taken in"
    assert "audit verify" in (joined.home / "silo.log").read_text()


def test_heads_and_their_hash_travel_with_the_model_alone(path: Path) -> None:
    """Through the exchange: what is shown to each silo, what is asked, what is told."""
    trail = CoordinatorTrail(AuditLog(path, COORDINATOR, "coordinator"), ROSTER)
    events: list[dict[str, Any]] = []
    counts = dict.fromkeys(SILOS, 2)

    def answer(node: int, message: Message) -> Message:
        silo = node - 100
        counts[silo] += 0 if silo == 4 else 1  # silo 4 sends an old head again
        return reply_message(Reply("ok", b"n", head=head(SILOS[silo], counts[silo]).to_bytes()), message)

    grid = FakeGrid(answer)
    exchange = StageExchange(
        grid,  # type: ignore[arg-type]
        Traffic(),
        timeout=0.1,
        view=None,
        event=lambda name, **fields: events.append({"event": name, **fields}),
        trail=trail,
    )
    trail.joined({silo: reply(silo, 2) for silo in SILOS})
    exchange.nodes = {silo: 100 + silo for silo in SILOS}
    heads_hash = trail.freeze()
    exchange.begin(0, 0, b"the model")
    assert set(dict(exchange("advertise", dict.fromkeys(SILOS, b"request")))) == {1, 2, 3}
    assert {read_request(message).heads for message in grid.sent} == {b""}
    grid.sent.clear()
    manifest = Manifest(
        bytes(16), 0, 1, bytes(32), 0, 0, "train", ((1, 2, 3, 4),), (3,), 3, bytes(32), bytes(32), bytes(32),
        (ChannelSpec("update", 4, 8, 1.0),), PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 1e-5), heads_hash,
    )  # fmt: skip
    assert set(dict(exchange("clear", dict.fromkeys(SILOS, manifest.to_bytes())))) == {1, 2, 3}
    shown = [ShownHeads.from_bytes(read_request(message).heads) for message in grid.sent]
    assert {each.hash for each in shown} == {heads_hash}
    asked, replies = lines_of(path)[-2:]
    assert (asked["kind"], asked["stage"], asked["manifest"]) == ("request", "clear", manifest.digest().hex())
    assert (asked["heads"], asked["cohorts"], asked["silos"]) == (heads_hash.hex(), [[1, 2, 3, 4]], [1, 2, 3, 4])
    assert asked["bytes"] == 4 * (len(manifest.to_bytes()) + len(b"the model"))
    one = hashlib.sha256(manifest.to_bytes()).digest()
    assert asked["sha256"] == hashlib.sha256(4 * one).hexdigest()
    assert asked["model"] == hashlib.sha256(b"the model").hexdigest()
    assert (replies["kind"], sorted(replies["witnessed"])) == (
        "replies",
        sorted(SILOS[silo].public.hex() for silo in (1, 2, 3)),
    )
    told = [(event["event"], event.get("silos"), event.get("answered")) for event in events]
    stage = [("asking", [1, 2, 3, 4], None), ("absent", None, None), ("stage", None, [1, 2, 3])]
    assert told == [*stage, *(each for each in stage if each[0] != "absent")], "a drop is told once an attempt"
    assert [event["status"] for event in events if event["event"] == "absent"] == ["malformed"]


class FakeGrid:
    """Answers each message at once."""

    def __init__(self, answer: Callable[[int, Message], Message]) -> None:
        self._answer = answer
        self.sent: list[Message] = []
        self._replies: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return [100 + silo for silo in SILOS]

    def push_messages(self, messages: list[Message]) -> None:
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"{len(self.sent)}-{number}"
            self.sent.append(message)
            self._replies.append(self._answer(message.metadata.dst_node_id, message))

    def pull_messages(self, _: list[str]) -> list[Message]:
        replies, self._replies = self._replies, []
        return replies
