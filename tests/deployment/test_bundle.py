"""The signed bundle: who may have written it, which one follows which, and what it changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.deployment.armour import armoured, canonical
from autoflip_secure.deployment.authority import Authority
from autoflip_secure.deployment.bundle import Bundle, authority_fingerprint, change_between, open_bundle, sign_bundle
from autoflip_secure.deployment.homes import accept_update
from autoflip_secure.errors import EnrolmentError
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry


@pytest.fixture
def bundles(make_parties) -> tuple[Identity, Bundle, Bundle, Bundle]:
    """The authority's key, and versions 1 (a, b, c), 2 (adds d), 3 (removes b)."""
    federation = make_parties(enrolled=3)
    federation.authority.enrol([federation.silos["hospital-d"].request])
    federation.authority.remove("hospital-b")
    return (Identity.load(federation.authority.home / "authority.key"), *federation.authority.bundles)


def signed(authority: Identity, body: dict[str, Any]) -> str:
    """A bundle with any content, signed by the authority."""
    return armoured(
        "federation bundle", body, {"authority": authority.sign(b"enrolment/bundle", canonical(body)).hex()}
    )


def test_a_bundle_reads_as_it_was_signed(bundles) -> None:
    authority, first, *_ = bundles
    assert open_bundle(first.text, "b", lambda public: public == authority.public) == first
    assert first.version == 1
    assert [entry.name for entry in first.members.entries] == ["hospital-a", "hospital-b", "hospital-c"]
    assert tuple(first.node_keys) == first.members.silos


@lru_cache
def _kept_bundle() -> str:
    """One bundle for all examples, made once."""
    import tempfile

    from autoflip_secure.deployment.authority import init_authority
    from autoflip_secure.deployment.coordinator_home import init_coordinator
    from autoflip_secure.deployment.silo_home import init_silo
    from tests.deployment.conftest import federation_text

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "f.toml").write_text(federation_text())
        authority = init_authority(folder / "f.toml", folder / "authority")
        names = authority.federation.silos
        requests = [init_coordinator(folder / "c").request, *(init_silo(folder / n, n).request for n in names)]
        outcome = authority.enrol(requests)
        assert outcome.bundle is not None
        return outcome.bundle.text


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_bundle_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    text = _kept_bundle()
    place = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.one_of(st.just(""), st.characters(codec="ascii"), st.text(min_size=2, max_size=4)))
    changed = text[:place] + put + text[place + 1 :]
    if changed == text:
        return
    with pytest.raises(EnrolmentError):
        open_bundle(changed, "bundle.txt", lambda _: True)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.booleans())
def test_no_text_crashes_the_reader(inner: str, framed: bool) -> None:
    label = "AUTOFLIP-SECURE FEDERATION BUNDLE-----"
    with pytest.raises(EnrolmentError):
        open_bundle(
            f"-----BEGIN {label}\n{inner}\n-----END {label}\n" if framed else inner, "bundle.txt", lambda _: True
        )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=JSON_VALUES)
def test_no_value_in_a_field_crashes_the_reader_even_where_the_authority_signed_it(data: st.DataObject, value) -> None:
    authority = Identity.generate()
    body = json.loads("\n".join(_kept_bundle().splitlines()[1:-1]))["body"]
    body["authority"] = authority.public.hex()
    name = data.draw(st.sampled_from(sorted(body)))
    open_bundle(signed(authority, body), "b")
    if body[name] == value:
        return
    body[name] = value
    try:
        bundle = open_bundle(signed(authority, body), "bundle.txt", lambda public: public == authority.public)
    except EnrolmentError:
        return
    # A few values are as good as the true one: numbers below the next id, and text of the federation's name.
    assert name in {"next_silo"}
    assert bundle.next_silo > max(bundle.members.silos)


def test_a_bundle_of_another_authority_is_refused_whatever_it_says(bundles) -> None:
    authority, first, *_ = bundles
    stranger = Identity.generate()
    body = {**json.loads(canonical(first.model_dump(mode="json"))), "authority": stranger.public.hex()}
    with pytest.raises(EnrolmentError, match="not from the one this party"):
        open_bundle(signed(stranger, body), "b", lambda public: public == authority.public)
    with pytest.raises(EnrolmentError, match="not signed by its authority"):
        open_bundle(signed(stranger, first.model_dump(mode="json")), "b", lambda public: public == authority.public)


def test_a_signature_of_another_purpose_does_not_hold(bundles) -> None:
    authority, first, *_ = bundles
    body = first.model_dump(mode="json")
    other = armoured("federation bundle", body, {"authority": authority.sign(b"enrolment/silo", canonical(body)).hex()})
    with pytest.raises(EnrolmentError, match="not signed by its authority"):
        open_bundle(other, "b")


def _other_roster(body: dict[str, Any]) -> str:
    roster = Roster.from_bytes(bytes.fromhex(body["roster"]))
    return Roster(bytes.fromhex(body["authority"]), roster.entries).to_bytes().hex()


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "history": lambda body: {"history": ["0" * 64]},
    "history of no digest": lambda body: {"version": 2, "history": ["x"]},
    "address": lambda body: {"address": "127.0.0.1"},
    "port": lambda body: {"address": "127.0.0.1:99999"},
    "host": lambda body: {"address": "elsewhere.example.org:8000"},
    "roster": lambda body: {"roster": body["roster"][:-2]},
    "odd roster": lambda body: {"roster": body["roster"] + "0"},
    "authority in the roster": lambda body: {"roster": _other_roster(body)},
    "task": lambda body: {"task": body["task"].replace('"classes": 2', '"classes": 3')},
    "declaration": lambda body: {"declaration": body["declaration"].replace("features = 3", "features = 4")},
    "no declaration": lambda body: {"declaration": "= nothing"},
    "scoring": lambda body: {"scoring": "public"},
    "public test": lambda body: {"public_test": "0" * 64},
    "node missing": lambda body: {"nodes": body["nodes"][:-1]},
    "node twice": lambda body: {"nodes": [*body["nodes"][:-1], [body["nodes"][-1][0], body["nodes"][0][1]]]},
    "node order": lambda body: {"nodes": body["nodes"][::-1]},
    "node doubled": lambda body: {"nodes": [*body["nodes"], body["nodes"][-1]]},
    "node of no key": lambda body: {"nodes": [*body["nodes"][:-1], [body["nodes"][-1][0], "ssh-rsa AAAA"]]},
    "next id": lambda body: {"next_silo": 3},
    "CA": lambda body: {"ca": body["server"]},
    "unknown field": lambda body: {"more": 1},
    "signature inside": lambda body: {"signature": "00"},
    "format": lambda body: {"format": 2},
    "version": lambda body: {"version": 0, "history": []},
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_bundle_that_contradicts_itself_is_refused_although_its_authority_signed_it(bundles, name: str) -> None:
    authority, first, *_ = bundles
    body = first.model_dump(mode="json")
    open_bundle(signed(authority, body), "b")
    with pytest.raises(EnrolmentError):
        open_bundle(signed(authority, {**body, **CONTRADICTIONS[name](body)}), "b")


def test_what_follows_from_a_bundle_is_told_also_where_its_parts_are_read_otherwise_today(bundles) -> None:
    authority, first, *_ = bundles
    body = first.model_dump(mode="json")
    old = signed(authority, {**body, "task": body["task"].replace('"note"', '"remark"')})
    assert open_bundle(old, "b", installed=True).version == 1
    with pytest.raises(EnrolmentError, match="the task is not what"):
        open_bundle(old, "b")


def test_changes_are_named(bundles) -> None:
    _, first, second, third = bundles
    assert str(change_between(first, second)) == "adds hospital-d"
    assert str(change_between(second, third)) == "removes hospital-b"
    both = change_between(first, third)
    assert [entry.name for entry in both.removed] == ["hospital-b"]
    assert [entry.name for entry in both.added] == ["hospital-d"]
    assert both.needs_consent
    assert not change_between(second, third).needs_consent
    assert str(change_between(third, third)) == "changes nothing"


def test_an_older_bundle_is_refused(bundles) -> None:
    _, first, second, _ = bundles
    with pytest.raises(EnrolmentError, match="older than version 2"):
        change_between(second, first)


def forked(authority: Identity, bundle: Bundle, **changes: object) -> Bundle:
    return sign_bundle(bundle.model_copy(update=changes), authority)


def test_two_different_versions_of_one_number_are_told_apart(bundles) -> None:
    authority, _, second, third = bundles
    fork = forked(authority, second, next_silo=second.next_silo + 5)
    with pytest.raises(EnrolmentError, match="two different histories"):
        change_between(second, fork)
    # And so is all that was built on the other one.
    with pytest.raises(EnrolmentError, match="two different histories"):
        change_between(fork, third)


def test_a_version_that_hides_the_installed_one_is_refused(bundles) -> None:
    authority, first, second, third = bundles
    with pytest.raises(EnrolmentError, match="two different histories"):
        change_between(second, forked(authority, third, history=(first.digest, "0" * 64)))
    with pytest.raises(EnrolmentError, match="two different histories"):
        change_between(second, forked(authority, third, history=("0" * 64, second.digest)))


def test_an_id_is_never_used_again(bundles) -> None:
    authority, _, second, third = bundles
    back = Roster(
        third.members.coordinator,
        (*third.members.entries[:1], RosterEntry(2, "new", b"\1" * 32), *third.members.entries[1:]),
    )
    nodes = tuple(sorted((*third.nodes, (2, second.node_keys[2]))))
    again = forked(
        authority, third, version=4, history=(*third.history, third.digest), roster=back.to_bytes().hex(), nodes=nodes
    )
    with pytest.raises(EnrolmentError, match="id again"):
        change_between(third, again)
    lower = forked(authority, third, version=4, history=(*third.history, third.digest), next_silo=third.next_silo + 1)
    with pytest.raises(EnrolmentError, match="id again"):
        change_between(lower, forked(authority, third, version=5, history=(*lower.history, lower.digest)))


def test_a_silo_with_another_node_key_or_name_counts_as_added(bundles) -> None:
    authority, _, _, third = bundles
    entries = third.members.entries
    renamed = Roster(third.members.coordinator, (RosterEntry(1, "other", entries[0].public), *entries[1:]))
    newer = {"version": 4, "history": (*third.history, third.digest)}
    with pytest.raises(EnrolmentError, match="id again"):
        change_between(third, forked(authority, third, roster=renamed.to_bytes().hex(), **newer))


def test_other_changes_need_consent_and_a_renewed_server_certificate_does_not(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.authority.renew()
    first, second = federation.authority.bundles
    assert change_between(first, second).other == ("server",)
    assert not change_between(first, second).needs_consent
    text = (federation.authority.home / "federation.toml").read_text()
    (federation.authority.home / "federation.toml").write_text(text.replace("port = 8000", "port = 9000"))
    federation.authority.renew()
    change = change_between(second, federation.authority.bundles[-1])
    assert change.other == ("address", "server")
    assert change.needs_consent


def test_the_history_of_versions_stays_with_its_authority(make_parties) -> None:
    one, two = make_parties("one", enrolled=4), make_parties("two", enrolled=4)
    with pytest.raises(EnrolmentError, match="another authority"):
        change_between(one.authority.bundles[0], two.authority.bundles[0])
    one.install()
    with pytest.raises(EnrolmentError, match="not from the one this party"):
        accept_update(one.silos["hospital-a"], two.version(1), consent=True)


def test_an_authority_notices_that_its_own_files_were_exchanged(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.authority.renew()
    rosters = federation.authority.home / "rosters"
    (rosters / "0002.txt").write_text((rosters / "0001.txt").read_text())
    (rosters / "0001.txt").unlink()
    (rosters / "0003.txt").write_text((rosters / "0002.txt").read_text().replace("cardiology", "cardiologx"))
    with pytest.raises(EnrolmentError, match="not signed by its authority"):
        Authority(federation.authority.home)


def test_the_fingerprint_of_an_authority_is_of_its_key(bundles) -> None:
    authority, *_ = bundles
    assert authority_fingerprint(authority.public) != authority_fingerprint(Identity.generate().public)
