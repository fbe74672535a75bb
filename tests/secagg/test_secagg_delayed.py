"""Two processes of one silo: what one meant for an old epoch is written after the other opened a new one.

Slots are numbered anew in every epoch, so a late write must not find the new epoch's slot of the same number.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from autoflip_secure.errors import ProtocolError, Refusal
from autoflip_secure.secagg.round_messages import ConfirmReply, MaskedRequest, UnmaskRequest
from autoflip_secure.secagg.silo_states import Confirmed
from autoflip_secure.secagg.state import SiloState

TABLES = ("secagg_slot", "secagg_secret", "secagg_share")


def kept(connection):
    """Everything that is kept slot by slot."""
    return [sorted(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in TABLES]


def test_confirmation_written_late_opens_nothing_in_the_new_epoch(federation, dishonest, monkeypatch):
    """Nine silos confirm a small cohort of epoch 1, but their processes are stopped before they write.

    In epoch 2 silo 1 masks with others. Were the late confirmations to land in that slot, the silos would then reveal
    its seed, and the mask keys of all that it masked with, for the lists of epoch 1.
    """
    fed = federation(10, slots=1)
    victim, survivors, helpers = 1, ((1, 2, 3, 4, 5),), range(2, 11)
    one = dishonest(fed, *survivors, epoch=fed.open_epoch(1))
    for silo in survivors[0]:
        one.masked(silo)
    write, late = SiloState.record_confirmation, []
    monkeypatch.setattr(SiloState, "record_confirmation", lambda *call: late.append(call))
    confirmations = {}
    for silo in helpers:
        reply = fed.answer("confirm", silo, one.confirm_request(silo, survivors))
        confirmations[silo] = ConfirmReply.from_bytes(reply).signature
    monkeypatch.setattr(SiloState, "record_confirmation", write)

    for silo in fed.identities:
        fed.silos[silo] = fed.start(silo)
    two = dishonest(fed, epoch=fed.open_epoch(1))
    for silo in helpers:
        two.masked(silo)
    two.masked(
        victim,
        fed.manifest((1, 6, 7, 8, 9, 10)).with_slot(
            epoch=two.epoch.number, slot=0, epoch_hash=two.epoch.epoch_hash, attempt=0
        ),
    )
    before = {silo: kept(fed.connections[silo]) for silo in fed.identities}
    refused = 0
    for call in late:
        try:
            write(*call)
        except Refusal as error:
            refused += "confirm-once" in str(error)
    request = UnmaskRequest(*two.head, 0, one.manifest.digest(), survivors, tuple(sorted(confirmations.items()))[:7])
    for silo in helpers:
        with suppress(ProtocolError):
            reply = fed.answer("unmask", silo, fed.signed(request))
            two.spoils.take_answer(two.manifest, survivors, reply, fed.roster.public(silo))
    two.assert_hidden(victim)
    assert refused == len(late) == len(helpers)
    assert {silo: kept(fed.connections[silo]) for silo in fed.identities} == before


def test_half_read_answer_of_an_old_epoch_leaves_the_new_one_alone(federation, dishonest):
    """Its end would note a masked vector in a slot of the new epoch, whose own vector is not finished."""
    fed = federation(5, slots=1)

    def begin():
        attack = dishonest(fed, epoch=fed.open_epoch(1))
        request = MaskedRequest(*attack.head, attack.manifest.to_bytes(), attack.epoch.delivery(1))
        parts = fed.silos[1].answer_in_parts(fed.signed(request), fed.contribute(1))
        next(parts)
        return parts

    old, new = begin(), begin()
    before = kept(fed.connections[1])
    with pytest.raises(Refusal, match="slot-once"):
        next(old)
    assert kept(fed.connections[1]) == before
    assert len(b"".join(new)) > 64, "the new epoch's answer ends with its receipt"
    assert fed.connections[1].execute("SELECT stage FROM secagg_slot").fetchall() == [("masked",)]


WRITES = {
    "spend": (None, lambda state, old: state.spend(old, 0, b"manifest")),
    "spend and close": (None, lambda state, old: state.spend(old, 0, b"manifest", closed=True)),
    "masked": ("spent", lambda state, old: state.record_masked(old, 0, bytes(32))),
    "confirmation": (
        "masked",
        lambda state, old: state.record_confirmation(old, Confirmed(0, b"m", b"statement", b"hash", b"reply")),
    ),
    "answer": ("confirmed", lambda state, old: state.record_answer(old, 0, b"hash", b"reply")),
    "close": ("masked", lambda state, old: state.close(old, 0)),
}


@pytest.mark.parametrize("what", WRITES)
def test_no_write_of_an_old_epoch_changes_the_new_one(federation, dishonest, what):
    stage, write = WRITES[what]
    fed = federation(4, slots=1)
    state, connection = fed.silos[1]._party.state, fed.connections[1]
    dishonest(fed, epoch=fed.open_epoch(1)).masked(1)
    old = state.epoch(fed.session)
    two = dishonest(fed, epoch=fed.open_epoch(1))
    if stage is None:
        with pytest.raises(ProtocolError, match="not a manifest"):
            fed.answer("masked", 1, fed.signed(MaskedRequest(*two.head, b"", two.epoch.delivery(1))))
    else:
        two.masked(1)
        connection.execute("UPDATE secagg_slot SET stage = ?", (stage,))
    before = kept(connection)
    assert before[2], "there are shares to lose"
    with suppress(Refusal):
        write(state, old)
    assert kept(connection) == before


def test_shares_of_a_new_epoch_are_not_read_for_an_old_one(federation, dishonest):
    fed = federation(4, slots=1)
    state = fed.silos[1]._party.state
    dishonest(fed, epoch=fed.open_epoch(1)).masked(1)
    old = state.epoch(fed.session)
    dishonest(fed, epoch=fed.open_epoch(1)).masked(1)
    with pytest.raises(Refusal, match="unmask-once"):
        state.shares(old, 0)
    assert state.slot(old, 0) is None
    assert state.shares(state.epoch(fed.session), 0)
