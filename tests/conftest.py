"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
VARIABLE = "AUTOFLIP_SECURE_DATA"
MEMORY, ROOM = Path("/dev/shm"), 4 << 30


def pytest_configure() -> None:
    """Silos sync each step to disk, which is a third of a small run: tests write to memory where there is room, unless
    TMPDIR says otherwise."""
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data sets that no package brings: the environment variable, else ../shared/data."""
    folder = Path(os.environ.get(VARIABLE) or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set {VARIABLE} to their folder")
    return folder


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are numbered: some hold times or keys, and processes that share the tests have to call them the same."""
    return argname if isinstance(val, bytes) else None
