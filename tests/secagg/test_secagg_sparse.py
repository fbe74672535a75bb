"""Above a hundred silos: sums over a sparse share graph, and coordinators that want another graph or use this one."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from autoflip_secure.errors import Abort, ConfigError, ProtocolError, Refusal
from autoflip_secure.parties.signing import open_signed, sign_message
from autoflip_secure.secagg import SecAggSilo, SiloRules, share_threshold, silo_round, silo_setup
from autoflip_secure.secagg.coordinator_round import MaskedStage
from autoflip_secure.secagg.coordinator_setup import OpenEpoch
from autoflip_secure.secagg.desk import SecAggDesk
from autoflip_secure.secagg.graph import EPOCH_BITS, SAFE_BITS, ShareGraph, failure_bits, is_safe
from autoflip_secure.secagg.round_messages import ConfirmRequest, MaskedRequest, UnmaskReply
from autoflip_secure.secagg.setup_messages import (
    AdvertiseReply,
    AdvertiseRequest,
    Dealing,
    Delivery,
    ShareReply,
    ShareRequest,
)

N = 101
EVERYONE = tuple(range(1, N + 1))
SLOTS = 16


@pytest.fixture(scope="module")
def fed(federation):
    return federation(N, slots=1)


@pytest.fixture(scope="module")
def epoch(fed):
    """One key set-up for all rounds here; the first of them hands over the deliveries."""
    epoch = fed.open_epoch(SLOTS)
    fed.assert_exact(attempt(fed, epoch), EVERYONE)
    assert epoch.delivered == set(EVERYONE)
    return epoch


def attempt(fed, epoch, blocks=(), **options):
    exchange, manifest = fed.exchange(**options), fed.bind(epoch, fed.manifest(blocks=blocks))
    fed.failures.clear()
    return MaskedStage(epoch, manifest).collect(exchange).collect(exchange).collect(exchange)


def new_keys(fed, session, **options):
    """A key set-up in a session of its own, in which nobody has taken delivery; and its head."""
    desk = SecAggDesk(
        fed.coordinator_identity, fed.roster, session, lambda name, details: fed.events.append((name, details))
    )
    epoch = OpenEpoch(desk, 0, 1).advertise(fed.exchange()).share(fed.exchange(**options))
    return epoch, (session, fed.roster.hash(), 0)


def without(silos):
    return (tuple(silo for silo in EVERYONE if silo not in silos),)


# Exact sums, or none


@pytest.mark.slow
def test_graph_is_sparse(epoch):
    """Fewer holders than silos, each its own draw, and a mask with nobody else."""
    assert epoch.graph == ShareGraph(15, 10)
    assert failure_bits(N, 0, epoch.graph) >= SAFE_BITS
    draws = [epoch.holders(silo) for silo in EVERYONE]
    assert all(len(draw) == 15 for draw in draws)
    assert len(set(draws)) == N
    peers = [len(epoch.peers(silo)) for silo in EVERYONE]
    assert 15 <= min(peers) <= max(peers) < 60


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["masked", "confirm", "unmask"])
def test_sum_is_exact_with_dropouts_in_one_stage(fed, epoch, stage):
    gone = {int(silo) for silo in fed.random.choice(EVERYONE, 5, replace=False)}
    sums = attempt(fed, epoch, absent=lambda now, silo: now == stage and silo in gone)
    fed.assert_exact(sums, *(without(gone) if stage == "masked" else (EVERYONE,)))
    assert not fed.failures


@pytest.mark.slow
def test_sum_is_exact_without_the_block_of_a_dropout(fed, epoch):
    blocks = tuple(EVERYONE[start : start + 3] for start in range(0, N, 3))
    sums = attempt(fed, epoch, blocks, absent=lambda *at: at == ("masked", 50))
    fed.assert_exact(sums, *without({49, 50, 51}))
    assert not fed.failures


@pytest.mark.slow
def test_survivor_without_enough_holders_aborts(fed, epoch):
    """Six of the fifteen holders of one silo are gone: nine are left, ten are needed."""
    gone = set(epoch.holders(7)[:6])
    with pytest.raises(Abort, match="share holders sent a masked vector") as caught:
        attempt(fed, epoch, absent=lambda stage, silo: stage == "masked" and silo in gone)
    assert caught.value.stage == "masked"


@pytest.mark.slow
def test_too_few_silos_in_all_abort(fed, epoch):
    """67 confirm, 68 are needed, although ten holders of everyone might be among them."""
    with pytest.raises(Abort, match="67 of 101 silos confirmed, 68 are needed"):
        attempt(fed, epoch, absent=lambda stage, silo: stage == "confirm" and silo > 67)


def test_several_cohorts_are_refused_by_the_coordinator(fed):
    with pytest.raises(ConfigError, match="above 100 silos a sum has one"):
        fed.coordinator.sum(fed.manifest(EVERYONE[:50], EVERYONE[50:]), fed.exchange())


def forge(fed, liars):
    def tamper(stage, silo, reply):
        if stage != "unmask" or silo not in liars:
            return reply
        message = open_signed(UnmaskReply, fed.roster.public(silo), reply)
        wrong = tuple(share[:-1] + bytes([share[-1] ^ 1]) for share in message.seed_shares)
        return sign_message(fed.identities[silo], replace(message, seed_shares=wrong))

    return tamper


@pytest.mark.slow
def test_liars_are_set_aside_or_named(fed, epoch, monkeypatch):
    """Five of fifteen holders may lie about a silo's seed, six may not."""
    events = []
    desk = replace(epoch.desk, events=lambda name, details: events.append((name, details)))
    monkeypatch.setattr(epoch, "desk", desk)
    holders = epoch.holders(7)
    fed.assert_exact(attempt(fed, epoch, tamper=forge(fed, holders[:5])), EVERYONE)
    assert {details["silo"] for name, details in events if name == "silo_misbehaved"} == set(holders[:5])
    with pytest.raises(Abort, match="good shares of silo") as caught:
        attempt(fed, epoch, tamper=forge(fed, holders[:6]))
    assert caught.value.blamed
    assert set(caught.value.blamed) <= set(holders[:6])


# Graphs that a silo does not deal on


@pytest.fixture(scope="module")
def advertised(fed):
    """Ask a silo to deal on a graph, in a session where everybody advertised; `rules` makes it another process."""
    sessions = iter(range(1, 100))

    def ask(*graphs, silos=(1,), number=0, rules=None):
        head = (next(sessions).to_bytes(16, "big"), fed.roster.hash(), number)
        request = fed.signed(AdvertiseRequest(*head, 1))
        parties = {}
        if rules is not None:
            connection = sqlite3.connect(":memory:", isolation_level=None)
            parties[1] = SecAggSilo(connection, fed.identities[1], 1, fed.roster, rules, head[0])

        def answer(stage, silo, request):
            return parties[silo].answer(stage, request, None) if silo in parties else fed.answer(stage, silo, request)

        replies = [answer("advertise", silo, request) for silo in EVERYONE]
        signed = tuple(AdvertiseReply.from_bytes(reply).advertisement for reply in replies)
        answers = []
        for silo, graph in zip(silos * len(graphs), graphs, strict=False):
            answers.append(answer("share", silo, fed.signed(ShareRequest(*head, *graph, signed))))
        return head, answers

    return ask


@pytest.mark.parametrize(
    "graph",
    [(15, 9), (14, 9), (15, 1), (1, 1), (100, 20), (101, 90), (4000, 3000), (0, 1), (0, 67), (0, 69), (0, 101)],
)
def test_graph_that_is_not_safe_is_refused(advertised, graph):
    with pytest.raises(Refusal, match=r"rule graph: .* are not enough against 0 colluders"):
        advertised(graph)


def test_safe_graphs_are_dealt_on(advertised):
    for graph in ((15, 10), (0, 68)):
        _, (reply,) = advertised(graph)
        assert len(ShareReply.from_bytes(reply).boxes) == (graph[0] or N)


def test_graph_must_bear_the_silos_own_colluders(advertised):
    """What the coordinator planned with is nothing to the silo."""
    with pytest.raises(Refusal, match=r"rule graph: .* against 5 colluders"):
        advertised((15, 10), rules=SiloRules(5))
    advertised((17, 12), rules=SiloRules(5))


def test_sparse_graphs_end_with_the_epochs_they_are_safe_for(advertised):
    advertised((15, 10), number=(1 << EPOCH_BITS) - 1)
    with pytest.raises(Refusal, match=r"rule graph: .* 1024 epochs"):
        advertised((15, 10), number=1 << EPOCH_BITS)
    advertised((0, 68), number=1 << EPOCH_BITS)


def test_silos_shown_different_graphs_have_no_epoch_together(fed, advertised):
    """Both graphs are safe, but the keys hash that a dealing signs covers the graph."""
    head, (one, two) = advertised((15, 10), (16, 11), silos=(1, 2))
    dealings = tuple(ShareReply.from_bytes(reply).dealing for reply in (one, two))
    hashes = {open_signed(Dealing, fed.roster.public(i), dealing).keys_hash for i, dealing in enumerate(dealings, 1)}
    assert len(hashes) == 2
    for silo in (1, 2):
        request = MaskedRequest(*head, fed.manifest().to_bytes(), Delivery(dealings, ()).to_bytes())
        with pytest.raises(ProtocolError, match="dealt for other advertisements"):
            fed.answer("masked", silo, fed.signed(request))


# Dealings that do not fit the graph


def other_recipients(holders, dealer):
    outside = [silo for silo in EVERYONE if silo not in holders and silo != dealer]
    one_fewer, one_more = holders[1:], tuple(sorted((*holders, outside[0])))
    itself, stranger = tuple(sorted((*holders[1:], dealer))), (*holders[:-1], 500)
    return one_fewer, one_more, itself, stranger, EVERYONE


@pytest.mark.slow
def test_dealing_to_other_than_the_drawn_number_is_refused(fed):
    epoch, head = new_keys(fed, b"other recipients")
    delivery = Delivery.from_bytes(epoch.delivery(1))
    dealing = epoch.dealers[2].dealing
    for recipients in other_recipients(epoch.holders(2), 2):
        again = sign_message(fed.identities[2], replace(dealing, recipients=recipients))
        dealings = tuple(again if index == 1 else item for index, item in enumerate(delivery.dealings))
        request = MaskedRequest(*head, fed.manifest().to_bytes(), replace(delivery, dealings=dealings).to_bytes())
        with pytest.raises(ProtocolError, match="other silos than the share graph allows"):
            fed.answer("masked", 1, fed.signed(request))


@pytest.mark.slow
def test_coordinator_leaves_out_a_dealer_of_too_few(fed):
    def tamper(stage, silo, reply):
        if (stage, silo) != ("share", 2):
            return reply
        message = ShareReply.from_bytes(reply)
        dealing = open_signed(Dealing, fed.roster.public(2), message.dealing)
        fewer = sign_message(fed.identities[2], replace(dealing, recipients=dealing.recipients[1:]))
        return replace(message, dealing=fewer, boxes=message.boxes[1:], rows=message.rows[1:]).to_bytes()

    fed.events.clear()
    epoch, _ = new_keys(fed, b"too few holders.", tamper=tamper)
    assert epoch.members == tuple(silo for silo in EVERYONE if silo != 2)
    (event,) = fed.named("silo_misbehaved")
    assert event["silo"] == 2
    assert "the share graph allows" in event["reason"]


# What a coordinator that sees the graph can ask for


@pytest.fixture(scope="module")
def isolating(fed, epoch, dishonest):
    """Everybody sent a vector; all who mask with silo 7 are to be declared dropped."""

    def start():
        attack = dishonest(fed, epoch=epoch)
        for silo in EVERYONE:
            attack.masked(silo)
        return attack, without(epoch.peers(7))

    return start


def run_attack(attack, survivors):
    confirmations = [attack.confirm(silo, survivors) for silo in EVERYONE][:68]
    for silo in EVERYONE:
        attack.unmask(silo, survivors, confirmations)


@pytest.fixture
def four_sparse(federation, monkeypatch):
    """Small enough to be quick: every silo deals to the three others, and all three are needed."""
    monkeypatch.setattr(SecAggDesk, "share_graph", lambda desk, advertisers: ShareGraph(3, 3))
    monkeypatch.setattr(silo_setup, "MAX_COMPLETE", 3)
    return federation(4)


def test_every_holder_of_a_survivor_may_be_needed(four_sparse, dishonest):
    attack = dishonest(four_sparse)
    for silo in (1, 2, 3, 4):
        attack.masked(silo)
    for silo in (1, 2, 3, 4):
        with pytest.raises(Refusal, match="rule neighbours: fewer than 3 share holders of silo 1"):
            attack.confirm(silo, ((1, 2, 3),))
        assert attack.slot_is_closed(silo)
    attack.assert_hidden(1, 2, 3, 4)


def test_coordinator_does_not_ask_for_what_silos_refuse(four_sparse):
    exchange = four_sparse.exchange(absent=lambda stage, silo: (stage, silo) == ("masked", 4))
    with pytest.raises(Abort, match="fewer than 3 of silo 1's share holders") as caught:
        four_sparse.coordinator.sum(four_sparse.manifest(), exchange)
    assert caught.value.stage == "masked"
    four_sparse.assert_exact(four_sparse.coordinator.sum(four_sparse.manifest(), four_sparse.exchange()), (1, 2, 3, 4))


@pytest.mark.slow
def test_no_silo_helps_to_cut_one_off(isolating):
    attack, survivors = isolating()
    assert 7 in survivors[0]
    assert len(survivors[0]) > N // 2, "the minimum alone would let this pass"
    for silo in EVERYONE:
        with pytest.raises(Refusal, match="rule neighbours"):
            attack.confirm(silo, survivors)
        assert attack.slot_is_closed(silo)
    attack.assert_hidden(7)


@pytest.mark.slow
def test_without_that_rule_the_attack_succeeds(isolating, monkeypatch):
    """What the rule is for: the same requests, to silos without it, lay silo 7's vector bare."""
    attack, survivors = isolating()
    monkeypatch.setattr(silo_round, "_check_neighbours", lambda ready, survivors: None)
    run_attack(attack, survivors)
    assert (attack.spoils.residue(attack.manifest.slot, 7) == attack.fed.vectors[7]).all()


@pytest.mark.slow
def test_holders_in_another_cohort_do_not_count(fed, epoch, dishonest):
    """The honest coordinator asks for one cohort; silos refuse two by themselves."""
    attack = dishonest(fed, EVERYONE[:50], EVERYONE[50:], epoch=epoch)
    for silo in EVERYONE:
        attack.masked(silo)
    for silo in EVERYONE[:3]:
        with pytest.raises(Refusal, match="rule neighbours"):
            attack.confirm(silo, attack.manifest.cohorts)


@pytest.mark.slow
def test_receipts_are_those_of_the_silos_whose_shares_are_held(fed, epoch, dishonest):
    attack = dishonest(fed, epoch=epoch)
    for silo in EVERYONE:
        attack.masked(silo)
    data, survivors = attack.manifest.to_bytes(), (EVERYONE,)

    def held(silo):
        return [owner for owner in EVERYONE if silo in epoch.holders(owner)]

    stranger = next(silo for silo in EVERYONE if silo not in held(5))
    wrong = {
        1: [attack.receipts[owner] for owner in held(1)[1:]],
        2: [],
        3: [attack.receipts[owner] for owner in EVERYONE],
        4: [(owner, *attack.receipts[held(4)[0]][1:]) for owner in held(4)],
        5: [attack.receipts[owner] for owner in sorted((*held(5)[1:], stranger))],
        6: [(owner, bytes(32), attack.receipts[owner][2]) for owner in held(6)],
    }
    for silo, receipts in wrong.items():
        request = ConfirmRequest(*attack.head, data, survivors, tuple(receipts), b"")
        with pytest.raises(Refusal, match="rule receipts"):
            fed.answer("confirm", silo, fed.signed(request))
        assert attack.slot_is_closed(silo)
    attack.confirm(7, survivors)


@pytest.mark.parametrize(("silos", "graph"), [(10, (6, 5)), (100, (60, 51))])
def test_sparse_graph_is_refused_to_rosters_that_need_none(federation, silos, graph):
    """Safe by the silo's own count, but more colluders than it counts would have a silo's shares more easily."""
    fed = federation(silos)
    assert is_safe(silos, 0, ShareGraph(*graph), SAFE_BITS)
    head = (fed.session, fed.roster.hash(), 1)
    request = fed.signed(AdvertiseRequest(*head, 1))
    signed = tuple(
        AdvertiseReply.from_bytes(fed.answer("advertise", silo, request)).advertisement for silo in fed.identities
    )
    with pytest.raises(Refusal, match="rule graph: up to 100 silos everybody holds shares of everybody"):
        fed.answer("share", 1, fed.signed(ShareRequest(*head, *graph, signed)))
    fed.answer("share", 1, fed.signed(ShareRequest(*head, 0, share_threshold(silos), signed)))


def test_advertisers_without_a_safe_graph_abort(fed):
    """Enough of them for a key set-up, too few for the colluders and dropouts planned for."""
    desk = replace(fed.desk, colluders=33, dropout=0.3)
    assert desk.share_graph(N).holders
    with pytest.raises(Abort, match="the model is unchanged") as caught:
        desk.share_graph(desk.threshold)
    assert caught.value.stage == "share"
