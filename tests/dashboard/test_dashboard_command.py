"""autoflip-secure dashboard, as somebody types it."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.cli import main

Run = Callable[..., tuple[int, str]]
COMMAND = [sys.executable, "-m", "autoflip_secure.cli", "dashboard"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run(*arguments) -> exit code, stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["dashboard", *map(str, arguments)])
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """start(*arguments) -> the process, and the address it says."""
    running = []

    def call(*arguments: object, **options: Any) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        running.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.match(r"(https?://\S+/)  \(", said)
        assert found, said + process.communicate()[1]
        return process, found[1]

    yield call
    for process in running:
        process.kill()
        process.communicate()


def test_help_answers_at_once() -> None:
    started = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "autoflip_secure.cli", "dashboard", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert not loaded & {"torch", "flwr", "numpy", "fastapi", "uvicorn", "prometheus_client", "matplotlib"}
    assert "--token-file" in found.stdout
    assert time.perf_counter() - started < 20, "hangs"


def test_the_page_is_served_until_it_is_interrupted(run_folder: Path, start: Any) -> None:
    process, address = start(run_folder, "--port", 0)
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address + "api/overview") as answer:
        assert b'"kind":"run"' in answer.read()
        assert answer.headers["server"] is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("how", ["option", "environment", "folder"])
def test_a_home_is_named_by_option_environment_or_the_folder_one_is_in(silo_folder: Path, start: Any, how: str) -> None:
    import os

    arguments = ["--home", silo_folder] if how == "option" else []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    if how == "environment":
        environment["AUTOFLIP_SECURE_HOME"] = str(silo_folder)
    where = silo_folder if how == "folder" else None
    _, address = start(*arguments, "--port", 0, env=environment, cwd=where)
    with urllib.request.urlopen(address + "api/overview") as answer:
        assert b'"title":"hospital-a"' in answer.read()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_others_are_let_in_by_a_token_alone(run: Run, run_folder: Path, host: str) -> None:
    code, said = run(run_folder, "--host", host, "--port", 0)
    assert code == 2
    assert said.startswith(f"error: --host {host}: others could read the page; give --token-file too")
    assert said.count("\n") == 1


def test_with_a_token_others_are_let_in_and_told_what_that_means(
    make: Any, tmp_path: Path, run_folder: Path, start: Any
) -> None:
    token = tmp_path / "token"
    token.write_text(make.token)
    token.chmod(0o600)
    process, address = start(run_folder, "--host", "0.0.0.0", "--port", 0, "--token-file", token)
    here = address.replace("0.0.0.0", "127.0.0.1") + "api/overview"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(here)
    asked = urllib.request.Request(here, headers={"Authorization": f"Bearer {make.token}"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.status == 200
    process.kill()
    said = process.stderr.read()
    assert "cross the network in clear" in said
    assert make.token not in said


def test_the_page_is_served_encrypted_where_a_certificate_is_given(
    make: Any, tmp_path: Path, run_folder: Path, start: Any
) -> None:
    certificate, key = self_signed(tmp_path)
    _, address = start(run_folder, "--port", 0, "--tls-cert", certificate, "--tls-key", key)
    assert address.startswith("https://127.0.0.1:")
    trusted = ssl.create_default_context(cafile=str(certificate))
    with urllib.request.urlopen(address, context=trusted) as answer:
        assert answer.status == 200


def self_signed(folder: Path) -> tuple[Path, Path]:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "page")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "page.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "page.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "page.pem", folder / "page.key"


def test_a_port_that_is_taken_is_named(run: Run, run_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = run(run_folder, "--port", port)
    assert code == 2
    assert f"--host 127.0.0.1 --port {port}: cannot be bound (Address already in use)" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port"),
        (["--host", ""], "--host: is empty"),
        (["--host", "no such name.invalid"], "--host no such name.invalid: is no address"),
        (["--token-file", "missing"], "--token-file missing: cannot be read"),
        (["--tls-cert", "missing"], "--tls-cert and --tls-key: belong together"),
        (["--tls-cert", "missing", "--tls-key", "missing"], "--tls-cert missing: is not there"),
    ],
)
def test_wrong_use_is_one_line(run: Run, run_folder: Path, arguments: list[str], words: str) -> None:
    code, said = run(run_folder, *arguments)
    assert code == 2
    assert words in said
    assert said.count("\n") == 1


def test_a_folder_with_nothing_to_show_is_refused(run: Run, tmp_path: Path) -> None:
    code, said = run(tmp_path)
    assert code == 2
    assert "holds neither a run" in said
