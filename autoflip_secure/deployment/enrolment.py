"""Requests to be enrolled: who a party is and which keys it holds, proven by signatures of those keys.

A request is public. Who really sent it is what its fingerprint is for: the party reads it out over the phone, and the
federation's owner compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from autoflip_secure.deployment.armour import armoured, canonical, fingerprint, read_armoured, read_file, unhex
from autoflip_secure.deployment.certificates import signing_request, valid_request
from autoflip_secure.deployment.keys import node_public_text, node_sign, node_verify
from autoflip_secure.errors import EnrolmentError
from autoflip_secure.parties.identity import Identity, verify

__all__ = [
    "CoordinatorRequest",
    "SiloRequest",
    "check_name",
    "coordinator_request",
    "parse_request",
    "read_request",
    "silo_request",
]

SILO_LABEL = "silo request"
COORDINATOR_LABEL = "coordinator request"
DOMAINS = {SILO_LABEL: b"enrolment/silo", COORDINATOR_LABEL: b"enrolment/coordinator"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HEX_KEY = re.compile(r"[0-9a-f]{64}")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    identity: str

    @field_validator("identity")
    @classmethod
    def _is_a_key(cls, value: str) -> str:
        if not HEX_KEY.fullmatch(value):
            raise ValueError("not 64 hexadecimal digits")
        return value

    @property
    def public(self) -> bytes:
        """Identity public key, 32 bytes."""
        return bytes.fromhex(self.identity)


class SiloRequest(_Request):
    """What a silo asks to be enrolled with.

    Attributes
    ----------
    name : str
    identity : str
        Ed25519 public key in hexadecimal digits.
    node : str
        Public key of Flower's node authentication, as OpenSSH writes it.
    """

    name: str
    node: str

    @property
    def fingerprint(self) -> str:
        """To be compared over the phone."""
        return fingerprint(SILO_LABEL, canonical(self.model_dump()))


class CoordinatorRequest(_Request):
    """What the coordinator asks to be enrolled with.

    Attributes
    ----------
    identity : str
        Ed25519 public key in hexadecimal digits.
    certificate_request : str
        PKCS#10 for its TLS key, named after the identity.
    """

    certificate_request: str

    @property
    def fingerprint(self) -> str:
        """To be compared over the phone."""
        return fingerprint(COORDINATOR_LABEL, canonical(self.model_dump()))


def silo_request(name: str, identity: Identity, node: ec.EllipticCurvePrivateKey) -> str:
    """Text of a silo's request, signed by both of its keys."""
    request = SiloRequest(name=check_name(name), identity=identity.public.hex(), node=node_public_text(node))
    message = canonical(request.model_dump())
    signatures = {
        "identity": identity.sign(DOMAINS[SILO_LABEL], message).hex(),
        "node": node_sign(node, message).hex(),
    }
    return armoured(SILO_LABEL, request.model_dump(), signatures)


def coordinator_request(identity: Identity, key: ec.EllipticCurvePrivateKey) -> str:
    """Text of the coordinator's request, signed by its identity; the certificate request is signed by the TLS key."""
    public = identity.public.hex()
    request = CoordinatorRequest(identity=public, certificate_request=signing_request(key, public))
    signature = identity.sign(DOMAINS[COORDINATOR_LABEL], canonical(request.model_dump()))
    return armoured(COORDINATOR_LABEL, request.model_dump(), {"identity": signature.hex()})


def read_request(path: Path) -> SiloRequest | CoordinatorRequest:
    """Read a request file and check that whoever made it holds the keys it names.

    Raises
    ------
    EnrolmentError
        Missing, malformed or forged.
    """
    return parse_request(read_file(path), str(path))


def parse_request(text: str, where: str) -> SiloRequest | CoordinatorRequest:
    """Check the text of a request.

    Raises
    ------
    EnrolmentError
        Malformed or forged.
    """
    try:
        if text.startswith(f"-----BEGIN AUTOFLIP-SECURE {COORDINATOR_LABEL.upper()}-----"):
            return _coordinator(text, where)
        return _silo(text, where)
    except ValidationError as error:
        first = error.errors()[0]
        raise EnrolmentError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _silo(text: str, where: str) -> SiloRequest:
    body, signatures = read_armoured(SILO_LABEL, text, where)
    request = SiloRequest(**body)
    check_name(request.name, where)
    message = canonical(request.model_dump())
    _check_identity(request, SILO_LABEL, signatures, {"identity", "node"}, where)
    if not node_verify(request.node, message, unhex(signatures["node"])):
        raise EnrolmentError(f"{where}: not signed by its node key; whoever sent it does not hold that key")
    return request


def _coordinator(text: str, where: str) -> CoordinatorRequest:
    body, signatures = read_armoured(COORDINATOR_LABEL, text, where)
    request = CoordinatorRequest(**body)
    _check_identity(request, COORDINATOR_LABEL, signatures, {"identity"}, where)
    valid_request(request.certificate_request, request.identity)
    return request


def _check_identity(request: _Request, label: str, signatures: dict[str, str], expected: set[str], where: str) -> None:
    if set(signatures) != expected:
        raise EnrolmentError(f"{where}: a {label} has the signatures {', '.join(sorted(expected))}")
    message = canonical(request.model_dump())
    if not verify(request.public, DOMAINS[label], message, unhex(signatures["identity"])):
        raise EnrolmentError(f"{where}: not signed by its identity key; whoever sent it does not hold that key")


def check_name(name: str, where: str = "--name") -> str:
    """`name`, if a silo may be called so.

    Raises
    ------
    EnrolmentError
        It may not: names go into file names, terminals and service units.
    """
    if not NAME.fullmatch(name):
        raise EnrolmentError(
            f"{where}: a silo's name is 1 to 64 letters, digits, dots, dashes or underscores of ASCII and starts with "
            "a letter or digit, such as hospital-a"
        )
    return name
