"""Private keys for Flower's channel: the coordinator's TLS key and a silo's key of node authentication.

They say who opens a connection. Who signs messages of the protocol is another matter: `parties.identity`.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from autoflip_secure.errors import EnrolmentError, InputError
from autoflip_secure.storage import write_atomically

__all__ = [
    "NODE_CURVE",
    "TLS_CURVE",
    "key_file",
    "node_public",
    "node_public_text",
    "node_sign",
    "node_verify",
]

TLS_CURVE = ec.SECP256R1()
NODE_CURVE = ec.SECP384R1()
NODE_KEY_TYPE = "ecdsa-sha2-nistp384"
MAX_KEY_BYTES = 4096
READABLE_BY_OTHERS = 0o077
SIGNATURE_DOMAIN = b"autoflip-secure/node-key\0"


def key_file(path: Path, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    """The key at `path`; made there (mode 0600) where the file is absent.

    A key on P-384 is in OpenSSH's format, as flower-supernode reads it; others are PKCS#8.

    Raises
    ------
    InputError
        Not a key on this curve, or other users may read it.
    StorageError
        It cannot be written.
    """
    if path.exists():
        return _load(path, curve)
    key = ec.generate_private_key(curve)
    openssh = isinstance(curve, ec.SECP384R1)
    form = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_atomically(path, pem, secret=True)
    return key


def _load(path: Path, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    try:
        mode, pem = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror}") from error
    if mode & READABLE_BY_OTHERS:
        raise InputError(f"the key {path} is open to other users (mode {mode & 0o777:o}); run: chmod 600 {path}")
    openssh = isinstance(curve, ec.SECP384R1)
    try:
        load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
        key = load(pem, None)
    except (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != curve.name:
        # The parser's own error is not passed on: it may quote the file.
        raise InputError(f"{path} is not a {curve.name} key; restore it, or make a new home and enrol again")
    return key


def node_public_text(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> str:
    """Public half of a node key, as OpenSSH writes it: `ecdsa-sha2-nistp384 AAAA...`."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def node_public(text: str) -> ec.EllipticCurvePublicKey:
    """Read and validate the public half of a node key.

    Raises
    ------
    EnrolmentError
        Not a P-384 key, or another spelling of it.
    """
    try:
        if len(text) > MAX_KEY_BYTES:
            raise ValueError("too long")
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm) as error:
        raise EnrolmentError(f"a node key is not of the form {NODE_KEY_TYPE} AAAA...") from error
    if (
        not isinstance(key, ec.EllipticCurvePublicKey)
        or key.curve.name != NODE_CURVE.name
        or node_public_text(key) != text
    ):
        raise EnrolmentError(f"a node key is not of the form {NODE_KEY_TYPE} AAAA...")
    return key


def node_sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Signature of a node key, in a domain that Flower's own signatures are not in."""
    return key.sign(SIGNATURE_DOMAIN + message, ec.ECDSA(hashes.SHA384()))


def node_verify(public: str, message: bytes, signature: bytes) -> bool:
    """Whether the node key signed the message."""
    try:
        node_public(public).verify(signature, SIGNATURE_DOMAIN + message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
