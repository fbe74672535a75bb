"""How the silos of a run come to share a key that the coordinator, who carries every message, does not know."""

from __future__ import annotations

import pickle
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.ckks import messages as ckks_messages
from autoflip_secure.errors import InputError, ProtocolError, Refusal
from autoflip_secure.parties.agreement import LOW_ORDER, Agreement, fresh_key, public_key
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.parties.run_key import RunKeys, _box_key, distribute
from autoflip_secure.parties.run_key_messages import (
    BOX_BYTES,
    RunKeyReply,
    RunKeyRequest,
    RunKeyStatement,
    read_statement,
)
from autoflip_secure.parties.run_key_store import KEPT_RUNS, RunKeyStore
from autoflip_secure.parties.signing import Signed, sign_message
from autoflip_secure.secagg import round_messages, setup_messages
from autoflip_secure.storage import open_silo_database
from tests.damaged_messages import check_damaged

SESSION, OTHER_SESSION = bytes(range(16)), bytes(16)
EVERYBODY = frozenset(range(1, 6))


class Federation:
    """Silos 1..n, and a coordinator that keeps every byte it passed on."""

    def __init__(self, n=5, folder=None):
        self.folder = folder
        self.identities = {silo: Identity.generate() for silo in range(1, n + 1)}
        self.coordinator = Identity.generate()
        self.roster = self.roster_of(self.identities)
        self.databases = {silo: self.database(silo) for silo in self.identities}
        self.silos = {silo: self.start(silo) for silo in self.identities}
        self.seen, self.refused, self.asked = [], [], []
        self.absent = lambda asked, silo: False
        self.lost = lambda asked, silo: False
        self.tamper = lambda asked, silo, reply: reply

    def roster_of(self, identities):
        entries = (RosterEntry(silo, f"hospital {silo}", key.public) for silo, key in identities.items())
        return Roster(self.coordinator.public, tuple(entries))

    def database(self, silo):
        if self.folder is None:
            return sqlite3.connect(":memory:", isolation_level=None)
        return open_silo_database(self.folder / f"{silo}.db")

    def start(self, silo, session=SESSION):
        """A new process of a silo: nothing but its database is carried over."""
        return RunKeys(self.databases[silo], self.identities[silo], silo, self.roster, session)

    def ask(self, requests):
        for silo, request in requests.items():
            asked = RunKeyRequest.from_bytes(request).asked
            self.asked.append((asked, silo))
            self.seen.append(request)
            if self.absent(asked, silo):
                continue
            try:
                reply = self.silos[silo].answer(request)
            except ProtocolError as error:
                self.refused.append((asked, silo, str(error)))
                continue
            if self.lost(asked, silo):
                continue
            self.seen.append(reply)
            yield silo, self.tamper(asked, silo, reply)

    def distribute(self, silos=None):
        return distribute(self.ask, self.silos if silos is None else silos, self.roster, SESSION)

    @property
    def keys(self):
        return [silo.key for silo in self.silos.values()]

    def request(self, asked, statements=(), box=b""):
        return RunKeyRequest(SESSION, self.roster.hash(), asked, tuple(statements), box).to_bytes()

    def statement(self, silo):
        return RunKeyReply.from_bytes(self.silos[silo].answer(self.request("state"))).statement

    def share(self, sharer, *receivers):
        """Statement of the sharer, and its boxes."""
        request = self.request("share", map(self.statement, receivers))
        reply = RunKeyReply.from_bytes(self.silos[sharer].answer(request))
        return reply.statement, reply.boxes

    def take(self, silo, statement, box):
        return self.silos[silo].answer(self.request("take", [statement], box))

    def stated(self, silo, **changes):
        """A statement of a silo with some fields changed, signed by it."""
        statement = RunKeyStatement(SESSION, self.roster.hash(), silo, public_key(fresh_key()))
        return sign_message(self.identities[silo], replace(statement, **changes))


@pytest.fixture
def fed():
    return Federation()


def test_all_silos_come_to_share_one_key(fed):
    assert fed.keys == [None] * 5
    assert fed.distribute() == EVERYBODY
    assert len(set(fed.keys)) == 1
    assert len(fed.keys[0]) == 32
    assert not fed.refused


def test_key_is_drawn_by_one_silo_and_anew_for_each_run(fed):
    fed.distribute()
    assert [asked for asked in fed.asked if asked[0] == "share"] == [("share", 1)]
    first = fed.keys[0]
    other = Federation()
    other.distribute()
    assert other.keys[0] != first


def test_nobody_is_asked_for_more_once_all_have_the_key(fed):
    fed.distribute()
    fed.asked.clear()
    assert fed.distribute() == EVERYBODY
    assert fed.asked == [("state", silo) for silo in range(1, 6)]


def test_late_silo_gets_the_key_that_the_others_have(fed):
    fed.absent = lambda asked, silo: silo == 5
    assert fed.distribute() == EVERYBODY - {5}
    key = fed.keys[0]
    fed.absent = lambda asked, silo: silo == 1
    assert fed.distribute() == EVERYBODY - {1}
    assert fed.keys == [key] * 5


def test_late_silos_without_those_that_have_the_key_do_not_draw_another(fed):
    """Two of five cannot know whether the key is with the three that are away."""
    fed.absent = lambda asked, silo: silo == 5
    fed.distribute()
    fed.absent = lambda asked, silo: silo < 5
    assert fed.distribute() == frozenset()
    assert fed.distribute([5]) == frozenset()
    assert fed.silos[5].key is None


def test_key_is_not_drawn_before_as_many_silos_are_there_as_a_sum_needs(fed):
    assert fed.distribute([1, 2, 3]) == frozenset()
    assert fed.keys == [None] * 5
    assert fed.distribute([1, 2, 3, 4]) == EVERYBODY - {5}


def test_silos_that_restart_between_all_stages_go_on(tmp_path):
    fed = Federation(folder=tmp_path)
    honest = fed.ask

    def restarting(requests):
        for silo in requests:
            fed.databases[silo].close()
            fed.databases[silo] = fed.database(silo)
            fed.silos[silo] = fed.start(silo)
        return honest(requests)

    assert distribute(restarting, fed.silos, fed.roster, SESSION) == EVERYBODY
    assert {fed.start(silo).key for silo in fed.silos} == {fed.keys[0]}


@pytest.mark.parametrize("stage", ["state", "share", "take"])
def test_what_a_reply_tells_is_on_disk_before_it_leaves(stage, tmp_path):
    fed = Federation(folder=tmp_path)
    honest = fed.ask

    def looking(requests):
        for silo, reply in honest(requests):
            if fed.asked[-1][0] == stage:
                seen = sqlite3.connect(tmp_path / f"{silo}.db").execute("SELECT private, key FROM run_key").fetchall()
                assert [row[1] for row in seen] == [fed.silos[silo].key]
                assert bool(RunKeyReply.from_bytes(reply).key_name) == (seen[0][1] is not None)
                statement = read_statement(RunKeyReply.from_bytes(reply).statement, fed.roster, SESSION)
                assert statement.public == public_key(seen[0][0])
            yield silo, reply

    assert distribute(looking, fed.silos, fed.roster, SESSION) == EVERYBODY


def test_statement_is_the_same_after_a_restart(fed):
    before = fed.statement(2)
    fed.silos[2] = fed.start(2)
    assert fed.statement(2) == before


def test_sharer_that_dies_before_it_draws_is_replaced(fed):
    fed.absent = lambda asked, silo: silo == 1 and asked != "state"
    assert fed.distribute() == EVERYBODY - {1}
    fed.absent = lambda asked, silo: False
    assert fed.distribute() == EVERYBODY
    assert len(set(fed.keys)) == 1


def test_sharer_whose_reply_is_lost_takes_the_key_of_the_next(fed):
    fed.lost = lambda asked, silo: (asked, silo) == ("share", 1)
    assert fed.distribute() == EVERYBODY
    assert len(set(fed.keys)) == 1
    assert fed.refused == []


def test_silo_that_uses_a_key_of_its_own_is_left_out(fed):
    fed.share(1, 2)
    own = fed.silos[1].key
    assert fed.silos[1].use() == fed.silos[1].tag_key != own
    fed.absent = lambda asked, silo: (asked, silo) == ("share", 1)
    assert fed.distribute() == EVERYBODY - {1}
    fed.absent = lambda asked, silo: False
    assert fed.distribute() == EVERYBODY - {1}, "its words would spoil every tag"
    assert fed.keys[0] == own not in fed.keys[1:]
    assert {(asked, silo) for asked, silo, why in fed.refused if "run-key-once" in why} == {("take", 1)}


def test_takers_whose_replies_are_lost_pass_their_key_on(fed):
    """The second sharer has the first one's key already, so there is one key all the same."""
    fed.lost = lambda asked, silo: asked == "take"
    assert fed.distribute() == frozenset()
    assert len(set(fed.keys)) == 1
    fed.lost = lambda asked, silo: False
    assert fed.distribute() == EVERYBODY


def test_at_most_three_silos_are_asked_to_share(fed):
    fed.absent = lambda asked, silo: asked == "share"
    assert fed.distribute() == frozenset()
    assert [silo for asked, silo in fed.asked if asked == "share"] == [1, 2, 3]


def test_silos_with_the_key_are_asked_before_others_may_draw(fed):
    fed.distribute([1, 2, 3, 4])
    fed.absent = lambda asked, silo: asked == "share" and silo < 3
    assert fed.distribute() == EVERYBODY
    assert [silo for asked, silo in fed.asked if asked == "share"] == [1, 1, 2, 3]
    assert len(set(fed.keys)) == 1


def test_late_silo_does_not_draw_where_no_holder_shares(fed):
    fed.distribute([1, 2, 3, 4])
    fed.absent = lambda asked, silo: asked == "share" and silo < 5
    assert fed.distribute() == EVERYBODY - {5}
    assert fed.silos[5].key is None


@pytest.mark.parametrize("damage", [lambda reply: b"", lambda reply: reply[:-1], lambda reply: b"\xff" + reply])
def test_silo_with_malformed_replies_counts_as_without(fed, damage):
    fed.tamper = lambda asked, silo, reply: damage(reply) if silo == 2 else reply
    assert fed.distribute() == EVERYBODY - {2}


def test_silo_that_sends_too_few_boxes_is_replaced(fed):
    def fewer(asked, silo, reply):
        message = RunKeyReply.from_bytes(reply)
        return replace(message, boxes=message.boxes[1:]).to_bytes() if asked == "share" and silo == 1 else reply

    fed.tamper = fewer
    assert fed.distribute() == EVERYBODY
    assert len(set(fed.keys)) == 1


def test_silo_that_sends_boxes_that_nobody_can_open_is_replaced(fed):
    def spoilt(asked, silo, reply):
        message = RunKeyReply.from_bytes(reply)
        boxes = tuple(bytes(BOX_BYTES) for _ in message.boxes)
        return replace(message, boxes=boxes).to_bytes() if asked == "share" and silo == 1 else reply

    fed.tamper = spoilt
    assert fed.distribute() == EVERYBODY
    assert len(set(fed.keys)) == 1
    assert sum("run-key-box" in why for _, _, why in fed.refused) == 4


def test_silo_that_shares_another_key_than_it_said_it_has_is_passed_over():
    """It would part the late silo from the rest."""
    fed = Federation(7)
    fed.share(1, 2)
    fed.distribute(range(2, 7))
    name = RunKeyReply.from_bytes(fed.silos[2].answer(fed.request("state"))).key_name

    def lying(asked, silo, reply):
        lies = (asked, silo) == ("state", 1)
        return replace(RunKeyReply.from_bytes(reply), key_name=name).to_bytes() if lies else reply

    fed.tamper = lying
    assert fed.distribute() == frozenset(range(1, 8))
    assert [silo for asked, silo in fed.asked if asked == "share"] == [2, 1, 2]
    assert fed.silos[7].key == fed.silos[2].key != fed.silos[1].key


def test_silo_that_does_not_say_that_it_has_the_key_shared_counts_as_without(fed):
    def other(asked, silo, reply):
        name = {2: b"", 3: bytes(32)}.get(silo) if asked == "take" else None
        return reply if name is None else replace(RunKeyReply.from_bytes(reply), key_name=name).to_bytes()

    fed.tamper = other
    assert fed.distribute() == EVERYBODY - {2, 3}


def test_silo_with_a_key_that_it_does_not_share_takes_that_of_the_others(fed):
    _, _ = fed.share(1, 2)
    own = fed.silos[1].key
    fed.absent = lambda asked, silo: (asked, silo) == ("share", 1)
    assert fed.distribute() == EVERYBODY - {1}
    fed.absent = lambda asked, silo: False
    assert fed.distribute() == EVERYBODY
    assert own not in fed.keys


def test_silo_that_answers_with_the_statement_of_another_counts_as_without(fed):
    other = fed.statement(3)
    fed.tamper = lambda asked, silo, reply: (
        replace(RunKeyReply.from_bytes(reply), statement=other).to_bytes() if silo == 2 else reply
    )
    assert fed.distribute() == EVERYBODY - {2}


def test_answers_of_silos_that_were_not_asked_or_answered_before_are_ignored(fed):
    honest, uninvited = fed.ask, fed.silos[5].answer(fed.request("state"))

    def noisy(requests):
        for silo, reply in honest(requests):
            yield silo, reply
            yield silo, replace(RunKeyReply.from_bytes(reply), key_name=bytes(32), boxes=()).to_bytes()
            yield 5, uninvited
            yield 99, reply

    assert distribute(noisy, (1, 2, 3, 4), fed.roster, SESSION) == EVERYBODY - {5}
    assert 5 not in {silo for _, silo in fed.asked}
    assert fed.keys == [fed.keys[0]] * 4 + [None]
    assert fed.keys[0] is not None, "what came second is not believed"


def test_replies_may_come_in_any_order(fed):
    honest = fed.ask
    assert distribute(lambda requests: list(honest(requests))[::-1], fed.silos, fed.roster, SESSION) == EVERYBODY
    assert [silo for asked, silo in fed.asked if asked == "share"] == [1]


def refuses(fed, silo, rule, request):
    """The silo refuses by the rule, and its key is what it was before."""
    before = fed.silos[silo].key
    with pytest.raises(Refusal, match=f"refused by rule {rule}:"):
        fed.silos[silo].answer(request)
    assert fed.silos[silo].key == before


def test_coordinator_cannot_take_a_silos_place_as_receiver(fed):
    """It states a key of its own for silo 2, signed with the one identity it has."""
    statement = RunKeyStatement(SESSION, fed.roster.hash(), 2, public_key(fresh_key()))
    refuses(fed, 1, "signature", fed.request("share", [sign_message(fed.coordinator, statement)]))
    assert fed.silos[1].key is None, "no key was drawn"


def test_coordinator_cannot_take_a_silos_place_as_sender(fed):
    _, (box,) = fed.share(1, 3)
    statement = RunKeyStatement(SESSION, fed.roster.hash(), 1, public_key(fresh_key()))
    refuses(fed, 3, "signature", fed.request("take", [sign_message(fed.coordinator, statement)], box))


def test_signature_on_another_kind_of_message_is_worth_nothing(fed):
    statement = RunKeyStatement(SESSION, fed.roster.hash(), 2, public_key(fresh_key()))
    payload = statement.to_bytes()
    signature = fed.identities[2].sign(b"advertisement", payload)
    refuses(fed, 1, "signature", fed.request("share", [Signed(payload, signature).to_bytes()]))


def test_box_for_one_silo_opens_at_no_other(fed):
    statement, boxes = fed.share(1, 2, 3)
    refuses(fed, 3, "run-key-box", fed.request("take", [statement], boxes[0]))
    refuses(fed, 2, "run-key-box", fed.request("take", [statement], boxes[1]))
    fed.take(2, statement, boxes[0])
    assert fed.silos[2].key == fed.silos[1].key


def test_box_does_not_open_at_its_sender_or_under_another_senders_name(fed):
    """Both silos agree on one X25519 secret, but each direction has its key."""
    _, (box,) = fed.share(1, 2)
    refuses(fed, 1, "run-key-box", fed.request("take", [fed.statement(2)], box))
    refuses(fed, 2, "run-key-box", fed.request("take", [fed.statement(3)], box))


def test_direction_session_and_roster_each_give_another_box_key():
    mine, theirs = fresh_key(), fresh_key()
    peer = RunKeyStatement(SESSION, bytes(32), 2, public_key(theirs))
    base = _box_key(Agreement(mine), peer, 1, 2)
    assert base == _box_key(Agreement(theirs), replace(peer, silo=1, public=public_key(mine)), 1, 2)
    others = [
        _box_key(Agreement(mine), peer, 2, 1),
        _box_key(Agreement(mine), peer, 1, 3),
        _box_key(Agreement(mine), replace(peer, session=OTHER_SESSION), 1, 2),
        _box_key(Agreement(mine), replace(peer, roster_hash=bytes([1]) * 32), 1, 2),
    ]
    assert len({base, *others}) == 5


def test_box_is_bound_to_both_statements(fed):
    """X25519 ignores the highest bit of a public key, so other statements give the same box key."""
    statement, (box,) = fed.share(1, 2)

    def again(silo):
        """Another statement of the silo, for the same point."""
        point = int.from_bytes(read_statement(fed.statement(silo), fed.roster, SESSION).public, "little")
        return fed.stated(silo, public=(point | 1 << 255).to_bytes(32, "little"))

    refuses(fed, 2, "run-key-box", fed.request("take", [again(1)], box))
    reply = RunKeyReply.from_bytes(fed.silos[1].answer(fed.request("share", [again(2)])))
    refuses(fed, 2, "run-key-box", fed.request("take", [statement], reply.boxes[0]))
    fed.take(2, statement, box)


def test_box_of_another_run_is_refused(fed):
    old = {silo: fed.start(silo, OTHER_SESSION) for silo in (1, 2)}
    head = (OTHER_SESSION, fed.roster.hash())
    receiver = RunKeyReply.from_bytes(old[2].answer(RunKeyRequest(*head, "state").to_bytes())).statement
    shared = RunKeyReply.from_bytes(old[1].answer(RunKeyRequest(*head, "share", (receiver,)).to_bytes()))
    take = RunKeyRequest(*head, "take", (shared.statement,), shared.boxes[0])
    refuses(fed, 2, "session", take.to_bytes())
    refuses(fed, 2, "session", replace(take, session=SESSION).to_bytes())
    refuses(fed, 2, "run-key-box", fed.request("take", [fed.statement(1)], shared.boxes[0]))
    refuses(fed, 1, "session", fed.request("share", [receiver]))
    old[2].answer(take.to_bytes())
    assert old[2].key == old[1].key
    assert fed.silos[2].key is None


def test_silo_uses_one_key_a_run(fed):
    """The coordinator lets two silos draw."""
    first, (box_of_first,) = fed.share(1, 3)
    second, boxes = fed.share(2, 1, 3)
    fed.take(3, second, boxes[1])
    fed.take(3, first, box_of_first)
    assert fed.silos[3].key == fed.silos[1].key, "not used yet, so the later one counts"
    assert fed.silos[1].use() == fed.silos[3].use() == fed.silos[1].tag_key
    refuses(fed, 3, "run-key-once", fed.request("take", [second], boxes[1]))
    refuses(fed, 1, "run-key-once", fed.request("take", [second], boxes[0]))
    assert fed.silos[1].key == fed.silos[3].key != fed.silos[2].key
    fed.silos[3] = fed.start(3)
    refuses(fed, 3, "run-key-once", fed.request("take", [second], boxes[1]))


def test_same_key_may_come_again_and_from_another_silo(fed):
    statement, boxes = fed.share(1, 2, 3)
    first = fed.take(2, statement, boxes[0])
    assert fed.take(2, statement, boxes[0]) == first
    fed.take(3, statement, boxes[1])
    again, (box,) = fed.share(3, 2)
    assert fed.take(2, again, box) == first


def test_silo_that_has_a_key_seals_it_and_never_draws_another(fed):
    statement, (box,) = fed.share(1, 2)
    fed.take(2, statement, box)
    key = fed.silos[1].key
    for sharer in (1, 2):
        fed.silos[sharer] = fed.start(sharer)
        statement, (box,) = fed.share(sharer, 3)
        fed.take(3, statement, box)
        assert fed.silos[sharer].key == fed.silos[3].key == key


def test_boxes_of_one_key_for_one_silo_have_fresh_nonces(fed):
    boxes = [fed.share(1, 2)[1][0] for _ in range(20)]
    assert len({box[:12] for box in boxes}) == 20


def test_any_flipped_bit_of_a_box_is_refused(fed):
    statement, (box,) = fed.share(1, 2)
    for bit in range(8 * BOX_BYTES):
        flipped = bytearray(box)
        flipped[bit // 8] ^= 1 << bit % 8
        refuses(fed, 2, "run-key-box", fed.request("take", [statement], bytes(flipped)))
    fed.take(2, statement, box)


def test_any_flipped_bit_of_a_statement_is_refused(fed):
    statement, (box,) = fed.share(1, 2)
    for bit in range(8 * len(statement)):
        flipped = bytearray(statement)
        flipped[bit // 8] ^= 1 << bit % 8
        for silo, request in ((2, fed.request("take", [bytes(flipped)], box)),
                              (3, fed.request("share", [bytes(flipped)]))):  # fmt: skip
            with pytest.raises(ProtocolError):
                fed.silos[silo].answer(request)
    assert fed.silos[2].key is fed.silos[3].key is None


@pytest.mark.parametrize("point", sorted(LOW_ORDER))
@pytest.mark.parametrize("high", [0, 1 << 255])
def test_key_of_low_order_is_refused(fed, point, high):
    """A silo that states one would let everybody open its boxes."""
    statement = fed.stated(2, public=(point | high).to_bytes(32, "little"))
    refuses(fed, 1, "low-order", fed.request("share", [statement]))
    refuses(fed, 1, "low-order", fed.request("take", [statement], bytes(BOX_BYTES)))


def test_silo_outside_the_roster_is_refused(fed):
    stranger = Identity.generate()
    statement = sign_message(stranger, RunKeyStatement(SESSION, fed.roster.hash(), 6, public_key(fresh_key())))
    refuses(fed, 1, "known-silos", fed.request("share", [fed.statement(2), statement]))
    refuses(fed, 1, "known-silos", fed.request("take", [statement], bytes(BOX_BYTES)))


def test_own_statement_is_refused(fed):
    statement = fed.statement(1)
    refuses(fed, 1, "known-silos", fed.request("share", [statement, fed.statement(2)]))
    refuses(fed, 1, "known-silos", fed.request("take", [statement], bytes(BOX_BYTES)))


def test_silo_seals_once_for_each_in_ascending_order(fed):
    two, three = fed.statement(2), fed.statement(3)
    refuses(fed, 1, "known-silos", fed.request("share", [two, two]))
    refuses(fed, 1, "known-silos", fed.request("share", [three, two]))
    assert fed.silos[1].key is None


def test_requests_and_statements_of_another_roster_are_refused(fed):
    refuses(fed, 1, "roster", RunKeyRequest(SESSION, bytes(32), "state").to_bytes())
    refuses(fed, 1, "roster", fed.request("share", [fed.stated(2, roster_hash=bytes(32))]))
    refuses(fed, 1, "session", RunKeyRequest(OTHER_SESSION, fed.roster.hash(), "state").to_bytes())


def test_run_key_outlives_a_change_of_the_roster_and_statements_do_not(fed):
    fed.distribute()
    key, old, (old_box,) = fed.keys[0], *fed.share(1, 2)
    public = read_statement(old, fed.roster, SESSION).public
    fed.identities[6] = Identity.generate()
    fed.databases[6] = fed.database(6)
    fed.roster = fed.roster_of(fed.identities)
    fed.silos = {silo: fed.start(silo) for silo in fed.identities}
    assert read_statement(fed.statement(1), fed.roster, SESSION).public == public
    refuses(fed, 2, "roster", fed.request("take", [old], old_box))
    refuses(fed, 2, "run-key-box", fed.request("take", [fed.statement(1)], old_box))
    assert fed.distribute() == EVERYBODY | {6}
    assert fed.keys == [key] * 6


def test_coordinator_sees_neither_run_key_nor_private_keys(fed):
    """Also not after it let two silos draw, and asked for everything twice."""
    fed.lost = lambda asked, silo: (asked, silo) == ("share", 1)
    fed.distribute()
    fed.distribute()
    view = b"".join(fed.seen)
    secrets = [secret for database in fed.databases.values() for secret in rows(database)[0][1:]]
    assert len(secrets) == 10
    for secret in secrets:
        assert secret not in view
        assert secret[::-1] not in view
        assert secret[:8] not in view


def test_every_secret_in_the_database_is_found_by_the_search_above(fed):
    fed.distribute()
    for silo, database in fed.databases.items():
        ((session, private, key),) = rows(database)
        assert (session, key) == (SESSION, fed.silos[silo].key)
        assert public_key(private) == read_statement(fed.statement(silo), fed.roster, SESSION).public


def rows(database):
    return database.execute("SELECT session, private, key FROM run_key ORDER BY session").fetchall()


def test_runs_long_ago_are_forgotten_and_those_that_may_rest_are_kept(tmp_path):
    fed = Federation(folder=tmp_path)
    old = fed.start(1, OTHER_SESSION)
    receiver = fed.start(2, OTHER_SESSION).answer(RunKeyRequest(OTHER_SESSION, fed.roster.hash(), "state").to_bytes())
    statement = RunKeyReply.from_bytes(receiver).statement
    old.answer(RunKeyRequest(OTHER_SESSION, fed.roster.hash(), "share", (statement,)).to_bytes())
    ((_, private, key),) = rows(fed.databases[1])
    for number in range(KEPT_RUNS - 2):
        session = bytes([100 + number]) * 16
        fed.start(1, session).answer(RunKeyRequest(session, fed.roster.hash(), "state").to_bytes())
    fed.distribute()
    fed.silos[1].forget_oldest_runs()
    assert len(rows(fed.databases[1])) == KEPT_RUNS
    assert old.key == key, "one of the last"
    RunKeyStore(fed.databases[1]).private(b"one more session")
    fed.silos[1].forget_oldest_runs()
    assert len(rows(fed.databases[1])) == KEPT_RUNS
    assert old.key is None
    assert fed.silos[1].key == fed.keys[1] != key
    on_disk = b"".join(path.read_bytes() for path in tmp_path.glob("1.db*"))
    assert private not in on_disk
    assert key not in on_disk


def test_key_is_not_kept_for_a_run_that_another_process_forgot(fed):
    store = RunKeyStore(fed.databases[1])
    store.private(SESSION)
    fed.databases[1].execute("DELETE FROM run_key")
    with pytest.raises(ProtocolError, match="deleted meanwhile"):
        store.keep(SESSION, bytes(32), drawn=True)
    assert rows(fed.databases[1]) == []


def test_database_is_for_its_owner_alone(tmp_path):
    Federation(folder=tmp_path).distribute()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("*.db*")} == {0}


def test_keys_are_in_no_repr_or_error(fed):
    fed.distribute()
    statement, (box,) = fed.share(1, 2)
    spoilt = bytes([box[0] ^ 1]) + box[1:]
    with pytest.raises(Refusal) as caught:
        fed.take(2, statement, spoilt)
    ((_, private, key),) = rows(fed.databases[1])
    told = repr(fed.silos[1]) + repr(fed.silos[1].__dict__) + str(caught.value) + repr(caught.value)
    told += repr(RunKeyReply.from_bytes(fed.silos[1].answer(fed.request("state"))))
    told += repr(RunKeyRequest.from_bytes(fed.request("take", [statement], box)))
    assert repr(fed.silos[1]) == "RunKeys(silo 1)"
    for secret in (private, key, box):
        assert secret.hex() not in told
        assert repr(secret)[2:-1] not in told
    with pytest.raises(TypeError):
        pickle.dumps(fed.silos[1])


def test_silo_must_be_the_one_of_the_roster(fed):
    with pytest.raises(InputError, match="not in the roster"):
        RunKeys(fed.databases[1], fed.identities[1], 6, fed.roster, SESSION)
    with pytest.raises(InputError, match="identity"):
        RunKeys(fed.databases[1], fed.identities[2], 1, fed.roster, SESSION)
    with pytest.raises(ProtocolError, match="session"):
        RunKeys(fed.databases[1], fed.identities[1], 1, fed.roster, b"short")


HEAD = (SESSION, bytes(32))


@pytest.mark.parametrize("head", [(b"short", bytes(32)), (SESSION, b"short"), ("x" * 16, bytes(32)), (SESSION, 1)])
def test_messages_name_a_session_and_a_roster(head):
    with pytest.raises(ProtocolError):
        RunKeyRequest(*head, "state")
    with pytest.raises(ProtocolError):
        RunKeyStatement(*head, 1, bytes(32))


@pytest.mark.parametrize(
    "fields",
    [
        ("draw",),
        (["state"],),
        (b"state",),
        ("state", (b"statement",)),
        ("state", (), bytes(BOX_BYTES)),
        ("share",),
        ("share", [b"statement"]),
        ("share", ("text",)),
        ("share", (b"statement",), bytes(BOX_BYTES)),
        ("share", (b"",) * 2001),
        ("take", (), bytes(BOX_BYTES)),
        ("take", (b"",) * 2, bytes(BOX_BYTES)),
        ("take", (b"",), bytes(BOX_BYTES - 1)),
        ("take", (b"",)),
    ],
)
def test_request_that_asks_for_something_else_is_malformed(fields):
    with pytest.raises(ProtocolError):
        RunKeyRequest(*HEAD, *fields)


@pytest.mark.parametrize(
    "fields",
    [(b"", bytes(31)), (b"", b"", (bytes(BOX_BYTES),)), (b"", bytes(32), (bytes(59),)), (b"", bytes(32), [b""])],
)
def test_reply_with_other_fields_is_malformed(fields):
    with pytest.raises(ProtocolError):
        RunKeyReply(*fields)


def test_messages_of_the_largest_roster_can_be_read():
    statement = Signed(RunKeyStatement(*HEAD, 2000, bytes(32)).to_bytes(), bytes(64)).to_bytes()
    request = RunKeyRequest(*HEAD, "share", (statement,) * 2000)
    reply = RunKeyReply(statement, bytes(32), (bytes(BOX_BYTES),) * 2000)
    assert RunKeyRequest.from_bytes(request.to_bytes()) == request
    assert RunKeyReply.from_bytes(reply.to_bytes()) == reply


def test_every_kind_has_its_own_name():
    """A kind is a signature domain, and identities are the same."""
    own = {RunKeyStatement.KIND, RunKeyRequest.KIND, RunKeyReply.KIND}
    modules = (ckks_messages, round_messages, setup_messages)
    listed = [getattr(module, name) for module in modules for name in module.__all__]
    assert len(own) == 3
    assert not own & {Signed.KIND, *(kind.KIND for kind in listed if hasattr(kind, "KIND"))}


def fixed(size):
    return st.binary(min_size=size, max_size=size)


blobs = st.lists(st.binary(max_size=20), min_size=1, max_size=4).map(tuple)
messages = st.one_of(
    st.builds(RunKeyStatement, fixed(16), fixed(32), st.integers(1, 65_535), fixed(32)),
    st.builds(RunKeyRequest, fixed(16), fixed(32), st.just("state")),
    st.builds(RunKeyRequest, fixed(16), fixed(32), st.just("share"), blobs),
    st.builds(RunKeyRequest, fixed(16), fixed(32), st.just("take"), st.tuples(st.binary()), fixed(BOX_BYTES)),
    st.builds(RunKeyReply, st.binary(), st.sampled_from([b"", bytes(32)])),
    st.builds(RunKeyReply, st.binary(), fixed(32), st.lists(fixed(BOX_BYTES), max_size=3).map(tuple)),
)


@settings(max_examples=200)
@given(messages, st.data())
def test_one_message_has_one_encoding(message, data):
    """It is read back, and a flipped, missing or added byte never reads as the same message."""
    original = message.to_bytes()
    assert type(message).from_bytes(original) == message
    check_damaged(message, data)


@pytest.fixture(scope="module")
def settled():
    """A federation whose silos share a key, and all messages that passed."""
    fed = Federation(3)
    fed.distribute()
    return fed


@settings(max_examples=200)
@given(data=st.binary(max_size=300))
def test_noise_is_a_protocol_error(settled, data):
    with pytest.raises(ProtocolError):
        settled.silos[1].answer(data)
    for kind in (RunKeyStatement, RunKeyRequest, RunKeyReply):
        with pytest.raises(ProtocolError):
            kind.from_bytes(data)
    with pytest.raises(ProtocolError):
        read_statement(data, settled.roster, SESSION)
    assert distribute(lambda requests: [(1, data), (2, data)], (1, 2), settled.roster, SESSION) == frozenset()


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_message_is_answered_or_a_protocol_error_and_changes_no_key(settled, data):
    damaged = bytearray(data.draw(st.sampled_from(settled.seen)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    keys = settled.keys
    for silo in settled.silos.values():
        try:
            silo.answer(bytes(damaged))
        except ProtocolError:
            continue
    replies = {silo: bytes(damaged) for silo in settled.silos}
    distribute(lambda requests: replies.items(), settled.silos, settled.roster, SESSION)
    assert settled.keys == keys


def test_rules_of_the_code_and_of_the_specification_are_the_same():
    root = Path(__file__).parents[2]
    code = "".join(path.read_text() for path in (root / "autoflip_secure" / "parties").glob("run_key*.py"))
    text = (root / "protocols" / "models" / "README.md").read_text()
    stated = set(re.findall(r"\[([a-z-]+)\](?!\()", text.split("## Run key")[1].split("\n## ")[0]))
    assert set(re.findall(r'refusal\(\s*"([a-z-]+)"', code)) == stated
    assert len(stated) > 5
