"""Silos that lie: the sum stays exact where enough others are honest, and the liar is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoflip_secure.errors import Abort
from autoflip_secure.secagg import dealing as dealing_module
from autoflip_secure.secagg import silo_setup
from autoflip_secure.secagg.dealing import KEY, SEED
from autoflip_secure.secagg.round_messages import MaskedReply, UnmaskReply
from autoflip_secure.secagg.setup_messages import Advertisement, ShareReply
from autoflip_secure.secagg.shamir import PRIME
from autoflip_secure.secagg.signing import open_signed, sign_message


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
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3, 4, 5, 6))


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
    fed.assert_exact(fed.coordinator.sum(fed.manifest((1, 2, 4)), fed.exchange()), (1, 2, 4))


def test_inconsistent_dealing_is_blamed_or_harmless(federation, monkeypatch):
    """One recipient got a share off the polynomial: its committed share holds, so the dealer is at fault."""
    fed = federation(4)
    deal_wrongly(monkeypatch, fed, 3, lambda plaintexts: [bump(plaintexts[0], 0), *plaintexts[1:]])
    with pytest.raises(Abort) as caught:
        fed.coordinator.sum(fed.manifest(), fed.exchange())
    assert caught.value.blamed == (3,)


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
        hashes = b"".join(dealing_module.digest_of(box) for box in boxes)
        signed = sign_message(fed.identities[dealer], replace(dealing, box_hashes=hashes))
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
        hashes = b"".join(map(dealing_module.digest_of, rows))
        signed = sign_message(fed.identities[2], replace(dealing, row_hashes=hashes))
        return replace(message, dealing=signed, rows=tuple(rows)).to_bytes()

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 2, 3, 4))
    assert fed.named("dealing_rejected") == [{"dealer": 2, "by": [1]}]


def swap_word(reply):
    message = MaskedReply.from_bytes(reply)
    words = np.frombuffer(message.words, np.uint64).copy()
    words[0] += np.uint64(1)
    return replace(message, words=words.tobytes()).to_bytes()


def with_fields(**fields):
    return lambda reply: replace(MaskedReply.from_bytes(reply), **fields).to_bytes()


def rubbish(reply):
    return reply[:-3] + b"\0\0\0"


MASKED_FAULTS = [
    swap_word,
    lambda reply: reply[:-8],
    lambda reply: b"",
    with_fields(words=b""),
    with_fields(silo=1),
    with_fields(signature=bytes(64)),
]


@pytest.mark.parametrize(
    ("stage", "alter"),
    [
        *(("masked", alter) for alter in MASKED_FAULTS),
        *((stage, rubbish) for stage in ("advertise", "share", "confirm", "unmask")),
    ],
)
def test_reply_that_does_not_hold_counts_as_dropped(federation, stage, alter):
    """Wherever silo 4 sends rubbish, the other three get their sum and the rubbish is reported."""
    fed = federation(4)

    def tamper(now, silo, reply):
        return alter(reply) if now == stage and silo == 4 else reply

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


@pytest.mark.parametrize("change", [{"box_key": bytes(32)}, {"mask_keys": bytes(32 * 4)}])
def test_advertised_key_of_low_order_is_left_out(federation, change):
    fed = federation(4)

    def tamper(stage, silo, reply):
        if (stage, silo) != ("advertise", 4):
            return reply
        message = open_signed(Advertisement, fed.roster.public(4), reply)
        return sign_message(fed.identities[4], replace(message, **change))

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 2, 3))
    assert "low order" in fed.named("silo_misbehaved")[0]["reason"]


def test_advertisement_for_fewer_slots(federation):
    fed = federation(4)

    def tamper(stage, silo, reply):
        if stage != "advertise" or silo != 2:
            return reply
        message = open_signed(Advertisement, fed.roster.public(2), reply)
        short = replace(message, mask_keys=message.mask_keys[:32], commitments=message.commitments[:32])
        return sign_message(fed.identities[2], short)

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper)), (1, 3, 4))
    assert "slots" in fed.named("silo_misbehaved")[0]["reason"]
