"""Runs pytest again and again in forks of one process that has the libraries loaded, for `mutated_copy`.

    python forked_pytest.py COPY

Reads from standard input one JSON list of pytest's arguments a line; answers each with a JSON list of exit code and
output. The first run is made twice: what it loads that is not of the copy is loaded here before the second, whose
answer counts, so that it is like all later ones.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import BinaryIO, TextIO

__all__ = ["serve"]


NOT_RUN = 70
"""Exit code of a fork that did not come to its tests: none of pytest's."""


def serve(copy: str) -> None:
    """Answer requests until there are none."""
    loaded = False
    for line in sys.stdin:
        arguments = json.loads(line)
        if not loaded:
            with tempfile.TemporaryFile("w+") as modules:
                _forked(copy, arguments, modules)
                modules.seek(0)
                _load(modules.read().split())
            loaded = True
        print(json.dumps(_forked(copy, arguments)), flush=True)


def _forked(copy: str, arguments: Sequence[str], modules: TextIO | None = None) -> tuple[int, str]:
    """Exit code and output of one run; into `modules` go the names of the libraries that it loaded."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            try:
                code = _run(copy, arguments, output, modules)
            except BaseException:
                traceback.print_exc()
                code = NOT_RUN
            sys.exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def _run(copy: str, arguments: Sequence[str], output: BinaryIO, modules: TextIO | None) -> int:
    """In the fork."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    # What is compiled before the first text is replaced serves all runs; pytest's own files go by time and size, which
    # two mutants within a second can share.
    sys.dont_write_bytecode = modules is None
    import pytest

    import autoflip_secure

    if not autoflip_secure.__file__.startswith(copy):
        raise RuntimeError(f"{autoflip_secure.__file__} is not the copy")
    code = pytest.main(list(arguments))
    if modules is not None:
        modules.write("\n".join(name for name in sys.modules if _is_library(name, copy)))
    return int(code)


def _is_library(name: str, copy: str) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(file, str) and not file.startswith(copy) and name.isprintable() and " " not in name


def _load(names: Sequence[str]) -> None:
    for name in names:
        # A library may refuse to be loaded out of its order: it is loaded in the runs, then.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()  # pytest collects garbage several times a run: not that of the libraries


if __name__ == "__main__":
    sys.path[0] = sys.argv[1]
    serve(sys.argv[1])
