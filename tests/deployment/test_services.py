"""Unit, image and compose files: what systemd and a linter would say, and that no secret is in them."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autoflip_secure.deployment.children import LOCK
from autoflip_secure.deployment.flower import FLOWER
from autoflip_secure.deployment.services import BASE_IMAGE, HEALTHY, ROLES, Service, installed_versions, write_services
from autoflip_secure.errors import ConfigError
from autoflip_secure.process_cli import print_status

HOME = Path("/var/lib/autoflip-secure")


def service(role: str = "silo", **changes: object) -> Service:
    return Service(**{"role": role, "federation": "cardiology", "home": HOME, "port": 8000, **changes})  # type: ignore[arg-type]


def unit(**changes: object) -> dict[str, list[str]]:
    """Settings of a unit by name, over all sections."""
    made = service(**changes)
    text = made.files()[f"autoflip-secure-{made.role}.service"]
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_may_write_its_home_and_nothing_else(role: str) -> None:
    settings = unit(role=role)
    hardened = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "read-only",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "ReadWritePaths": str(HOME),
        "CapabilityBoundingSet": "",
        "AmbientCapabilities": "",
        "RestrictSUIDSGID": "yes",
        "RestrictNamespaces": "yes",
        "LockPersonality": "yes",
        "SystemCallFilter": "@system-service",
        "UMask": "0077",
    }
    assert {name: settings[name] for name in hardened} == {name: [value] for name, value in hardened.items()}
    assert settings["User"] != ["root"]
    assert settings["Restart"] == ["on-failure"]
    assert float(settings["RestartSec"][0]) > 0
    command = shlex.split(settings["ExecStart"][0])
    assert Path(command[0]).is_absolute()
    assert command[1:] == [role, "up", "--home", str(HOME)]


def test_only_a_coordinator_on_a_low_port_may_bind_one() -> None:
    assert unit(role="coordinator", port=443)["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert unit(role="coordinator", port=443)["CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE"]
    assert unit(role="silo", port=443)["AmbientCapabilities"] == [""]


def test_a_silo_sees_graphics_cards_only_on_demand() -> None:
    assert unit(gpu=True)["PrivateDevices"] == ["no"]
    assert unit()["PrivateDevices"] == ["yes"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("port", [443, 8000])
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, role: str, port: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    written = write_services(service(role, home=home, port=port), tmp_path / "out")
    path = next(path for path in written if path.suffix == ".service")
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if path.name in line]
    assert done.returncode == 0, done.stderr
    assert not about_ours
    # The linter does notice what is wrong.
    path.write_text(path.read_text().replace("Restart=on-failure", "Restart=sometimes"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    assert path.name in done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_a_compose_file_runs_a_container_that_can_do_little(role: str) -> None:
    compose = yaml.safe_load(service(role).files()["compose.yaml"])
    assert list(compose["services"]) == [role]
    made = compose["services"][role]
    assert made["read_only"] is True
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert not made["user"].startswith(("0", "root"))
    assert made["command"] == [role, "up"]
    assert made["healthcheck"]["test"][0] == "CMD-SHELL"
    (volume,) = made["volumes"]
    assert (volume["type"], volume["source"], volume["target"]) == ("bind", str(HOME), str(HOME))
    assert made["ports"] == (["8000:8000"] if role == "coordinator" else [])
    assert not {"privileged", "network_mode", "pid", "devices", "environment", "env_file"} & set(made)


def test_a_container_is_well_while_its_processes_are_up(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.install()

    def check(role: str, home: Path) -> int:
        """The health check, run as the container would."""
        _, command = yaml.safe_load(service(role).files()["compose.yaml"])["services"][role]["healthcheck"]["test"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "AUTOFLIP_SECURE_HOME": str(home)}
        return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False).returncode

    home = federation.silos["hospital-a"].path
    assert check("silo", home) != 0
    assert check("coordinator", federation.coordinator.path) != 0
    lock = home / FLOWER / LOCK
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        assert check("silo", home) == 0


def test_the_status_of_a_coordinator_that_answers_is_what_its_health_check_looks_for(capsys) -> None:
    print_status({"superlink": "answers", "up": True}, json=True)
    out = capsys.readouterr().out
    assert all(words in out for words in HEALTHY.values())


def test_a_container_runs_as_the_owner_of_the_home(tmp_path: Path) -> None:
    made = service(home=tmp_path)
    owner = tmp_path.stat().st_uid
    assert made.owner[0] == (owner or 10001)
    if owner == 0:
        os.chown(tmp_path, 4321, 4322)
        assert made.owner == (4321, 4322)
        assert yaml.safe_load(made.files()["compose.yaml"])["services"]["silo"]["user"] == "4321:4322"


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def test_an_image_is_pinned_and_has_no_root_and_no_secret() -> None:
    found = instructions(service().files()["Dockerfile"])
    names = [name for name, _ in found]
    assert found[0] == ("FROM", BASE_IMAGE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", BASE_IMAGE), "a tag that moves"
    # Nothing is copied into a layer; the build reads a wheel and its constraints through a mount.
    assert not {"COPY", "ADD", "ARG"} & set(names)
    users = [value for name, value in found if name == "USER"]
    assert users == ["10001:10001"]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    for name, value in found:
        if name == "RUN" and "pip install" in value:
            assert "--no-cache-dir" in value
            assert "-c /install/constraints.txt" in value
        if name in ("CMD", "ENTRYPOINT"):
            assert value.startswith("["), "a shell would not pass signals on"
        assert "sudo" not in value
        assert "curl" not in value


def test_a_build_sees_a_wheel_and_its_constraints_only() -> None:
    assert service().files()[".dockerignore"].splitlines() == ["*", "!constraints.txt", "!autoflip_secure-*.whl"]


def test_constraints_are_what_is_installed_here() -> None:
    pins = dict(line.split("==") for line in installed_versions().splitlines())
    import torch

    assert pins["torch"] == torch.__version__.partition("+")[0]
    assert "autoflip-secure" not in pins
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in pins)


def test_files_hold_no_secret_of_the_home(make_parties, tmp_path: Path) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    for home in (federation.silos["hospital-a"], federation.coordinator):
        role = "silo" if home is not federation.coordinator else "coordinator"
        for path in write_services(service(role, home=home.path), tmp_path / role):
            assert "PRIVATE" not in path.read_text()


def test_a_partys_home_is_no_folder_to_build_from(make_parties) -> None:
    federation = make_parties(enrolled=4)
    for folder in (federation.silos["hospital-a"].path, federation.coordinator.path, federation.authority.home):
        with pytest.raises(ConfigError, match="holds a party's keys"):
            write_services(service(), folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"home": Path("relative")},
        {"home": Path("/var/lib/a b")},
        {"home": Path("/var/lib/a\nExecStartPre=/bin/sh")},
        {"home": Path("/var/lib/%h")},
        {"home": Path("/var/lib/$HOME")},
        {"home": Path("/var/../etc")},
        {"user": "a b"},
        {"user": "x\nUser=root"},
        {"base": "python"},
        {"base": "python:latest"},
        {"base": "python:3.11\nUSER root"},
    ],
)
def test_what_a_unit_or_image_would_read_otherwise_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        service(**changes)


def _engine() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_docker_builds_and_runs_the_image(tmp_path: Path) -> None:
    if not _engine():
        pytest.skip("no container engine answers on this machine")
    write_services(service(), tmp_path)
    repository = Path(__file__).resolve().parents[2]
    subprocess.run(["pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(repository)], check=True)
    subprocess.run(["docker", "build", "--tag", "autoflip-secure-test", str(tmp_path)], check=True)
    done = subprocess.run(
        ["docker", "run", "--rm", "--read-only", "autoflip-secure-test", "silo", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "install" in done.stdout
