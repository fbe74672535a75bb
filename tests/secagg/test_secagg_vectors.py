"""The specification of SecAgg-S: vectors, the independent checker, rule names, and every size and cost it states."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autoflip_secure.parties import signing
from autoflip_secure.parties.agreement import Agreement
from autoflip_secure.parties.signing import Signed
from autoflip_secure.parties.wire import Message
from autoflip_secure.secagg import Identity, coordinator_round, silo_round, silo_setup
from autoflip_secure.secagg import epoch as epoch_module
from autoflip_secure.secagg import recovery as recovery_module
from autoflip_secure.secagg import round_messages as rounds
from autoflip_secure.secagg import setup_messages as setup
from autoflip_secure.sums.channels import ChannelSpec

ROOT = Path(__file__).parents[2]
SPECIFICATION = ROOT / "protocols" / "secagg"
CHECKER = Path(__file__).with_name("vector_checker.py")
ALLOWED = {"msgpack", "cryptography", "blake3", "numpy", *sys.stdlib_module_names}


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    return load(CHECKER)


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    return json.loads((SPECIFICATION / "vectors.json").read_text())


def test_checker_finds_nothing(checker, vectors):
    done = checker.check(vectors)
    for part in ("keys hash", "delivery", "manifest's blocks", "levels", "noise of 4", "receipt of 5", "links"):
        assert part in done
    assert "public key of 5" in done, "left out with its block, though its vector is there"
    # Of six silos five sent vectors; requests are one a stage, but for those with deliveries.
    assert sum(name.startswith("signature of") for name in done) == 7 + 7 + 5 + 5 + 6 + 6


def test_checker_shares_no_code_with_the_package():
    tree = ast.parse(CHECKER.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= ALLOWED
    code = (
        "import runpy, sys; path = sys.argv.pop(); runpy.run_path(path, run_name='__main__');"
        "sys.exit(sum(name.startswith('autoflip_secure') for name in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(CHECKER)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "nothing is off" in ran.stdout


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for name, item in items:
        yield from leaves(item, (*path, name))


def changed(value: Any, at: int) -> Any:
    """Another hex digit at a position, or the next number."""
    if isinstance(value, int):
        return value + 1
    at %= len(value)
    return value[:at] + "123456789abcdef0"[int(value[at], 16)] + value[at + 1 :]


def rejects(checker: ModuleType, vectors: dict[str, Any], path: tuple[Any, ...], at: int) -> bool:
    damaged = copy.deepcopy(vectors)
    place = damaged
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = changed(place[path[-1]], at)
    try:
        checker.check(damaged)
    # Damaged bytes may fail to parse, decrypt or verify; each of these is a rejection.
    except Exception:
        return True
    return False


def test_no_value_can_be_changed(checker, vectors):
    """One digit of every value, at a place that differs from value to value."""
    found = list(leaves(vectors))
    assert len(found) > 150
    for path, _ in found:
        at = int.from_bytes(hashlib.sha256(repr(path).encode()).digest()[:4], "big")
        assert rejects(checker, vectors, path, at), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [("secrets", "2", "box_key"), ("secrets", "1", "mask_keys", 0), ("confirm", "replies", "2")]
)
def test_no_digit_can_be_changed(checker, vectors, path):
    value = vectors
    for name in path:
        value = value[name]
    assert all(rejects(checker, vectors, path, at) for at in range(len(value)))


def run_script(folder: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(folder / "make_vectors.py"), "--check"]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_vectors_are_what_the_code_makes(tmp_path):
    ran = run_script(SPECIFICATION)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for name in ("make_vectors.py", "vectors.json"):
        shutil.copy(SPECIFICATION / name, tmp_path)
    text = (tmp_path / "vectors.json").read_text()
    (tmp_path / "vectors.json").write_text(text.replace("12345", "12346", 1))
    ran = run_script(tmp_path)
    assert (ran.returncode, ran.stdout.strip()) == (1, "vectors.json is NOT what the code makes")


def test_vectors_are_small():
    assert (SPECIFICATION / "vectors.json").stat().st_size < 150_000


def test_rules_of_the_code_and_of_the_specification_are_the_same():
    package = ROOT / "autoflip_secure"
    shared = [path for path in package.glob("parties/*.py") if not path.name.startswith("run_key")]
    code = "\n".join(path.read_text() for path in sorted([*package.glob("secagg/*.py"), *shared]))
    used = set(re.findall(r'refusal\(\s*"([a-z-]+)"', code)) | set(re.findall(r"refused by rule ([a-z-]+):", code))
    stated = set(re.findall(r"\[([a-z-]+)\](?!\()", (SPECIFICATION / "README.md").read_text()))
    assert used == stated
    assert len(used) > 20


def test_paths_that_the_specification_names_exist():
    for document in SPECIFICATION.glob("*.md"):
        text = document.read_text()
        paths = re.findall(r"`((?:tests|autoflip_secure|protocols)/[\w./-]*)`", text)
        paths += [f"protocols/secagg/{link}" for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        for path in paths:
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def size(value: Any) -> int:
    """S of the specification, from the description of msgpack and not from the library."""
    if isinstance(value, int):
        return 1 if value < 1 << 7 else 2 if value < 1 << 8 else 3 if value < 1 << 16 else 5
    if isinstance(value, str):
        return len(value) + (1 if len(value) < 32 else 2)
    if isinstance(value, bytes):
        return len(value) + (2 if len(value) < 1 << 8 else 3 if len(value) < 1 << 16 else 5)
    return header(value) + sum(map(size, value))


def header(items: Any) -> int:
    return 1 if len(items) < 16 else 3


def stated_sizes() -> dict[str, str]:
    """Formula by heading of messages.md; the manifest's stands under its own heading."""
    sections = re.split(r"^##+ ", (SPECIFICATION / "messages.md").read_text(), flags=re.MULTILINE)[1:]
    found = {section.split("\n")[0]: re.findall(r"Size[^`\n]*: `([^`]+)`", section) for section in sections}
    assert all(len(formulas) <= 1 for formulas in found.values())
    return {heading: formulas[0] for heading, formulas in found.items() if formulas}


def evaluated(formula: str, **names: Any) -> int:
    """Value of a formula in the specification's own text."""
    return eval(formula, {"__builtins__": {}, "S": size, "A": header, "sum": sum, **names})


BIG = (bytes(16), bytes(32), 70_000)
SYNTHETIC = [
    setup.AdvertiseRequest(*BIG, 1024),
    setup.Advertisement(*BIG, 60_000, 1000, bytes(32), bytes(32), bytes(32)),
    setup.ShareRequest(*BIG, 200, 150, (bytes(250),) * 300),
    setup.Dealing(*BIG, 200, bytes(32), tuple(range(1, 400)), bytes(32)),
    setup.Delivered(300, bytes(70_000), bytes(64), b""),
    rounds.UnmaskReply(300, bytes(32), (bytes(49), b"") * 20, (bytes(49),), bytes(32)),
]


@pytest.fixture
def written(monkeypatch) -> list[tuple[Message, bytes]]:
    """Every message written from now on."""
    found: list[tuple[Message, bytes]] = []
    original = Message.to_bytes

    def to_bytes(self: Message) -> bytes:
        data = original(self)
        found.append((self, data))
        return data

    monkeypatch.setattr(Message, "to_bytes", to_bytes)
    return found


def test_sizes_of_messages(federation, written):
    fed = federation(20, slots=12)
    cohorts = tuple(range(1, 11)), tuple(range(11, 21))
    absent = {4, 15}
    fed.coordinator.sum(fed.manifest(*cohorts), fed.exchange(lambda stage, silo: stage == "masked" and silo in absent))
    for message in SYNTHETIC:
        message.to_bytes()
    sizes = stated_sizes()
    kinds = {getattr(module, name) for module in (setup, rounds) for name in module.__all__} | {Signed}
    expected = {kind.KIND for kind in kinds if hasattr(kind, "KIND")}
    assert set(sizes) == expected | {"Manifest"}
    assert {message.KIND for message, _ in written} >= expected
    for message, data in written:
        if message.KIND != "roster":
            assert evaluated(sizes[message.KIND], **vars(message)) == len(data), message.KIND


@pytest.mark.parametrize(("channels", "block"), [(1, 20), (3, 1), (1, 0)])
def test_size_of_a_manifest(federation, channels, block):
    specs = tuple(ChannelSpec(name, 70_000, 16, 1.0) for name in ("update", "unit_energy", "count")[:channels])
    fed = federation(20, channels=specs)
    blocks = tuple(tuple(range(i + 1, i + block + 1)) for i in range(0, 20, block)) if block else ()
    manifest = fed.manifest(round=300, epoch=200, blocks=blocks)
    names = {**vars(manifest), **vars(manifest.privacy)}
    assert evaluated(stated_sizes()["Manifest"], **names) == len(manifest.to_bytes())


def stated_costs() -> dict[str, list[str]]:
    table = re.findall(r"^\| ([a-z ]+) \| `(.+)` \| `(.+)` \|$", (SPECIFICATION / "README.md").read_text(), re.M)
    return {stage: [request, reply] for stage, request, reply in table}


def traffic(fed: Any, gone: set[int]) -> dict[str, tuple[dict[int, bytes], dict[int, bytes]]]:
    """Requests and replies of a first round by stage and silo."""
    seen: dict[str, tuple[dict[int, bytes], dict[int, bytes]]] = {}
    inner = fed.exchange(lambda stage, silo: stage == "masked" and silo in gone)

    def exchange(stage, requests):
        seen[stage] = (dict(requests), {})
        for silo, reply in inner(stage, requests):
            seen[stage][1][silo] = reply
            yield silo, reply

    fed.coordinator.sum(fed.manifest(minimum=3), exchange)
    return seen


@pytest.mark.parametrize(
    ("silos", "slots", "dropped"), [(4, 2, 1), (12, 16, 2), pytest.param(101, 2, 3, marks=pytest.mark.slow)]
)
def test_costs_in_bytes(federation, silos, slots, dropped):
    fed = federation(silos, slots=slots, channels=(ChannelSpec("update", 3000, 16, 1.0),))
    gone = set(range(silos - dropped + 1, silos + 1))
    seen, costs = traffic(fed, gone), stated_costs()
    assert set(costs) == {*fed.silos[1].stages, "delivery"}
    epoch = fed.coordinator._epoch
    dealers = {owner for owner in epoch.members if 1 in epoch.holders(owner)}
    counts = {
        "n": silos, "B": slots, "T": fed.coordinator.threshold, "m": fed.vectors[1].size,
        "M": len(fed.manifest(minimum=3).to_bytes()), "k": len(epoch.holders(1)), "h": len(dealers),
        "p": len(epoch._peers[1]), "s": silos - dropped, "r": len(dealers - gone), "d": len(dealers & gone),
        "l": 32 if dropped < silos - 3 else 0,
    }  # fmt: skip
    for stage, (requests, replies) in seen.items():
        request, reply = (evaluated(formula, **counts) for formula in costs[stage])
        if stage == "masked":
            request += evaluated(costs["delivery"][0], **counts)
        for found, claimed in ((len(requests[1]), request), (len(replies[1]), reply)):
            assert math.isclose(found, claimed, rel_tol=0.01, abs_tol=30), (stage, found, claimed)


def test_example_of_costs():
    """64 slots for 100 and 10 silos, on the complete graph."""
    costs, text = stated_costs(), (SPECIFICATION / "README.md").read_text()
    amounts = []
    for n in (100, 10):
        counts = {"n": n, "B": 64, "k": n, "h": n, "p": n}
        amounts.append(sum(evaluated(costs[stage][1], **counts) for stage in ("advertise", "share")))
        amounts.append(sum(evaluated(costs[stage][0], **counts) for stage in ("advertise", "share", "delivery")))
    sent, got, few_sent, few_got = amounts
    assert f"sends {sent / 1e6:.2f} MB and receives {got / 1e6:.2f} MB for the set-up of 100 silos" in text
    assert f"{few_sent / 1e3:.0f} kB and {few_got / 1e3:.0f} kB for that of 10" in text


class Counter:
    """How often each operation ran, by stage and party; the coordinator is party 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: dict[tuple[str, int, str], int] = {}
        self.stage, self.party = "", 0
        for name, place, attribute in (
            ("verify", signing, "verify"),
            ("verify", epoch_module, "verify"),
            ("sign", Identity, "sign"),
            ("agree", Agreement, "with_peer"),
            ("public", silo_setup, "public_key"),
            ("recover", recovery_module, "combine"),
        ):
            monkeypatch.setattr(place, attribute, self.counted(name, getattr(place, attribute)))
        for place in (coordinator_round, silo_round):
            attribute = "apply_masks" if place is coordinator_round else "masked_words"
            monkeypatch.setattr(place, attribute, self.counted("keystream", getattr(place, attribute), times=1))

    def counted(self, name: str, run: Any, times: int | None = None) -> Any:
        """`times`: the argument whose length says how many operations a call is."""

        def counting(*arguments: Any) -> Any:
            key = (self.stage, self.party, name)
            self.counts[key] = self.counts.get(key, 0) + (1 if times is None else len(arguments[times]))
            return run(*arguments)

        return counting

    def of(self, stage: str, party: int) -> dict[str, int]:
        return {name: count for (at, who, name), count in self.counts.items() if (at, who) == (stage, party)}


def test_costs_in_operations(federation, monkeypatch):
    n, slots, t, gone = 7, 3, 5, {6, 7}
    fed, counter = federation(n, slots=slots), Counter(monkeypatch)
    inner, answer = fed.exchange(lambda stage, silo: stage == "masked" and silo in gone), fed.answer

    def answered(stage: str, silo: int, request: bytes) -> bytes:
        counter.party = silo
        reply = answer(stage, silo, request)
        counter.party = 0
        return reply

    def exchange(stage: str, requests: Any) -> Any:
        counter.stage = stage
        return inner(stage, requests)

    monkeypatch.setattr(fed, "answer", answered)
    fed.coordinator.sum(fed.manifest(), exchange)
    s, d = n - len(gone), len(gone)
    assert counter.of("advertise", 1) == {"verify": 1, "sign": 1, "public": slots + 1}
    assert counter.of("share", 1) == {"verify": n + 1, "sign": 1, "agree": n}
    with_delivery = {"verify": 1 + n, "sign": 1, "agree": n + n - 1, "keystream": n}
    assert counter.of("masked", 1) == with_delivery
    assert counter.of("confirm", 1) == {"verify": 1 + s, "sign": 1}
    assert counter.of("unmask", 1) == {"verify": 1 + t, "sign": 1}
    answers = {stage: counter.of(stage, 0)["verify"] for stage in ("advertise", "share", "masked", "confirm", "unmask")}
    assert answers == {"advertise": n, "share": n, "masked": s, "confirm": n, "unmask": n}
    opening = counter.of("unmask", 0)
    assert (opening["agree"], opening["keystream"], opening["recover"]) == (d * s, s + d * s, s + d)
