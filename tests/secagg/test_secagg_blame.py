"""Silos that lie: the sum stays exact where enough others are honest, and the liar is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoflip_secure.errors import Abort
from autoflip_secure.parties.signing import digest_of, open_signed, sign_message
from autoflip_secure.secagg import dealing as dealing_module
from autoflip_secure.secagg import silo_setup
from autoflip_secure.secagg.dealing import KEY, SEED
from autoflip_secure.secagg.round_messages import UnmaskReply
from autoflip_secure.secagg.setup_messages import Advertisement, AdvertiseReply, ShareReply
from autoflip_secure.secagg.shamir import PRIME


def forge_shares(fed, liars, kind):
    """Liars reveal wrong shares of every secret of a kind, properly signed."""

    def tamper(stage, silo, reply):
        if stage != "unmask" or silo not in liars:
            return reply
        message = open_signed(UnmaskReply, fed.roster.public(silo), reply)
        field = "seed_shares" if kind == SEED else "key_shares"
        wrong = tuple(share[:-1] + bytes([share[-1] ^ 1]) for share in getattr(message, field))
        return sign_message(fed.identities[silo], replace(message, **{field: wrong}))

    return tamper


@pytest.mark.parametrize("kind", [SEED, KEY])
def test_wrong_share_is_set_aside_and_its_sender_reported(federation, kind):
    fed = federation(6)
    gone = {6} if kind == KEY else set()
    exchange = fed.exchange(
        tamper=forge_shares(fed, {2}, kind), absent=lambda stage, silo: stage == "masked" and silo in gone
    )
    sums = fed.coordinator.sum(fed.manifest(), exchange)
    fed.assert_exact(sums, tuple(silo for silo in range(1, 7) if silo not in gone))
    reported = fed.named("silo_misbehaved")
    assert {event["silo"] for event in reported} == {2}
    assert all("not the one dealt to it" in event["reason"] for event in reported)


def test_too_many_wrong_shares_abort_and_name_the_liars(federation):
    fed = federation(6)
    with pytest.raises(Abort) as caught:
        fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=forge_shares(fed, {2, 5}, SEED)))
    assert (caught.value.stage, caught.value.blamed) == ("unmask", (2, 5))
    assert not fed.named("silo_excluded"), "four of six would be too few to go on"
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4, 5, 6))


def test_silos_that_caused_an_abort_are_left_out_of_the_retry(federation):
    """Nine silos, threshold seven: with three liars six good shares are left, without one of them enough."""
    fed = federation(9)
    exchange = fed.exchange(tamper=forge_shares(fed, {4, 7, 8}, SEED))
    with pytest.raises(Abort) as caught:
        fed.coordinator.sum(fed.manifest(), exchange)
    assert caught.value.blamed == (4, 7, 8)
    assert not fed.named("silo_excluded"), "six of nine would be too few"
    gone = fed.exchange(tamper=forge_shares(fed, {4}, SEED), absent=lambda stage, silo: stage == "unmask" and silo > 7)
    with pytest.raises(Abort) as caught:
        fed.coordinator.sum(fed.manifest(), gone)
    assert caught.value.blamed == (4,)
    assert fed.named("silo_excluded") == [{"silos": [4]}]
    everybody_else = (1, 2, 3, 5, 6, 7, 8, 9)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), everybody_else)
    fed.coordinator.rekey()
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), everybody_else)


def deal_wrongly(monkeypatch, fed, dealer, change):
    """`dealer` runs altered software: `change(plaintexts)` before boxes and commitments are made."""
    honest = dealing_module._plaintexts
    share = silo_setup.share

    def altered_share(party, request):
        if party.silo != dealer:
            return share(party, request)
        with monkeypatch.context() as patch:
            patch.setattr(dealing_module, "_plaintexts", lambda *args: change(honest(*args)))
            return share(party, request)

    monkeypatch.setattr(silo_setup, "share", altered_share)


def bump(plaintext, start):
    """Add one to the share whose `nonce | share` starts at `start`."""
    value = int.from_bytes(plaintext[start + 16 : start + 49], "big")
    return plaintext[: start + 16] + ((value + 1) % PRIME).to_bytes(33, "big") + plaintext[start + 49 :]


@pytest.mark.parametrize("kind", [SEED, KEY])
def test_dealer_of_another_secret_is_blamed(federation, monkeypatch, kind):
    """Commitments match what was dealt, yet the secret is not the advertised one: provably the dealer."""
    fed = federation(4)
    deal_wrongly(monkeypatch, fed, 3, lambda plaintexts: [bump(text, 49 * kind) for text in plaintexts])
    exchange = fed.exchange(absent=lambda stage, silo: kind == KEY and stage == "masked" and silo == 3)
    with pytest.raises(Abort, match="silo 3 dealt shares of another secret") as caught:
        fed.coordinator.sum(fed.manifest(), exchange)
    assert caught.value.blamed == (3,)
    assert not fed.named("silo_misbehaved")
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 4))
    assert fed.named("silo_excluded") == [{"silos": [3]}]
    assert fed.epochs == [1, 2]


def test_inconsistent_dealing_is_blamed_or_harmless(federation, monkeypatch):
    """One recipient got a share off the polynomial: its committed share holds, so the dealer is at fault."""
    fed = federation(4)
    deal_wrongly(monkeypatch, fed, 3, lambda plaintexts: [bump(plaintexts[0], 0), *plaintexts[1:]])
    with pytest.raises(Abort) as caught:
        fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert caught.value.blamed == (3,)


def resign(fed, dealer, dealing, boxes, rows):
    """A dealing of other boxes or rows, as the dealer's own altered software would have sent and kept it."""
    parcels = digest_of(dealing_module.parcels(boxes, rows))
    signed = sign_message(fed.identities[dealer], replace(dealing, parcels_hash=parcels))
    fed.connections[dealer].execute("UPDATE secagg_epoch SET dealing = ?", (signed,))
    return signed


def reseal_box(fed, dealer, victim):
    """The dealer signs for a box that the victim cannot open."""

    def tamper(stage, silo, reply):
        if stage != "share" or silo != dealer:
            return reply
        message = ShareReply.from_bytes(reply)
        dealing = open_signed(dealing_module.Dealing, fed.roster.public(dealer), message.dealing)
        index = dealing.recipients.index(victim)
        boxes = list(message.boxes)
        boxes[index] = bytes(len(boxes[index]))
        signed = resign(fed, dealer, dealing, boxes, message.rows)
        return replace(message, dealing=signed, boxes=tuple(boxes)).to_bytes()

    return tamper


def test_box_that_does_not_open_is_reported_and_survived(federation):
    fed = federation(4)
    sums = fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=reseal_box(fed, 3, 1)))
    fed.assert_exact(sums, (1, 2, 3, 4))
    assert fed.named("dealing_rejected") == [{"dealer": 3, "by": [1]}]
    assert not fed.failures


def test_box_that_does_not_open_aborts_where_every_share_is_needed(federation):
    fed = federation(3)
    with pytest.raises(Abort, match="2 good shares of silo 3's secret, 3 are needed") as caught:
        fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=reseal_box(fed, 3, 1)))
    assert caught.value.blamed == (), "a complaint is no proof"


def test_shares_that_do_not_match_their_commitments_are_not_accepted(federation):
    """The dealer's row says one thing, the box another: the recipient says so at unmask."""
    fed = federation(4)

    def tamper(stage, silo, reply):
        if stage != "share" or silo != 2:
            return reply
        message = ShareReply.from_bytes(reply)
        dealing = open_signed(dealing_module.Dealing, fed.roster.public(2), message.dealing)
        rows = list(message.rows)
        rows[0] = rows[0][::-1]
        signed = resign(fed, 2, dealing, message.boxes, rows)
        return replace(message, dealing=signed, rows=tuple(rows)).to_bytes()

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 2, 3, 4))
    assert fed.named("dealing_rejected") == [{"dealer": 2, "by": [1]}]


def with_fields(**fields):
    def alter(words, end):
        return words + replace(end, **fields).to_bytes()

    return alter


MASKED_FAULTS = {
    "another word": lambda words, end: bytes([words[0] ^ 1]) + words[1:] + end.to_bytes(),
    "a word too few": lambda words, end: words[8:] + end.to_bytes(),
    "a word too many": lambda words, end: bytes(8) + words + end.to_bytes(),
    "cut short": lambda words, end: (words + end.to_bytes())[:-8],
    "no receipt": lambda words, end: words,
    "no words": lambda words, end: end.to_bytes(),
    "nothing": lambda words, end: b"",
    "another silo": with_fields(silo=1),
    "another signature": with_fields(signature=bytes(64)),
}


def rubbish(reply):
    return reply[:-3] + b"\0\0\0"


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        *(("masked", fault) for fault in MASKED_FAULTS),
        *((stage, "rubbish") for stage in ("advertise", "share", "confirm", "unmask")),
    ],
)
def test_reply_that_does_not_hold_counts_as_dropped(federation, stage, fault):
    """Wherever silo 4 sends rubbish, the other three get their sum and the rubbish is reported."""
    fed = federation(4)

    def tamper(now, silo, reply):
        if (now, silo) != (stage, 4):
            return reply
        return MASKED_FAULTS[fault](*fed.split_masked(reply)) if stage == "masked" else rubbish(reply)

    sums = fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))
    late = stage in ("confirm", "unmask")
    fed.assert_exact(sums, (1, 2, 3, 4) if late else (1, 2, 3))
    assert [(event["silo"], event["stage"]) for event in fed.named("silo_misbehaved")] == [(4, stage)]


@pytest.mark.parametrize("stage", ["advertise", "share", "masked", "confirm", "unmask"])
def test_reply_in_the_name_of_another_silo(federation, stage):
    """Silo 4 repeats what silo 1 sent, signature and all."""
    fed = federation(4)
    seen = {}

    def tamper(now, silo, reply):
        seen[now, silo] = reply
        return seen[now, 1] if (now, silo) == (stage, 4) else reply

    sums = fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))
    fed.assert_exact(sums, (1, 2, 3, 4) if stage in ("confirm", "unmask") else (1, 2, 3))
    assert [(event["silo"], event["stage"]) for event in fed.named("silo_misbehaved")] == [(4, stage)]


@pytest.mark.parametrize(
    "change",
    [
        {"digest": bytes(32)},
        {"silo": 3},
        {"seed_shares": ()},
        {"seed_shares": (bytes(49),) * 3},
        {"key_shares": (bytes(49),)},
    ],
)
def test_signed_unmask_reply_about_something_else(federation, change):
    fed = federation(4)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("unmask", 1):
            return reply
        message = open_signed(UnmaskReply, fed.roster.public(1), reply)
        return sign_message(fed.identities[1], replace(message, **change))

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 2, 3, 4))
    assert [event["silo"] for event in fed.named("silo_misbehaved")] == [1]


ADVERTISE_FAULTS = {
    "low order": [{"box_key": bytes(32)}, {"mask_keys": bytes(32 * 4)}],
    "slots": [{"slots": 3}],
    "not those it signed for": [{"mask_keys_hash": bytes(32)}, {"slots": 4, "mask_keys": bytes(32)}],
    "commitments that it did not sign for": [{"commitments_hash": bytes(32)}],
}


@pytest.mark.parametrize(("words", "change"), [(w, change) for w, all_ in ADVERTISE_FAULTS.items() for change in all_])
def test_advertisement_that_does_not_hold_is_left_out(federation, words, change):
    fed = federation(4)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("advertise", 4):
            return reply
        message = AdvertiseReply.from_bytes(reply)
        signed = open_signed(Advertisement, fed.roster.public(4), message.advertisement)
        mask_keys = change.get("mask_keys", message.mask_keys)
        changed = {"mask_keys_hash": digest_of(mask_keys), **change}
        changed.pop("mask_keys", None)
        again = sign_message(fed.identities[4], replace(signed, **changed))
        commitments = message.commitments[: len(mask_keys)]
        return AdvertiseReply(again, mask_keys, commitments).to_bytes()

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 2, 3))
    assert words in fed.named("silo_misbehaved")[0]["reason"]
