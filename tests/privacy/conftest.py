from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.privacy.ledger_lines import chain_hash
from autoflip_secure.privacy.ledger_schema import COLUMNS, FIRST_VERSION
from autoflip_secure.privacy.verified import verified
from autoflip_secure.storage import open_silo_database

SESSION = b"s" * 16


@pytest.fixture(autouse=True)
def _forget_verified() -> None:
    """What one test's ledger found within its budget is no evidence in another."""
    verified.cache_clear()


@pytest.fixture
def cnn() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 2 * 2, 3),
    )  # fmt: skip


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def batch() -> Callable[[int], tuple[Tensor, Tensor]]:
    """batch(records) -> 8x8 images of varied contrast and one of three labels each."""

    def make(records: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(records)
        contrast = torch.logspace(-3, 1, records)[:, None, None, None]
        return contrast * torch.randn(records, 1, 8, 8, generator=generator), torch.randint(
            0, 3, (records,), generator=generator
        )

    return make


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "silo.sqlite"


@pytest.fixture
def connection(state_file: Path) -> Iterator[sqlite3.Connection]:
    connection = open_silo_database(state_file)
    yield connection
    connection.close()


@pytest.fixture
def open_ledger(connection: sqlite3.Connection) -> Callable[..., Ledger]:
    def make(session: bytes = SESSION, epsilon: float = 8.0, silo: str = "north", **options: object) -> Ledger:
        budgets = {"train": epsilon, "holdout": epsilon}
        return Ledger(connection, silo=silo, session=session, budgets=budgets, delta=1e-5, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def line() -> Callable[..., LedgerLine]:
    def make(**changes: object) -> LedgerLine:
        values: dict[str, object] = {
            "session": SESSION, "phase": "train", "round": 0, "attempt": 0, "dataset": "train", "sampling_rate": 1.0,
            "noise_multiplier": 13.0, "sensitivity": 0.1, "count": 1, "manifest": bytes(32), "time": 1.5e9,
        }  # fmt: skip
        return LedgerLine(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def write_first_version() -> Callable[[sqlite3.Connection, list[LedgerLine]], None]:
    """write_first_version(connection, lines) -> None: a ledger as it was before terms were recorded."""

    def write(connection: sqlite3.Connection, lines: list[LedgerLine]) -> None:
        for statement in FIRST_VERSION.values():
            connection.execute(statement)
        connection.execute("INSERT INTO privacy_ledger_owner VALUES (1, 'north')")
        chain = b""
        for each in lines:
            chain = chain_hash(chain, each)
            values = (*each.to_row(), chain)
            connection.execute(f"INSERT INTO privacy_ledger ({COLUMNS}, chain) VALUES ({', '.join('?' * 12)})", values)

    return write
