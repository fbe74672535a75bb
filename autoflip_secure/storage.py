"""Durable files: atomic writes, locks, and the one SQLite file a silo keeps its state in; and where others may lie."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from autoflip_secure.errors import StorageError

__all__ = [
    "folder_in_memory",
    "is_locked",
    "locked",
    "open_silo_database",
    "storing",
    "sync_folder",
    "write_atomically",
]

OWNER_ONLY = 0o600
LOOKING = 0.1
"""Seconds for which a lock is asked for again: `is_locked` of another process has it for an instant."""

MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that have to be free there, and in the machine's memory, which it takes from."""


def folder_in_memory() -> Path | None:
    """Where small runs that need not last may be kept, since a silo syncs its every step.

    None without enough room, and where TMPDIR says where such files go.
    """
    if "TMPDIR" in os.environ:
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        free = shutil.disk_usage(MEMORY).free
    except (OSError, StopIteration):
        return None
    return MEMORY if os.access(MEMORY, os.W_OK) and min(free, available) >= ROOM else None


def write_atomically(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Replace `path` by `data`: readers see the old file or the new one, also after a crash.

    Raises
    ------
    StorageError
        The disk refused (full, read-only); the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY if secret else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}; the previous file is kept") from error


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; what was there before is kept") from error


@contextmanager
def locked(path: Path) -> Iterator[TextIO | None]:
    """The file, to be read and written by this process alone inside the block; None where another process has it.

    The system frees a lock when its process ends, however it ends. A missing file is created, mode 0600.

    Raises
    ------
    StorageError
        The file cannot be opened.
    """
    with storing(path):
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY), "r+")
    with file:
        yield file if _take(file) else None


def _take(file: TextIO) -> bool:
    deadline = time.monotonic() + LOOKING
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOKING / 10)


def is_locked(path: Path) -> bool:
    """Whether a process that runs now has the file; a missing one nobody has, and it is not created."""
    if not path.exists():
        return False
    with locked(path) as file:
        return file is None


def open_silo_database(path: Path) -> sqlite3.Connection:
    """Open (or create, mode 0600) a silo's database: write-ahead log, every commit on disk before it returns.

    The connection is in autocommit mode; callers group writes with `BEGIN IMMEDIATE` ... `COMMIT`, or
    `with connection:` after an explicit BEGIN.

    Raises
    ------
    StorageError
        The file cannot be opened or is not a database.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, OWNER_ONLY))
        connection = sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"cannot open the silo's state {path}: {error}") from error
    return connection
