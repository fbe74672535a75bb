"""Runs of the command line in forks of one process that has loaded the libraries, which is most of a short run.

Runs that differ in little go into one fork, one after another: what the first finds out, such as the noise that a plan
needs, takes longer than a small run.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["simulated"]

LOADED = (
    "torch", "torch._dynamo", "torch_pruning", "opacus", "sklearn.datasets", "mlxtend.data",
    "autoflip_secure.data.label_partitioners", "autoflip_secure.federation.client_app",
    "autoflip_secure.federation.contribution", "autoflip_secure.federation.engines",
    "autoflip_secure.federation.provisioning", "autoflip_secure.federation.server_app",
)  # fmt: skip
WRITTEN, THREADS = ("stdout", "stderr"), "OMP_NUM_THREADS"


def simulated(*command_lines: Sequence[str]) -> tuple[int, str, str]:
    """What `python -m autoflip_secure.sim` ends with on one core: exit code, standard output and error.

    Parameters
    ----------
    command_lines : sequences of str
        Arguments of each run. They are made in turn, up to the first that fails; all say what they say together.
    """
    with tempfile.TemporaryDirectory() as folder:
        said, complained = (Path(folder, name) for name in WRITTEN)
        said.touch(0o600)
        complained.touch(0o600)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(LOADED))
        child = context.Process(target=_run, args=(command_lines, folder))
        with _one_thread():
            child.start()
        child.join()
        assert child.exitcode is not None
        return child.exitcode, said.read_text(), complained.read_text()


@contextmanager
def _one_thread() -> Iterator[None]:
    """In the environment of a server that is started meanwhile, and so of all its forks."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def _run(command_lines: Sequence[Sequence[str]], folder: str) -> None:
    """In the fork."""
    for descriptor, name in enumerate(WRITTEN, start=1):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY), descriptor)
    from autoflip_secure.sim import main

    for arguments in command_lines:
        if code := main(list(arguments)):
            sys.exit(code)
