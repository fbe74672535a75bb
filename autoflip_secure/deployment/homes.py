"""A party's home, and how a bundle gets into it whole.

    home/versions/0003/   bundle.txt authority.pub ca.pem server.pem roster.bin task.json dataset.toml
    home/current -> versions/0003
    home/roster.bin -> current/roster.bin, and so on

All files of a version become the installed ones by one rename, of `current`. A crash leaves the former version or the
new one, never a mix.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from autoflip_secure.deployment.armour import fingerprint_matches, read_file
from autoflip_secure.deployment.bundle import (
    Bundle,
    RosterChange,
    authority_fingerprint,
    change_between,
    open_bundle,
)
from autoflip_secure.deployment.certificates import expiry_text
from autoflip_secure.errors import CannotContinue, EnrolmentError, InputError
from autoflip_secure.parties.roster import MIN_SILOS
from autoflip_secure.storage import locked, storing, sync_folder, write_atomically

__all__ = ["ConsentNeeded", "Home", "accept_update", "home_lock", "make_home"]

FOLDER_MODE = 0o700
PARTY_KEYS = ("authority.key", "coordinator.key", "identity.key")
VERSIONS, CURRENT = "versions", "current"
UNPACKED = ("bundle.txt", "authority.pub", "ca.pem", "server.pem", "roster.bin", "task.json", "dataset.toml")


class ConsentNeeded(EnrolmentError):
    """The bundle follows from the installed one, but somebody at this party has to install it."""


class Home:
    """Folder of one party.

    Parameters
    ----------
    path : Path
    """

    INIT = ""
    """Command that makes such a home."""
    INSTALL = ""
    """Command that installs a bundle in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def request(self) -> Path:
        """What this party sends to the federation's owner; written last, so a home that has it is whole."""
        return self.path / "request.txt"

    def require_whole(self) -> None:
        """Raise InputError unless this party's keys were made."""
        if not self.request.is_file():
            raise InputError(f"{self.path}: no request.txt there; run: {self.INIT} --home {self.path}")

    @property
    def bundle(self) -> Bundle | None:
        """The installed bundle, its signature checked once more; None before the first."""
        path = self.path / "bundle.txt"
        if not path.exists():
            return None
        try:
            pinned = bytes.fromhex((self.path / "authority.pub").read_text().strip())
        except (OSError, ValueError) as error:
            raise EnrolmentError(f"{self.path / 'authority.pub'}: damaged; install the bundle in a new home") from error
        return open_bundle(read_file(path), str(path), lambda public: public == pinned, installed=True)

    def installed(self) -> Bundle:
        """The installed bundle.

        Raises
        ------
        InputError
            None is.
        """
        bundle = self.bundle
        if bundle is None:
            raise InputError(f"{self.path}: no bundle is installed; run: {self.INSTALL} --home {self.path}")
        return bundle

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        bundle = self.installed()
        return bundle.host, bundle.port

    def check_own_part(self, bundle: Bundle, before: Bundle | None) -> None:
        """Refuse a bundle that has not this party's own keys.

        Raises
        ------
        EnrolmentError
            It names others.
        """
        raise NotImplementedError

    def own_files(self, bundle: Bundle) -> dict[str, Path]:
        """Files of this party's that belong to a version, by name: where to take them from.

        Raises
        ------
        EnrolmentError
            One is missing, or is not the one that the bundle names.
        """
        return {}

    def least_silos(self) -> int:
        """Fewest silos with which this party goes on without being asked."""
        return MIN_SILOS

    def facts(self) -> dict[str, str]:
        """What `show` prints: public facts of this home."""
        bundle = self.bundle
        if bundle is None:
            return {"bundle": f"none installed; run: {self.INSTALL}"}
        now = datetime.now(UTC)
        return {
            "federation": bundle.name,
            "authority": authority_fingerprint(bytes.fromhex(bundle.authority)),
            "bundle": f"version {bundle.version}, {bundle.fingerprint}",
            "coordinator": bundle.address,
            "server certificate": expiry_text(bundle.server, now),
            "CA certificate": expiry_text(bundle.ca, now),
            "silos": ", ".join(f"{entry.silo} {entry.name}" for entry in bundle.members.entries),
            "scored on": bundle.scoring,
        }


def make_home(path: Path, key: str) -> None:
    """Make a folder of mode 0700 for the party with this key file; one that is there keeps its mode.

    Raises
    ------
    InputError
        It is another party's home.
    StorageError
        It cannot be made.
    """
    others = [name for name in PARTY_KEYS if name != key and (path / name).exists()]
    if others:
        raise InputError(
            f"{path}: holds {others[0]} of another party, and is kept; give each party a folder of its own"
        )
    with storing(path):
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


@contextmanager
def home_lock(path: Path) -> Iterator[None]:
    """One process at a time changes keys and versions of a home.

    Raises
    ------
    CannotContinue
        Another process does.
    """
    with locked(path / ".lock") as file:
        if file is None:
            raise CannotContinue(f"{path}: another command is changing this home; try again when it is done")
        yield


def accept_update(
    home: Home, text: str, *, consent: bool, authority: str | None = None, where: str = "the bundle"
) -> RosterChange:
    """Install a bundle, durably and as a whole.

    Parameters
    ----------
    home : Home
    text : str
        The bundle as it was received; nothing in it is trusted before its signature is.
    consent : bool
        Somebody at this party asked for it. Without, only removals and a renewed server certificate are taken over, and
        only while enough silos are left.
    authority : str or None
        Fingerprint that the first bundle's authority must have; later bundles must be signed by the same one.
    where : str
        What messages call the bundle.

    Returns
    -------
    RosterChange
        What changed; nothing where this version was installed already.

    Raises
    ------
    EnrolmentError
        Forged, an older version, a fork of the history, or without this party's own keys; nothing was changed.
    ConsentNeeded
        Nothing is wrong with it, but it needs consent.
    StorageError
        The disk refused; the former version is installed.
    """
    home.require_whole()
    with home_lock(home.path):
        before = home.bundle
        bundle = open_bundle(text, where, _pin(before, consent, authority, where, home))
        change = change_between(before, bundle) if before else RosterChange((), bundle.members.entries, ())
        home.check_own_part(bundle, before)
        if not consent:
            _check_unasked(home, bundle, change)
        own = home.own_files(bundle)
        if before is None or bundle.version > before.version:
            _switch(home.path, bundle, own)
        return change


def _pin(
    before: Bundle | None, consent: bool, authority: str | None, where: str, home: Home
) -> Callable[[bytes], bool]:
    """Whether a public key is the authority's that this party trusts."""
    if before is not None:
        expected = authority_fingerprint(bytes.fromhex(before.authority))
        if authority is not None and not fingerprint_matches(authority, expected):
            raise EnrolmentError(f"--authority: this home trusts {expected}; leave the option out, or use a new home")
        return lambda public: public.hex() == before.authority
    if authority is None or not consent:
        raise EnrolmentError(
            f"{where}: no authority is trusted here yet; get its fingerprint from the federation's owner over the "
            f"phone and run: {home.INSTALL} --authority FINGERPRINT"
        )
    return lambda public: fingerprint_matches(authority, authority_fingerprint(public))


def _check_unasked(home: Home, bundle: Bundle, change: RosterChange) -> None:
    if change.needs_consent:
        raise ConsentNeeded(
            f"version {bundle.version} {change}; nothing was changed, if you agree run: {home.INSTALL} --home "
            f"{home.path}"
        )
    left, least = len(bundle.members.entries), home.least_silos()
    if change.removed and left < least:
        raise ConsentNeeded(
            f"version {bundle.version} {change} and leaves {left} silos, this party wants {least} or more; nothing was "
            f"changed, if you agree run: {home.INSTALL} --home {home.path}"
        )


def _switch(home: Path, bundle: Bundle, own: dict[str, Path]) -> None:
    name = f"{bundle.version:04d}"
    folder = home / VERSIONS / name
    with storing(folder):
        (home / VERSIONS).mkdir(mode=FOLDER_MODE, exist_ok=True)
        if folder.exists():
            # Left by a crash before the rename below; `current` does not point to it.
            shutil.rmtree(folder)
        folder.mkdir(mode=FOLDER_MODE)
    for file, data in _unpacked(bundle).items():
        write_atomically(folder / file, data)
    for file, source in own.items():
        _bring(source, folder / file, home)
    with storing(folder):
        sync_folder(folder)
        sync_folder(home / VERSIONS)
        for file in (*UNPACKED, *own):
            _link(home / file, f"{CURRENT}/{file}")
        # From here on all of it is installed.
        _link(home / CURRENT, f"{VERSIONS}/{name}")
        sync_folder(home)


def _bring(source: Path, target: Path, home: Path) -> None:
    """A file of the version before is shared with this one; any other is copied."""
    with storing(target):
        if source.resolve().is_relative_to((home / VERSIONS).resolve()):
            os.link(source.resolve(), target)
            return
        data = source.read_bytes()
    write_atomically(target, data)


def _unpacked(bundle: Bundle) -> dict[str, bytes]:
    return {
        "bundle.txt": bundle.text.encode(),
        "authority.pub": f"{bundle.authority}\n".encode(),
        "ca.pem": bundle.ca.encode(),
        "server.pem": bundle.server.encode(),
        "roster.bin": bytes.fromhex(bundle.roster),
        "task.json": bundle.task.encode(),
        "dataset.toml": bundle.declaration.encode(),
    }


def _link(path: Path, target: str) -> None:
    if path.is_symlink() and os.readlink(path) == target:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)
