"""The commands end to end, as a federation's owner, a coordinator and hospitals type them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoflip_secure.cli import main
from autoflip_secure.deployment.authority import Authority
from tests.deployment.conftest import NAMES, federation_text, write_table


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]):
    """Run a command; its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def well(command):
    """Run a command that must go well; its output."""

    def run(*arguments: object) -> str:
        code, out, err = command(*arguments)
        assert (code, err) == (0, "")
        return out

    return run


def found(folder: Path, run: Callable[..., object]) -> str:
    """Give all parties keys and version 1, by commands; the authority's fingerprint."""
    (folder / "FEDERATION.toml").write_text(federation_text())
    run("provision", folder / "FEDERATION.toml", "--home", folder / "A")
    run("coordinator", "init", "--home", folder / "C")
    for name in NAMES:
        run("silo", "init", "--home", folder / name, "--name", name)
    requests = [folder / party / "request.txt" for party in ("C", *NAMES)]
    run("provision", "enrol", *requests, "--home", folder / "A", "--yes")
    fingerprint = Authority(folder / "A").fingerprint
    for party, home in (("coordinator", "C"), *(("silo", name) for name in NAMES)):
        run(party, "install", folder / "A/bundle.txt", "--authority", fingerprint, "--home", folder / home)
    return fingerprint


@pytest.fixture
def started(tmp_path: Path, well) -> tuple[Path, str]:
    """A folder of homes that a test may change, and the authority's fingerprint."""
    return tmp_path, found(tmp_path, well)


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of homes for commands that change nothing."""

    def run(*arguments: object) -> None:
        assert main([str(argument) for argument in arguments]) == 0

    folder = tmp_path_factory.mktemp("settled")
    found(folder, run)
    return folder


def test_from_nothing_to_a_removal(started, well, command) -> None:
    folder, fingerprint = started
    assert fingerprint in well("provision", "show", "--home", folder / "A")
    write_table(folder / "tables", 100)
    assert well("silo", "data", folder / "tables", "--home", folder / "hospital-a").startswith("100 records, ")
    code, _, err = command("silo", "data", folder / "tables", "--home", folder / "hospital-a")
    assert code == 2
    assert err.count("\n") == 1
    assert "--replace" in err
    assert "ledger" in well("silo", "data", folder / "tables", "--home", folder / "hospital-a", "--replace")
    facts = json.loads(well("silo", "show", "--home", folder / "hospital-a", "--json"))
    assert (facts["enrolled as"], facts["authority"], facts["records"]) == ("silo 1", fingerprint, "imported")
    assert "signed version 2: removes hospital-b" in well("provision", "remove", "hospital-b", "--home", folder / "A")
    out = well("silo", "install", folder / "A/bundle.txt", "--home", folder / "hospital-a")
    assert out == "version 2 is installed: removes hospital-b\n"
    code, _, err = command("silo", "install", folder / "A/rosters/0001.txt", "--home", folder / "hospital-a")
    assert (code, "older than version 2" in err) == (2, True)
    assert "changes server" in well("provision", "renew", "--home", folder / "A")
    assert "version 2" in well("coordinator", "install", folder / "A/rosters/0002.txt", "--home", folder / "C")
    shown = well("provision", "show", "--home", folder / "A")
    assert "version 3" in shown
    assert "hospital-b" in shown.splitlines()[-1]


def test_the_owners_fingerprints_are_what_the_parties_read_out(tmp_path: Path, well) -> None:
    (tmp_path / "FEDERATION.toml").write_text(federation_text())
    out = well("provision", "init", tmp_path / "FEDERATION.toml", "--home", tmp_path / "A")
    assert f"authority's fingerprint: {Authority(tmp_path / 'A').fingerprint}\n" in out
    read_out = {"the coordinator": well("coordinator", "init", "--home", tmp_path / "C").split()[-1]}
    for name in NAMES:
        out = well("silo", "init", "--home", tmp_path / name, "--name", name)
        read_out[name] = out.split("over the phone: ")[1].split()[0]
    requests = [tmp_path / party / "request.txt" for party in ("C", *NAMES)]
    out = well("provision", "enrol", *requests, "--home", tmp_path / "A")
    assert dict(line.split(": ") for line in out.splitlines()[:5]) == read_out


def test_the_home_comes_from_the_environment(started, well, monkeypatch) -> None:
    folder, _ = started
    monkeypatch.setenv("AUTOFLIP_SECURE_HOME", str(folder / "hospital-c"))
    assert json.loads(well("silo", "show", "--json"))["name"] == "hospital-c"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("provision", "{}/none.toml", "--home", "{}/A2"), "No such file"),
        (("provision", "{}/FEDERATION.toml", "--home", "{}/A"), "already and is kept"),
        (("provision", "enrol", "{}/A/bundle.txt", "--home", "{}/A"), "not a whole silo request"),
        (("provision", "enrol", "{}/none", "--home", "{}/A"), "No such file"),
        (("provision", "enrol", "--home", "{}/A"), "REQUEST"),
        (("provision", "remove", "nobody", "--home", "{}/A"), "no silo of that name"),
        (("provision", "show", "--home", "{}/C"), "no authority's home"),
        (("provision", "{}/FEDERATION.toml", "--home", "{}/C"), "a folder of its own"),
        (("coordinator", "init", "--home", "{}/hospital-a"), "a folder of its own"),
        (("silo", "init", "--name", "hospital-a", "--home", "{}/A"), "a folder of its own"),
        (("coordinator", "init", "--home", "{}/C"), "already and is kept"),
        (("coordinator", "install", "{}/C/request.txt", "--home", "{}/C"), "not a whole federation bundle"),
        (("coordinator", "install", "{}/A/bundle.txt", "--home", "{}/hospital-a"), "identity"),
        (("coordinator", "install", "{}/A/bundle.txt", "--home", "{}/C", "--public-test", "x"), "--public-test"),
        (("coordinator", "show", "--home", "{}/none"), "coordinator init"),
        (("silo", "init", "--home", "{}/x"), "--name"),
        (("silo", "init", "--home", "{}/x", "--name", "a b"), "a silo's name is"),
        (("silo", "init", "--home", "{}/hospital-a", "--name", "hospital-a"), "already and is kept"),
        (("silo", "install", "{}/A/bundle.txt", "--home", "{}/none"), "silo init"),
        (("silo", "install", "{}/A/bundle.txt", "--home", "{}/hospital-a", "--authority", "ABCDE"), "this home trusts"),
        (("silo", "data", "{}/none", "--home", "{}/hospital-a"), "no such folder"),
        (("silo", "services", "--home", "{}/hospital-a", "--out", "{}/hospital-a"), "holds a party's keys"),
        (("silo", "services", "--home", "{}/hospital-a", "--out", "{}/o", "--base-image", "x"), "--base-image"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(settled, command, arguments: tuple[str, ...], complaint: str) -> None:
    code, out, err = command(*(argument.format(settled) for argument in arguments))
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert complaint in err
    assert "Traceback" not in out + err


def test_services_are_written_for_each_party(started, well) -> None:
    folder, _ = started
    well("provision", "services", "--home", folder / "A", "--out", folder / "out")
    assert {path.name for path in (folder / "out").iterdir()} == {"coordinator", "silo"}
    out = well("silo", "services", "--home", folder / "hospital-a", "--out", folder / "own", "--gpu", "--user", "fl")
    assert len(out.splitlines()) == 5
    unit = (folder / "own/autoflip-secure-silo.service").read_text()
    assert f"ReadWritePaths={folder / 'hospital-a'}\n" in unit
    assert "User=fl\n" in unit
    assert "PrivateDevices=no\n" in unit
    well("coordinator", "services", "--home", folder / "C", "--out", folder / "c")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("provision", "--help"), ("silo", "--help"), ("coordinator", "--help")]
)
def test_help_comes_without_the_heavy_libraries(arguments: tuple[str, ...]) -> None:
    script = (
        "import sys\nfrom autoflip_secure.cli import main\n"
        f"code = main({list(arguments)!r})\n"
        "heavy = {'torch', 'flwr', 'fastapi', 'matplotlib', 'cryptography'} & set(sys.modules)\n"
        "sys.exit(code or len(heavy))"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert time.monotonic() - start < 5
