"""The federation's owner: whom it enrols, whom it removes, and that keys are enrolled once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.deployment.authority import Authority, init_authority
from autoflip_secure.deployment.bundle import change_between, open_bundle
from autoflip_secure.deployment.coordinator_home import init_coordinator
from autoflip_secure.deployment.homes import accept_update
from autoflip_secure.deployment.silo_home import init_silo
from autoflip_secure.errors import ConfigError, EnrolmentError, InputError
from tests.deployment.conftest import federation_text
from tests.deployment.test_homes import every_kill


def test_the_first_bundle_waits_for_everybody_whom_the_file_names(make_parties) -> None:
    federation = make_parties()
    requests = [silo.request for silo in federation.silos.values()]
    outcome = federation.authority.enrol(requests[:2])
    assert outcome.bundle is None
    assert outcome.missing == ("the coordinator", "hospital-c", "hospital-d")
    assert federation.authority.enrol([federation.coordinator.request]).missing == ("hospital-c", "hospital-d")
    outcome = Authority(federation.authority.home).enrol(requests[2:])
    assert outcome.bundle is not None
    assert [entry.name for entry in outcome.bundle.members.entries] == list(federation.silos)
    assert outcome.missing == ()
    assert federation.bundle_file.read_text() == outcome.bundle.text


def test_a_first_bundle_without_some_is_signed_on_demand_but_never_below_three_silos(make_parties) -> None:
    federation = make_parties()
    requests = [federation.coordinator.request, *(silo.request for silo in federation.silos.values())]
    assert federation.authority.enrol(requests[:3], partial=True).bundle is None
    outcome = federation.authority.enrol(requests[3:4], partial=True)
    assert outcome.bundle is not None
    assert outcome.missing == ("hospital-d",)


def test_a_silo_that_the_file_does_not_name_is_not_enrolled(make_parties, tmp_path) -> None:
    federation = make_parties(enrolled=4)
    stranger = init_silo(tmp_path / "x", "hospital-x")
    with pytest.raises(EnrolmentError, match="hospital-x: not among the silos"):
        federation.authority.enrol([stranger.request])
    path = federation.authority.home / "federation.toml"
    path.write_text(federation_text((*federation.silos, "hospital-x")))
    outcome = federation.authority.enrol([stranger.request])
    assert str(outcome.change) == "adds hospital-x"
    assert outcome.bundle.members.entries[-1].silo == 5


def test_nothing_is_enrolled_where_one_of_the_requests_is_wrong(make_parties) -> None:
    federation = make_parties()
    silos = [silo.request for silo in federation.silos.values()]
    silos[2].write_text(silos[2].read_text().replace("hospital-c", "hospital-d"))
    with pytest.raises(EnrolmentError, match="not signed"):
        federation.authority.enrol([federation.coordinator.request, *silos], partial=True)
    assert federation.authority.bundle is None
    assert not list((federation.authority.home / "requests").glob("*"))


def test_a_party_sends_one_request(make_parties, tmp_path) -> None:
    federation = make_parties()
    twin = init_silo(tmp_path / "twin", "hospital-a")
    with pytest.raises(EnrolmentError, match="two requests are of one party"):
        federation.authority.enrol([federation.silos["hospital-a"].request, twin.request])
    other = init_coordinator(tmp_path / "other")
    with pytest.raises(EnrolmentError, match="two requests are of one party"):
        federation.authority.enrol([federation.coordinator.request, other.request])


def test_new_keys_of_an_enrolled_silo_take_a_new_id_and_only_on_demand(make_parties, tmp_path) -> None:
    federation = make_parties(enrolled=4)
    renewed = init_silo(tmp_path / "new", "hospital-b")
    with pytest.raises(EnrolmentError, match="give --replace"):
        federation.authority.enrol([renewed.request])
    outcome = federation.authority.enrol([renewed.request], replace=True)
    assert str(outcome.change) == "removes hospital-b, adds hospital-b"
    assert [(e.silo, e.name) for e in outcome.bundle.members.entries][-1] == (5, "hospital-b")
    assert outcome.bundle.members.silos == (1, 3, 4, 5)
    accept_update(renewed, outcome.bundle.text, consent=True, authority=federation.authority.fingerprint)
    assert renewed.facts()["enrolled as"] == "silo 5"


def test_keys_that_were_removed_never_come_back(make_parties, tmp_path) -> None:
    federation = make_parties(enrolled=4)
    old = federation.silos["hospital-b"]
    federation.authority.remove("hospital-b")
    for replace in (False, True):
        with pytest.raises(EnrolmentError, match="keys are enrolled once"):
            federation.authority.enrol([old.request], replace=replace)
    outcome = federation.authority.enrol([init_silo(tmp_path / "new", "hospital-b").request])
    assert outcome.bundle.members.entries[-1].silo == 5


def test_one_key_is_not_two_parties(make_parties, tmp_path) -> None:
    federation = make_parties()
    twin = tmp_path / "twin"
    init_silo(twin, "hospital-b")
    own = federation.silos["hospital-a"]
    for name in ("identity.key", "node.key"):
        kept = (twin / name).read_bytes()
        (twin / name).write_bytes((own.path / name).read_bytes())
        (twin / "request.txt").unlink()
        init_silo(twin, "hospital-b")
        with pytest.raises(EnrolmentError, match="a key of the request is or was that of hospital-a"):
            federation.authority.enrol([own.request, twin / "request.txt"])
        (twin / name).write_bytes(kept)


def test_a_new_coordinator_takes_the_place_of_the_old_one_on_demand(make_parties, tmp_path) -> None:
    federation = make_parties(enrolled=4)
    federation.install()
    other = init_coordinator(tmp_path / "other")
    with pytest.raises(EnrolmentError, match="a coordinator is enrolled already"):
        federation.authority.enrol([other.request])
    outcome = federation.authority.enrol([other.request], replace=True)
    assert outcome.change.other == ("server", "coordinator")
    assert outcome.change.needs_consent
    accept_update(other, outcome.bundle.text, consent=True, authority=federation.authority.fingerprint)
    with pytest.raises(EnrolmentError, match="another coordinator's identity"):
        accept_update(federation.coordinator, outcome.bundle.text, consent=True)


def test_a_federation_keeps_three_silos(make_parties) -> None:
    federation = make_parties(enrolled=4)
    federation.authority.remove("hospital-a")
    with pytest.raises(EnrolmentError, match="hides nobody"):
        federation.authority.remove("hospital-b")
    with pytest.raises(EnrolmentError, match="no silo of that name"):
        federation.authority.remove("hospital-a")
    assert federation.authority.bundle.version == 2


def test_before_anybody_is_enrolled_there_is_nothing_to_change(make_parties) -> None:
    federation = make_parties()
    for act in (federation.authority.renew, lambda: federation.authority.remove("hospital-a")):
        with pytest.raises(EnrolmentError, match="nobody is enrolled yet"):
            act()


def test_a_folder_that_is_no_authoritys_home_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no authority's home"):
        Authority(tmp_path)


@pytest.mark.parametrize("act", ["first", "next", "remove", "renew"])
def test_an_authority_that_is_killed_signs_one_history(make_parties, monkeypatch, act: str) -> None:
    """Whatever the authority handed out before it was killed, what it signs later follows from it."""
    federation = make_parties(enrolled=None if act == "first" else 3)
    home = federation.authority.home
    silo = federation.silos["hospital-d"].request
    everybody = [federation.coordinator.request, *(silo.request for silo in federation.silos.values())]
    target = 1 if act == "first" else 2
    handed_out: dict[int, str] = {}

    def attempt() -> None:
        authority = Authority(home)
        if authority.bundle is not None and authority.bundle.version >= target:
            return
        {
            "first": lambda: authority.enrol(everybody),
            "next": lambda: authority.enrol([silo]),
            "remove": lambda: authority.enrol([silo]) if authority.bundle.version == 1 else None,
            "renew": authority.renew,
        }[act]()

    def check() -> None:
        if federation.bundle_file.exists():
            bundle = open_bundle(federation.bundle_file.read_text(), "b")
            assert handed_out.setdefault(bundle.version, bundle.digest) == bundle.digest

    assert every_kill(attempt, check, monkeypatch) > 3
    final = Authority(home).bundle
    assert final.version == target
    assert federation.bundle_file.read_text() == final.text
    assert handed_out[target] == final.digest


def test_what_the_file_says_later_comes_with_the_next_renewal(make_parties) -> None:
    federation = make_parties(enrolled=4)
    path = federation.authority.home / "federation.toml"
    path.write_text(path.read_text().replace("features = 3", "features = 4"))
    change = federation.authority.renew().change
    assert change.other == ("server", "declaration", "task")
    assert change.needs_consent
    path.write_text(path.read_text().replace("features = 4", "feathers = 4"))
    with pytest.raises(InputError, match=r"federation\.toml:\d+: feathers"):
        federation.authority.renew()


def test_the_certificate_is_for_the_hosts_of_the_file_and_the_operators_own_machine(make_parties) -> None:
    from autoflip_secure.deployment.certificates import check_chain

    federation = make_parties(enrolled=4, text=federation_text(hosts=("fl.example.org", "10.1.2.3")))
    bundle = federation.authority.bundle
    for host in ("fl.example.org", "10.1.2.3", "127.0.0.1", "localhost"):
        check_chain(bundle.ca, bundle.server, host)
    with pytest.raises(EnrolmentError):
        check_chain(bundle.ca, bundle.server, "example.org")
    assert bundle.address == "fl.example.org:8000"


def test_public_test_records_reach_the_coordinator_and_nobody_elses(make_parties, tmp_path) -> None:
    from autoflip_secure.data.records import Records
    from autoflip_secure.deployment.coordinator_home import install_coordinator
    from tests.deployment.conftest import TASK, write_table

    write_table(tmp_path / "federation", 20)
    (tmp_path / "federation" / "train.csv").rename(tmp_path / "public.csv")
    (tmp_path / "federation").rmdir()
    text = federation_text(task=TASK + 'scoring = "public"\npublic_test = "../public.csv"\n')
    federation = make_parties(enrolled=4, text=text)
    fingerprint = federation.authority.fingerprint
    with pytest.raises(EnrolmentError, match="give the federation's public_test"):
        install_coordinator(
            federation.coordinator.path, federation.bundle_file, authority=fingerprint, public_test=tmp_path / "none"
        )
    with pytest.raises(EnrolmentError, match="not the public test records of this bundle"):
        install_coordinator(
            federation.coordinator.path,
            federation.bundle_file,
            authority=fingerprint,
            public_test=tmp_path / "public.csv",
        )
    federation.install()
    assert len(Records.load(federation.coordinator.public_test)) == 20
    assert not (federation.silos["hospital-a"].path / "public_test.npz").exists()
    # The next version shares the records of this one, and needs nobody to bring them again.
    federation.authority.remove("hospital-d")
    accept_update(federation.coordinator, federation.version(2), consent=True)
    assert len(Records.load(federation.coordinator.public_test)) == 20
    assert federation.coordinator.public_test.stat().st_nlink == 2
    (federation.authority.home / "public_test.npz").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        federation.authority.renew()


@settings(max_examples=12, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["enrol", "replace", "remove", "renew"]), st.integers(0, 5)), max_size=8)
)
def test_any_history_is_one_chain_whose_ids_are_used_once(tmp_path_factory, steps: list[tuple[str, int]]) -> None:
    folder = tmp_path_factory.mktemp("history")
    names = tuple(f"hospital-{letter}" for letter in "abcdef")
    (folder / "f.toml").write_text(federation_text(names))
    authority = init_authority(folder / "f.toml", folder / "A")
    made = [0]

    def request(name: str):
        made[0] += 1
        return init_silo(folder / str(made[0]), name).request

    coordinator = init_coordinator(folder / "C")
    authority.enrol([coordinator.request, *map(request, names[:4])], partial=True)
    for what, which in steps:
        enrolled = {entry.name for entry in authority.bundle.members.entries}
        name = names[which]
        if what == "renew":
            authority.renew()
        elif what == "remove" and name in enrolled and len(enrolled) > 3:
            authority.remove(name)
        elif (what == "replace") == (name in enrolled) and what != "remove":
            authority.enrol([request(name)], replace=what == "replace")
    bundles = Authority(authority.home).bundles
    owner: dict[int, bytes] = {}
    for bundle in bundles:
        open_bundle(bundle.text, "b")
        assert len(bundle.members.entries) >= 3
        for entry in bundle.members.entries:
            assert owner.setdefault(entry.silo, entry.public) == entry.public, "an id of two keys"
    for place, older in enumerate(bundles):
        for newer in bundles[place + 1 :]:
            change = change_between(older, newer)
            before, after = ({entry.silo for entry in bundle.members.entries} for bundle in (older, newer))
            assert {entry.silo for entry in change.removed} == before - after
            assert {entry.silo for entry in change.added} == after - before
            with pytest.raises(EnrolmentError, match="older than"):
                change_between(newer, older)
    assert str(accept_update(coordinator, bundles[0].text, consent=True, authority=authority.fingerprint))
    accept_update(coordinator, bundles[-1].text, consent=True)
    assert coordinator.installed() == bundles[-1]
