"""Secrets stay where they are made: a whole run is searched for all of them, and the search finds what is put there."""

from __future__ import annotations

import ast
import base64
import gzip
import json
import re
import shlex
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import autoflip_secure
from autoflip_secure.attacks.byte_search import FLOATS as FLOAT_RUNS
from autoflip_secure.attacks.byte_search import Finder
from autoflip_secure.attacks.secret_capture import PUBLIC, Capture
from autoflip_secure.attacks.secret_search import RUN_KEY, RUNS, Secret, captured_run, leaks, open_files, secrets_of

PACKAGE = Path(autoflip_secure.__file__).parent
SECRET = bytes(range(100, 132))


def float32(secret: bytes) -> np.ndarray:
    return np.frombuffer(secret, "<f4")


def float64(secret: bytes) -> np.ndarray:
    return np.frombuffer(secret, "<f8")


FLOATS: dict[str, Callable[[np.ndarray], str]] = {
    "JSON": lambda values: json.dumps(values.tolist()),
    "JSON in lines": lambda values: json.dumps({"x": values.tolist()}, indent=2),
    "a list": lambda values: repr(values.tolist()),
    "a list of NumPy's floats": lambda values: repr(list(values)),
    "CSV": lambda values: "17," + ",".join(map(repr, values.tolist())) + ",1",
    "a table": lambda values: "\n".join(" ".join(f"{v:.17g}" for v in row) for row in values.reshape(2, -1)),
    "a list in escaped text": lambda values: json.dumps("in\n" + "\n".join(map(str, values.tolist()))),
    "without zeros before points": lambda values: re.sub(r"\b0\.", ".", repr(values.tolist())),
}
ARRAYS: dict[str, Callable[[np.ndarray], str]] = {
    "an array's repr": repr,
    "an array's text": str,
    "the repr of an array of arrays": lambda values: repr(values.reshape(1, 2, -1)),
    "an array's repr in a traceback in JSON": lambda values: json.dumps(f"ValueError: {values.reshape(2, -1)!r}"),
}

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "half of it": lambda s: s[:16],
    "hexadecimal": lambda s: s.hex().encode(),
    "hexadecimal in capitals, with spaces": lambda s: s.hex(" ").upper().encode(),
    "hexadecimal with an odd digit before": lambda s: b"a" + s.hex().encode(),
    "base64": base64.b64encode,
    "base64 for addresses": base64.urlsafe_b64encode,
    "base64 behind other bytes": lambda s: base64.b64encode(b"x" + s),
    "PEM": lambda s: b"-----BEGIN KEY-----\n" + base64.encodebytes(bytes(40) + s) + b"-----END KEY-----",
    "a list of numbers": lambda s: json.dumps(list(s)).encode(),
    "a list of words": lambda s: json.dumps(np.frombuffer(s, "<u8").tolist()).encode(),
    "one number": lambda s: str(int.from_bytes(s, "big")).encode(),
    "one number, the other way round": lambda s: str(int.from_bytes(s, "little")).encode(),
    "Python's repr": lambda s: repr(s).encode(),
    "JSON's escapes": lambda s: json.dumps(s.decode("latin-1")).encode(),
    "packed": gzip.compress,
    **{f"{name}, float32": lambda s, f=f: f(float32(s)).encode() for name, f in (FLOATS | ARRAYS).items()},
    **{f"{name}, float64": lambda s, f=f: f(float64(s)).encode() for name, f in FLOATS.items()},
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("seed", range(3))
def test_a_secret_is_found_in_every_form(form: str, seed: int) -> None:
    secret = np.random.default_rng(seed).bytes(32)
    data = FORMS[form](secret)
    if form != "packed":
        data = b"something before: " + data + b" and after"
    assert Finder([SECRET, secret]).found_in(data) == {1}


@given(st.binary(max_size=2000))
def test_nothing_is_found_where_nothing_is(data: bytes) -> None:
    if SECRET[:16] not in data:
        assert Finder([SECRET]).found_in(data) == set()


def test_a_record_is_found_as_a_whole_only() -> None:
    record = np.arange(64, dtype=np.float32).tobytes()
    finder = Finder([record], whole={0})
    assert finder.found_in(b"abc" + record) == {0}
    assert finder.found_in(record[:-4]) == set()


TWO = (2, 64)
RECORDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "sixteenths": lambda random: random.integers(0, 17, TWO) / 16,
    "shades of grey": lambda random: random.integers(0, 256, TWO) / 255,
    "halves of the last decimal": lambda random: random.integers(0, 512, TWO) / 512,
    "standardised": lambda random: random.normal(size=TWO),
    "of many sizes": lambda random: random.normal(size=TWO) * 10.0 ** random.integers(-6, 6, TWO),
}


def two_records(kind: str) -> np.ndarray:
    """Two records of 64 features, float32, shape (2, 64)."""
    return RECORDS[kind](np.random.default_rng(0)).astype(np.float32)


@pytest.mark.parametrize("kind", list(RECORDS))
def test_a_record_is_found_in_every_form_of_its_values(kind: str) -> None:
    mine, other = two_records(kind)
    finder = Finder([mine.tobytes(), other.tobytes()], whole={0, 1})
    forms = {name: form(mine) for name, form in (FLOATS | ARRAYS).items()}
    forms["torch"] = repr(torch.from_numpy(mine.copy()))
    if kind != "of many sizes":  # of which six decimals leave too little
        forms["six decimals"] = ",".join(f"{value:.6f}" for value in mine)
    for name, text in forms.items():
        assert finder.found_in(f"row 3: {text} and".encode()) == {0}, name
    assert finder.found_in(repr(np.stack([other, mine])).encode()) == {0, 1}


def test_other_values_than_a_records_find_nothing() -> None:
    mine, other = two_records("shades of grey")
    finder, near = Finder([mine.tobytes()], whole={0}), mine.copy()
    near[40] += 1e-3
    for values in (other, near, mine[:-2], mine[::-1]):
        for name, form in (FLOATS | ARRAYS).items():
            assert finder.found_in(form(values).encode()) == set(), name


@given(st.text("0123456789.-+eE, \n[]()\\", max_size=300))
def test_what_looks_like_floats_is_read_without_a_word(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Finder([SECRET]).found_in(text.encode()) == set()


@pytest.mark.parametrize("repeated", ["7", "7 ", "7 7 7 x ", "-", "7.", "7e", "[", " ", "-7", "7\\n", "7e-"])
def test_long_texts_take_no_longer_than_their_length(repeated: str) -> None:
    text = (repeated * 1_000_000)[:1_000_000].encode()
    began = time.perf_counter()
    list(FLOAT_RUNS.finditer(text))
    assert time.perf_counter() - began < 5


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under DP with drops, and its secrets."""
    out = tmp_path_factory.mktemp("captured")
    options, small = RUNS["sum + DP 8"]
    captured_run([*shlex.split(small), *options, "--quiet"], out)
    return out


@pytest.fixture(scope="module")
def secrets(captured: Path) -> list[Secret]:
    return secrets_of(captured)


def test_no_secret_of_a_run_is_where_it_should_not_be(captured: Path, secrets: list[Secret]) -> None:
    kinds = {secret.kind for secret in secrets}
    assert kinds >= {"self-mask seed", "mask key", "share", "derived key", "agreed secret", "noise link", "record"}
    assert kinds >= {"parties.identity.generate", "parties.agreement.fresh_key", "sums.randomness.__init__", RUN_KEY}
    assert len(secrets) > 500
    assert leaks(secrets, captured) == []


def test_texts_and_process_are_searched_too(captured: Path) -> None:
    texts = (captured / "texts.txt").read_text()
    assert "SecAggSilo" in texts
    assert "autoflip_secure.federation.coordinator.Coordinator object" in texts
    assert str(captured).encode() in (captured / "process.txt").read_bytes()


PLACES = {
    "the report": "run/report.html",
    "the events": "run/events.jsonl",
    "another silo's state": "run/silos/silo-002/state.sqlite",
    "its own log": "run/silos/silo-001/silo.log",
    "what is left of temporary files": "tmp/left",
    "what was printed": "stderr.txt",
}


@pytest.mark.parametrize("place", list(PLACES))
def test_a_secret_that_gets_somewhere_else_is_found(captured: Path, secrets: list[Secret], place: str) -> None:
    path = captured / PLACES[place]
    before = path.read_bytes() if path.exists() else None
    secret = next(s for s in secrets if s.kind == "parties.agreement.fresh_key" and s.owners == {1})
    try:
        path.write_bytes((before or b"") + base64.b64encode(secret.value))
        assert [(found.kind, found.file) for found in leaks([secret], captured)] == [(secret.kind, path)]
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_the_run_key_may_lie_with_every_silo_and_with_nobody_else(captured: Path, secrets: list[Secret]) -> None:
    (key,) = [secret for secret in secrets if secret.kind == RUN_KEY]
    assert key.owners == {1, 2, 3, 4, 5}
    path = captured / "run/proofs/000000.msgpack"
    before = path.read_bytes()
    try:
        path.write_bytes(before + key.value)
        assert [found.file for found in leaks([key], captured)] == [path]
    finally:
        path.write_bytes(before)


def test_a_spent_secret_that_stays_on_its_own_disk_is_found(captured: Path, secrets: list[Secret]) -> None:
    spent = next(s for s in secrets if s.kind == "self-mask seed" and s.owners == {1} and not s.files)
    path = captured / "run/silos/silo-001/state.sqlite-wal"
    before = path.read_bytes() if path.exists() else None
    try:
        path.write_bytes((before or b"") + spent.value)
        assert [found.file for found in leaks([spent], captured)] == [path]
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_files_with_secrets_are_their_owners_alone(captured: Path) -> None:
    assert open_files(captured / "run") == []
    key = captured / "run/silos/silo-001/identity.key"
    key.chmod(0o644)
    try:
        assert open_files(captured / "run") == [key]
    finally:
        key.chmod(0o600)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["plain", "sum", "ckks + DP 8"])
def test_no_secret_is_where_it_should_not_be_in_other_settings(setting: str, tmp_path: Path) -> None:
    options, small = RUNS[setting]
    captured_run([*shlex.split(small), *options, "--quiet"], tmp_path / "out")
    found = secrets_of(tmp_path / "out")
    assert ("lattice key" in {secret.kind for secret in found}) == setting.startswith("ckks")
    assert leaks(found, tmp_path / "out") == []


def test_what_is_drawn_is_a_secret_unless_a_place_is_known_to_be_public() -> None:
    """All entropy comes through os.urandom and the generators that are watched; nothing else makes keys in a sum."""
    drawn = re.compile(r"os\.urandom|token_bytes|randbytes|\.generate\(\)|generate_private_key|getrandom")
    places = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if drawn.search(p.read_text())}
    places = {place for place in places if not place.startswith("attacks/")}
    watched = {
        "sums/randomness.py", "sums/noise_chain.py", "parties/agreement.py", "parties/identity.py", "secagg/keys.py",
        "secagg/dealing.py", "federation/provisioning.py", "federation/audit_log.py", "parties/run_key.py",
    }  # fmt: skip
    deployed = {"deployment/silo_runtime.py", "deployment/deployed_run.py", "deployment/keys.py"}
    assert places == watched | deployed
    assert len(PUBLIC) == 2


def test_an_object_that_prints_its_key_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoflip_secure.secagg.keys import SlotSecret

    monkeypatch.setattr(SlotSecret, "__repr__", lambda this: this.seed.hex())
    capture = Capture()
    capture.look_at({"kept": [SlotSecret(SECRET, bytes(32))]})
    assert Finder([SECRET]).found_in("".join(capture.texts).encode()) == {0}


# Comparisons of secrets

SECRET_NAMES = re.compile(r"(^|_)(secret|seed|seeds|mask_key|private|token|key_share|shares?|revealed|root|lattice)$")
PARTS = ("secagg", "ckks", "parties", "deployment", "dashboard")


def compared_names(path: Path) -> set[str]:
    """Names on either side of == or != that are called like secrets."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            for side in (node.left, *node.comparators):
                name = side.id if isinstance(side, ast.Name) else side.attr if isinstance(side, ast.Attribute) else ""
                if SECRET_NAMES.search(name):
                    found.add(name)
    return found


def test_secrets_are_compared_in_constant_time() -> None:
    """hmac.compare_digest, and no ==, wherever one side is called like a secret."""
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for part in PARTS
        for path in (PACKAGE / part).rglob("*.py")
        for name in compared_names(path)
    }
    assert found == set()
    compares = [p for part in PARTS for p in (PACKAGE / part).rglob("*.py") if "compare_digest" in p.read_text()]
    assert len(compares) >= 3


def test_a_comparison_that_is_not_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(a, b):\n    return a.seed == b or b != a.token\n")
    assert compared_names(tmp_path / "a.py") == {"seed", "token"}
