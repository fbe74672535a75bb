from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoflip_secure.errors import BudgetExhausted
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.storage import open_silo_database

SESSION = b"s" * 16
ONE_USE = epsilon([Mechanism(1.0, 1.0, 1)], 1e-5)

CHILD = """
import sys, time
from pathlib import Path
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.storage import open_silo_database

connection = open_silo_database(Path(sys.argv[1]))
ledger = Ledger(connection, silo="north", session=b"s" * 16, budgets={"train": float(sys.argv[2])}, delta=1e-5)
ledger.charge(LedgerLine(b"s" * 16, "train", 0, 0, "train", 1.0, 1.0, 0.1, 1, bytes(32)))
print("charged", flush=True)
time.sleep(600)
"""


def test_every_commit_is_on_disk_before_it_returns(state_file: Path) -> None:
    """What a kill cannot show: in a write-ahead log, FULL (2) syncs at each commit, NORMAL only at checkpoints."""
    connection = open_silo_database(state_file)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()


@pytest.mark.slow
def test_a_charge_outlives_kill_9_before_its_use(state_file: Path) -> None:
    budget = ONE_USE * 1.05
    command = [sys.executable, "-c", CHILD, str(state_file), repr(budget)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"charged\n"
        child.send_signal(signal.SIGKILL)
    connection = open_silo_database(state_file)
    ledger = Ledger(connection, silo="north", session=SESSION, budgets={"train": budget}, delta=1e-5)
    assert len(ledger.lines()) == 1
    assert ledger.spent() == ONE_USE
    with pytest.raises(BudgetExhausted):
        ledger.charge(LedgerLine(SESSION, "train", 0, 1, "train", 1.0, 1.0, 0.1, 1, bytes(32)))
    connection.close()
