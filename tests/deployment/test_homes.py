"""Homes: what init makes, which bundles are installed, and that a crash leaves one whole version."""

from __future__ import annotations

import base64
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from autoflip_secure.deployment.authority import init_authority
from autoflip_secure.deployment.bundle import open_bundle, sign_bundle
from autoflip_secure.deployment.coordinator_home import CoordinatorHome, init_coordinator
from autoflip_secure.deployment.homes import UNPACKED, ConsentNeeded, accept_update, home_lock
from autoflip_secure.deployment.silo_home import SiloHome, init_silo
from autoflip_secure.errors import AutoflipSecureError, CannotContinue, EnrolmentError, InputError, StorageError
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.silo import Silo
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster

SECRETS = ("authority.key", "ca.key", "coordinator.key", "server.key", "identity.key", "node.key")


class Killed(BaseException):
    """The process ends here: nothing catches it."""


CALLS = ("open", "replace", "rename", "mkdir", "symlink", "fsync", "unlink", "rmdir")


@contextmanager
def killed_at(call: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise before the given call (from 0) of anything that changes the disk."""
    made = 0

    def counting(real: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **named: object) -> object:
            nonlocal made
            if made >= call:
                raise Killed
            made += 1
            return real(*arguments, **named)

        return called

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counting(getattr(os, name)))
        yield


def every_kill(act: Callable[[], object], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> int:
    """Kill `act` before its first, second, ... change of the disk, until it gets through; check after each."""
    for call in range(1000):
        try:
            with killed_at(call, monkeypatch):
                act()
        except Killed:
            check()
            continue
        check()
        return call
    raise AssertionError("the action never gets through")


def test_the_homes_that_init_makes_are_the_ones_that_the_federation_reads(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    home = federation.silos["hospital-b"]
    assert Roster.from_bytes((home.path / "roster.bin").read_bytes()) == home.installed().members
    silo = Silo(home.path)
    assert silo.id == 2
    silo.close()
    assert federation.coordinator.address == ("127.0.0.1", 8000)
    assert home.facts()["enrolled as"] == "silo 2"
    assert federation.coordinator.facts()["silos"].startswith("1 hospital-a, 2 hospital-b")


def test_private_keys_are_for_their_owner_alone_and_stay_in_their_home(make_parties) -> None:
    federation = make_parties(enrolled=3)
    federation.authority.enrol([federation.silos["hospital-d"].request])
    federation.install()
    everything = [path for path in federation.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    keys = [path for path in everything if path.name in SECRETS]
    assert len(keys) == 2 + 2 + 2 * 4
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700, key.parent
        loaded = (load_ssh_private_key if key.name == "node.key" else load_pem_private_key)(key.read_bytes(), None)
        raw = (
            loaded.private_bytes_raw()
            if hasattr(loaded, "private_bytes_raw")
            else loaded.private_numbers().private_value.to_bytes(48, "big").lstrip(b"\0")
        )
        for other in everything:
            if other != key:
                content = other.read_bytes()
                assert raw not in content, (key, other)
                assert raw.hex().encode() not in content.lower(), (key, other)
                flat = content.replace(b"\n", b"").replace(b"\\n", b"")
                assert not any(base64.b64encode(raw[start : start + 24]) in flat for start in range(3)), (key, other)
    for silo in federation.silos.values():
        assert stat.S_IMODE(silo.policy.stat().st_mode) == 0o600


@pytest.mark.parametrize("party", ["coordinator", "silo", "authority"])
def test_init_goes_on_wherever_it_was_killed(make_parties, tmp_path: Path, monkeypatch, party: str) -> None:
    home = tmp_path / "home"
    file = tmp_path / "f.toml"
    from tests.deployment.conftest import federation_text

    file.write_text(federation_text())
    act = {
        "coordinator": lambda: init_coordinator(home),
        "silo": lambda: init_silo(home, "hospital-a"),
        "authority": lambda: init_authority(file, home),
    }[party]
    keys: dict[str, bytes] = {}

    def check() -> None:
        for name in SECRETS:
            if (home / name).exists():
                content = (home / name).read_bytes()
                assert keys.setdefault(name, content) == content, "a key that was there was replaced"
                assert stat.S_IMODE((home / name).stat().st_mode) == 0o600

    assert every_kill(act, check, monkeypatch) > 5
    assert len(keys) == 2
    with pytest.raises(InputError, match="already and is kept"):
        act()
    check()


def test_init_under_another_name_is_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(Killed), killed_at(12, monkeypatch):
        init_silo(tmp_path / "s", "hospital-a")
    with pytest.raises(InputError, match="begun as the home of hospital-a"):
        init_silo(tmp_path / "s", "hospital-b")


@pytest.mark.parametrize("name", ["", "a b", "../a", "-a", "a/b", "ä", "a" * 65, "a\n"])
def test_a_silo_has_a_name_that_file_systems_and_terminals_can_bear(tmp_path: Path, name: str) -> None:
    with pytest.raises(EnrolmentError, match="a silo's name is"):
        init_silo(tmp_path / "s", name)
    assert not (tmp_path / "s").exists()


def test_the_first_bundle_needs_the_fingerprint_of_its_authority(make_parties) -> None:
    federation = make_parties(enrolled=4)
    home, text = federation.silos["hospital-a"], federation.version(1)
    with pytest.raises(EnrolmentError, match="no authority is trusted here yet"):
        accept_update(home, text, consent=True)
    with pytest.raises(EnrolmentError, match="no authority is trusted here yet"):
        accept_update(home, text, consent=False, authority=federation.authority.fingerprint)
    with pytest.raises(EnrolmentError, match="not from the one this party"):
        accept_update(home, text, consent=True, authority="AAAAA-AAAAA-AAAAA-AAAAA-AAAAA")
    assert home.bundle is None
    accept_update(home, text, consent=True, authority=federation.authority.fingerprint.lower().replace("-", " "))
    with pytest.raises(EnrolmentError, match="this home trusts"):
        accept_update(home, text, consent=True, authority="AAAAA-AAAAA-AAAAA-AAAAA-AAAAA")
    assert str(accept_update(home, text, consent=True)) == "changes nothing"


def test_a_home_without_keys_installs_nothing(make_parties, tmp_path: Path) -> None:
    federation = make_parties(enrolled=4)
    for home in (SiloHome(tmp_path / "none"), CoordinatorHome(tmp_path / "none")):
        with pytest.raises(InputError, match=r"no request\.txt there"):
            accept_update(home, federation.version(1), consent=True, authority=federation.authority.fingerprint)


def test_a_bundle_without_this_partys_keys_is_refused(make_parties) -> None:
    one, two = make_parties("one", enrolled=4), make_parties("two", enrolled=4)
    for home in (two.silos["hospital-a"], two.coordinator):
        with pytest.raises(EnrolmentError, match="identity"):
            accept_update(home, one.version(1), consent=True, authority=one.authority.fingerprint)
        assert home.bundle is None


def resigned(federation, version: int, **changes: object) -> str:
    """A bundle that the authority signed with other content."""
    authority = Identity.load(federation.authority.home / "authority.key")
    return sign_bundle(open_bundle(federation.version(version), "b").model_copy(update=changes), authority).text


def test_a_bundle_with_another_node_key_or_certificate_for_this_party_is_refused(make_parties) -> None:
    federation, other = make_parties("one", enrolled=4), make_parties("two", enrolled=4)
    fingerprint = federation.authority.fingerprint
    nodes = open_bundle(federation.version(1), "b").nodes
    swapped = ((1, nodes[1][1]), (2, nodes[0][1]), *nodes[2:])
    text = resigned(federation, 1, nodes=swapped)
    with pytest.raises(EnrolmentError, match="another name or node key"):
        accept_update(federation.silos["hospital-a"], text, consent=True, authority=fingerprint)
    theirs = open_bundle(other.version(1), "b")
    text = resigned(federation, 1, ca=theirs.ca, server=theirs.server)
    with pytest.raises(EnrolmentError, match="another key than"):
        accept_update(federation.coordinator, text, consent=True, authority=fingerprint)


def test_a_removal_is_taken_over_unasked_and_an_addition_is_not(make_parties) -> None:
    federation = make_parties(enrolled=3)
    home, fingerprint = federation.silos["hospital-a"], federation.authority.fingerprint
    accept_update(home, federation.version(1), consent=True, authority=fingerprint)
    federation.authority.enrol([federation.silos["hospital-d"].request])
    with pytest.raises(ConsentNeeded, match="adds hospital-d; nothing was changed"):
        accept_update(home, federation.version(2), consent=False)
    assert home.installed().version == 1
    accept_update(home, federation.version(2), consent=True)
    federation.authority.remove("hospital-b")
    assert str(accept_update(home, federation.version(3), consent=False)) == "removes hospital-b"
    assert home.installed().version == 3
    assert Roster.from_bytes((home.path / "roster.bin").read_bytes()).silos == (1, 3, 4)
    for older in (1, 2):
        with pytest.raises(EnrolmentError, match="older than version 3"):
            accept_update(home, federation.version(older), consent=True)
    federation.authority.renew()
    assert str(accept_update(home, federation.version(4), consent=False)) == "changes server"


def test_a_removal_below_the_least_size_of_the_policy_needs_consent(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    home = federation.silos["hospital-a"]
    home.policy.write_text(SiloPolicy(min_silos=4).to_toml())
    federation.authority.remove("hospital-b")
    with pytest.raises(ConsentNeeded, match="leaves 3 silos, this party wants 4 or more"):
        accept_update(home, federation.version(2), consent=False)
    assert home.installed().version == 1
    accept_update(home, federation.version(2), consent=True)
    assert home.installed().version == 2


def test_a_silo_that_was_removed_takes_that_over_and_answers_nobody(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    federation.authority.remove("hospital-b")
    home = federation.silos["hospital-b"]
    accept_update(home, federation.version(2), consent=False)
    assert home.facts()["enrolled as"] == "nobody: this silo was removed"
    with pytest.raises(AutoflipSecureError, match="not in its roster"):
        Silo(home.path)


def test_a_fork_is_refused_and_the_installed_version_kept(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    federation.authority.remove("hospital-b")
    home = federation.silos["hospital-a"]
    accept_update(home, federation.version(2), consent=False)
    with pytest.raises(EnrolmentError, match="two different histories"):
        accept_update(home, resigned(federation, 2, next_silo=9), consent=True)
    assert home.installed().digest == open_bundle(federation.version(2), "b").digest


def installed_set(home: Path) -> dict[str, bytes | None]:
    """What readers of a home see."""
    return {name: (home / name).read_bytes() if (home / name).exists() else None for name in UNPACKED}


@pytest.mark.parametrize("party", ["coordinator", "silo"])
def test_a_crash_while_installing_leaves_the_old_files_or_the_new_ones(make_parties, monkeypatch, party: str) -> None:
    federation = make_parties(enrolled=4)
    home = federation.coordinator if party == "coordinator" else federation.silos["hospital-a"]
    fingerprint = federation.authority.fingerprint
    seen: list[dict[str, bytes | None]] = [installed_set(home.path)]

    def check() -> None:
        now = installed_set(home.path)
        assert (now["bundle.txt"] is None) == (home.bundle is None)
        if now != seen[-1]:
            seen.append(now)

    kills = every_kill(
        lambda: accept_update(home, federation.version(1), consent=True, authority=fingerprint), check, monkeypatch
    )
    assert kills > 20
    assert len(seen) == 2, "files of two versions were seen together"
    assert set(seen[0].values()) == {None}
    federation.authority.remove("hospital-d")
    every_kill(lambda: accept_update(home, federation.version(2), consent=False), check, monkeypatch)
    assert len(seen) == 3
    assert home.installed().version == 2
    assert seen[2]["roster.bin"] != seen[1]["roster.bin"]


def test_a_full_disk_keeps_the_installed_version(make_parties, monkeypatch) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    federation.authority.remove("hospital-d")
    home = federation.silos["hospital-a"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace", "mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(StorageError, match="No space left"):
                accept_update(home, federation.version(2), consent=False)
        assert home.installed().version == 1
    accept_update(home, federation.version(2), consent=False)
    assert home.installed().version == 2


def test_one_command_at_a_time_changes_a_home(make_parties) -> None:
    federation = make_parties(enrolled=4)
    home = federation.silos["hospital-a"]
    with home_lock(home.path), pytest.raises(CannotContinue, match="another command"):
        accept_update(home, federation.version(1), consent=True, authority=federation.authority.fingerprint)
    accept_update(home, federation.version(1), consent=True, authority=federation.authority.fingerprint)


def test_a_bundle_that_was_changed_on_disk_is_noticed(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    home = federation.silos["hospital-a"]
    path = home.path / "bundle.txt"
    path.write_text(path.read_text().replace("cardiology", "cardiologx"))
    with pytest.raises(EnrolmentError, match="not signed by its authority"):
        home.installed()


@pytest.mark.parametrize("name", ["identity.key", "node.key"])
def test_a_key_that_others_may_read_is_refused(make_parties, name: str) -> None:
    federation = make_parties(enrolled=4)
    home = federation.silos["hospital-a"]
    (home.path / name).chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        accept_update(home, federation.version(1), consent=True, authority=federation.authority.fingerprint)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", b"nothing"])
def test_a_damaged_key_is_named_and_not_quoted(make_parties, content: bytes) -> None:
    federation = make_parties(enrolled=4)
    home = federation.silos["hospital-a"]
    home.node_key.write_bytes(content)
    with pytest.raises(InputError, match="restore it") as error:
        accept_update(home, federation.version(1), consent=True, authority=federation.authority.fingerprint)
    assert "AAAA" not in str(error.value)


def test_the_policy_a_silo_begins_with_is_the_default_with_every_setting_explained(tmp_path: Path) -> None:
    home = init_silo(tmp_path / "s", "hospital-a")
    assert SiloPolicy.read(home.policy) == SiloPolicy()
    lines = home.policy.read_text().splitlines()
    for name in SiloPolicy.model_fields:
        place = next(i for i, line in enumerate(lines) if line.startswith((f"{name} = ", f"# {name} is not set")))
        said = " ".join(itertools.takewhile(bool, lines[place - 1 :: -1]))
        assert said.startswith("# "), name
        assert len(said) > 20, name
