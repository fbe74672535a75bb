"""Runs of the command line in forks of one process that has loaded the libraries, which is most of a short run."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

__all__ = ["simulated"]

LOADED = (
    "torch", "torch._dynamo", "torch_pruning", "opacus", "sklearn.datasets", "mlxtend.data",
    "autoflip_secure.data.label_partitioners", "autoflip_secure.federation.client_app",
    "autoflip_secure.federation.contribution", "autoflip_secure.federation.engines",
    "autoflip_secure.federation.provisioning", "autoflip_secure.federation.server_app",
)  # fmt: skip
WRITTEN = ("stdout", "stderr")


def simulated(arguments: Sequence[str]) -> tuple[int, str, str]:
    """What `python -m autoflip_secure.sim` ends with on one core: exit code, standard output and error.

    Parameters
    ----------
    arguments : sequence of str
        Of the command line.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = _forking().Process(target=_run, args=(tuple(arguments), folder))
        child.start()
        child.join()
        assert child.exitcode is not None
        said, complained = (Path(folder, name) for name in WRITTEN)
        return child.exitcode, said.read_text(), complained.read_text()


@lru_cache(maxsize=1)
def _forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        # Starts the server, which keeps this environment.
        context.Process(target=int).start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def _run(arguments: Sequence[str], folder: str) -> None:
    """In the fork."""
    for descriptor, name in enumerate(WRITTEN, start=1):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.argv = ["autoflip_secure.sim", *arguments]
    runpy.run_module("autoflip_secure.sim", run_name="__main__", alter_sys=False)
