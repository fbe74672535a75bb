"""The specification of CKKS sums: vectors, their independent checker, SEAL's order of words and slots, sizes."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from autoflip_secure.ckks import messages
from autoflip_secure.ckks.packing import polynomials_of, rows_of, words_of
from autoflip_secure.ckks.parameters import DEGREE, LOW_BITS, MODULUS_BITS, parameters_for, value_widths
from autoflip_secure.ckks.reference import LABEL, UniformPolynomials
from autoflip_secure.ckks.ring import Ring, ring
from autoflip_secure.parties.signing import Signed
from autoflip_secure.parties.wire import Message
from autoflip_secure.sums.channels import MAX_BITS, ChannelSpec
from autoflip_secure.sums.words import ContributionWords, all_words

ROOT = Path(__file__).parents[2]
SPECIFICATION = ROOT / "protocols" / "ckks"
CHECKER = Path(__file__).with_name("ckks_vector_checker.py")
ALLOWED = {"msgpack", "cryptography", "blake3", *sys.stdlib_module_names}
# Values that are recorded for every coefficient: several of their digits are tried.
LONG = 2000
MOST_NOISE = 21
"""Of one coefficient: the difference of two sums of 21 bits."""


def load(path: Path, name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    return load(CHECKER, "ckks_vector_checker")


@pytest.fixture
def maker() -> ModuleType:
    return load(SPECIFICATION / "make_vectors.py", "make_ckks_vectors")


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    return json.loads((SPECIFICATION / "vectors.json").read_text())


@pytest.fixture(scope="module")
def specification() -> str:
    return (SPECIFICATION / "messages.md").read_text()


def test_checker_finds_nothing(checker, vectors):
    done = checker.check(vectors)
    for part in ("keys hash", "reference", "ciphertext of 2", "masked key of 1", "part of 3", "masks cancel"):
        assert part in done
    # One request a stage; the key, the ciphertext and the part of each silo.
    assert sum(name.startswith("signature of") for name in done) == 3 + 3 * 3


def test_checker_shares_no_code_with_the_package():
    tree = ast.parse(CHECKER.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= ALLOWED
    code = (
        "import runpy, sys; path = sys.argv.pop(); runpy.run_path(path, run_name='__main__');"
        "sys.exit(sum(name.startswith(('autoflip_secure', 'tenseal', 'numpy')) for name in sys.modules))"
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
    """Another hex digit or letter at a position, or a number that is a little larger."""
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * (1 + 1e-6)
    at %= len(value)
    digit = value[at]
    other = "123456789abcdef0"[int(digit, 16)] if digit in "0123456789abcdef" else chr(ord(digit) + 1)
    return value[:at] + other + value[at + 1 :]


def rejects(checker: ModuleType, vectors: dict[str, Any], path: tuple[Any, ...], at: int) -> bool:
    damaged = copy.deepcopy(vectors)
    place = damaged
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = changed(place[path[-1]], at)
    try:
        checker.check(damaged)
    # Damaged bytes may fail to parse or verify; each of these is a rejection.
    except Exception:
        return True
    return False


def test_no_value_can_be_changed(checker, vectors):
    """One digit of every value, and several of the long ones, at places that differ from value to value."""
    found = list(leaves(vectors))
    assert len(found) > 150
    for path, value in found:
        for trial in range(3 if isinstance(value, str) and len(value) > LONG else 1):
            at = int.from_bytes(hashlib.sha256(repr((path, trial)).encode()).digest()[:4], "big")
            assert rejects(checker, vectors, path, at), (path, at)


def run_script(folder: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(folder / "make_vectors.py")]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_vectors_are_what_the_code_makes(tmp_path, vectors):
    ran = run_script(SPECIFICATION)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = (SPECIFICATION / "vectors.json").read_text()
    shutil.copy(SPECIFICATION / "make_vectors.py", tmp_path)
    noise = vectors["secrets"]["2"]["opening_noise"]
    for old, new in ((vectors["sum"]["words"], changed(vectors["sum"]["words"], 3)), (noise, changed(noise, 1001))):
        (tmp_path / "vectors.json").write_text(text.replace(old, new, 1))
        ran = run_script(tmp_path)
        assert (ran.returncode, ran.stdout.strip()) == (1, "vectors.json is NOT what the code makes")


def test_vectors_cut_fields_at_both_ends_of_the_lower_part(vectors):
    """Else an implementation that rounds the other way, or wraps sums of lower parts, would pass."""
    (update, _, _, _), (_, length, _, _) = vectors["settings"]["channels"]
    start = len(vectors["sum"]["integers"][update])
    lowers = [silo["values"][start : start + length] for silo in vectors["encrypt"]["silos"].values()]
    assert [-(2**15)] * 3 in [list(column) for column in zip(*lowers, strict=True)]
    assert [2**15 - 1] * 3 in [list(column) for column in zip(*lowers, strict=True)]
    assert all(abs(lower) <= 2**15 for row in lowers for lower in row)


def test_vectors_are_small():
    assert (SPECIFICATION / "vectors.json").stat().st_size < 150_000


def test_vectors_do_not_hang_on_the_last_bit_of_a_double(checker, vectors):
    """No coefficient is so near the middle between two whole numbers that another order of additions rounds it away."""
    sizes = vectors["parameters"]
    for silo in vectors["settings"]["silos"]:
        of_silo = vectors["encrypt"]["silos"][str(silo)]["values"]
        key = bytes.fromhex(vectors["secrets"][str(silo)]["smudging_key"])
        for values in (
            checker.rows([float(value) for value in of_silo], 0.0)[0],
            checker.smudging(key, sizes["smudging"], DEGREE),
        ):
            real = np.array(checker.unrounded(values, sizes["scale"]))
            assert np.abs(np.abs(real - np.floor(real)) - 0.5).min() > 1e-5


@pytest.mark.parametrize(
    ("channels", "bits"),
    [
        ((ChannelSpec("update", 4090, 24, 1.0), ChannelSpec("count", 11, 8, 255.0)), 48),
        ((ChannelSpec("update", 5000, 28, 0.5),), 56),
        # Cut, with the border of two polynomials among the lower parts.
        ((ChannelSpec("count", 5, 8, 255.0), ChannelSpec("update", 4093, 32, 1.0)), 40),
    ],
)
def test_checker_agrees_on_new_secrets_and_other_sizes(checker, maker, monkeypatch, channels, bits):
    """Two polynomials and other moduli, under keys and noise that SEAL draws now."""
    # Small values, whose encoding is the same in doubles whatever the order of additions.
    random = np.random.default_rng(bits)

    def drawn(spec: ChannelSpec) -> list[int]:
        lower, upper = random.integers(-99, 100, (2, spec.length)).tolist()
        cut = len(value_widths(spec.bits, len(maker.SILOS))) == 2
        return [a + (b << LOW_BITS) for a, b in zip(lower, upper, strict=True)] if cut else lower

    integers = {silo: {spec.name: drawn(spec) for spec in channels} for silo in maker.SILOS}
    monkeypatch.setattr(maker, "CHANNELS", channels)
    monkeypatch.setattr(maker, "INTEGERS", integers)
    vectors = maker.make({})
    assert (vectors["parameters"]["modulus_bits"], vectors["parameters"]["polynomials"]) == (bits, 2)
    checker.check(vectors)
    ciphertext = vectors["secrets"]["2"]["encryption_noise"]
    vectors["secrets"]["2"]["encryption_noise"] = changed(ciphertext, len(ciphertext) - 1)
    with pytest.raises(AssertionError, match="ciphertext of 2"):
        checker.check(vectors)


@pytest.mark.parametrize("silos", [3, 4, 5, 30, 100, 2000])
def test_sizes_are_those_of_the_specification(checker, silos):
    for bits in range(2, MAX_BITS + 1):
        channels = (ChannelSpec("update", 3000, bits, 1.0), ChannelSpec("count", 1, 8, 255.0))
        ours, theirs = parameters_for(channels, silos), checker.sizes(listed(channels), silos)
        assert (ours.modulus_bits, ours.width) == theirs[:2]
        assert (ours.scale, ours.smudging) == pytest.approx(theirs[2:], rel=1e-12)
        values = checker.values_of(listed(channels), [[0] * spec.length for spec in channels], silos)
        assert polynomials_of(channels, silos) == len(checker.rows(values))


@pytest.mark.parametrize("silos", [3, 5, 64, 2000])
def test_cutting_is_that_of_the_specification(checker, silos):
    """Channels with fields that are cut and fields that just are not, summed over as many silos as there can be."""
    extra = (silos - 1).bit_length()
    widths = {"update": 16 + extra, "count": 32 + extra, "metric": 30, "deviation": 31}
    random, channels, integers = np.random.default_rng(silos), [], {}
    for name, width in widths.items():
        most = 2 ** (width - extra - 1) - 1
        drawn = [most, -most, *random.integers(-most, most + 1, 20).tolist()]
        edges = [edge + near for edge in (-(2**16), -(2**15), 0, 2**15, 2**16) for near in (-1, 0, 1)]
        integers[name] = drawn + [edge for edge in edges if abs(edge) <= most]
        channels.append(ChannelSpec(name, len(integers[name]), width - extra, 1.0))
    words = all_words(ContributionWords({name: np.array(row) for name, row in integers.items()}, channels, silos))
    rows = rows_of(words, channels, silos)
    values = checker.values_of(listed(channels), list(integers.values()), silos)
    assert len(values) == sum(map(len, integers.values())) + len(integers["count"]) + len(integers["deviation"])
    assert rows.reshape(-1).tolist() == values + [0] * (rows.size - len(values))
    assert words.tobytes() == checker.packed(listed(channels), list(integers.values()), silos)
    summed = [silos * value for value in values]
    vectors = checker.vectors_of(listed(channels), summed, silos)
    assert vectors == [[silos * integer for integer in row] for row in integers.values()]
    total = words_of(np.array(summed), channels, silos)
    assert total.tobytes() == checker.packed(listed(channels), vectors, silos)


def listed(channels: Sequence[ChannelSpec]) -> list[list[Any]]:
    """Channels as the specification has them."""
    return [[spec.name, spec.length, spec.bits, spec.limit] for spec in channels]


@pytest.fixture(params=MODULUS_BITS)
def lattices(request, checker) -> tuple[Ring, Any]:
    """SEAL's ring and the checker's."""
    return ring(request.param), checker.lattice(request.param)


def numbers(words: np.ndarray) -> tuple[int, ...]:
    return tuple(int(word) for word in words)


def test_moduli_and_roots_are_those_of_the_specification(lattices, specification):
    ours, theirs = lattices
    stated = re.findall(r"^\| (\d+) \| 2\^\d+ - (\d+) \| (\d+) \|", specification, re.M)
    assert len(stated) == len(MODULUS_BITS)
    rows = {int(bits): (2 ** int(bits) - int(less), int(root)) for bits, less, root in stated}
    assert rows[ours.bits] == (theirs.q, theirs.psi)
    assert ours.modulus == theirs.q


def test_words_of_a_key_are_the_ntt_of_a_ternary_polynomial(lattices):
    ours, theirs = lattices
    words = numbers(ours.fresh_key().words)
    coefficients = theirs.inverse(words)
    assert set(coefficients) == {-1, 0, 1}
    # A third each, give or take seven standard deviations.
    assert all(abs(coefficients.count(value) - DEGREE / 3) < 212 for value in (-1, 0, 1))
    assert theirs.ntt(coefficients) == words


def test_ntt_of_the_specification_is_the_sum_it_says(lattices):
    """A polynomial's words by definition: values at odd powers of psi, the powers' indices with their bits reversed."""
    _, theirs = lattices
    polynomial = [0] * DEGREE
    polynomial[0], polynomial[1], polynomial[700], polynomial[DEGREE - 1] = 3, -5, 11, 1
    words = theirs.ntt(tuple(polynomial))
    for i in (0, 1, 2, 3, 1000, DEGREE - 1):
        power = pow(theirs.psi, 2 * int(f"{i:012b}"[::-1], 2) + 1, theirs.q)
        assert words[i] == sum(c * pow(power, k, theirs.q) for k, c in enumerate(polynomial) if c) % theirs.q


def test_products_of_words_are_products_of_polynomials(lattices):
    """The code's product with X^700, by words, turns a polynomial as the ring says: X^N is -1."""
    ours, theirs = lattices
    random = np.random.default_rng(1)
    words = random.integers(0, ours.modulus, DEGREE, np.uint64)
    turn = [0] * DEGREE
    turn[700] = 1
    product = ours.multiply(words, np.array(theirs.ntt(tuple(turn)), np.uint64))
    before, after = theirs.inverse(numbers(words)), theirs.inverse(numbers(product))
    assert after[700:] == before[: DEGREE - 700]
    assert after[:700] == tuple(-c for c in before[DEGREE - 700 :])


def test_encoding_is_that_of_the_specification(lattices, checker):
    """What SEAL encrypts, less what the checker encodes, is noise as small as it should be."""
    ours, theirs = lattices
    random = np.random.default_rng(2)
    values, scale, key = random.integers(-3000, 3001, (1, DEGREE)).astype(np.float64), 2.0**22, ours.fresh_key()
    cipher, own = ours.encrypted(key, values, scale)
    plain = theirs.inverse(numbers(ours.add(cipher, ours.multiply(own, key.words))[0]))
    noise = np.array(plain) - np.array(checker.encode(tuple(values[0]), scale))
    assert 0 < np.abs(noise).max() <= MOST_NOISE
    assert 2.9 < noise.std() < 3.6


def test_decoding_is_that_of_the_specification(lattices, checker):
    """Of any polynomial: every slot, real and imaginary part."""
    ours, theirs = lattices
    words = np.random.default_rng(3).integers(0, ours.modulus, (1, DEGREE), np.uint64)
    scale = ours.modulus / 1e6
    decoded = checker.decode(theirs.inverse(numbers(words[0])), scale)
    np.testing.assert_allclose(ours.decoded(words, scale)[0], decoded, atol=1e-3)
    assert np.abs(decoded).min() < 1e6 < np.abs(decoded).max()


def test_words_not_below_the_modulus_are_left_out(checker):
    """With a modulus of which a quarter of all words is too large; those of the real ones are one in millions."""
    modulus, key = 3 << 38, bytes(range(32))
    small = copy.copy(ring(40))
    small.modulus = modulus
    stream = UniformPolynomials(small, key)
    found = numbers(np.concatenate([stream.next(1), stream.next(2)]).reshape(-1))
    assert found == checker.uniform(key, modulus, 3 * DEGREE)
    cut = [word & (2**40 - 1) for word in checker.Keystream(key).words(DEGREE)]
    assert max(cut) >= modulus > max(found)


def size(value: Any) -> int:
    """S of the specification, from the description of msgpack and not from the library."""
    if isinstance(value, int):
        return 1 if value < 1 << 7 else 2 if value < 1 << 8 else 3 if value < 1 << 16 else 5
    if isinstance(value, bytes):
        return len(value) + (2 if len(value) < 1 << 8 else 3 if len(value) < 1 << 16 else 5)
    return (1 if len(value) < 16 else 3) + sum(map(size, value))


def stated_sizes(specification: str) -> dict[str, str]:
    """Formula by heading of messages.md."""
    sections = re.split(r"^##+ ", specification, flags=re.MULTILINE)[1:]
    found = {section.split("\n")[0]: re.findall(r"Size[^`\n]*: `([^`]+)`", section) for section in sections}
    assert all(len(formulas) <= 1 for formulas in found.values())
    return {heading: formulas[0] for heading, formulas in found.items() if formulas}


def evaluated(formula: str, **names: Any) -> int:
    """Value of a formula in the specification's own text."""
    return eval(formula, {"__builtins__": {}, "S": size, "ceil": lambda number: int(-(-number // 1)), **names})


BIG = (bytes(16), bytes(32), 70_000)
MANY = (tuple(range(1, 201)), (60_000,))
SYNTHETIC = [
    messages.KeyRequest(*BIG, 1024),
    messages.KeyAdvertisement(*BIG, 60_000, 1000, bytes(32_000)),
    messages.EncryptRequest(*BIG, bytes(70_000), (bytes(240), bytes(300)) * 10),
    messages.EncryptReply(300, bytes(64)),
    messages.OpenRequest(*BIG, 1000, bytes(32), MANY),
    messages.Opening(bytes(32), 200, MANY[0]),
    messages.OpenReply(60_000, bytes(32), bytes(64)),
    messages.Part(bytes(32), bytes(32), bytes(32)),
]


KINDS = {kind for kind in vars(messages).values() if isinstance(kind, type) and kind.__module__ == messages.__name__}


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


def test_sizes_of_messages(maker, vectors, specification, written):
    maker.make(maker.recorded_in(vectors))
    for message in SYNTHETIC:
        message.to_bytes()
    sizes = stated_sizes(specification)
    assert set(sizes) == {kind.KIND for kind in KINDS} | {"Polynomials on the wire"}
    assert {type(message) for message, _ in written} >= KINDS
    for message, data in written:
        if type(message) in KINDS:
            assert evaluated(sizes[message.KIND], **vars(message)) == len(data), message.KIND
    assert Signed in {type(message) for message, _ in written}


@pytest.mark.parametrize(
    ("sizes", "values"),
    [
        ([(10, 16)], 10),
        ([(4096, 16)], 4096),
        ([(4090, 16), (11, 16)], 4101),
        ([(9000, 16)], 9000),
        ([(4094, 16), (1, 32)], 4096),
        ([(4094, 16), (2, 32)], 4098),
    ],
)
def test_bytes_of_polynomials(maker, monkeypatch, specification, sizes, values):
    names = ("update", "count")
    channels = tuple(ChannelSpec(name, *size, 1.0) for name, size in zip(names, sizes, strict=False))
    integers = {silo: {spec.name: [silo] * spec.length for spec in channels} for silo in maker.SILOS}
    monkeypatch.setattr(maker, "CHANNELS", channels)
    monkeypatch.setattr(maker, "INTEGERS", integers)
    draws = maker.Draws({})
    with draws.installed():
        fed = maker.Federation(draws)
        fed.run(maker.asked())
    parameters = parameters_for(channels, len(maker.SILOS))
    formula = stated_sizes(specification)["Polynomials on the wire"]
    expected = evaluated(formula, values=values, modulus_bits=parameters.modulus_bits)
    for stage, kind in (("encrypt", messages.EncryptReply), ("open", messages.OpenReply)):
        for silo, reply in fed.replies[stage].items():
            assert kind.from_bytes(reply[expected:]).silo == silo


def test_constants_that_the_specification_names(specification, checker):
    assert f"the {len(LABEL)} bytes `{LABEL.decode()}`" in specification
    assert checker.L == LABEL
    for kind in KINDS:
        assert f'`[2, "{kind.KIND}", ' in specification
