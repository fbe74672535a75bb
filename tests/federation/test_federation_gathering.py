"""Who is there: silos that are away, that have to approve first, that come late, and nodes that lie."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from autoflip_secure.errors import BudgetExhausted, CannotContinue
from autoflip_secure.federation import gathering
from autoflip_secure.federation.gathering import Gathering
from autoflip_secure.federation.join import JOIN_STAGE, join_reply
from autoflip_secure.federation.wire import Reply
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms

ROSTER = Roster(
    Identity.generate().public, tuple(RosterEntry(i, f"silo-{i}", Identity.generate().public) for i in range(1, 5))
)
JOINED = {silo: Reply("ok", join_reply(silo)) for silo in ROSTER.silos}
PENDING = Reply("refused", error="ApprovalPending")
WEEK = 7 * 24 * 3600.0


def asked(cohorts: tuple[tuple[int, ...], ...], minimum: tuple[int, ...], blocks: Any = ()) -> Manifest:
    terms = PrivacyTerms("none", "train", 1.0, 1, 0.0, 1.0, 0, 1e-5)
    channels = (ChannelSpec("count", 1, 20, 1000.0),)
    return Manifest(
        bytes(16), 0, 0, bytes(32), 0, 0, "train", cohorts, minimum, 3, bytes(32), bytes(32), bytes(32), channels,
        terms, blocks=blocks,
    )  # fmt: skip


class Exchange:
    """Answers join requests by node from a script, one answer an asking; the last one stays."""

    def __init__(self, answers: Mapping[int, list[Reply]]) -> None:
        self.answers = {node: list(replies) for node, replies in answers.items()}
        self.nodes: dict[int, int] = {}
        self.asked: list[list[int]] = []
        self.shown: list[bytes] = []

    def ask_nodes(
        self, stage: str, requests: Mapping[int, bytes], shown: bytes, within: float
    ) -> Iterator[tuple[int, Reply]]:
        assert stage == JOIN_STAGE
        self.asked.append(sorted(requests))
        self.shown.append(shown)
        for node in requests:
            replies = self.answers[node]
            yield node, replies.pop(0) if len(replies) > 1 else replies[0]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time goes on by sleeping only."""
    made = SimpleNamespace(now=0.0, slept=[])

    def sleep(seconds: float) -> None:
        made.slept.append(seconds)
        made.now += seconds

    monkeypatch.setattr(gathering.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(gathering.time, "sleep", sleep)
    return made


def gather(
    answers: Mapping[int, list[Reply]], *, patience: float = 0.0, enrolled: Mapping[int, int | None] | None = None
) -> tuple[Gathering, Exchange, list[tuple[str, dict[str, Any]]]]:
    """Nodes 101, 102, ... are silos 1, 2, ...; a node without answers is not connected."""
    exchange, events = Exchange(answers), []
    nodes = dict.fromkeys(answers) if enrolled is None else enrolled
    made = Gathering(
        grid=None,  # type: ignore[arg-type]
        exchange=exchange,  # type: ignore[arg-type]
        nodes=lambda grid: nodes,
        roster=ROSTER,
        needed=frozenset(ROSTER.silos),
        least=3,
        patience=patience,
        ask=lambda: (b"request", b"bundle"),
        joined=lambda replies: events.append(("heads", dict(replies))),
        event=lambda name, **fields: events.append((name, fields)),
    )
    return made, exchange, events


def all_join() -> dict[int, list[Reply]]:
    return {100 + silo: [reply] for silo, reply in JOINED.items()}


def test_silos_that_all_answer_are_asked_once_and_shown_the_bundle() -> None:
    made, exchange, events = gather(all_join())
    made.gather()
    assert exchange.nodes == {1: 101, 2: 102, 3: 103, 4: 104}
    assert exchange.asked == [[101, 102, 103, 104]]
    assert exchange.shown == [b"bundle"]
    assert ("joined", {"silos": [1, 2, 3, 4], "refused": []}) in events
    assert ("heads", JOINED) in events


@pytest.mark.parametrize("answer", [PENDING, Reply("failed"), Reply("refused", error="PolicyRefusal:epsilon")])
def test_without_patience_one_missing_silo_stops_the_run(answer: Reply) -> None:
    made, _, _ = gather({**all_join(), 104: [answer]})
    with pytest.raises(CannotContinue, match=r"silos \[4\] did not join.*nothing was trained"):
        made.gather()


def test_what_a_silo_refused_by_is_in_the_reason() -> None:
    made, _, _ = gather({**all_join(), 104: [Reply("refused", error="PolicyRefusal:epsilon")]})
    with pytest.raises(CannotContinue, match="refused: PolicyRefusal:epsilon"):
        made.gather()


def test_a_ledger_that_does_not_cover_the_run_is_told_apart() -> None:
    made, _, _ = gather({**all_join(), 102: [Reply("refused", error="BudgetExhausted")]})
    with pytest.raises(BudgetExhausted, match="nothing was spent"):
        made.gather()


def test_an_officer_who_takes_time_is_asked_again_with_growing_pauses(clock: SimpleNamespace) -> None:
    made, exchange, events = gather({**all_join(), 103: [PENDING] * 12 + [JOINED[3]]}, patience=3600)
    made.gather()
    assert exchange.nodes.keys() == {1, 2, 3, 4}
    assert exchange.asked[1:] == [[103]] * 12
    assert clock.slept == sorted(clock.slept)
    assert max(clock.slept) == gathering.LONGEST_PAUSE
    answers = [fields for name, fields in events if name == "join_answer" and fields["silo"] == 3]
    assert [fields["answer"] for fields in answers] == ["joined"], (
        "a node whose silo is unknown is told of once it joined"
    )


def test_an_enrolled_node_is_named_while_it_is_waited_for() -> None:
    enrolled = {100 + silo: silo for silo in ROSTER.silos}
    made, _, events = gather({**all_join(), 103: [PENDING, PENDING, JOINED[3]]}, patience=60, enrolled=enrolled)
    made.gather()
    answers = [fields["answer"] for name, fields in events if name == "join_answer" and fields["silo"] == 3]
    assert answers == ["ApprovalPending", "joined"]


def test_when_patience_ends_enough_silos_go_on_without_the_rest(clock: SimpleNamespace) -> None:
    made, exchange, _ = gather({**all_join(), 101: [PENDING]}, patience=100)
    made.gather()
    assert clock.now == pytest.approx(100)
    assert exchange.nodes.keys() == {2, 3, 4}
    assert made.missing == {1}


def test_when_patience_ends_too_few_silos_stop() -> None:
    made, _, _ = gather({**all_join(), 101: [PENDING], 102: [PENDING]}, patience=100)
    with pytest.raises(CannotContinue, match=r"silos \[1, 2\] did not join"):
        made.gather()


def test_a_silo_that_comes_late_is_found_at_the_next_look() -> None:
    made, exchange, _ = gather({**all_join(), 101: [PENDING, *[PENDING] * 20]}, patience=100)
    made.gather()
    exchange.answers[101] = [JOINED[1]]
    assert made.look() == {1}
    assert exchange.nodes.keys() == {1, 2, 3, 4}
    assert made.look() == frozenset(), "those that have joined are not asked again"
    assert exchange.asked[-1] == [101]


def test_two_nodes_cannot_be_one_silo() -> None:
    made, _, _ = gather({**all_join(), 104: [JOINED[3]]})
    with pytest.raises(CannotContinue, match="two nodes say they are silo 3"):
        made.gather()


def enrolled_nodes() -> dict[int, int | None]:
    return {100 + silo: silo for silo in ROSTER.silos}


@pytest.mark.parametrize(
    "lie", [JOINED[2], Reply("ok", join_reply(9)), Reply("ok", b"\xc1"), Reply("ok", b""), Reply("ok", b"\xa3abc")]
)
def test_a_node_that_lies_about_its_silo_is_not_let_in_and_stops_nobody(lie: Reply) -> None:
    made, exchange, events = gather({**all_join(), 104: [lie]}, patience=10, enrolled=enrolled_nodes())
    made.gather()
    assert exchange.nodes == {1: 101, 2: 102, 3: 103}
    assert ("join_answer", {"silo": 4, "answer": "malformed"}) in events
    exchange.answers[104] = [JOINED[4]]
    assert made.look() == {4}


def test_with_another_roster_everybody_is_asked_again_and_who_left_is_not_needed() -> None:
    made, exchange, _ = gather(all_join())
    made.gather()
    made.forget(Roster(ROSTER.coordinator, ROSTER.entries[:3]))
    enrolled = {101: 1, 102: 2, 103: 3, 104: 4}
    made.nodes = lambda grid: enrolled
    made.gather()
    assert exchange.asked[-1] == [101, 102, 103], "a node whose silo has left is not asked"
    assert exchange.nodes.keys() == {1, 2, 3}
    assert not made.missing


@pytest.mark.parametrize("present", list(itertools.combinations(ROSTER.silos, 3)))
def test_any_three_of_four_are_enough_when_patience_ends(present: tuple[int, ...]) -> None:
    answers = {100 + silo: [JOINED[silo] if silo in present else PENDING] for silo in ROSTER.silos}
    made, exchange, _ = gather(answers, patience=1)
    made.gather()
    assert tuple(exchange.nodes) == present


def test_a_run_that_goes_on_waits_briefly_for_silos_it_could_do_without(clock: SimpleNamespace) -> None:
    made, exchange, _ = gather({**all_join(), 101: [PENDING]}, patience=WEEK)
    made.gather(begun=True)
    assert clock.now == pytest.approx(gathering.GRACE)
    assert exchange.nodes.keys() == {2, 3, 4}


def test_a_run_that_goes_on_with_too_few_silos_waits_for_more(clock: SimpleNamespace) -> None:
    made, exchange, _ = gather({**all_join(), 101: [PENDING], 102: [*[PENDING] * 40, JOINED[2]]}, patience=WEEK)
    made.gather(begun=True)
    assert gathering.GRACE < clock.now < WEEK
    assert exchange.nodes.keys() == {2, 3, 4}


def test_late_silos_are_asked_less_and_less_often_while_rounds_go_on(clock: SimpleNamespace) -> None:
    made, exchange, _ = gather({**all_join(), 101: [PENDING]}, patience=1)
    made.gather()
    begun = len(exchange.asked)
    for _ in range(3000):  # rounds of a second
        made.look_for_late()
        clock.now += 1
    assert 3000 / gathering.LONGEST_LATE_PAUSE < len(exchange.asked) - begun < 40
    exchange.answers[101] = [JOINED[1]]
    clock.now += gathering.LONGEST_LATE_PAUSE
    made.look_for_late()
    assert not made.missing


def test_while_too_few_are_connected_nothing_is_asked(clock: SimpleNamespace) -> None:
    made, exchange, events = gather(all_join(), patience=WEEK)
    made.gather()
    connected = {101: None, 102: None}
    made.nodes = lambda grid: connected

    def heals(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 500:
            connected[103] = None

    gathering.time.sleep = heals
    made.wait_for(asked(((1, 2, 3, 4),), (3,)))
    assert 500 < clock.now < 600
    assert exchange.asked == [[101, 102, 103, 104]]
    assert ("waiting", {"silos": [1, 2]}) in events


@pytest.mark.parametrize("patience", [0, 30])
def test_the_wait_for_a_cut_network_has_an_end(patience: float, clock: SimpleNamespace) -> None:
    made, _, _ = gather(all_join(), patience=patience)
    made.gather()
    made.nodes = lambda grid: {}
    made.wait_for(asked(((1, 2, 3, 4),), (3,)))
    assert patience <= clock.now < patience + 2 * gathering.LONGEST_PAUSE


def test_each_cohort_has_to_be_connected(clock: SimpleNamespace) -> None:
    made, _, _ = gather(all_join(), patience=30)
    made.gather()
    made.nodes = lambda grid: {101: None, 102: None, 103: None}
    made.wait_for(asked(((1, 2), (3, 4)), (2, 1)))
    assert clock.now == 0
    made.wait_for(asked(((1, 2), (3, 4)), (2, 2)))
    assert clock.now > 0


def test_a_run_that_no_whole_blocks_make_does_not_begin(clock: SimpleNamespace) -> None:
    """Three of four silos would do, but not one of each block."""
    answers = all_join()
    answers[104] = [Reply("refused", error="PolicyRefusal:denied")]
    made, _, _ = gather(answers, patience=100)
    made.blocks = ((1, 2), (3, 4))
    with pytest.raises(CannotContinue, match=r"silos \[4\] did not join \(refused: PolicyRefusal:denied\)"):
        made.gather()
    made, _, _ = gather(answers, patience=100)
    made.gather()


def test_a_silo_without_its_block_does_not_count(clock: SimpleNamespace) -> None:
    made, _, _ = gather(all_join(), patience=30)
    made.gather()
    made.nodes = lambda grid: {101: None, 102: None, 103: None}
    made.wait_for(asked(((1, 2, 3, 4),), (2,), ((1, 2), (3, 4))))
    assert clock.now == 0
    made.wait_for(asked(((1, 2, 3, 4),), (3,), ((1, 2), (3, 4))))
    assert clock.now > 0
