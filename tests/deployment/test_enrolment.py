"""Requests to be enrolled: one text each, and only whoever holds the keys can write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.deployment.armour import armoured, canonical, fingerprint, fingerprint_matches
from autoflip_secure.deployment.certificates import signing_request
from autoflip_secure.deployment.enrolment import (
    CoordinatorRequest,
    SiloRequest,
    coordinator_request,
    parse_request,
    read_request,
    silo_request,
)
from autoflip_secure.deployment.keys import NODE_CURVE, TLS_CURVE, node_public, node_public_text, node_sign
from autoflip_secure.errors import EnrolmentError
from autoflip_secure.parties.identity import Identity

IDENTITY, OTHER = Identity.generate(), Identity.generate()
NODE, OTHER_NODE = (ec.generate_private_key(NODE_CURVE) for _ in range(2))
TLS, OTHER_TLS = (ec.generate_private_key(TLS_CURVE) for _ in range(2))
SILO = silo_request("hospital-a", IDENTITY, NODE)
COORDINATOR = coordinator_request(IDENTITY, TLS)
TEXTS = {"silo": SILO, "coordinator": COORDINATOR}


def test_a_request_reads_as_what_was_asked() -> None:
    silo, coordinator = parse_request(SILO, "a"), parse_request(COORDINATOR, "c")
    assert isinstance(silo, SiloRequest)
    assert isinstance(coordinator, CoordinatorRequest)
    assert (silo.name, silo.public, silo.node) == ("hospital-a", IDENTITY.public, node_public_text(NODE))
    assert coordinator.public == IDENTITY.public


@pytest.mark.parametrize("kind", TEXTS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_request_with_any_byte_changed_is_refused(kind: str, data: st.DataObject) -> None:
    text = TEXTS[kind]
    place = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.one_of(st.just(""), st.characters(codec="ascii"), st.text(min_size=2, max_size=4)))
    changed = text[:place] + put + text[place + 1 :]
    if changed == text:
        return
    with pytest.raises(EnrolmentError):
        parse_request(changed, "request.txt")


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("written_as", [str.upper, lambda text: text[:-2] + " " + text[-2:]], ids=["capitals", "blank"])
def test_a_signature_has_one_text(kind: str, written_as: Callable[[str], str]) -> None:
    signature = json.loads("".join(TEXTS[kind].splitlines(keepends=True)[1:-1]))["signatures"]["identity"]
    other = written_as(signature)
    assert bytes.fromhex(other) == bytes.fromhex(signature)
    assert other != signature
    with pytest.raises(EnrolmentError, match="not signed by its identity key"):
        parse_request(TEXTS[kind].replace(signature, other), "request.txt")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["silo", "coordinator"]), st.booleans())
def test_no_text_crashes_the_reader(inner: str, kind: str, framed: bool) -> None:
    label = f"AUTOFLIP-SECURE {kind.upper()} REQUEST-----"
    text = f"-----BEGIN {label}\n{inner}\n-----END {label}\n" if framed else inner
    with pytest.raises(EnrolmentError):
        parse_request(text, "request.txt")


@pytest.mark.parametrize("inner", ["[" * 100_000, '{"body":' * 50_000, "1" * 10_000, '{"body":{},"signatures":{}}'])
def test_hostile_json_is_refused(inner: str) -> None:
    label = "AUTOFLIP-SECURE SILO REQUEST-----"
    with pytest.raises(EnrolmentError):
        parse_request(f"-----BEGIN {label}\n{inner}\n-----END {label}\n", "request.txt")


def forged(body: dict[str, object], **signatures: bytes) -> str:
    return armoured("silo request", body, {name: value.hex() for name, value in signatures.items()})


def silo_body(**changes: object) -> dict[str, object]:
    return {
        "format": 1,
        "name": "hospital-a",
        "identity": IDENTITY.public.hex(),
        "node": node_public_text(NODE),
        **changes,
    }


def signed(body: dict[str, object], identity: Identity, node: ec.EllipticCurvePrivateKey) -> str:
    message = canonical(body)
    return forged(body, identity=identity.sign(b"enrolment/silo", message), node=node_sign(node, message))


def test_the_forger_below_writes_what_an_honest_silo_would() -> None:
    assert parse_request(signed(silo_body(), IDENTITY, NODE), "a") == parse_request(SILO, "a")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (signed(silo_body(), OTHER, NODE), "not signed by its identity key"),
        (signed(silo_body(), IDENTITY, OTHER_NODE), "not signed by its node key"),
        (signed(silo_body(identity=OTHER.public.hex()), IDENTITY, NODE), "not signed by its identity key"),
        (signed(silo_body(node=node_public_text(OTHER_NODE)), IDENTITY, NODE), "not signed by its node key"),
        (forged(silo_body(), identity=IDENTITY.sign(b"enrolment/silo", canonical(silo_body()))), "has the signatures"),
        (
            forged(
                silo_body(),
                identity=IDENTITY.sign(b"enrolment/bundle", canonical(silo_body())),
                node=node_sign(NODE, canonical(silo_body())),
            ),
            "not signed by its identity key",
        ),
        (signed(silo_body(name="../hospital"), IDENTITY, NODE), "a silo's name is"),
        (signed(silo_body(name=""), IDENTITY, NODE), "a silo's name is"),
        (signed(silo_body(node="ssh-ed25519 AAAA"), IDENTITY, NODE), "node key"),
        (signed(silo_body(node=node_public_text(NODE) + " comment"), IDENTITY, NODE), "node key"),
        (signed(silo_body(node=node_public_text(TLS)), IDENTITY, NODE), "node key"),
        (signed(silo_body(identity=IDENTITY.public.hex().upper()), IDENTITY, NODE), "64 hexadecimal digits"),
        (signed(silo_body(format=2), IDENTITY, NODE), "format"),
        (signed(silo_body(more=1), IDENTITY, NODE), "more"),
    ],
)
def test_a_forged_or_malformed_silo_request_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(EnrolmentError, match=complaint):
        parse_request(text, "request.txt")


@pytest.mark.parametrize(
    ("csr", "signer", "complaint"),
    [
        (signing_request(TLS, OTHER.public.hex()), IDENTITY, "belongs to another"),
        (signing_request(NODE, IDENTITY.public.hex()), IDENTITY, "not for a P-256 key"),
        (signing_request(TLS, IDENTITY.public.hex()), OTHER, "not signed by its identity key"),
        ("nothing", IDENTITY, "is not one"),
    ],
)
def test_a_forged_coordinator_request_is_refused(csr: str, signer: Identity, complaint: str) -> None:
    body = {"format": 1, "identity": IDENTITY.public.hex(), "certificate_request": csr}
    signature = signer.sign(b"enrolment/coordinator", canonical(body)).hex()
    with pytest.raises(EnrolmentError, match=complaint):
        parse_request(armoured("coordinator request", body, {"identity": signature}), "request.txt")


def test_a_certificate_request_for_a_key_that_did_not_sign_it_is_refused() -> None:
    """The public key of another server, in a request that our own key signed."""
    import base64

    from cryptography.hazmat.primitives import serialization

    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    mine, theirs = (key.public_key().public_bytes(*form) for key in (TLS, OTHER_TLS))
    pem = signing_request(TLS, IDENTITY.public.hex())
    der = base64.b64decode("".join(pem.splitlines()[1:-1])).replace(mine, theirs)
    lines = base64.encodebytes(der).decode().replace("\n", "")
    wrapped = "\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
    csr = f"-----BEGIN CERTIFICATE REQUEST-----\n{wrapped}\n-----END CERTIFICATE REQUEST-----\n"
    body = {"format": 1, "identity": IDENTITY.public.hex(), "certificate_request": csr}
    signature = IDENTITY.sign(b"enrolment/coordinator", canonical(body)).hex()
    with pytest.raises(EnrolmentError, match="not signed by its own key"):
        parse_request(armoured("coordinator request", body, {"identity": signature}), "request.txt")


def test_a_file_that_is_too_large_or_binary_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"a" * ((4 << 20) + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, complaint in (("large", "more than"), ("binary", "not ASCII"), ("missing", "No such file")):
        with pytest.raises(EnrolmentError, match=complaint):
            read_request(tmp_path / name)


def test_fingerprints_differ_by_kind_and_are_compared_as_people_type_them() -> None:
    one = fingerprint("silo request", b"x")
    assert [len(group) for group in one.split("-")] == [5, 5, 5, 5, 5]
    assert one != fingerprint("coordinator request", b"x")
    assert fingerprint_matches(one.lower().replace("-", " "), one)
    assert not fingerprint_matches(one[:-1], one)
    assert not fingerprint_matches("", one)
    assert not fingerprint_matches(one[:-1] + ("A" if one[-1] != "A" else "B"), one)


def test_a_request_shows_no_private_key() -> None:
    numbers = NODE.private_numbers().private_value
    for text in TEXTS.values():
        assert f"{numbers:x}" not in text
        assert "PRIVATE" not in text
    assert json.loads("\n".join(SILO.splitlines()[1:-1]))["body"]["node"] == node_public_text(
        node_public(node_public_text(NODE))
    )
