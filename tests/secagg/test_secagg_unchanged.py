"""What leaves a silo's state as it was: malformed messages, messages out of order, rules that do not close a slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autoflip_secure.errors import ProtocolError, Refusal
from autoflip_secure.parties.signing import Signed
from autoflip_secure.secagg.round_messages import ConfirmRequest, MaskedRequest
from autoflip_secure.secagg.setup_messages import AdvertiseRequest, ShareRequest

ALL, WITHOUT_4 = ((1, 2, 3, 4),), ((1, 2, 3),)
STAGES = ("advertise", "share", "masked", "confirm", "unmask")


def state_of(attack: Any, silo: int) -> list[str]:
    """All that a silo's database holds, as SQL."""
    return list(attack.fed.connections[silo].iterdump())


@pytest.fixture
def attack(federation: Callable[..., Any], dishonest: Callable[..., Any]) -> Any:
    """Four silos that have masked their vectors in slot 0."""
    made = dishonest(federation(4))
    for silo in (1, 2, 3, 4):
        made.masked(silo)
    return made


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("request_bytes", [b"", b"\x90", b"\xc1", b"\x9f" * 50, bytes(1000)])
def test_a_malformed_message_changes_nothing(attack: Any, stage: str, request_bytes: bytes) -> None:
    before = state_of(attack, 1)
    with pytest.raises(ProtocolError):
        attack.fed.answer(stage, 1, request_bytes)
    assert state_of(attack, 1) == before


def test_no_single_bit_of_a_request_can_be_flipped_to_change_anything(attack: Any) -> None:
    request, before = attack.confirm_request(1, ALL), state_of(attack, 1)
    for place in range(0, len(request), 7):
        damaged = bytearray(request)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ProtocolError):
            attack.fed.answer("confirm", 1, bytes(damaged))
        assert state_of(attack, 1) == before, place
    attack.confirm(1, ALL)
    assert state_of(attack, 1) != before, "the request itself is taken"


def test_a_message_out_of_order_changes_nothing(attack: Any) -> None:
    """Dealing again, unmask before confirm, and stages that there are not."""
    before = state_of(attack, 1)
    dealing = attack.fed.signed(ShareRequest(*attack.head, 0, 3, ()))
    unmask = attack.unmask_request(ALL, [(silo, bytes(64)) for silo in (1, 2, 3)])
    for stage, request in (("share", dealing), ("unmask", unmask), ("train", b"")):
        with pytest.raises(ProtocolError):
            attack.fed.answer(stage, 1, request)
        assert state_of(attack, 1) == before, stage


def refused_without_closing(attack: Any) -> dict[str, Callable[[], object]]:
    """One request for each rule without a star that this state can break."""
    fed, head, data = attack.fed, attack.head, attack.manifest.to_bytes()
    other, of_other_keys = replace(attack.manifest, attempt=1), replace(attack.manifest, epoch_hash=bytes(32))
    return {
        "signature": lambda: fed.answer(
            "masked", 1, Signed(Signed.from_bytes(attack.confirm_request(1, ALL)).payload, bytes(64)).to_bytes()
        ),
        "roster": lambda: fed.answer(
            "masked", 1, fed.signed(MaskedRequest(head[0], bytes(32), head[2], data, b""))
        ),
        "epoch-order": lambda: fed.answer("advertise", 1, fed.signed(AdvertiseRequest(*head, 2))),
        "manifest": lambda: fed.answer(
            "masked", 1, fed.signed(MaskedRequest(*head, replace(attack.manifest, epoch=7).to_bytes(), b""))
        ),
        "epoch-keys": lambda: fed.answer(
            "masked", 1, fed.signed(MaskedRequest(*head, of_other_keys.to_bytes(), b""))
        ),
        "slot-once": lambda: fed.answer("masked", 1, fed.signed(MaskedRequest(*head, other.to_bytes(), b""))),
    }  # fmt: skip


RULES = ("signature", "roster", "epoch-order", "manifest", "epoch-keys", "slot-once")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_closes_no_slot_changes_nothing(attack: Any, rule: str) -> None:
    before = state_of(attack, 1)
    with pytest.raises(Refusal, match=rule):
        refused_without_closing(attack)[rule]()
    assert state_of(attack, 1) == before
    attack.confirm(1, ALL)


def test_a_second_question_changes_nothing(attack: Any) -> None:
    """confirm-once and unmask-once: the slot stays as the first answer left it."""
    confirmations = [attack.confirm(silo, ALL) for silo in (1, 2, 3, 4)]
    before = state_of(attack, 1)
    with pytest.raises(Refusal, match="confirm-once"):
        attack.confirm(1, WITHOUT_4)
    assert state_of(attack, 1) == before
    attack.unmask(1, ALL, confirmations)
    before = state_of(attack, 1)
    with pytest.raises(Refusal, match="unmask-once"):
        attack.unmask(1, ALL, confirmations[:3])
    assert state_of(attack, 1) == before


def test_a_rule_that_closes_the_slot_changes_it(attack: Any) -> None:
    """So that the tests above can fail."""
    before = state_of(attack, 1)
    with pytest.raises(Refusal, match="minimum"):
        attack.confirm(1, ((1, 2),))
    assert state_of(attack, 1) != before
    assert attack.slot_is_closed(1)


def test_a_silo_that_took_delivery_ignores_a_later_one(attack: Any) -> None:
    """Noise in its place is not even read."""
    for silo in (1, 2, 3, 4):
        data = attack.manifest.to_bytes()
        receipts = tuple(attack.receipts[s] for s in (1, 2, 3, 4))
        request = ConfirmRequest(*attack.head, data, ALL, receipts, b"\xc1 no delivery")
        attack.fed.answer("confirm", silo, attack.fed.signed(request))
