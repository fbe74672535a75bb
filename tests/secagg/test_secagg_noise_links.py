"""Links of the silos' noise chains: revealed with the shares, for the confirmed lists, and for nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import Abort, EncodingError, ProtocolError, Refusal
from autoflip_secure.parties.signing import Signed, open_signed, sign_message
from autoflip_secure.parties.wire import VERSION
from autoflip_secure.secagg import SiloRules
from autoflip_secure.secagg.round_messages import UnmaskReply
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.noise_chain import later_link
from autoflip_secure.sums.words import PackedWords


def chains(connection):
    return [root for (root,) in connection.execute("SELECT root FROM secagg_chain").fetchall()]


def zeros(manifest, root):
    """Words of a contribution to a manifest of one cohort."""
    return PackedWords(np.zeros(word_count(manifest.channels, len(manifest.cohorts[0])), np.uint64), root)


def link_of(attack, reply, silo):
    return open_signed(UnmaskReply, attack.fed.roster.public(silo), reply).link


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_survivors_reveal_the_link_after_the_missing_ones(federation, missing):
    fed = federation(10)
    gone = set(range(1, missing + 1))
    (item,) = fed.coordinator.sum(
        fed.manifest(minimum=7), fed.exchange(lambda stage, silo: stage == "masked" and silo in gone)
    )
    assert item.silos == tuple(range(missing + 1, 11))
    expected = {silo: later_link(fed.roots[silo], missing) for silo in item.silos} if missing < 3 else {}
    assert item.links == expected


def test_one_more_missing_reveals_the_next_link(federation):
    """From link d + 1 follows link d + 2, which is what the silo reveals with one more missing; not the other way."""
    fed = federation(7)
    root, revealed = bytes(range(32)), []
    fed.contribute = lambda silo: lambda manifest: zeros(manifest, root)
    for gone in (set(), {7}, {6, 7}):
        exchange = fed.exchange(lambda stage, silo, gone=gone: stage == "masked" and silo in gone)
        (item,) = fed.coordinator.sum(fed.manifest(minimum=4), exchange)
        revealed.append(item.links[1])
    assert later_link(revealed[0], 1) == revealed[1] != revealed[0]
    assert later_link(revealed[1], 1) == revealed[2]


def test_each_cohort_counts_its_own_missing_silos(federation):
    fed = federation(12)
    cohorts = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)
    exchange = fed.exchange(lambda stage, silo: stage == "masked" and silo in {2, 6, 7})
    first, second = fed.coordinator.sum(fed.manifest(*cohorts), exchange)
    assert first.links == {silo: later_link(fed.roots[silo], 1) for silo in (1, 3, 4, 5)}
    assert second.links == {silo: later_link(fed.roots[silo], 2) for silo in (8, 9, 10, 11)}


def test_a_silo_that_vanishes_late_reveals_nothing(federation):
    fed = federation(10)
    late = {"confirm": {3}, "unmask": {5, 6}}
    (item,) = fed.coordinator.sum(
        fed.manifest(minimum=7), fed.exchange(lambda stage, silo: silo in late.get(stage, ()))
    )
    assert item.silos == tuple(range(1, 11))
    assert set(item.links) == {1, 2, 4, 7, 8, 9, 10}
    fed.assert_exact([item], tuple(range(1, 11)))


def test_contributions_without_a_chain_reveal_nothing(federation):
    fed = federation(5)
    fed.contribute = lambda silo: lambda manifest: zeros(manifest, None)
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert item.links == {}
    assert not fed.named("silo_misbehaved")


@pytest.mark.parametrize("root", [b"", bytes(31), bytes(33)])
def test_a_root_of_another_length_stops_the_contribution(federation, root):
    fed = federation(4)
    fed.contribute = lambda silo: lambda manifest: zeros(manifest, root)
    with pytest.raises(Abort):
        fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert isinstance(fed.failures["masked", 1], EncodingError)
    assert "root of a noise chain" in str(fed.failures["masked", 1])


# What silos refuse


def test_links_need_as_many_confirmations_as_shares(federation, dishonest):
    attack = dishonest(federation(7))
    everyone = attack.everyone()
    for silo in everyone:
        attack.masked(silo)
    confirmations = [attack.confirm(silo, (everyone,)) for silo in everyone]
    with pytest.raises(Refusal, match="confirmations"):
        attack.unmask(1, (everyone,), confirmations[:4])
    assert attack.slot_is_closed(1)
    assert not chains(attack.fed.connections[1]), "what was left to reveal is gone"
    assert link_of(attack, attack.unmask(2, (everyone,), confirmations[:5]), 2) == attack.fed.roots[2]


def test_a_silo_shown_fuller_lists_reveals_no_more(federation, dishonest):
    """Silos 1 and 2 are told that nobody is missing, the others that 6 and 7 are: only for these T silos signed."""
    attack = dishonest(federation(7), minimum=4)
    everyone, fewer = attack.everyone(), (1, 2, 3, 4, 5)
    for silo in everyone:
        attack.masked(silo)
    full = [attack.confirm(silo, (everyone,)) for silo in (1, 2)]
    real = [attack.confirm(silo, (fewer,)) for silo in (3, 4, 5, 6, 7)]
    for silo in (1, 2):
        for survivors in ((everyone,), (fewer,)):
            with pytest.raises(ProtocolError, match=r"confirm-once|confirmations|nothing was revealed"):
                attack.unmask(silo, survivors, sorted(full + real))
    assert link_of(attack, attack.unmask(3, (fewer,), real), 3) == later_link(attack.fed.roots[3], 2)
    with pytest.raises(Refusal, match=r"unmask-once|confirm-once"):
        attack.unmask(3, (everyone,), real)
    assert link_of(attack, attack.unmask(6, (fewer,), real), 6) == b"", "it is not in the sum"


def test_confirm_reveals_no_link(federation, dishonest):
    attack = dishonest(federation(7))
    for silo in attack.everyone():
        attack.masked(silo)
    reply = attack.fed.answer("confirm", 1, attack.confirm_request(1, (attack.everyone(),)))
    links = [later_link(attack.fed.roots[1], k) for k in range(5)]
    assert not any(link in reply for link in links)
    assert chains(attack.fed.connections[1]) == [attack.fed.roots[1]]


def test_a_silo_counts_only_its_own_cohort(federation, dishonest):
    """Of the other cohort more are missing: its count would leave too little noise here, or too much there."""
    attack = dishonest(federation(12), (1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12))
    survivors = ((1, 2, 3, 4, 5), (7, 8, 9, 10))
    for silo in (*survivors[0], *survivors[1]):
        attack.masked(silo)
    confirmations = [attack.confirm(silo, survivors) for silo in attack.everyone()]
    for silo, missing in ((2, 1), (9, 2)):
        reply = attack.unmask(silo, survivors, confirmations[:9])
        assert link_of(attack, reply, silo) == later_link(attack.fed.roots[silo], missing)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_honest_silos_keep_what_the_opened_sum_needs(federation, dishonest, data):
    """Whatever lists a coordinator shows to whom: those who reveal, reveal for one list, and by its own count."""
    n, minimum = 7, 4
    attack = dishonest(federation(n, rules=SiloRules(1)), minimum=minimum)
    everyone = attack.everyone()
    for silo in everyone:
        attack.masked(silo)
    lists = [(tuple(sorted(data.draw(st.sets(st.sampled_from(everyone), min_size=minimum)))),) for _ in range(2)]
    shown = {silo: lists[data.draw(st.integers(0, 1), label=f"shown to {silo}")] for silo in everyone}
    signed: dict = {}
    for silo, survivors in shown.items():
        signed.setdefault(survivors, []).append(attack.confirm(silo, survivors))
    revealed = set()
    for silo, survivors in shown.items():
        try:
            reply = attack.unmask(silo, survivors, signed[survivors])
        except Refusal:
            continue
        missing = n - len(survivors[0])
        link = link_of(attack, reply, silo)
        spare = silo in survivors[0] and missing < n - minimum
        assert link == (later_link(attack.fed.roots[silo], missing) if spare else b"")
        revealed.add(survivors)
    assert len(revealed) <= 1


# On disk


def test_root_is_kept_until_the_slot_is_answered(federation, tmp_path):
    fed = federation(4, folder=tmp_path)
    seen = {}

    def exchange(stage, requests):
        before = {silo: chains(fed.connections[silo]) for silo in requests}
        yield from fed.exchange(restart=True)(stage, requests)
        seen[stage] = before, {silo: chains(fed.connections[silo]) for silo in requests}

    (item,) = fed.coordinator.sum(fed.manifest(), exchange)
    whole, none = {silo: [fed.roots[silo]] for silo in item.silos}, {silo: [] for silo in item.silos}
    assert seen["masked"] == (none, whole)
    assert seen["confirm"] == (whole, whole)
    assert seen["unmask"] == (whole, none)
    assert item.links == {silo: fed.roots[silo] for silo in item.silos}, "also by a process started since"
    for path in tmp_path.iterdir():
        # The answer holds link 1, the root itself; nothing else does.
        assert path.read_bytes().count(fed.roots[int(path.name.split(".")[0])]) <= 1


def test_root_is_off_the_disk_where_it_was_not_revealed(federation, tmp_path):
    fed = federation(4, folder=tmp_path)
    fed.coordinator.sum(fed.manifest(), fed.exchange(lambda stage, silo: stage == "masked" and silo == 4))
    for path in tmp_path.iterdir():
        silo = int(path.name.split(".")[0])
        assert silo == 4 or fed.roots[silo] not in path.read_bytes()


def test_the_answer_is_repeated_with_its_link(federation, dishonest):
    attack = dishonest(federation(5))
    everyone = attack.everyone()
    for silo in everyone:
        attack.masked(silo)
    confirmations = [attack.confirm(silo, (everyone,)) for silo in everyone]
    request = attack.unmask_request((everyone,), confirmations)
    first = attack.fed.answer("unmask", 1, request)
    attack.fed.silos[1] = attack.fed.start(1)
    assert attack.fed.answer("unmask", 1, request) == first
    assert link_of(attack, first, 1) == attack.fed.roots[1]


def test_new_keys_and_new_runs_delete_chains(federation):
    fed = federation(4)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    absent = fed.exchange(lambda stage, silo: stage == "unmask")
    with pytest.raises(Abort):
        fed.coordinator.sum(fed.manifest(), absent)
    assert chains(fed.connections[1]) == [fed.roots[1]]
    fed.coordinator.rekey()
    fed.open_epoch(1)
    assert not chains(fed.connections[1])


# What the coordinator refuses


def tampered(fed, silo, change):
    """An exchange in which a silo signs another unmask reply."""

    def tamper(stage, sender, reply):
        if (stage, sender) != ("unmask", silo):
            return reply
        message = open_signed(UnmaskReply, fed.roster.public(silo), reply)
        return sign_message(fed.identities[silo], change(message))

    return tamper


@pytest.mark.parametrize("link", [b"x", bytes(31), bytes(33), 7, "x" * 32])
def test_link_of_another_length_counts_as_no_answer(federation, link):
    fed = federation(7)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("unmask", 2):
            return reply
        message = open_signed(UnmaskReply, fed.roster.public(2), reply)
        values = [getattr(message, item.name) for item in fields(message)]
        payload = msgpack.packb([VERSION, message.KIND, *values[:-1], link])
        return Signed(payload, fed.identities[2].sign(message.KIND.encode(), payload)).to_bytes()

    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))
    (event,) = fed.named("silo_misbehaved")
    assert (event["silo"], event["stage"]) == (2, "unmask")
    assert "a link" in event["reason"]
    assert 2 in item.silos
    assert set(item.links) == {1, 3, 4, 5, 6, 7}


@pytest.mark.parametrize(("gone", "liar"), [({7}, 7), ({4, 5, 6, 7}, 1)])
def test_link_of_a_silo_without_excess_counts_as_no_answer(federation, gone, liar):
    """Of a helper without a vector in the sum, and where all that may be missing are."""
    fed = federation(10 if liar == 1 else 7)
    tamper = tampered(fed, liar, lambda message: replace(message, link=bytes(32)))
    manifest = fed.manifest(minimum=6 if liar == 1 else 3)
    exchange = fed.exchange(lambda stage, silo: stage == "masked" and silo in gone, tamper)
    (item,) = fed.coordinator.sum(manifest, exchange)
    (event,) = fed.named("silo_misbehaved")
    assert (event["silo"], event["reason"]) == (liar, f"silo {liar} revealed a link, but has no noise to be removed")
    assert liar not in item.links


def test_a_false_link_is_that_silo_s_word(federation):
    fed = federation(5)
    tamper = tampered(fed, 3, lambda message: replace(message, link=b"f" * 32))
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))
    assert item.links[3] == b"f" * 32
    fed.assert_exact([item], (1, 2, 3, 4, 5))


def test_links_do_not_show_in_logs(federation):
    fed = federation(4)
    (item,) = fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert item.links
    assert "links" not in repr(item)
    with pytest.raises(ProtocolError) as caught:
        UnmaskReply(1, bytes(32), (), (), b"secret")
    assert "secret" not in str(caught.value)
