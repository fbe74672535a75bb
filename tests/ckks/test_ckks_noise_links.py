"""Links of the silos' noise chains: revealed with the part of an opening, for its very list, and for nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.ckks.messages import Opening, OpenReply, Part
from autoflip_secure.errors import Abort, EncodingError, Refusal
from autoflip_secure.parties.rules import SiloRules
from autoflip_secure.parties.signing import sign_statement
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import later_link
from autoflip_secure.sums.words import PackedWords


def zeros(manifest, root):
    """Words of a contribution to a manifest of one cohort."""
    return PackedWords(np.zeros(word_count(manifest.channels, len(manifest.cohorts[0])), np.uint64), root)


def link_of(attack, reply):
    _, message = attack.fed.split("open", reply, attack.manifest)
    return message.link


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_survivors_reveal_the_link_after_the_missing_ones(federation, missing):
    fed = federation(10)
    gone = set(range(1, missing + 1))
    (item,) = fed.coordinator.sum(fed.manifest(minimum=7), fed.exchange(drop={"encrypt": gone}))
    assert item.silos == tuple(range(missing + 1, 11))
    expected = {silo: later_link(fed.roots[silo], missing) for silo in item.silos} if missing < 3 else {}
    assert item.links == expected


def test_one_more_missing_reveals_the_next_link(federation):
    """From link d + 1 follows link d + 2, which is what the silo reveals with one more missing; not the other way."""
    fed = federation(7)
    root, revealed = bytes(range(32)), []
    fed.contribute = lambda silo: lambda manifest: zeros(manifest, root)
    for gone in (set(), {7}, {6, 7}):
        (item,) = fed.coordinator.sum(fed.manifest(minimum=4), fed.exchange(drop={"encrypt": gone}))
        revealed.append(item.links[1])
    assert later_link(revealed[0], 1) == revealed[1] != revealed[0]
    assert later_link(revealed[1], 1) == revealed[2]


def test_each_cohort_counts_its_own_missing_silos(federation):
    fed = federation(12)
    cohorts = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)
    first, second = fed.coordinator.sum(fed.manifest(*cohorts), fed.exchange(drop={"encrypt": {2, 6, 7}}))
    assert first.links == {silo: later_link(fed.roots[silo], 1) for silo in (1, 3, 4, 5)}
    assert second.links == {silo: later_link(fed.roots[silo], 2) for silo in (8, 9, 10, 11)}


def test_silo_without_keys_counts_as_missing(federation):
    fed = federation(7)
    (item,) = fed.coordinator.sum(fed.manifest(minimum=4), fed.exchange(drop={"keys": {7}, "encrypt": {6}}))
    assert item.links == {silo: later_link(fed.roots[silo], 2) for silo in (1, 2, 3, 4, 5)}


def test_contributions_without_a_chain_reveal_nothing(federation):
    fed = federation(5)
    fed.contribute = lambda silo: lambda manifest: zeros(manifest, bytes(32) if silo == 2 else None)
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert item.links == {2: bytes(32)}
    assert not fed.named("silo_misbehaved")


@pytest.mark.parametrize("root", [b"", bytes(31), bytes(33)])
def test_a_root_of_another_length_stops_the_contribution(federation, root):
    fed = federation(4)
    fed.contribute = lambda silo: lambda manifest: zeros(manifest, root)
    with pytest.raises(Abort):
        fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert isinstance(fed.failures["encrypt", 1], EncodingError)
    assert "root of a noise chain" in str(fed.failures["encrypt", 1])
    assert fed.stage_of(1) == "spent"


# What silos refuse


def test_a_link_goes_with_one_part_and_one_list(federation, dishonest):
    """Silos 1 and 2 are told that nobody is missing, the others that 6 and 7 are: each reveals for one list only."""
    attack = dishonest(federation(7), minimum=4)
    everyone, fewer, roots = attack.fed.everyone, (1, 2, 3, 4, 5), attack.fed.roots
    for silo in everyone:
        attack.encrypt(silo)
    for silo in (1, 2):
        assert link_of(attack, attack.open(silo, (everyone,))) == roots[silo]
    for silo in (3, 4, 5):
        assert link_of(attack, attack.open(silo, (fewer,))) == later_link(roots[silo], 2)
    for silo in fewer:
        for survivors in ((everyone,), (fewer,)):
            with pytest.raises(Refusal, match="open-once"):
                attack.open(silo, survivors)
        assert not attack.fed.chains(silo)


def test_a_broken_rule_deletes_the_chain(federation, dishonest):
    attack = dishonest(federation(7))
    everyone = attack.fed.everyone
    attack.encrypt(1)
    assert attack.fed.on_disk(1, [attack.fed.roots[1]])
    with pytest.raises(Refusal, match="survivors"):
        attack.open(1, (everyone[1:],))
    assert not attack.fed.chains(1)
    assert not attack.fed.on_disk(1, [attack.fed.roots[1]])


def test_encrypt_reveals_no_link(federation, dishonest):
    attack = dishonest(federation(7))
    reply = attack.encrypt(1)
    assert not any(later_link(attack.fed.roots[1], k) in reply for k in range(5))
    assert attack.fed.chains(1) == [attack.fed.roots[1]]


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_each_silo_reveals_by_its_own_count(federation, dishonest, data):
    """Whatever lists a coordinator shows to whom: no silo reveals what the list it was shown still needs."""
    n, minimum = 7, 5
    attack = dishonest(federation(n, rules=SiloRules(1)), minimum=minimum)
    everyone = attack.fed.everyone
    lists = [(tuple(sorted(data.draw(st.sets(st.sampled_from(everyone), min_size=minimum)))),) for _ in range(2)]
    for silo in everyone[:4]:
        attack.encrypt(silo)
        survivors = lists[data.draw(st.integers(0, 1), label=f"shown to {silo}")]
        missing = n - len(survivors[0])
        if silo not in survivors[0]:
            with pytest.raises(Refusal, match="survivors"):
                attack.open(silo, survivors)
            continue
        expected = later_link(attack.fed.roots[silo], missing) if missing < n - minimum else b""
        assert link_of(attack, attack.open(silo, survivors)) == expected


# On disk


def test_root_is_kept_until_the_slot_is_opened(federation):
    fed = federation(4)
    seen = {}

    def exchange(stage, requests):
        before = {silo: fed.chains(silo) for silo in requests}
        yield from fed.exchange(restart=True)(stage, requests)
        seen[stage] = before, {silo: fed.chains(silo) for silo in requests}

    (item,) = fed.coordinator.sum(fed.manifest(), exchange)
    whole, none = {silo: [fed.roots[silo]] for silo in item.silos}, {silo: [] for silo in item.silos}
    assert seen["encrypt"] == (none, whole)
    assert seen["open"] == (whole, none)
    assert item.links == fed.roots, "also by a process started since"
    assert not any(fed.on_disk(silo, [fed.roots[silo]]) for silo in item.silos)


def test_new_keys_and_new_runs_delete_chains(federation):
    fed = federation(4)
    with pytest.raises(Abort):
        fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"open": fed.everyone}))
    roots = dict(fed.roots)
    assert fed.chains(1) == [roots[1]]
    assert fed.chains(2) == [roots[2]]
    fed.start(2, bytes(16)).forget_other_runs()
    assert not fed.chains(2)
    assert not fed.on_disk(2, [roots[2]])
    fed.coordinator.sum(fed.manifest(), fed.exchange(drop={"encrypt": {1}}))
    assert not fed.chains(1)
    assert not fed.on_disk(1, [roots[1]])


# What the coordinator does with them


def with_link(fed, silo, link):
    """An exchange in which a silo signs another link with its part."""

    def tamper(stage, sender, reply):
        if (stage, sender) != ("open", silo):
            return reply
        bound = Manifest.from_bytes(fed.read_request("encrypt", fed.requests["encrypt", silo][-1]).manifest)
        survivors = fed.read_request("open", fed.requests["open", silo][-1]).survivors
        _, message = fed.split("open", reply, bound)
        end = len(message.to_bytes())
        hashed = blake3(reply[:-end]).digest()
        statement = Part(Opening(bound.digest(), 0, survivors[0]).hash(), hashed, link)
        return reply[:-end] + OpenReply(silo, link, sign_statement(fed.identities[silo], statement)).to_bytes()

    return tamper


def test_a_false_link_is_that_silo_s_word(federation):
    fed = federation(5)
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=with_link(fed, 3, b"f" * 32)))
    assert item.links == {**fed.roots, 3: b"f" * 32}
    fed.assert_exact([item], (1, 2, 3, 4, 5))


def test_link_of_a_silo_without_excess_counts_as_no_part(federation):
    """As many are missing as may be: all noise is needed, and no honest silo reveals a link."""
    fed = federation(5)
    exchange = fed.exchange(drop={"encrypt": {4, 5}}, tamper=with_link(fed, 1, bytes(32)))
    with pytest.raises(Abort, match=r"silos \[1\]"):
        fed.coordinator.sum(fed.manifest(), exchange)
    (event,) = fed.named("silo_misbehaved")
    assert (event["silo"], event["reason"]) == (1, "silo 1 revealed a link, but has no noise to be removed")


def test_a_link_that_was_not_signed_counts_as_no_part(federation):
    fed = federation(5)

    def tamper(stage, silo, reply):
        return reply.replace(fed.roots[silo], bytes(32)) if (stage, silo) == ("open", 3) else reply

    with pytest.raises(Abort, match=r"silos \[3\]"):
        fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))
    assert "did not sign its part" in fed.named("silo_misbehaved")[0]["reason"]


def test_links_do_not_show_in_logs(federation):
    fed = federation(4)
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert item.links
    assert "links" not in repr(item)
    assert repr(OpenReply(1, b"s" * 32, bytes(64))) == "OpenReply(...)"
