"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
VARIABLE = "AUTOFLIP_SECURE_DATA"


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
