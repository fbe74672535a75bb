"""FEDERATION.toml: what the federation's owner decides, before anybody has a key.

name = "cardiology"
silos = ["hospital-a", "hospital-b", "hospital-c"]
validity_days = 365                    # of the server certificate

[coordinator]
hosts = ["fl.example.org", "10.1.2.3"] # names and addresses in its certificate; silos connect to the first
port = 8000

[task]                                 # the keys of dataset.toml
task = "classification"
classes = [0, 1]
features = 13
scoring = "held-back"                  # a fifth of each silo | "own-test": every silo's test.csv | "public"
public_test = "public_test.csv"        # with scoring = "public"; beside this file
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from autoflip_secure.data.declaration import DECLARATION_FILE, Declaration, declaration_of
from autoflip_secure.data.splits import HOLDOUT_FRACTION
from autoflip_secure.data.task import Task
from autoflip_secure.deployment.enrolment import check_name
from autoflip_secure.errors import ConfigError, EnrolmentError

__all__ = ["SCORING", "FederationFile", "declared", "federation_task", "read_federation_file"]

Scoring = Literal["held-back", "own-test", "public"]
SCORING: tuple[Scoring, ...] = ("held-back", "own-test", "public")
HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
MAX_TEXT = 1 << 20


class CoordinatorPlace(BaseModel):
    """Where silos find the coordinator."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hosts: list[str] = Field(min_length=1, max_length=64)
    port: int = Field(8000, ge=1, le=65535)

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: list[str]) -> list[str]:
        if len(set(hosts)) != len(hosts):
            raise ValueError("a host is named twice")
        for host in hosts:
            if not _is_address(host) and (not HOST.fullmatch(host) or host.rpartition(".")[2].isdecimal()):
                raise ValueError(f"{host!r} is neither a host name in small letters nor an IP address")
        return hosts

    @property
    def address(self) -> str:
        """host:port of the first host."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class FederationFile(BaseModel):
    """What FEDERATION.toml says.

    Attributes
    ----------
    name : str
    silos : list of str
        Who may be enrolled.
    coordinator : CoordinatorPlace
    task : dict
        Keys of dataset.toml, `scoring` and `public_test`.
    validity_days, ca_validity_days : int
        Of the server's and the authority's certificate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    silos: list[str] = Field(min_length=3)
    coordinator: CoordinatorPlace
    task: dict[str, Any]
    validity_days: int = Field(365, ge=1, le=3650)
    ca_validity_days: int = Field(3650, ge=1, le=36500)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return _as_name(name)

    @field_validator("silos")
    @classmethod
    def _are_names(cls, silos: list[str]) -> list[str]:
        for silo in silos:
            _as_name(silo)
        if len({silo.lower() for silo in silos}) != len(silos):
            raise ValueError("a silo is named twice")
        return silos

    @property
    def scoring(self) -> Scoring:
        """Which records scores come from."""
        chosen: Scoring = self.task.get("scoring", "public" if "public_test" in self.task else "held-back")
        return chosen

    @property
    def public_test(self) -> str | None:
        """Path of the public test records, relative to the file."""
        return self.task.get("public_test")

    @property
    def declaration_text(self) -> str:
        """The same as a dataset.toml."""
        own = ("scoring", "public_test")
        return tomli_w.dumps({key: value for key, value in self.task.items() if key not in own})


def read_federation_file(path: Path) -> FederationFile:
    """Read and validate FEDERATION.toml.

    Raises
    ------
    ConfigError, DataError
        Missing, not TOML, or a key that is missing, unknown or wrong; the message names file, line and key.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_TEXT).decode()
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name the federation's file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # of TOML, also where a number is too long or nesting too deep
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{path}:{place[1]}:{place[2]}" if place else str(path)
        raise ConfigError(f"{where}: not TOML ({str(error).split(' (at ')[0]})") from error
    try:
        federation = FederationFile(**values)
    except ValidationError as error:
        raise _complaint(path, text, error) from error
    _check_scoring(path, text, federation)
    declaration = {key: value for key, value in federation.task.items() if key not in ("scoring", "public_test")}
    declaration_of(path, text, declaration)
    return federation


def declared(text: str) -> Declaration:
    """The declaration of a dataset.toml that is at hand as text.

    Raises
    ------
    DataError
        A key is missing, unknown or wrong.
    EnrolmentError
        Not TOML.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise EnrolmentError("the declaration of the records is not TOML") from error
    return declaration_of(Path(DECLARATION_FILE), text, values)


def federation_task(name: str, declaration: Declaration, scoring: Scoring) -> Task:
    """The public task of a federation: records that silos hold back for scoring are not trained on."""
    task = replace(declaration.task(), name=f"folder:{name}")
    if task.nominal_records is None or scoring != "held-back":
        return task
    return replace(task, nominal_records=max(1, round(task.nominal_records * (1 - HOLDOUT_FRACTION))))


def _check_scoring(path: Path, text: str, federation: FederationFile) -> None:
    given, public = federation.task.get("scoring"), federation.public_test
    if given is not None and given not in SCORING:
        raise ConfigError(f"{path}:{_line(text, 'scoring')}: scoring: not one of {', '.join(SCORING)}")
    if (federation.scoring == "public") != (public is not None):
        raise ConfigError(
            f'{path}:{_line(text, "public_test" if public else "scoring")}: scoring = "public" and public_test belong '
            "together; give both or neither"
        )
    if public is not None and not (isinstance(public, str) and public.endswith((".csv", ".npz"))):
        raise ConfigError(f"{path}:{_line(text, 'public_test')}: public_test: name a .csv or .npz file beside this one")


def _complaint(path: Path, text: str, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"] if not isinstance(part, int)]
    message = {
        "missing": "is missing; write it",
        "extra_forbidden": "unknown key; remove it",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    return ConfigError(f"{path}:{_line(text, keys[-1] if keys else '')}: {'.'.join(keys)}: {message}")


def _line(text: str, key: str) -> int:
    found = re.search(rf"^\s*(\[\s*)?{re.escape(key)}\s*[=\]]", text, re.MULTILINE) if key else None
    return text[: found.end()].count("\n") + 1 if found else 1


def _as_name(name: str) -> str:
    try:
        return check_name(name, repr(name))
    except EnrolmentError as error:
        raise ValueError(str(error)) from error


def _is_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
        # One spelling, and no address that means any or many machines.
        return str(address) == host and not (address.is_unspecified or address.is_multicast)
    except ValueError:
        return False
