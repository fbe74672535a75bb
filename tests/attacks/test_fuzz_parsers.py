"""Whatever a party is sent: only errors of `errors.py` come out of its parsers, soon, and in little memory."""

from __future__ import annotations

import ast
import gzip
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autoflip_secure
from autoflip_secure.attacks import parser_fuzz
from autoflip_secure.attacks.parser_calls import Parser, a_file, as_bytes, as_text
from autoflip_secure.attacks.parser_edits import KINDS, PIECES, Edit, drawn_edits, edited
from autoflip_secure.attacks.parser_fuzz import fuzz, tried, warm
from autoflip_secure.attacks.parser_samples import Samples, function_of, idx_bytes
from autoflip_secure.attacks.parsers import EXEMPT, parsers
from autoflip_secure.errors import AutoflipSecureError, ConfigError, DataError, EnrolmentError, InputError

PACKAGE = Path(autoflip_secure.__file__).parent
READERS = ("from_bytes", "from_json", "read_", "parse", "load")
QUICK, THOROUGH = 12, 100

REFUSED = {
    "ckks.keys:read_advertisement": "made up, so not signed by its silo",
    "ckks.keys:read_advertisements": "made up, so not signed by its silo",
    "parties.requests:open_request": "a silo's message in the place of the coordinator's",
    "parties.requests:read_manifest": "of another session",
    "federation.wire:read_request": "the message is made with a wrong field",
    "federation.wire:read_reply": "the message is made with a wrong field",
    "data.tcga_brca:load_tcga_brca": "the table beside it is cut short",
    "data.tiny_imagenet:load_tiny_imagenet": "two classes of 200",
    "deployment.certificates:check_chain": "for another host",
}
"""Parsers whose samples are not taken to the end."""

edits = st.lists(
    st.builds(
        Edit,
        st.sampled_from(KINDS),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 256),
        st.integers(0, (1 << 16) - 1),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def all_parsers(tmp_path_factory: pytest.TempPathFactory) -> list[Parser]:
    return parsers(Samples(tmp_path_factory.mktemp("samples")))


def hunt(parser: Parser, examples: int) -> None:
    """Random bytes, and edited samples."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=200), st.builds(edited, st.sampled_from(list(parser.samples)), edits)))
    def holds(data: bytes) -> None:
        crash = tried(parser, data)
        assert crash is None, f"{crash.parser}: {crash.error}"

    warm(parser)
    holds()


def test_no_input_gets_anything_but_our_own_errors_out_of_a_parser(all_parsers: list[Parser]) -> None:
    for parser in all_parsers:
        hunt(parser, QUICK)


@pytest.mark.slow
def test_no_input_gets_anything_but_our_own_errors_out_of_a_parser_in_many_tries(all_parsers: list[Parser]) -> None:
    for parser in all_parsers:
        hunt(parser, THOROUGH)


def readers_in(path: Path) -> Iterator[str]:
    """Public functions and class methods of a file that are named like parsers."""
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith(READERS):
            yield f"{module}:{node.name}"
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                of_class = isinstance(inner, ast.FunctionDef) and any(
                    isinstance(mark, ast.Name) and mark.id == "classmethod" for mark in inner.decorator_list
                )
                if of_class and inner.name.startswith(READERS):
                    yield f"{module}:{node.name}.{inner.name}"


def test_every_parser_is_listed_or_has_a_reason_not_to_be(all_parsers: list[Parser]) -> None:
    named = {name for path in PACKAGE.rglob("*.py") for name in readers_in(path)}
    assert len(named) > 60
    listed = {parser.name for parser in all_parsers}
    own = {name for name in named if name.startswith("attacks.") and name not in listed}  # what adversaries wrote
    assert named - own - listed - EXEMPT.keys() == set()
    assert EXEMPT.keys() - named == set(), "exempt, and not there any more"
    assert not listed & EXEMPT.keys()


def test_every_message_of_the_protocols_is_listed(all_parsers: list[Parser]) -> None:
    listed = {parser.name for parser in all_parsers}
    for module in ("ckks.messages", "parties.run_key_messages", "secagg.round_messages", "secagg.setup_messages"):
        tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
        for kind in (node.name for node in tree.body if isinstance(node, ast.ClassDef)):
            assert f"{module}:{kind}.from_bytes" in listed


def test_samples_are_taken(all_parsers: list[Parser], tmp_path: Path) -> None:
    """Edits of what is refused anyway would try little."""
    for number, parser in enumerate(all_parsers):
        for place, sample in enumerate(parser.samples):
            folder = tmp_path / f"{number}-{place}"
            folder.mkdir()
            try:
                parser.read(sample, folder)
                taken = True
            except AutoflipSecureError:
                taken = False
            assert taken or parser.name in REFUSED, parser


DEEP = b"[" * 20_000
FOUND = {
    "TOML that is nested too deep": ("config:load_config_file", a_file("c.toml"), b"a = " + DEEP, ConfigError),
    "a number too long for Python": ("config:load_config_file", a_file("c.toml"), b"a = " + b"9" * 5000, ConfigError),
    "a policy nested too deep": ("federation.policy:SiloPolicy.read", a_file("p.toml"), b"a = " + DEEP, ConfigError),
    "a declaration nested too deep": ("deployment.federation_file:declared", as_text, b"a = " + DEEP, EnrolmentError),
    "a network nested too deep": ("models.spec:ModelSpec.from_json", as_text, DEEP, DataError),
    "a task nested too deep": ("data.task:Task.from_json", as_text, DEEP, ConfigError),
    "a log with a damaged line": ("federation.events:read_json_lines", a_file("e"), b'{"a": 1}\n{"a\n', DataError),
    "a log that is no text": ("federation.events:read_json_lines", a_file("e.jsonl"), b"\xff\xfe\n", DataError),
    "a log nested too deep": ("federation.events:read_json_lines", a_file("e.jsonl"), DEEP + b"\n", DataError),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FOUND))
def test_what_crashed_once_is_refused(name: str, tmp_path: Path) -> None:
    reader, call, data, error = FOUND[name]
    with pytest.raises(error):
        Parser(reader, [data], call).read(data, tmp_path)


def test_a_key_of_an_algorithm_that_nobody_knows_is_no_identity(tmp_path: Path) -> None:
    """OID 0.11.101.112 in the place of Ed25519's 1.3.101.112."""
    pem = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDC2VwBCIEI" + b"A" * 43 + b"=\n-----END PRIVATE KEY-----\n"
    wrong = Parser("parties.identity:Identity.load", [pem], a_file("identity.key"))
    with pytest.raises(InputError):
        wrong.read(pem, tmp_path)


@pytest.mark.parametrize("event", [["sum"], {"sum": 1}, None, 7])
def test_an_event_without_a_name_leaves_the_page_as_it_is(event: object, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": event}) + "\n")
    assert function_of("dashboard.run_view:RunView")(tmp_path).page()["events_told"] == 1


def test_a_compressed_node_key_is_refused_in_words() -> None:
    """A silo's owner writes its own request, so the key may be any point in any form."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    fields = [b"ecdsa-sha2-nistp384", b"nistp384", point]
    import base64

    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    text = f"ecdsa-sha2-nistp384 {base64.b64encode(blob).decode()}"
    with pytest.raises(EnrolmentError):
        function_of("deployment.keys:node_public")(text)


def test_a_shape_of_a_billion_bytes_takes_no_memory_for_them() -> None:
    header = idx_bytes(np.zeros((1, 1, 1), np.uint8))[:4] + (1 << 29).to_bytes(4, "big") + (1).to_bytes(4, "big") * 2
    data = gzip.compress(header)
    reader = Parser("data.arrays:read_idx", [data], lambda f, raw, place: a_file("x.gz")(lambda p: f(p, 3), raw, place))
    assert tried(reader, data) is None


def fake(call: object) -> Parser:
    return Parser("data.partition:parse_partition", [b"iid"], call)  # type: ignore[arg-type]


def test_a_parser_that_crashes_is_found() -> None:
    def crashes(function: object, data: bytes, folder: Path) -> object:
        return json.loads(data)

    inputs, crashes_found = fuzz(fake(crashes), 0.0, seed=0)
    assert inputs == 20
    assert "JSONDecodeError" in crashes_found[0].error


def test_a_parser_that_believes_a_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser_fuzz, "MOST_BYTES", 1 << 20)
    found = tried(fake(lambda f, data, folder: bytearray(1 << 22)), b"")
    assert found is not None
    assert found.error.endswith("MiB of memory")


def test_a_parser_that_takes_all_day_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser_fuzz, "MOST_SECONDS", 0.05)
    found = tried(fake(lambda f, data, folder: time.sleep(5)), b"")
    assert found is not None
    assert "more than" in found.error


def test_our_own_errors_are_no_crash() -> None:
    assert tried(fake(as_text), b"dirichlet:x") is None
    assert tried(fake(partial(as_bytes)), b"x") is not None


@given(st.binary(max_size=300), edits)
def test_edits_never_fail_and_are_the_same_each_time(data: bytes, drawn: list[Edit]) -> None:
    assert edited(data, drawn) == edited(data, drawn)


def test_each_kind_of_edit_changes_something() -> None:
    import msgpack

    sample = msgpack.packb([1, b"abc", "text", [1, 2, 3]])
    for kind in KINDS:
        assert any(
            edited(sample, [Edit(kind, where / 8, 2, choice)]) != sample for where in range(8) for choice in range(8)
        )
    assert len(PIECES) > 10
    assert len({edited(sample, drawn_edits(np.random.default_rng(seed))) for seed in range(40)}) > 20
