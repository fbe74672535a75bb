"""The federation bundle: everything public that all parties agree on, in one file that its authority has signed.

Version n names the digests of versions 1 to n - 1, so whoever has any of them installed sees whether a newer bundle
follows from it. Ids of silos are never used again, also not after a removal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoflip_secure.data.task import Task
from autoflip_secure.deployment.armour import armoured, canonical, fingerprint, is_hex, read_armoured, unhex
from autoflip_secure.deployment.certificates import check_chain
from autoflip_secure.deployment.federation_file import Scoring, declared, federation_task
from autoflip_secure.deployment.keys import node_public
from autoflip_secure.errors import ConfigError, DataError, EnrolmentError, InputError
from autoflip_secure.parties.identity import Identity, verify
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.parties.wire import MAX_ID

__all__ = [
    "MAX_VERSIONS",
    "Bundle",
    "RosterChange",
    "authority_fingerprint",
    "change_between",
    "open_bundle",
    "sign_bundle",
]

LABEL = "federation bundle"
DOMAIN = b"enrolment/bundle"
HASH = re.compile(r"[0-9a-f]{64}")
ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<host>[a-z0-9.-]+)):(?P<port>[0-9]{1,5})")
MAX_VERSIONS = 4096
TERMS = ("name", "address", "ca", "server", "declaration", "task", "scoring", "public_test")
"""Fields that are not about single parties."""
WITHOUT_CONSENT = ("server",)
"""What may change without anybody's consent: silos trust the CA, and nothing else depends on the certificate."""


class Bundle(BaseModel):
    """A verified bundle; made by `sign_bundle` and `open_bundle` only.

    Attributes
    ----------
    version : int
        From 1.
    history : tuple of str
        Digests of versions 1 to version - 1, in hexadecimal digits.
    name : str
        Of the federation.
    authority : str
        Public key that signs bundles, in hexadecimal digits.
    address : str
        host:port of the coordinator.
    ca, server : str
        Certificates, PEM.
    declaration : str
        dataset.toml of the federation: how silos' tables are read.
    task : str
        JSON of the public task.
    scoring : str
        held-back, own-test or public: which records scores come from.
    public_test : str
        SHA-256 of the coordinator's public_test.npz, empty where there is none.
    roster : str
        Canonical bytes of the roster, in hexadecimal digits.
    nodes : tuple of (silo id, OpenSSH public key)
        Keys of Flower's node authentication.
    next_silo : int
        Id of the next silo to be enrolled, above all that were ever used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    version: int = Field(ge=1, le=MAX_VERSIONS)
    history: tuple[str, ...]
    name: str
    authority: str
    address: str
    ca: str
    server: str
    declaration: str
    task: str
    scoring: Scoring
    public_test: str
    roster: str
    nodes: tuple[tuple[int, str], ...]
    next_silo: int = Field(ge=1, le=MAX_ID + 1)
    signature: str = Field("", exclude=True)

    @cached_property
    def members(self) -> Roster:
        """Coordinator and silos."""
        return Roster.from_bytes(bytes.fromhex(self.roster))

    @cached_property
    def node_keys(self) -> dict[int, str]:
        """Public key of node authentication by silo id."""
        return dict(self.nodes)

    @property
    def terms(self) -> dict[str, Any]:
        """Fields that are not about single parties."""
        return {name: getattr(self, name) for name in TERMS}

    @property
    def host(self) -> str:
        """Host that silos connect to."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port that silos connect to."""
        return int(self.address.rpartition(":")[2])

    @property
    def body(self) -> bytes:
        """What is signed."""
        return canonical(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of what is signed, in hexadecimal digits."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def text(self) -> str:
        """The file."""
        return armoured(LABEL, self.model_dump(mode="json"), {"authority": self.signature})

    @property
    def fingerprint(self) -> str:
        """To be compared over the phone."""
        return fingerprint(LABEL, self.body)


def authority_fingerprint(public: bytes) -> str:
    """Of the authority's public key: what a party pins when it installs its first bundle."""
    return fingerprint("authority", public)


def sign_bundle(bundle: Bundle, authority: Identity) -> Bundle:
    """The bundle with its signature, checked like one that was received."""
    signed = bundle.model_copy(update={"signature": authority.sign(DOMAIN, bundle.body).hex()})
    return open_bundle(signed.text, "the new bundle")


def open_bundle(
    text: str, where: str, pinned: Callable[[bytes], bool] | None = None, *, installed: bool = False
) -> Bundle:
    """Read and verify a bundle.

    Parameters
    ----------
    pinned : callable or None
        Whether a public key is the authority's; None only where the text was just signed.
    installed : bool
        It was looked through when it was new: only its signature is checked. A later version of this package may
        understand its parts otherwise, and still has to tell what follows from it.

    Raises
    ------
    EnrolmentError
        Not exactly a bundle, another authority's, not signed by it, or contradicting itself.
    """
    body, signatures = read_armoured(LABEL, text, where)
    authority = body.get("authority")
    # Before anything in it is looked at any further: who says so?
    if type(authority) is not str or not HASH.fullmatch(authority) or set(signatures) != {"authority"}:
        raise EnrolmentError(f"{where}: names no authority; ask the federation's owner for the bundle again")
    public = bytes.fromhex(authority)
    if pinned is not None and not pinned(public):
        raise EnrolmentError(
            f"{where}: the bundle is from the authority {authority_fingerprint(public)}, not from the one this party "
            "trusts; nothing was installed, ask the federation's owner"
        )
    signature = unhex(signatures["authority"])
    if not verify(public, DOMAIN, canonical(body), signature):
        raise EnrolmentError(f"{where}: the bundle is not signed by its authority; nothing was installed")
    try:
        bundle = Bundle(**{**body, **_tuples(body), "signature": signatures["authority"]})
    except ValidationError as error:
        first = error.errors()[0]
        raise EnrolmentError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if bundle.text != text:
        raise EnrolmentError(f"{where}: the bundle has more in it than a bundle has; nothing was installed")
    if not installed:
        _check(bundle, where)
    return bundle


def _tuples(body: dict[str, object]) -> dict[str, object]:
    history, nodes = body.get("history"), body.get("nodes")
    return {
        "history": tuple(history) if isinstance(history, list) else history,
        "nodes": tuple(tuple(n) if isinstance(n, list) else n for n in nodes) if isinstance(nodes, list) else nodes,
    }


def _check(bundle: Bundle, where: str) -> None:
    """Refuse a bundle whose parts contradict each other, also where its authority signed it."""

    def require(holds: object, complaint: str) -> None:
        if not holds:
            raise EnrolmentError(f"{where}: {complaint}; ask the federation's owner for another bundle")

    place = ADDRESS.fullmatch(bundle.address)
    require(place is not None and 0 < bundle.port < 1 << 16, "the coordinator's address is not host:port")
    require(len(bundle.history) == bundle.version - 1, f"version {bundle.version} does not name all before it")
    require(all(HASH.fullmatch(digest) for digest in bundle.history), "a digest of a former version is none")
    require(bundle.public_test == "" or HASH.fullmatch(bundle.public_test), "the public test's digest is none")
    require((bundle.scoring == "public") == bool(bundle.public_test), "scoring and public test do not fit")
    require(is_hex(bundle.roster), "the roster is not hexadecimal")
    try:
        roster = bundle.members
        declaration = declared(bundle.declaration)
        task = federation_task(bundle.name, declaration, bundle.scoring).to_json()
    except (InputError, ConfigError, DataError) as error:
        raise EnrolmentError(f"{where}: {error}; ask the federation's owner for another bundle") from error
    require(bundle.task == task and Task.from_json(bundle.task), "the task is not what the declaration says")
    require(
        tuple(bundle.node_keys) == roster.silos == tuple(i for i, _ in bundle.nodes), "node keys are not the silos'"
    )
    require(len(set(bundle.node_keys.values())) == len(roster.silos), "two silos have one node key")
    require(bundle.next_silo > max(roster.silos), "the next silo's id is in use")
    require(bytes.fromhex(bundle.authority) not in _publics(roster), "the authority is a party of its own roster")
    for key in bundle.node_keys.values():
        node_public(key)
    check_chain(bundle.ca, bundle.server, bundle.host)


def _publics(roster: Roster) -> set[bytes]:
    return {roster.coordinator, *(entry.public for entry in roster.entries)}


@dataclass(frozen=True)
class RosterChange:
    """What a newer bundle changes.

    Attributes
    ----------
    removed, added : tuple of RosterEntry
    other : tuple of str
        Names of the bundle's other fields that differ.
    """

    removed: tuple[RosterEntry, ...]
    added: tuple[RosterEntry, ...]
    other: tuple[str, ...]

    @property
    def needs_consent(self) -> bool:
        """Whether somebody at this party has to agree: to all but removals and a renewed server certificate."""
        return bool(self.added) or any(name not in WITHOUT_CONSENT for name in self.other)

    def __str__(self) -> str:
        parts = [f"removes {entry.name}" for entry in self.removed]
        parts += [f"adds {entry.name}" for entry in self.added]
        parts += [f"changes {name}" for name in self.other]
        return ", ".join(parts) or "changes nothing"


def change_between(old: Bundle, new: Bundle) -> RosterChange:
    """What `new` changes, if it follows from `old`.

    Raises
    ------
    EnrolmentError
        An older version, another version of the same number, another history, or an id that is used again.
    """
    if new.authority != old.authority:
        raise EnrolmentError(f"version {new.version} is another authority's; version {old.version} is kept")
    if new.version < old.version:
        raise EnrolmentError(
            f"version {new.version} is older than version {old.version}, which is installed and kept; silos that were "
            "removed since would come back"
        )
    chain = (*new.history, new.digest)
    if chain[old.version - 1] != old.digest or chain[: old.version - 1] != old.history:
        raise EnrolmentError(
            f"version {new.version} does not follow from the installed version {old.version}: the authority has "
            "signed two different histories; the installed one is kept, ask the federation's owner"
        )
    before = {(entry, old.node_keys[entry.silo]): entry for entry in old.members.entries}
    after = {(entry, new.node_keys[entry.silo]): entry for entry in new.members.entries}
    added = tuple(entry for key, entry in after.items() if key not in before)
    if new.next_silo < old.next_silo or any(entry.silo < old.next_silo for entry in added):
        raise EnrolmentError(f"version {new.version} uses a silo's id again; version {old.version} is kept")
    other = [name for name in TERMS if getattr(new, name) != getattr(old, name)]
    if new.members.coordinator != old.members.coordinator:
        other.append("coordinator")
    return RosterChange(tuple(e for key, e in before.items() if key not in after), added, tuple(other))
