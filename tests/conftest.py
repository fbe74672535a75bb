"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from autoflip_secure.storage import folder_in_memory

REPOSITORY = Path(__file__).resolve().parents[1]
VARIABLE = "AUTOFLIP_SECURE_DATA"


def pytest_configure() -> None:
    """Silos sync each step to disk, which is a third of a small run: tests write to memory where there is room, unless
    TMPDIR says otherwise."""
    memory = folder_in_memory()
    if memory is not None:
        os.environ["TMPDIR"] = str(memory)
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
