"""Who is there: asks nodes to join a run, waits for silos that are away or have to approve it, takes in late ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from autoflip_secure.errors import BudgetExhausted, CannotContinue, ProtocolError
from autoflip_secure.federation.exchange import KNOWN_ERRORS, StageExchange
from autoflip_secure.federation.join import JOIN_STAGE, read_join_reply
from autoflip_secure.federation.policy import LONGEST_HOLD
from autoflip_secure.federation.wire import Reply
from autoflip_secure.parties.roster import Roster
from autoflip_secure.sums.manifest import Blocks, Manifest, in_whole_blocks

__all__ = ["Gathering"]

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 1.0, 30.0, 1.5
"""Seconds between two askings while silos are waited for: an officer takes minutes or days."""

GRACE = 60.0
"""Seconds that a run which goes on waits for silos it could do without."""

FIRST_LATE_PAUSE, LONGEST_LATE_PAUSE = 5.0, 300.0
"""Seconds between two looks for late silos while rounds go on."""

ANSWER_WITHIN = 120.0 + LONGEST_HOLD
"""Seconds in which a silo reads its records and answers whether it joins, held back as its policy may say."""

Nodes = Callable[[Grid], Mapping[int, int | None]]
"""Nodes that are connected, and the silo that each was enrolled as; None where that is only known once it says so."""


@dataclass
class Gathering:
    """Finds the silos of a run and keeps `exchange.nodes` up to date.

    Attributes
    ----------
    nodes : callable
        See `Nodes`.
    needed : frozenset of int
        Silos of the run.
    least : int
        With fewer, in whole blocks, no round can succeed.
    blocks : tuple of tuple of int
        Silos that are summed together or not at all; empty: each by itself.
    patience : float
        Seconds to wait for those that are missing; with 0 all have to be there at once.
    ask : callable
        ask() makes the join request anew, and what is shown with it.
    joined : callable
        joined(replies by silo), for the audit log.
    """

    grid: Grid
    exchange: StageExchange
    nodes: Nodes
    roster: Roster
    needed: frozenset[int]
    least: int
    patience: float
    ask: Callable[[], tuple[bytes, bytes]]
    joined: Callable[[Mapping[int, Reply]], None]
    event: Callable[..., None]
    blocks: Blocks = ()
    _answers: dict[int, str] = field(default_factory=dict, init=False)
    _next_look: float = field(default=0.0, init=False)
    _look_pause: float = field(default=0.0, init=False)

    def gather(self, *, begun: bool = False) -> None:
        """Ask until all silos of the run have joined, or until patience ends and enough have.

        Parameters
        ----------
        begun : bool
            The run goes on, with silos that joined before: where enough are there, the rest is waited for briefly, and
            taken in when it comes.

        Raises
        ------
        BudgetExhausted
            Too few joined, and the ledger of at least one does not cover the run.
        CannotContinue
            Too few joined; says which and what they answered.
        """
        started, pause = time.monotonic(), FIRST_PAUSE
        self.exchange.nodes = {}
        self.look()
        while self.missing:
            enough = self._suffices()
            patience = min(self.patience, GRACE) if begun and enough else self.patience
            left = started + patience - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(pause, left))
            pause = min(GROWTH * pause, LONGEST_PAUSE)
            self.look()
        self._next_look, self._look_pause = time.monotonic() + FIRST_LATE_PAUSE, FIRST_LATE_PAUSE
        if self.missing and (not self.patience or not self._suffices()):
            self._give_up()

    def _suffices(self) -> bool:
        return len(in_whole_blocks(self.blocks, self.needed - self.missing)) >= self.least

    @property
    def missing(self) -> frozenset[int]:
        """Silos of the run that have not joined."""
        return self.needed - self.exchange.nodes.keys()

    def look_for_late(self) -> None:
        """Ask those that are missing, not in every round: one that is connected and silent costs its time."""
        if time.monotonic() >= self._next_look:
            found = self.look()
            self._look_pause = FIRST_LATE_PAUSE if found else min(GROWTH * self._look_pause, LONGEST_LATE_PAUSE)
            self._next_look = time.monotonic() + self._look_pause

    def wait_for(self, manifest: Manifest) -> None:
        """Before an attempt: wait until as many silos of each cohort are connected as its sum needs, in whole blocks.

        While the network is cut nothing is sent and nothing is spent. Without patience, or when it ends, the attempt is
        made whoever is there.
        """
        deadline, pause = time.monotonic() + self.patience, FIRST_PAUSE
        while self.patience and not self._are_enough(manifest):
            if pause == FIRST_PAUSE:
                self.event("waiting", silos=sorted(self._connected()))
            if time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(GROWTH * pause, LONGEST_PAUSE)
            self.look()

    def _are_enough(self, manifest: Manifest) -> bool:
        connected = self._connected()
        return all(len(manifest.whole(index, connected)) >= least for index, least in enumerate(manifest.minimum))

    def _connected(self) -> set[int]:
        """Silos that have joined and whose nodes are connected."""
        nodes = self.nodes(self.grid)
        return {silo for silo, node in self.exchange.nodes.items() if node in nodes}

    def look(self) -> frozenset[int]:
        """Ask connected nodes that have not joined; the silos that have now.

        Raises
        ------
        CannotContinue
            Two nodes of unknown silos say they are the same one.
        """
        known = set(self.exchange.nodes.values())
        asked = {
            node: silo
            for node, silo in self.nodes(self.grid).items()
            if node not in known and (silo is None or silo in self.roster)
        }
        if not asked:
            return frozenset()
        request, shown = self.ask()
        requests = dict.fromkeys(asked, request)
        replies: dict[int, Reply] = {}
        found: dict[int, int] = {}
        for node, reply in self.exchange.ask_nodes(JOIN_STAGE, requests, shown, ANSWER_WITHIN):
            # A silo may write anything there; only the names of this project's errors mean something.
            answer = reply.error if reply.error in KNOWN_ERRORS else reply.status
            silo = asked[node]
            if reply.status == "ok":
                claimed = self._claimed(silo, reply, {**self.exchange.nodes, **found})
                answer = "malformed" if claimed is None else "joined"
                silo = silo or claimed
                if claimed is not None:
                    found[claimed], replies[claimed] = node, reply
            # A node that does not say who it is has a number of its own among the answers, below 0.
            self._note(-node if silo is None else silo, answer)
        self.exchange.nodes = dict(sorted({**self.exchange.nodes, **found}.items()))
        self.joined(replies)
        if found or not self.patience:
            refused = sorted({answer for answer in self._answers.values() if answer != "joined"})
            self.event("joined", silos=sorted(self.exchange.nodes), refused=refused)
        return frozenset(found)

    def forget(self, roster: Roster) -> None:
        """Begin anew with another roster: everybody is asked again."""
        self.roster = roster
        self.needed &= frozenset(roster.silos)
        self.exchange.nodes, self._answers = {}, {}

    def _claimed(self, enrolled: int | None, reply: Reply, taken: Mapping[int, int]) -> int | None:
        """Who a node says it is; None where that is nobody, or not who it was enrolled as: then it is not let in."""
        try:
            silo = read_join_reply(reply.reply)
        except ProtocolError:
            return None
        if silo not in self.roster or (enrolled is not None and silo != enrolled):
            return None
        if silo in taken:
            raise CannotContinue(f"two nodes say they are silo {silo}; check which machine runs it")
        return silo

    def _note(self, silo: int, answer: str) -> None:
        """Tell of a silo's answer where it is another than its last: it is asked often."""
        if self._answers.get(silo) != answer:
            self._answers[silo] = answer
            if silo > 0 and self.patience:
                self.event("join_answer", silo=silo, answer=answer)

    def _give_up(self) -> None:
        answers = {silo: answer for silo, answer in self._answers.items() if answer != "joined"}
        if any(answer.startswith("BudgetExhausted") for answer in answers.values()):
            raise BudgetExhausted(
                "a silo's ledger does not cover this run; nothing was trained and nothing was spent; the silo's own "
                "silo.log says why"
            )
        refused = sorted(set(answers.values()))
        why = f" (refused: {', '.join(refused)})" if refused else ""
        raise CannotContinue(
            f"silos {sorted(self.missing)} did not join{why}; see silo.log in their folders; nothing was trained"
        )
