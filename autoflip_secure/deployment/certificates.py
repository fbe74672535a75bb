"""The federation's own certificate authority: it signs one server certificate, and silos trust nothing else."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from autoflip_secure.deployment.keys import TLS_CURVE
from autoflip_secure.errors import EnrolmentError

__all__ = [
    "CLOCK_SKEW",
    "authority_certificate",
    "check_chain",
    "expiry",
    "expiry_text",
    "server_certificate",
    "signing_request",
    "tls_public",
    "valid_request",
]

CLOCK_SKEW = timedelta(hours=1)
"""Certificates begin that much earlier: clocks of hospitals differ."""
MAX_PEM = 16_384
SOON = timedelta(days=30)


def authority_certificate(key: ec.EllipticCurvePrivateKey, name: str, days: int, now: datetime) -> str:
    """PEM of the self-signed certificate of the federation's authority; it may sign servers, no further authority."""
    subject = _named(f"{name} certificate authority")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(subject, subject, key.public_key(), days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(certificates=True), critical=True)
    builder = builder.add_extension(identifier, critical=False)
    return _pem(builder.sign(key, hashes.SHA256()))


def signing_request(key: ec.EllipticCurvePrivateKey, owner: str) -> str:
    """PEM of a request for a server certificate; its names are the authority's to choose, so it states none."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named(owner))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def valid_request(pem: str, owner: str) -> x509.CertificateSigningRequest:
    """Read a request for a server certificate.

    Raises
    ------
    EnrolmentError
        Malformed, not signed by its own P-256 key, or made for another owner.
    """
    try:
        if len(pem) > MAX_PEM:
            raise ValueError("too long")
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EnrolmentError("the certificate request is not one; ask the coordinator to run init again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != TLS_CURVE.name:
        raise EnrolmentError("the certificate request is not for a P-256 key; ask the coordinator to run init again")
    if not proven:
        raise EnrolmentError("the certificate request is not signed by its own key; whoever sent it does not hold it")
    if request.subject != _named(owner):
        raise EnrolmentError("the certificate request belongs to another coordinator's identity")
    return request


def server_certificate(
    authority: ec.EllipticCurvePrivateKey, ca_pem: str, request: x509.CertificateSigningRequest,
    hosts: Sequence[str], days: int, now: datetime,
) -> str:  # fmt: skip
    """PEM of a server certificate for `hosts` (names or addresses), never valid beyond the authority's own."""
    ca = _load(ca_pem)
    key = request.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = _builder(_named(hosts[0]), ca.subject, key, days, now, until=ca.not_valid_after_utc)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(h) for h in hosts]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(identifier, critical=False)
    return _pem(builder.sign(authority, hashes.SHA256()))


def check_chain(ca_pem: str, server_pem: str, host: str) -> None:
    """Refuse certificates with which silos could not reach the coordinator at `host`, whatever the date.

    Raises
    ------
    EnrolmentError
        Malformed, not signed by this authority, or for another host.
    """
    ca, server = _load(ca_pem), _load(server_pem)
    try:
        # Not left to the verifier, which takes a server's certificate for an authority where it is trusted as one.
        server.verify_directly_issued_by(ca)
        if not _may_sign_servers_only(ca):
            raise ValueError("not an authority for servers")
        store = verification.Store([ca])
        # A certificate that has run out is no reason to refuse a bundle: the next one may come over this channel.
        at = server.not_valid_before_utc.replace(tzinfo=None) + CLOCK_SKEW
        verifier = verification.PolicyBuilder().store(store).time(at).build_server_verifier(_subject(host))
        verifier.verify(server, [])
    except (verification.VerificationError, InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EnrolmentError(f"the server certificate does not hold for {host} under the federation's CA") from error


def expiry(pem: str) -> datetime:
    """When a certificate runs out."""
    return _load(pem).not_valid_after_utc


def expiry_text(pem: str, now: datetime) -> str:
    """In words, with a hint where it is time to act."""
    end = expiry(pem)
    if end <= now:
        return f"EXPIRED on {end:%Y-%m-%d}; run: autoflip-secure provision renew"
    hint = "; soon, run: autoflip-secure provision renew" if end - now < SOON else ""
    return f"valid until {end:%Y-%m-%d} ({(end - now).days} days){hint}"


def tls_public(pem: str) -> bytes:
    """Public key a certificate is for, as DER."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return _load(pem).public_key().public_bytes(serialization.Encoding.DER, form)


def _load(pem: str) -> x509.Certificate:
    try:
        if len(pem) > MAX_PEM:
            raise ValueError("too long")
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EnrolmentError("a certificate is malformed; ask the federation's owner for the bundle again") from error
    # More than one certificate in the text would be trusted as well by whoever reads the file.
    if _pem(certificate) != pem:
        raise EnrolmentError("a certificate is not alone in its text; ask the federation's owner for the bundle again")
    return certificate


def _may_sign_servers_only(ca: x509.Certificate) -> bool:
    try:
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and constraints.path_length == 0 and usage.key_cert_sign


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime,
    until: datetime | None = None,
) -> x509.CertificateBuilder:  # fmt: skip
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - CLOCK_SKEW)
        .not_valid_after(end if until is None else min(end, until))
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates, key_cert_sign=certificates, crl_sign=certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _named(text: str) -> x509.Name:
    longest = 64  # of a common name, by X.520
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:longest])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(host: str) -> x509.DNSName | x509.IPAddress:
    name = _general_name(host)
    assert isinstance(name, x509.DNSName | x509.IPAddress)
    return name


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
