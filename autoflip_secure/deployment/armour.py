"""Statements that people send each other as files: signed JSON between two lines that say what it is.

One statement has one text: reading refuses anything but exactly what writing the same statement gives. So a file that
was re-wrapped, translated or edited on its way is refused as a whole and never half understood.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

from autoflip_secure.errors import EnrolmentError

__all__ = [
    "MAX_BYTES",
    "armoured",
    "canonical",
    "fingerprint",
    "fingerprint_matches",
    "is_hex",
    "read_armoured",
    "read_file",
    "unhex",
]

MAX_BYTES = 4 << 20
"""Room for the bundle of 2000 silos."""
GROUPS, GROUP = 5, 5
FINGERPRINT_DOMAIN = b"autoflip-secure/fingerprint/"


def canonical(body: dict[str, Any]) -> bytes:
    """What is signed: compact JSON with sorted keys, ASCII only."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def armoured(label: str, body: dict[str, Any], signatures: dict[str, str]) -> str:
    """The text of a statement."""
    content = json.dumps({"body": body, "signatures": signatures}, sort_keys=True, indent=1, allow_nan=False)
    return f"{_line('BEGIN', label)}\n{content}\n{_line('END', label)}\n"


def read_armoured(label: str, text: str, where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and signatures of a statement; the signatures are not checked here.

    Raises
    ------
    EnrolmentError
        Anything but the exact text of a statement of this kind.
    """
    if len(text) > MAX_BYTES:
        raise EnrolmentError(f"{where}: more than {MAX_BYTES} bytes; a {label} is smaller, ask for the file again")
    begin, end = _line("BEGIN", label) + "\n", "\n" + _line("END", label) + "\n"
    if not (text.startswith(begin) and text.endswith(end) and len(text) > len(begin) + len(end)):
        raise EnrolmentError(f"{where}: not a whole {label}; it starts with {begin.strip()!r}, ask for the file again")
    try:
        content = json.loads(text[len(begin) : -len(end)])
        body, signatures = content["body"], content["signatures"]
        exact = isinstance(body, dict) and _are_texts(signatures) and armoured(label, body, signatures) == text
    except (ValueError, TypeError, KeyError, RecursionError):
        exact = False
    if not exact:
        raise EnrolmentError(f"{where}: the {label} was changed on its way; ask for the file again, as an attachment")
    return body, signatures


def read_file(path: Path) -> str:
    """Text of a small file of statements.

    Raises
    ------
    EnrolmentError
        Missing, too large, or not ASCII.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EnrolmentError(f"cannot read {path}: {error.strerror}; name the file you were sent") from error
    if len(data) > MAX_BYTES:
        raise EnrolmentError(f"{path}: more than {MAX_BYTES} bytes; this is no request or bundle")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise EnrolmentError(f"{path}: byte {error.start} is not ASCII; this is no request or bundle") from error


def is_hex(text: str) -> bool:
    """Whether `text` is what `bytes.hex` writes; `bytes.fromhex` takes capital digits and blanks as well."""
    return re.fullmatch(r"(?:[0-9a-f]{2})*", text) is not None


def unhex(text: str) -> bytes:
    """The bytes of a signature; none where the text has a second spelling or is no hexadecimal at all."""
    return bytes.fromhex(text) if is_hex(text) else b""


def fingerprint(kind: str, data: bytes) -> str:
    """125 bits of SHA-256 to read over the phone: five groups of five letters and digits 2 to 7."""
    digest = hashlib.sha256(FINGERPRINT_DOMAIN + kind.encode() + b"\0" + data).digest()
    letters = base64.b32encode(digest).decode()[: GROUPS * GROUP]
    return "-".join(letters[start : start + GROUP] for start in range(0, len(letters), GROUP))


def fingerprint_matches(given: str, expected: str) -> bool:
    """Whether somebody typed `expected`, in any case and with or without what separates the groups."""
    letters = "".join(c for c in given.upper() if c not in "- :\t")
    return hmac.compare_digest(letters.encode(), expected.replace("-", "").encode())


def _line(what: str, label: str) -> str:
    return f"-----{what} AUTOFLIP-SECURE {label.upper()}-----"


def _are_texts(values: object) -> bool:
    return isinstance(values, dict) and all(type(value) is str for value in values.values())
