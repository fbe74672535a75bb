"""The federation's owner: its keys, who is enrolled, and every bundle it ever signed.

AUTHORITY_HOME:  federation.toml  authority.key  ca.key  ca.pem  public_test.npz  requests/  rosters/0001.txt ...
                 bundle.txt
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from autoflip_secure.deployment.armour import read_file
from autoflip_secure.deployment.bundle import (
    MAX_VERSIONS,
    Bundle,
    RosterChange,
    authority_fingerprint,
    change_between,
    open_bundle,
    sign_bundle,
)
from autoflip_secure.deployment.certificates import authority_certificate, server_certificate, valid_request
from autoflip_secure.deployment.coordinator_home import PUBLIC_TEST
from autoflip_secure.deployment.enrolment import (
    CoordinatorRequest,
    SiloRequest,
    parse_request,
)
from autoflip_secure.deployment.federation_file import FederationFile, declared, federation_task, read_federation_file
from autoflip_secure.deployment.homes import home_lock, make_home
from autoflip_secure.deployment.keys import TLS_CURVE, key_file
from autoflip_secure.errors import ConfigError, EnrolmentError, InputError
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import MIN_SILOS, Roster, RosterEntry
from autoflip_secure.storage import storing, write_atomically

__all__ = ["Authority", "Outcome", "init_authority"]

FEDERATION = "federation.toml"
COORDINATOR_REQUEST = "coordinator.txt"
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Outcome:
    """What a command of the authority did.

    Attributes
    ----------
    bundle : Bundle or None
        The new bundle; None where the first one waits for more requests.
    change : RosterChange or None
        Against the bundle before.
    missing : tuple of str
        Who the federation's file names and is not enrolled.
    """

    bundle: Bundle | None
    change: RosterChange | None
    missing: tuple[str, ...]


def init_authority(file: Path, home: Path) -> Authority:
    """Make the authority's keys and certificate; goes on where an earlier call was interrupted.

    Raises
    ------
    ConfigError, DataError
        The file is wrong.
    InputError
        The home is whole already; its keys are kept.
    StorageError
        The disk refused.
    """
    federation = read_federation_file(file)
    public_test = _public_test(file, federation)
    make_home(home, "authority.key")
    with home_lock(home):
        if (home / "ca.pem").exists():
            raise InputError(
                f"{home} is an authority's home already and is kept; edit {home / FEDERATION} and run "
                "`provision enrol` or `provision renew`"
            )
        if public_test is not None:
            write_atomically(home / PUBLIC_TEST, public_test)
        if not ((home / FEDERATION).exists() and (home / FEDERATION).samefile(file)):
            write_atomically(home / FEDERATION, file.read_bytes())
        if not (home / "authority.key").exists():
            Identity.create(home / "authority.key")
        key = key_file(home / "ca.key", TLS_CURVE)
        pem = authority_certificate(key, federation.name, federation.ca_validity_days, datetime.now(UTC))
        # Written last: a home with a certificate is a whole one.
        write_atomically(home / "ca.pem", pem.encode())
    return Authority(home)


def _public_test(file: Path, federation: FederationFile) -> bytes | None:
    """Content of public_test.npz: the declared records as the coordinator scores on them."""
    if federation.public_test is None:
        return None
    import tempfile

    from autoflip_secure.data.folder import read_public_test

    records = read_public_test(file.parent / federation.public_test, declared(federation.declaration_text))
    with tempfile.TemporaryDirectory() as folder:
        records.save(Path(folder) / PUBLIC_TEST)
        return (Path(folder) / PUBLIC_TEST).read_bytes()


class Authority:
    """The owner's side of a federation.

    Parameters
    ----------
    home : Path
        Made by `init_authority`.

    Raises
    ------
    InputError
        It is not.
    """

    def __init__(self, home: Path) -> None:
        if not ((home / "ca.pem").is_file() and (home / "ca.key").is_file()):
            raise InputError(
                f"{home}: no authority's home; run: autoflip-secure provision FEDERATION.toml --home {home}"
            )
        self.home = home
        self._identity = Identity.load(home / "authority.key")
        newest = self.bundle
        if newest is not None and not _holds(home / "bundle.txt", newest.text):
            write_atomically(home / "bundle.txt", newest.text.encode())

    @property
    def fingerprint(self) -> str:
        """What every party pins."""
        return authority_fingerprint(self._identity.public)

    @property
    def federation(self) -> FederationFile:
        """The federation's file as it is now."""
        return read_federation_file(self.home / FEDERATION)

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """Every bundle signed so far, by version."""
        paths = sorted((self.home / "rosters").glob("[0-9]*.txt"))
        bundles = tuple(open_bundle(read_file(path), str(path), self._is_own, installed=True) for path in paths)
        for older, newer in pairwise(bundles):
            change_between(older, newer)
        return bundles

    @property
    def bundle(self) -> Bundle | None:
        """The newest bundle."""
        bundles = self.bundles
        return bundles[-1] if bundles else None

    @property
    def ca(self) -> str:
        """Certificate of the authority, PEM."""
        return (self.home / "ca.pem").read_text()

    def enrol(self, requests: Sequence[Path], *, replace: bool = False, partial: bool = False) -> Outcome:
        """Take requests in, and sign a new bundle.

        Before the first bundle, requests are kept until everybody whom the federation's file names has sent one.

        Parameters
        ----------
        requests : sequence of Path
            Request files; the first bundle needs the coordinator's.
        replace : bool
            A party that is enrolled may come with other keys; its former ones are removed.
        partial : bool
            Sign the first bundle although some have not sent theirs.

        Raises
        ------
        EnrolmentError
            A request is malformed or forged, not named in the federation's file, or repeats or contradicts what is
            enrolled; nothing was enrolled.
        """
        read = [parse_request(read_file(path), str(path)) for path in requests]
        with home_lock(self.home):
            before, federation = self.bundle, self.federation
            self._check(read, before, federation, replace=replace)
            for path, request in zip(requests, read, strict=True):
                self._keep(request, read_file(path))
            if before is None:
                return self._first(federation, partial=partial)
            return self._next(before, federation, read)

    def remove(self, name: str) -> Outcome:
        """Sign a bundle without a silo; its keys are never enrolled again.

        Raises
        ------
        EnrolmentError
            No such silo, or too few would be left.
        """
        with home_lock(self.home):
            before = self._enrolled()
            entries = tuple(entry for entry in before.members.entries if entry.name != name)
            if len(entries) == len(before.members.entries):
                known = ", ".join(entry.name for entry in before.members.entries)
                raise EnrolmentError(f"{name}: no silo of that name is enrolled; these are: {known}")
            if len(entries) < MIN_SILOS:
                raise EnrolmentError(
                    f"{name}: {len(entries)} silos would be left, and a sum over fewer than {MIN_SILOS} hides nobody; "
                    "enrol another first, or give new keys with enrol --replace"
                )
            roster = Roster(before.members.coordinator, entries)
            nodes = {entry.silo: before.node_keys[entry.silo] for entry in entries}
            return self._publish(before, before.terms, roster, nodes, before.next_silo)

    def renew(self) -> Outcome:
        """Sign a bundle with a new server certificate, and with what was changed in the federation's file."""
        with home_lock(self.home):
            before = self._enrolled()
            federation = self.federation
            terms = self._terms(federation, self._certificate(federation))
            return self._publish(before, terms, before.members, before.node_keys, before.next_silo)

    def _enrolled(self) -> Bundle:
        bundle = self.bundle
        if bundle is None:
            raise EnrolmentError(
                f"{self.home}: nobody is enrolled yet; run: autoflip-secure provision enrol REQUEST..."
            )
        return bundle

    def _is_own(self, public: bytes) -> bool:
        return public == self._identity.public

    def _check(
        self, read: Sequence[SiloRequest | CoordinatorRequest], before: Bundle | None, federation: FederationFile,
        *, replace: bool,
    ) -> None:  # fmt: skip
        silos = [request for request in read if isinstance(request, SiloRequest)]
        names = [request.name for request in silos]
        if len(set(names)) != len(names) or len(read) - len(silos) > 1:
            raise EnrolmentError("two requests are of one party; name each party's request once")
        for request in silos:
            if request.name not in federation.silos:
                raise EnrolmentError(
                    f"{request.name}: not among the silos of {self.home / FEDERATION}; add it there, or refuse the "
                    "request"
                )
        self._check_fresh_keys(read)
        enrolled = {entry.name: entry for entry in before.members.entries} if before else {}
        for request in silos:
            if request.name in enrolled and not replace:
                raise EnrolmentError(
                    f"{request.name}: is enrolled already; give --replace to enrol it with the keys of this request "
                    "and remove its former ones"
                )
        if before and len(read) > len(silos) and not replace:
            raise EnrolmentError("a coordinator is enrolled already; give --replace to enrol this one instead")

    def _check_fresh_keys(self, read: Sequence[SiloRequest | CoordinatorRequest]) -> None:
        """Refuse keys that any bundle, or another request, has had: a removed key may be in other hands."""
        used = {self._identity.public.hex(): "the authority"}
        for bundle in self.bundles:
            used[bundle.members.coordinator.hex()] = "the coordinator"
            used.update({entry.public.hex(): entry.name for entry in bundle.members.entries})
            used.update({bundle.node_keys[entry.silo]: entry.name for entry in bundle.members.entries})
        coming = {_title(request) for request in read}
        for kept in self._kept():
            if _title(kept) not in coming:
                used.update(dict.fromkeys(_keys(kept), _title(kept)))
        for request in read:
            for key in _keys(request):
                if key in used:
                    raise EnrolmentError(
                        f"{_title(request)}: a key of the request is or was that of {used[key]}; keys are enrolled "
                        "once, make new ones in a new home"
                    )
                used[key] = _title(request)

    def _keep(self, request: SiloRequest | CoordinatorRequest, text: str) -> None:
        folder = self.home / "requests"
        with storing(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        name = f"silo-{request.name}.txt" if isinstance(request, SiloRequest) else COORDINATOR_REQUEST
        write_atomically(folder / name, text.encode())

    def _kept(self) -> Iterator[SiloRequest | CoordinatorRequest]:
        for path in sorted((self.home / "requests").glob("*.txt")):
            yield parse_request(read_file(path), str(path))

    def _first(self, federation: FederationFile, *, partial: bool) -> Outcome:
        kept = list(self._kept())
        silos = {request.name: request for request in kept if isinstance(request, SiloRequest)}
        coordinator = next((request for request in kept if isinstance(request, CoordinatorRequest)), None)
        order = [name for name in federation.silos if name in silos]
        missing = [name for name in federation.silos if name not in silos]
        absent = (("the coordinator",) if coordinator is None else ()) + tuple(missing)
        if coordinator is None or len(order) < MIN_SILOS or (missing and not partial):
            return Outcome(None, None, absent)
        entries = tuple(RosterEntry(i, name, silos[name].public) for i, name in enumerate(order, start=1))
        nodes = {entry.silo: silos[entry.name].node for entry in entries}
        terms = self._terms(federation, self._certificate(federation))
        return self._publish(None, terms, Roster(coordinator.public, entries), nodes, len(entries) + 1)

    def _next(
        self, before: Bundle, federation: FederationFile, read: Sequence[SiloRequest | CoordinatorRequest]
    ) -> Outcome:
        coordinator = before.members.coordinator
        entries = {entry.name: entry for entry in before.members.entries}
        nodes, number = dict(before.node_keys), before.next_silo
        for request in read:
            if isinstance(request, CoordinatorRequest):
                coordinator = request.public
                continue
            if request.name in entries:
                del nodes[entries.pop(request.name).silo]
            entries[request.name] = RosterEntry(number, request.name, request.public)
            nodes[number] = request.node
            number += 1
        roster = Roster(coordinator, tuple(sorted(entries.values(), key=lambda entry: entry.silo)))
        renewed = coordinator != before.members.coordinator
        terms = self._terms(federation, self._certificate(federation)) if renewed else before.terms
        return self._publish(before, terms, roster, nodes, number)

    def _certificate(self, federation: FederationFile) -> str:
        path = self.home / "requests" / COORDINATOR_REQUEST
        request = parse_request(read_file(path), str(path))
        assert isinstance(request, CoordinatorRequest)
        csr = valid_request(request.certificate_request, request.identity)
        key = key_file(self.home / "ca.key", TLS_CURVE)
        # The coordinator's operator asks its own SuperLink over the loopback interface.
        hosts = tuple(dict.fromkeys((*federation.coordinator.hosts, *LOOPBACK)))
        return server_certificate(key, self.ca, csr, hosts, federation.validity_days, datetime.now(UTC))

    def _terms(self, federation: FederationFile, server: str) -> dict[str, Any]:
        """What a bundle takes from the federation's file, with a server certificate."""
        text = federation.declaration_text
        return {
            "name": federation.name,
            "address": federation.coordinator.address,
            "ca": self.ca,
            "server": server,
            "declaration": text,
            "task": federation_task(federation.name, declared(text), federation.scoring).to_json(),
            "scoring": federation.scoring,
            "public_test": self._public_test_digest(federation),
        }

    def _public_test_digest(self, federation: FederationFile) -> str:
        if federation.scoring != "public":
            return ""
        path = self.home / PUBLIC_TEST
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; scoring = public needs the records that init was given")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def _publish(
        self, before: Bundle | None, terms: dict[str, Any], roster: Roster, nodes: dict[int, str], next_silo: int
    ) -> Outcome:
        if before is not None and before.version == MAX_VERSIONS:
            raise EnrolmentError(f"{MAX_VERSIONS} versions were signed, which is all; found the federation anew")
        unsigned = Bundle(
            version=1 if before is None else before.version + 1,
            history=() if before is None else (*before.history, before.digest),
            authority=self._identity.public.hex(),
            roster=roster.to_bytes().hex(),
            nodes=tuple((silo, nodes[silo]) for silo in roster.silos),
            next_silo=next_silo,
            **terms,
        )
        bundle = sign_bundle(unsigned, self._identity)
        change = change_between(before, bundle) if before else RosterChange((), bundle.members.entries, ())
        with storing(self.home / "rosters"):
            (self.home / "rosters").mkdir(mode=0o700, exist_ok=True)
        # The numbered file is what counts: after a crash here, opening the home writes the other one.
        write_atomically(self.home / "rosters" / f"{bundle.version:04d}.txt", bundle.text.encode())
        write_atomically(self.home / "bundle.txt", bundle.text.encode())
        enrolled = {entry.name for entry in roster.entries}
        return Outcome(bundle, change, tuple(name for name in self.federation.silos if name not in enrolled))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _keys(request: SiloRequest | CoordinatorRequest) -> tuple[str, ...]:
    return (request.identity, request.node) if isinstance(request, SiloRequest) else (request.identity,)


def _title(request: SiloRequest | CoordinatorRequest) -> str:
    return request.name if isinstance(request, SiloRequest) else "the coordinator"
