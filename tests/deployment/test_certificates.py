"""Certificates as TLS sees them: real handshakes over a socket, with the checks that clients do."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from autoflip_secure.deployment.certificates import (
    authority_certificate,
    check_chain,
    expiry_text,
    server_certificate,
    signing_request,
    valid_request,
)
from autoflip_secure.deployment.keys import TLS_CURVE
from autoflip_secure.errors import EnrolmentError

NOW = datetime.now(UTC)
CA_KEY, OTHER_CA_KEY, KEY = (ec.generate_private_key(TLS_CURVE) for _ in range(3))
HOSTS = ("127.0.0.1", "localhost", "fl.example.org", "::1")


def made(
    hosts: tuple[str, ...] = HOSTS, days: int = 30, now: datetime = NOW, ca_key: ec.EllipticCurvePrivateKey = CA_KEY
):
    ca = authority_certificate(ca_key, "cardiology", 3650, now - timedelta(days=400))
    request = valid_request(signing_request(KEY, "owner"), "owner")
    return ca, server_certificate(ca_key, ca, request, hosts, days, now)


def handshake(folder: Path, ca: str, server: str, host: str) -> str | None:
    """The TLS version of a connection to 127.0.0.1 by a client that asks for `host`."""
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "ca.pem").write_text(ca)
    (folder / "server.pem").write_text(server)
    (folder / "server.key").write_bytes(KEY.private_bytes(serialization.Encoding.PEM, *form))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.pem", folder / "server.key")
    asking = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                serving.wrap_socket(connection, server_side=True).close()
            except (ssl.SSLError, OSError):
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname()) as raw,
                asking.wrap_socket(raw, server_hostname=host) as tls,
            ):
                return tls.version()
        finally:
            thread.join()


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_connects_to_every_host_of_the_certificate(tmp_path: Path, host: str) -> None:
    assert handshake(tmp_path, *made(), host) == "TLSv1.3"


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.2", "example.org"])
def test_a_client_refuses_another_host(tmp_path: Path, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        handshake(tmp_path, *made(), host)


def test_a_client_refuses_an_expired_certificate(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path, *made(days=10, now=NOW - timedelta(days=20)), "127.0.0.1")


def test_a_client_refuses_a_certificate_that_is_not_valid_yet(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        handshake(tmp_path, *made(now=NOW + timedelta(days=2)), "127.0.0.1")


def test_a_client_refuses_a_certificate_of_another_authority_of_the_same_name(tmp_path: Path) -> None:
    ca, _ = made()
    _, server = made(ca_key=OTHER_CA_KEY)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, ca, server, "127.0.0.1")


def test_the_authority_signs_no_further_authorities() -> None:
    ca = x509.load_pem_x509_certificate(made()[0].encode())
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature


def test_the_server_certificate_is_for_servers_only() -> None:
    server = x509.load_pem_x509_certificate(made()[1].encode())
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    purposes = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose.dotted_string for purpose in purposes] == ["1.3.6.1.5.5.7.3.1"]


def test_a_server_certificate_ends_with_its_authority() -> None:
    ca = authority_certificate(CA_KEY, "cardiology", 10, NOW)
    request = valid_request(signing_request(KEY, "owner"), "owner")
    server = server_certificate(CA_KEY, ca, request, HOSTS, 365, NOW)
    ends = {x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc for pem in (ca, server)}
    assert len(ends) == 1


@pytest.mark.parametrize("host", HOSTS)
def test_a_chain_is_accepted_for_its_hosts_also_after_it_ran_out(host: str) -> None:
    check_chain(*made(days=10, now=NOW - timedelta(days=20)), host)


@pytest.mark.parametrize(("signs", "depth"), [(True, None), (True, 1), (False, None)])
def test_an_authority_that_could_sign_further_ones_is_refused(signs: bool, depth: int | None) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other authority")])
    usage = {"digital_signature": False, "key_cert_sign": True, "crl_sign": True} | dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    ca = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(CA_KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=99))
        .add_extension(x509.BasicConstraints(signs, depth), critical=True)
        .add_extension(x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(CA_KEY.public_key()), critical=False)
        .sign(CA_KEY, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )
    request = valid_request(signing_request(KEY, "owner"), "owner")
    server = server_certificate(CA_KEY, ca, request, HOSTS, 30, NOW)
    with pytest.raises(EnrolmentError):
        check_chain(ca, server, "127.0.0.1")


def test_a_certificate_is_not_its_own_authority() -> None:
    ca, server = made()
    for pem in (ca, server):
        with pytest.raises(EnrolmentError):
            check_chain(pem, pem, "127.0.0.1")


@pytest.mark.parametrize(
    ("ca", "server", "host"),
    [
        (*made(), "evil.example.org"),
        (made()[0], made(ca_key=OTHER_CA_KEY)[1], "127.0.0.1"),
        (made()[1], made()[1], "127.0.0.1"),
        (made()[0], made()[0], "127.0.0.1"),
        (made()[0] + made(ca_key=OTHER_CA_KEY)[0], made()[1], "127.0.0.1"),
        ("", made()[1], "127.0.0.1"),
        (made()[0], "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "127.0.0.1"),
    ],
    ids=["host", "authority", "no authority", "no server", "two authorities", "empty", "damaged"],
)
def test_a_chain_that_silos_could_not_use_is_refused(ca: str, server: str, host: str) -> None:
    with pytest.raises(EnrolmentError):
        check_chain(ca, server, host)


def test_the_end_of_a_certificate_is_shown_and_what_to_do_about_it() -> None:
    server = made(days=100)[1]
    assert expiry_text(server, NOW).startswith("valid until")
    assert "renew" not in expiry_text(server, NOW)
    assert "provision renew" in expiry_text(server, NOW + timedelta(days=80))
    assert expiry_text(server, NOW + timedelta(days=101)).startswith("EXPIRED")
