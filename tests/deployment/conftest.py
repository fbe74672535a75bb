"""A whole federation of homes, made through the same functions as the commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.deployment.authority import Authority, init_authority
from autoflip_secure.deployment.coordinator_home import CoordinatorHome, init_coordinator, install_coordinator
from autoflip_secure.deployment.silo_home import SiloHome, init_silo, install_silo

NAMES = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
TASK = 'task = "classification"\nclasses = [0, 1]\nfeatures = 3\n'


def federation_text(
    silos: tuple[str, ...] = NAMES, hosts: tuple[str, ...] = ("127.0.0.1",), port: int = 8000, task: str = TASK
) -> str:
    """A FEDERATION.toml."""
    quoted = (", ".join(f'"{name}"' for name in names) for names in (silos, hosts))
    return (
        f'name = "cardiology"\nsilos = [{next(quoted)}]\n\n[coordinator]\nhosts = [{next(quoted)}]\nport = {port}\n\n'
        f"[task]\n{task}"
    )


def write_table(folder: Path, rows: int = 60, seed: int = 0) -> Path:
    """A silo's train.csv of three features."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    lines = [",".join(f"{v:.3f}" for v in generator.normal(size=3)) + f",{i % 2}" for i in range(rows)]
    (folder / "train.csv").write_text("a,b,c,label\n" + "\n".join(lines) + "\n")
    return folder


@dataclass
class Federation:
    """Homes of all parties below one folder."""

    folder: Path
    authority: Authority
    coordinator: CoordinatorHome
    silos: dict[str, SiloHome]

    @property
    def bundle_file(self) -> Path:
        return self.authority.home / "bundle.txt"

    def version(self, number: int) -> str:
        """Text of a bundle that the authority signed."""
        return (self.authority.home / "rosters" / f"{number:04d}.txt").read_text()

    def install(self) -> None:
        """Install the newest bundle everywhere."""
        fingerprint = self.authority.fingerprint
        install_coordinator(self.coordinator.path, self.bundle_file, authority=fingerprint)
        for silo in self.silos.values():
            install_silo(silo.path, self.bundle_file, authority=fingerprint)


MakeFederation = Callable[..., Federation]


@pytest.fixture
def make_parties(tmp_path: Path) -> MakeFederation:
    """An authority, a coordinator and silos that have their keys; `enrolled` says who is in the first bundle."""

    def make(name: str = "federation", *, enrolled: int | None = None, text: str | None = None) -> Federation:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "FEDERATION.toml").write_text(text or federation_text())
        authority = init_authority(folder / "FEDERATION.toml", folder / "authority")
        coordinator = init_coordinator(folder / "coordinator")
        silos = {silo: init_silo(folder / silo, silo) for silo in authority.federation.silos}
        federation = Federation(folder, authority, coordinator, silos)
        if enrolled is not None:
            requests = [coordinator.request, *(silo.request for silo in list(silos.values())[:enrolled])]
            authority.enrol(requests, partial=True)
        return federation

    return make
