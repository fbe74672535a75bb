"""Files with which a party runs its home as a service: a systemd unit, or a container image and its compose file.

They hold paths and settings only. Keys stay in the home, which is mounted, never copied.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from autoflip_secure import __version__
from autoflip_secure.errors import ConfigError
from autoflip_secure.storage import storing, write_atomically

__all__ = ["BASE_IMAGE", "ROLES", "Role", "Service", "installed_versions", "write_services"]

Role = Literal["coordinator", "silo"]
ROLES: tuple[Role, ...] = ("coordinator", "silo")

BASE_IMAGE = "python:3.11.14-slim-bookworm"
IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9._-]+(@sha256:[0-9a-f]{64})?")
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
PLAIN_PATH = re.compile(r"(/[A-Za-z0-9._@+-]+)+")
CONTAINER_HOME = "/var/lib/autoflip-secure"
CONTAINER_USER = 10001
PRIVILEGED = 1024
HEALTHY: dict[Role, str] = {"coordinator": '"superlink": "answers"', "silo": '"up": true'}
"""What `status --json` says of a party that is well."""
PACKAGE = "autoflip-secure"


@dataclass(frozen=True)
class Service:
    """What the files of one party say.

    Attributes
    ----------
    role : str
        coordinator or silo.
    federation : str
    home : Path
        The party's, on the machine that runs it.
    port : int
        That silos connect to.
    user : str
        Account of the unit; it owns the home.
    base : str
        Image that the container is made from, with its tag, better with its digest too.
    gpu : bool
        The unit may use graphics cards, so it sees the machine's devices.

    Raises
    ------
    ConfigError
        A path or name that unit files would read otherwise, or an image without a tag.
    """

    role: Role
    federation: str
    home: Path
    port: int
    user: str = PACKAGE
    base: str = BASE_IMAGE
    gpu: bool = False

    def __post_init__(self) -> None:
        for what, path in (("home", self.home), ("executable", _executable())):
            if not PLAIN_PATH.fullmatch(str(path)) or ".." in path.parts:
                raise ConfigError(
                    f"the {what} {str(path)!r}: units take absolute paths of letters, digits and ._@+-; "
                    "use another folder"
                )
        if not USER.fullmatch(self.user):
            raise ConfigError(f"--user {self.user!r}: not the name of an account")
        if not IMAGE.fullmatch(self.base) or self.base.partition("@")[0].endswith(":latest"):
            raise ConfigError(f"--base-image {self.base!r}: name one image, such as {BASE_IMAGE} or with @sha256:...")

    @property
    def owner(self) -> tuple[int, int]:
        """User and group that the container runs as: the home's own, never root."""
        try:
            stat = self.home.stat()
        except OSError:
            return CONTAINER_USER, CONTAINER_USER
        return (stat.st_uid, stat.st_gid) if stat.st_uid else (CONTAINER_USER, CONTAINER_USER)

    def files(self) -> dict[str, str]:
        """Content by file name."""
        uid, gid = self.owner
        listens = self.role == "coordinator"
        # The SuperLink listens on its port inside the container; nothing listens at a silo.
        ports = f'["{self.port}:{self.port}"]' if listens else "[]"
        return {
            f"autoflip-secure-{self.role}.service": _filled(
                "unit.service", role=self.role, federation=self.federation, user=self.user, group=self.user,
                home=str(self.home), executable=str(_executable()),
                private_devices="no" if self.gpu else "yes",
                capabilities="CAP_NET_BIND_SERVICE" if listens and self.port < PRIVILEGED else "",
            ),
            "compose.yaml": _filled(
                "compose.yaml", role=self.role, federation=self.federation, uid=str(uid), gid=str(gid),
                version=__version__, source=str(self.home), home=CONTAINER_HOME, ports=ports,
                healthy=HEALTHY[self.role].replace('"', r"\""),
            ),
            "Dockerfile": _filled(
                "Dockerfile", base=self.base, uid=str(CONTAINER_USER), home=CONTAINER_HOME,
                wheel=f"autoflip_secure-{__version__}-py3-none-any.whl",
            ),
            ".dockerignore": _filled("dockerignore"),
            "constraints.txt": installed_versions(),
        }  # fmt: skip


def write_services(service: Service, out: Path) -> list[Path]:
    """Write a party's files; those that are there are replaced.

    Raises
    ------
    ConfigError
        `out` is a party's home: a container is built from this folder.
    StorageError
        The disk refused.
    """
    if any((out / name).exists() for name in ("request.txt", "identity.key", "coordinator.key", "authority.key")):
        raise ConfigError(f"--out {out}: holds a party's keys, and an image is built from that folder; name another")
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in service.files().items():
        write_atomically(out / name, text.encode())
        written.append(out / name)
    return written


def installed_versions() -> str:
    """All packages of this installation as constraints for pip: an image gets what was tried here."""
    found = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name != PACKAGE:
            # A local part (+cpu) names a build that the public index does not have.
            found[name] = distribution.version.partition("+")[0]
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _executable() -> Path:
    return Path(sys.executable).absolute().parent / PACKAGE


def _filled(template: str, **values: str) -> str:
    text = (files("autoflip_secure.deployment") / "templates" / template).read_text()
    return Template(text).substitute(values)
