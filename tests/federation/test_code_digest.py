"""One digest names the installed code: every file counts, by its path and its content."""

from __future__ import annotations

from pathlib import Path

import pytest

import autoflip_secure
from autoflip_secure.errors import StorageError
from autoflip_secure.federation.code_digest import code_digest, digest_of, installed_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "part").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "part" / "module.py").write_text("x = 1\n")
    (folder / "part" / "table.json").write_text("{}")
    return folder


def test_the_installed_package_has_a_digest_that_stays() -> None:
    assert len(code_digest()) == 32
    assert code_digest() == digest_of(Path(autoflip_secure.__file__).parent) == installed_digest()


def test_every_file_and_path_counts(package: Path) -> None:
    seen = {digest_of(package)}

    def changed() -> bool:
        before = len(seen)
        seen.add(digest_of(package))
        return len(seen) > before

    (package / "part" / "module.py").write_text("x = 2\n")
    assert changed(), "content of a module"
    (package / "part" / "table.json").write_text("[]")
    assert changed(), "content of package data"
    (package / "part" / "more.py").write_text("")
    assert changed(), "an empty file more"
    (package / "part" / "more.py").rename(package / "more.py")
    assert changed(), "moved"
    (package / "more.py").unlink()
    (package / "part" / "module.py").write_text("x = 1\n")
    (package / "part" / "table.json").write_text("{}")
    assert not changed(), "as at first"


def test_where_it_is_installed_and_compiled_copies_do_not_count(package: Path, tmp_path: Path) -> None:
    before = digest_of(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "module.cpython-311.pyc").write_bytes(b"x")
    (package / "part" / "module.pyc").write_bytes(b"x")
    moved = tmp_path / "__pycache__" / "elsewhere"
    moved.parent.mkdir()
    package.rename(moved)
    assert digest_of(moved) == before


def test_content_does_not_pass_for_a_path(tmp_path: Path) -> None:
    digests = set()
    for number, files in enumerate(({"a": "b", "c": ""}, {"a": "", "bc": ""}, {"ab": "", "c": ""}, {"a": "bc"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        digests.add(digest_of(folder))
    assert len(digests) == 4


def test_a_file_that_cannot_be_read_is_an_error(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StorageError, match="Permission denied; reinstall the package"):
        digest_of(package)
