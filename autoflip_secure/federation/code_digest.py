"""Which autoflip_secure this is: one digest over the files of the installed package.

It names what an officer approved, so an upgrade is seen. It does not cover Python, PyTorch or any other package, nor
does it defend a machine whose administrator is the attacker: such a machine can report any digest.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import autoflip_secure
from autoflip_secure.errors import StorageError

__all__ = ["code_digest", "digest_of", "installed_digest"]

DOMAIN = b"autoflip-secure/code/1"
BYTECODE = (".pyc", ".pyo")


@cache
def code_digest() -> bytes:
    """Digest of this process's code, 32 bytes: of the files as they were when it was first asked for."""
    return installed_digest()


def installed_digest() -> bytes:
    """Digest of the files as they are now; another than `code_digest` where they were upgraded meanwhile."""
    return digest_of(Path(autoflip_secure.__file__).parent)


def digest_of(package: Path) -> bytes:
    """SHA-256 over relative path and content of every file of a package but compiled copies, in order of their paths.

    Raises
    ------
    StorageError
        A file cannot be read.
    """
    try:
        files = {each.relative_to(package).as_posix(): each for each in package.rglob("*") if each.is_file()}
        digest = hashlib.sha256(DOMAIN)
        for name in sorted(filter(_counts, files)):
            content = files[name].read_bytes()
            # Lengths first: no other division into names and contents gives the same bytes.
            digest.update(f"{len(name.encode())} {len(content)} {name}".encode() + content)
    except OSError as error:
        raise StorageError(
            f"cannot read the installed code {package}: {error.strerror}; reinstall the package"
        ) from error
    return digest.digest()


def _counts(name: str) -> bool:
    return not name.endswith(BYTECODE) and "__pycache__" not in name.split("/")
