"""A copy of the package and of some of its tests, in which a text is replaced to see a named test fail."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode

__all__ = [
    "REPOSITORY",
    "TESTS_FAILED",
    "TextNotThere",
    "mutated",
    "repository_copy",
    "run_pytest",
    "run_python",
    "run_script",
]

REPOSITORY = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*", "*_mutants.py")
TESTS_FAILED = 1
# Makes sure that it is the copy that is tried.
START = (
    "import sys, autoflip_secure; assert autoflip_secure.__file__.startswith(sys.argv[1]), autoflip_secure.__file__; "
)
_SERVERS: dict[Path, subprocess.Popen[str]] = {}
"""A process for each copy on which pytest runs."""


class TextNotThere(ValueError):
    """The text to replace is not in its file exactly once: the mutant is not of the code as it is."""


@contextmanager
def repository_copy(folders: Iterable[str]) -> Iterator[Path]:
    """The package, what all tests share and the tests in `folders`, in a directory that goes at the end."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy = Path(name).resolve()
        shutil.copytree(REPOSITORY / "autoflip_secure", copy / "autoflip_secure", ignore=NOT_COPIED)
        for folder in folders:
            shutil.copytree(REPOSITORY / "tests" / folder, copy / "tests" / folder, ignore=NOT_COPIED)
        for shared in (REPOSITORY / "tests").glob("*.py"):
            if not shared.name.startswith("test_"):
                shutil.copy(shared, copy / "tests")
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        # By hash, so that a replaced text is compiled anew even within the second.
        compileall.compile_dir(copy / "autoflip_secure", quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        try:
            yield copy
        finally:
            server = _SERVERS.pop(copy, None)
            if server is not None:
                server.communicate()


@contextmanager
def mutated(copy: Path, changes: Iterable[tuple[Path, str, str]]) -> Iterator[None]:
    """Replace texts: (file below `copy`, old, new) one after another, and put them back at the end.

    Raises
    ------
    TextNotThere
        An old text is not there exactly once.
    """
    originals: dict[Path, str] = {}
    texts: dict[Path, str] = {}
    for file, old, new in changes:
        originals.setdefault(file, (copy / file).read_text())
        text = texts.get(file, originals[file])
        if text.count(old) != 1:
            raise TextNotThere(f"{text.count(old)} times in {file}: {old}")
        texts[file] = text.replace(old, new)
    try:
        for file, text in texts.items():
            (copy / file).write_text(text)
        yield
    finally:
        for file, text in originals.items():
            (copy / file).write_text(text)


def run_python(copy: Path, program: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`program` in the copy; it finds the copy's path in `sys.argv[1]` and `arguments` after it."""
    command = [sys.executable, "-c", program, str(copy), *arguments]
    return subprocess.run(command, cwd=copy, env=_environment(copy), capture_output=True, text=True, check=False)


def run_pytest(copy: Path, ids: Sequence[str], *options: str) -> tuple[int, str]:
    """Exit code and output of pytest on the copy; `ids` as pytest names tests.

    All runs on a copy are forks of one process. The first is best one without a mutant, of all tests that are to come.
    """
    if copy not in _SERVERS:
        command = [sys.executable, str(REPOSITORY / "tests" / "forked_pytest.py"), str(copy)]
        _SERVERS[copy] = subprocess.Popen(
            command, cwd=copy, env=_environment(copy), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    server = _SERVERS[copy]
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(["-q", "--tb=no", "-p", "no:cacheprovider", *options, *ids]), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process that runs pytest on {copy} ended with {server.wait()}")
    code, output = json.loads(answer)
    return code, output


def _environment(copy: Path) -> dict[str, str]:
    # Libraries load before the module of the package that says so to them.
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **offline, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def run_script(module: str) -> subprocess.CompletedProcess[str]:
    """A script of mutants, as people run it."""
    command = [sys.executable, "-m", module]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
