"""The coordinator's home: its keys, its request to be enrolled, and the installed bundle."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from autoflip_secure.deployment.armour import read_file
from autoflip_secure.deployment.bundle import Bundle, RosterChange
from autoflip_secure.deployment.certificates import tls_public
from autoflip_secure.deployment.enrolment import coordinator_request, read_request
from autoflip_secure.deployment.homes import Home, accept_update, home_lock, make_home
from autoflip_secure.deployment.keys import TLS_CURVE, key_file
from autoflip_secure.errors import EnrolmentError, InputError
from autoflip_secure.parties.identity import Identity
from autoflip_secure.storage import write_atomically

__all__ = ["PUBLIC_TEST", "CoordinatorHome", "init_coordinator", "install_coordinator"]

PUBLIC_TEST = "public_test.npz"


class CoordinatorHome(Home):
    """Paths and facts of the coordinator.

    COORDINATOR_HOME:  coordinator.key  server.key  request.txt  public_test.npz  runs/  and the files of `homes`
    """

    given_public_test: Path | None = None
    """Where the public test records of a new bundle lie, as the user says."""

    beside: Path | None = None
    """Folder of a new bundle, where they are looked for otherwise."""

    INIT = "autoflip-secure coordinator init"
    INSTALL = "autoflip-secure coordinator install BUNDLE"

    @property
    def identity_path(self) -> Path:
        """Signing key."""
        return self.path / "coordinator.key"

    @property
    def server_key(self) -> Path:
        """TLS key."""
        return self.path / "server.key"

    @property
    def public_test(self) -> Path | None:
        """Public test records, where the federation has them."""
        return self.path / PUBLIC_TEST if self.installed().public_test else None

    def identity(self) -> Identity:
        """Signing key, loaded."""
        return Identity.load(self.identity_path)

    def check_own_part(self, bundle: Bundle, before: Bundle | None) -> None:
        if bundle.members.coordinator != self.identity().public:
            raise EnrolmentError(f"version {bundle.version} names another coordinator's identity; nothing was changed")
        public = key_file(self.server_key, TLS_CURVE).public_key()
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if tls_public(bundle.server) != der:
            raise EnrolmentError(
                f"version {bundle.version} has a server certificate for another key than server.key; nothing was "
                "changed, send request.txt to the federation's owner"
            )

    def own_files(self, bundle: Bundle) -> dict[str, Path]:
        if not bundle.public_test:
            if self.given_public_test is not None:
                raise EnrolmentError("--public-test: this federation scores on records of its silos; leave it out")
            return {}
        installed = self.path / PUBLIC_TEST
        if installed.exists() and hmac.compare_digest(_digest(installed), bundle.public_test):
            return {PUBLIC_TEST: installed}
        given = self.given_public_test or (self.beside / PUBLIC_TEST if self.beside else None)
        if given is None or not given.is_file():
            raise EnrolmentError(
                f"{given or PUBLIC_TEST}: no such file; give the federation's public_test.npz with --public-test"
            )
        if not hmac.compare_digest(_digest(given), bundle.public_test):
            raise EnrolmentError(f"{given}: not the public test records of this bundle; ask the federation's owner")
        return {PUBLIC_TEST: given}

    def facts(self) -> dict[str, str]:
        request = read_request(self.request)
        return {"home": str(self.path), "request": request.fingerprint, **super().facts()}


def init_coordinator(path: Path) -> CoordinatorHome:
    """Make the coordinator's keys and its request; goes on where an earlier call was interrupted.

    Raises
    ------
    InputError
        The home is whole already; its keys are kept.
    StorageError
        The disk refused.
    """
    home = CoordinatorHome(path)
    make_home(path, "coordinator.key")
    with home_lock(path):
        if home.request.exists():
            raise InputError(f"{path} is the coordinator's home already and is kept; send its request.txt")
        identity = home.identity() if home.identity_path.exists() else Identity.create(home.identity_path)
        text = coordinator_request(identity, key_file(home.server_key, TLS_CURVE))
        write_atomically(home.request, text.encode())
    return home


def install_coordinator(
    path: Path, bundle: Path, *, authority: str | None, public_test: Path | None = None
) -> RosterChange:
    """Install a bundle in the coordinator's home, with the public test records where the federation has them.

    Raises
    ------
    EnrolmentError
        See `accept_update`; or the test records are missing or others than the bundle's.
    """
    home = CoordinatorHome(path)
    home.given_public_test, home.beside = public_test, bundle.parent
    return accept_update(home, read_file(bundle), consent=True, authority=authority, where=str(bundle))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
