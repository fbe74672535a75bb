"""A silo's home: its keys, its request to be enrolled, its policy, its records, and the installed bundle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from autoflip_secure.deployment.armour import read_file
from autoflip_secure.deployment.bundle import Bundle, RosterChange
from autoflip_secure.deployment.enrolment import check_name, read_request, silo_request
from autoflip_secure.deployment.homes import Home, accept_update, home_lock, make_home
from autoflip_secure.deployment.keys import NODE_CURVE, key_file, node_public_text
from autoflip_secure.deployment.policy_file import policy_text
from autoflip_secure.errors import EnrolmentError, InputError
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import MIN_SILOS, RosterEntry
from autoflip_secure.storage import storing, sync_folder, write_atomically

__all__ = ["WHOLE_RECORDS", "SiloHome", "init_silo", "install_silo"]

WHOLE_RECORDS, OLD_RECORDS = ".data.whole", ".data.old"
"""Names of records that are about to take the place of others, and of those others."""


class SiloHome(Home):
    """Paths and facts of a silo.

    SILO_HOME:  identity.key  node.key  name  request.txt  policy.toml  data/  state.sqlite  and the files of `homes`
    """

    INIT = "autoflip-secure silo init --name NAME"
    INSTALL = "autoflip-secure silo install BUNDLE"

    @property
    def identity_path(self) -> Path:
        """Signing key."""
        return self.path / "identity.key"

    @property
    def node_key(self) -> Path:
        """Key of Flower's node authentication, in OpenSSH's format."""
        return self.path / "node.key"

    @property
    def policy(self) -> Path:
        """Limits this silo sets for itself."""
        return self.path / "policy.toml"

    @property
    def data(self) -> Path:
        """Records, as `data.silo_folder` keeps them."""
        return self.path / "data"

    @property
    def name(self) -> str:
        """The silo's name."""
        return (self.path / "name").read_text().strip()

    def identity(self) -> Identity:
        """Signing key, loaded."""
        return Identity.load(self.identity_path)

    def require_whole(self) -> None:
        """Raise InputError unless this silo's keys were made; completes an import of records that was interrupted."""
        super().require_whole()
        if (self.path / WHOLE_RECORDS).exists() or (self.path / OLD_RECORDS).exists():
            with home_lock(self.path):
                self.place_records()

    def place_records(self) -> None:
        """Move records that are whole to where they are read, and remove former ones; for who holds the home's lock."""
        whole, old = self.path / WHOLE_RECORDS, self.path / OLD_RECORDS
        with storing(self.data):
            if whole.exists():
                if self.data.exists():
                    shutil.rmtree(old, ignore_errors=True)
                    os.rename(self.data, old)
                os.rename(whole, self.data)
                sync_folder(self.path)
            if old.exists():
                shutil.rmtree(old)

    def entry(self, bundle: Bundle | None = None) -> RosterEntry | None:
        """This silo in a roster, by its key; None where it is not (or no longer) enrolled."""
        public = self.identity().public
        members = (bundle or self.installed()).members
        return next((entry for entry in members.entries if entry.public == public), None)

    def check_own_part(self, bundle: Bundle, before: Bundle | None) -> None:
        entry = self.entry(bundle)
        if entry is None:
            if before is not None and self.entry(before) is not None:
                return  # This silo was removed: it takes that over, and answers nobody any more.
            raise EnrolmentError(
                f"version {bundle.version} does not name this silo's identity; nothing was changed, send request.txt "
                "to the federation's owner"
            )
        node = node_public_text(key_file(self.node_key, NODE_CURVE))
        if entry.name != self.name or bundle.node_keys[entry.silo] != node:
            raise EnrolmentError(
                f"version {bundle.version} has another name or node key for this silo; nothing was changed, send "
                "request.txt to the federation's owner"
            )

    def least_silos(self) -> int:
        """Fewest silos of a sum by this silo's policy."""
        from autoflip_secure.federation.policy import SiloPolicy

        return max(MIN_SILOS, SiloPolicy.read(self.policy).min_silos)

    def facts(self) -> dict[str, str]:
        request = read_request(self.request)
        own = {"home": str(self.path), "name": self.name, "request": request.fingerprint}
        bundle = self.bundle
        if bundle is not None:
            entry = self.entry(bundle)
            own["enrolled as"] = f"silo {entry.silo}" if entry else "nobody: this silo was removed"
        own["records"] = (
            "imported" if (self.data / "train.npz").exists() else "none; run: autoflip-secure silo data PATH"
        )
        return {**own, **super().facts()}


def init_silo(path: Path, name: str) -> SiloHome:
    """Make a silo's keys, its policy and its request; goes on where an earlier call was interrupted.

    Raises
    ------
    InputError
        The home is whole already, or has begun under another name; its keys are kept.
    StorageError
        The disk refused.
    """
    home = SiloHome(path)
    check_name(name)
    make_home(path, "identity.key")
    with home_lock(path):
        if home.request.exists():
            raise InputError(f"{path} is the home of {home.name} already and is kept; send its request.txt")
        if (path / "name").exists() and home.name != name:
            raise InputError(f"{path}: begun as the home of {home.name}; give that name, or another folder")
        write_atomically(path / "name", f"{name}\n".encode())
        identity = home.identity() if home.identity_path.exists() else Identity.create(home.identity_path)
        node = key_file(home.node_key, NODE_CURVE)
        if not home.policy.exists():
            write_atomically(home.policy, policy_text().encode(), secret=True)
        write_atomically(home.request, silo_request(name, identity, node).encode())
    return home


def install_silo(path: Path, bundle: Path, *, authority: str | None) -> RosterChange:
    """Install a bundle in a silo's home.

    Raises
    ------
    EnrolmentError
        See `accept_update`.
    """
    return accept_update(SiloHome(path), read_file(bundle), consent=True, authority=authority, where=str(bundle))
