from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["accounting", "discrete_noise", "gaussian_table", "ledger", "plan", "sampling", "verified"]
)
def test_light_modules_load_neither_torch_nor_opacus(module: str) -> None:
    program = (
        f"import sys, autoflip_secure.privacy.{module}\n"
        "heavy = {'torch', 'opacus', 'dp_accounting', 'scipy', 'matplotlib', 'flwr'} & set(sys.modules)\n"
        "print(*sorted(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
