"""Random schedules of a coordinator that signs anything, against silos that keep their rules.

A schedule mixes lies, replays, requests out of order, dropouts, restarts, new epochs and honest rounds over real silos.
The attacker runs some of the silos itself, up to the number the others allow for. After every reply, and over all that
was revealed at the end, the silos must have kept the promise: one sum a slot, and nothing but that sum.
"""

from __future__ import annotations

import copy
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, combinations
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from autoflip_secure.errors import Abort, AutoflipSecureError, ProtocolError, Refusal
from autoflip_secure.parties.rules import Survivors
from autoflip_secure.parties.signing import sign_statement, statement_holds
from autoflip_secure.secagg import SiloRules, silo_round
from autoflip_secure.secagg.coordinator_round import MaskedStage
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch, OpenEpoch
from autoflip_secure.secagg.dealing import KEY, REVEALED_BYTES, SEED
from autoflip_secure.secagg.keys import SlotSecret
from autoflip_secure.secagg.round_messages import (
    Confirmation,
    ConfirmReply,
    ConfirmRequest,
    MaskedRequest,
    Receipt,
    UnmaskRequest,
)
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import later_link

SCHEDULES = 2000
STEPS = 12
SLOTS = 4
# Silos, and how many of them work with the coordinator (the honest ones allow for that many).
SETTINGS = [(5, 0), (4, 0), (6, 0), (6, 1), (5, 1), (4, 1), (6, 2), (3, 0)]

COUNTS: Counter[str] = Counter()


@dataclass(frozen=True)
class Lie:
    """What a manifest says that an honest one would not."""

    slot: int
    model: int
    cohorts: str
    threshold: int

    def cohorts_of(self, n: int) -> tuple[tuple[int, ...], ...]:
        everyone = tuple(range(1, n + 1))
        if self.cohorts == "without the first" and n > 3:
            return (everyone[1:],)
        if self.cohorts == "first three":
            return (everyone[:3],)
        if self.cohorts == "halves" and n == 6:
            return everyone[::2], everyone[1::2]
        return (everyone,)


@dataclass(frozen=True)
class Sent:
    """A signed request, and what it is about."""

    stage: str
    request: bytes
    manifest: Manifest
    survivors: Survivors


manifests = st.builds(
    Lie,
    slot=st.integers(0, SLOTS - 1),
    model=st.sampled_from([0] * 5 + [1]),
    cohorts=st.sampled_from(["all"] * 6 + ["without the first", "first three", "halves"]),
    threshold=st.sampled_from([0] * 14 + [-1]),
)
plain_manifests = st.builds(
    Lie, slot=st.integers(0, SLOTS - 1), model=st.just(0), cohorts=st.just("all"), threshold=st.just(0)
)
decoy_manifests = st.builds(
    Lie,
    slot=st.just(0),
    model=st.sampled_from([0, 0, 1]),
    cohorts=st.sampled_from(["first three", "first three", "without the first", "all"]),
    threshold=st.just(0),
)
some_silos = st.integers(0, 63)
one_silo = st.sampled_from([1 << bit for bit in range(6)])
few_silos = st.one_of(st.just(0), one_silo, one_silo, some_silos)
splits = st.tuples(few_silos, few_silos, few_silos)


def chosen(silos, bits):
    return [silo for silo in silos if bits >> (silo - 1) & 1]


@lru_cache
def keyed(federation, n, colluders):
    """A key set-up that everybody has taken delivery of, with the databases that every schedule copies."""
    fed = federation(n, slots=SLOTS, rules=SiloRules(colluders))
    epoch = fed.open_epoch(SLOTS)
    deliver(fed, epoch)
    epoch.delivered.update(epoch.members)
    return fed, epoch, {silo: connection.serialize() for silo, connection in fed.connections.items()}


class Schedule(RuleBasedStateMachine):
    """One coordinator and its silos; `machine` gives it the classes it is made of."""

    federation: ClassVar[Any]
    new_spoils: ClassVar[Any]

    @initialize(setting=st.sampled_from(SETTINGS), first=st.integers(0, 5))
    def begin(self, setting, first):
        n, colluders = setting
        base, epoch, databases = keyed(self.federation, n, colluders)
        self.fed = fed = copy.copy(base)
        fed.connections, fed.failures = {}, {}
        for silo, data in databases.items():
            fed.connections[silo] = sqlite3.connect(":memory:", isolation_level=None)
            fed.connections[silo].deserialize(data)
        fed.silos = {silo: fed.start(silo) for silo in fed.identities}
        self.everyone = tuple(fed.identities)
        self.corrupt = {(first + index) % n + 1 for index in range(colluders)}
        self.honest = tuple(silo for silo in self.everyone if silo not in self.corrupt)
        self.vectors: dict[tuple[int, int, int], np.ndarray] = {}
        self.roots: dict[tuple[int, int, int], bytes] = {}
        self.replied: set[tuple[int, int, int]] = set()
        self.statements: dict[tuple[int, int, int], Confirmation] = {}
        self.answers: dict[tuple[int, int, int], bytes] = {}
        self.opened: dict[tuple[int, int], set[tuple[bytes, Survivors]]] = {}
        self.receipts: dict[bytes, dict[int, tuple[int, bytes, bytes]]] = {}
        self.signatures: dict[bytes, dict[int, bytes]] = {}
        self.sent: list[Sent] = []
        self.epochs: dict[int, KeyedEpoch] = {}
        self.told: dict[int, KeyedEpoch] = {}
        self.spoils: dict[bytes, Any] = {}
        self.rules_named: set[str] = set()
        self._enter(epoch, epoch, 0)
        COUNTS["schedules"] += 1

    # What the attacker can do

    @rule(lies=st.tuples(manifests, manifests), gone=st.tuples(few_silos, few_silos), split=splits)
    def go_through_a_slot(self, lies, gone, split):
        """Two manifests and two survivor lists, and shares asked for as signed or as most have signed."""
        same_slot = lies[0], replace(lies[1], slot=lies[0].slot)
        self.ask_for_vectors(same_slot, split[0], 0)
        self.show_survivors(same_slot, gone, split[1], 0)
        self.ask_for_shares_as_confirmed(split[2], 0)

    @rule(lie=plain_manifests, decoys=decoy_manifests, lonely=st.integers(1, 6), gone=few_silos)
    def isolate(self, lie, decoys, lonely, gone):
        """One silo is shown a cohort of which everybody else hears that it dropped, or a manifest of its own."""
        lies, alone = (lie, replace(decoys, slot=lie.slot)), 1 << (lonely - 1)
        self.ask_for_vectors(lies, alone, gone & ~alone)
        decoy_bits = sum(1 << (silo - 1) for silo in decoys.cohorts_of(len(self.everyone))[0])
        self.show_survivors(lies, (decoy_bits & ~alone, gone), 0, 0)
        self.ask_for_shares_as_confirmed(0, 0)

    @rule(lies=st.tuples(manifests, manifests), told_other=few_silos, unasked=few_silos)
    def ask_for_vectors(self, lies, told_other, unasked):
        for silo in chosen(self.everyone, ~unasked):
            manifest = self._manifest(lies[bool(chosen([silo], told_other))], self.told[silo])
            request = MaskedRequest(*self._head(), manifest.to_bytes(), self._delivery(silo))
            self._send(silo, Sent("masked", self.fed.signed(request), manifest, ()))

    @rule(
        lies=st.tuples(manifests, manifests),
        gone=st.tuples(few_silos, few_silos),
        told_other=few_silos,
        unasked=few_silos,
    )
    def show_survivors(self, lies, gone, told_other, unasked):
        for silo in chosen(self.everyone, ~unasked):
            other = bool(chosen([silo], told_other))
            manifest = self._manifest(lies[other and lies[1].slot == lies[0].slot], self.told[silo])
            survivors = tuple(tuple(chosen(cohort, ~gone[other])) for cohort in manifest.cohorts)
            receipts = tuple(self._receipt(manifest, owner) for owner in sorted(chain(*survivors)))
            request = ConfirmRequest(*self._head(), manifest.to_bytes(), survivors, receipts, self._delivery(silo))
            self._send(silo, Sent("confirm", self.fed.signed(request), manifest, survivors))

    @rule(lie=manifests, gone=few_silos, unasked=few_silos, padded=st.booleans())
    def ask_for_shares(self, lie, gone, unasked, padded):
        for silo in chosen(self.everyone, ~unasked):
            manifest = self._manifest(lie, self.told[silo])
            self._ask_for_shares(silo, manifest, tuple(tuple(chosen(c, ~gone)) for c in manifest.cohorts), padded)

    @rule(told_most=few_silos, unasked=few_silos)
    def ask_for_shares_as_confirmed(self, told_most, unasked):
        """For the lists that a silo signed itself, or for those that most have signed."""
        shown = [sent for sent in self.sent if sent.stage == "confirm"][-len(self.everyone) :]
        for silo in chosen(self.everyone, ~unasked):
            signed = [sent for sent in shown if silo in self._signers(sent)]
            if chosen([silo], told_most):
                signed = sorted(shown, key=lambda sent: len(self._signers(sent)))
            if signed:
                self._ask_for_shares(silo, signed[-1].manifest, signed[-1].survivors, False)

    @rule(which=st.integers(0, 1 << 16), silos=some_silos)
    def replay(self, which, silos):
        if self.sent:
            sent = self.sent[which % len(self.sent)]
            for silo in chosen(self.everyone, silos):
                self._send(silo, sent)

    @rule(silos=some_silos)
    def restart(self, silos):
        for silo in chosen(self.everyone, silos):
            self.fed.silos[silo] = self.fed.start(silo)

    @rule(gone=few_silos, hidden=few_silos, told_partial=few_silos)
    def make_new_keys(self, gone, hidden, told_partial):
        """New keys, some silos left out, and some silos not told of all that dealt."""
        if len(self.epochs) > 2 or len(self.sent) < 20:
            return
        exchange = self.fed.exchange(absent=lambda stage, silo: bool(chosen([silo], gone)))
        try:
            epoch = OpenEpoch(self.fed.desk, max(self.epochs) + 1, SLOTS).advertise(exchange).share(exchange)
        except Abort:
            return
        left = {silo: dealer for silo, dealer in epoch.dealers.items() if not chosen([silo], hidden)}
        self._enter(epoch, replace(epoch, dealers=left or epoch.dealers), told_partial)

    @rule(slot=st.integers(0, SLOTS - 1), gone=st.tuples(few_silos, few_silos, few_silos))
    def honest_round(self, slot, gone):
        epoch = self.epochs[max(self.epochs)]
        manifest = self._manifest(Lie(slot, 0, "all", 0), epoch)
        stages = dict(zip(("masked", "confirm", "unmask"), gone, strict=True))

        def exchange(stage, requests):
            for silo, request in requests.items():
                if not chosen([silo], stages[stage]):
                    sent = Sent(stage, request, manifest, survivors[0] if survivors else ())
                    reply = self._send(silo, sent)
                    if reply is not None:
                        yield silo, reply

        survivors: list[Survivors] = []
        try:
            confirm = MaskedStage(epoch, manifest).collect(exchange)
            survivors.append(confirm.survivors)
            sums = confirm.collect(exchange).collect(exchange)
        except Abort:
            return
        COUNTS["honest sums"] += 1
        for item in sums:
            plain = sum(self.vectors[epoch.number, slot, silo] for silo in item.silos)
            np.testing.assert_array_equal(item.words, plain)

    # How it goes about it

    def _enter(self, epoch, partial, told_partial):
        stolen = {
            (slot, silo): SlotSecret(seed, mask_key)
            for silo in self.corrupt & set(epoch.members)
            for slot, seed, mask_key in self.fed.connections[silo].execute(
                "SELECT slot, seed, mask_key FROM secagg_secret"
            )
        }
        whole = self.new_spoils(epoch, stolen=stolen)
        # One store of shares for both views: secrets are the epoch's, whoever else a silo believes to be in it.
        self.spoils[partial.epoch_hash] = self.new_spoils(partial, shares=whole.shares, stolen=stolen)
        self.spoils[epoch.epoch_hash] = whole
        self.epochs[epoch.number] = epoch
        self.told = {silo: partial if chosen([silo], told_partial) else epoch for silo in self.everyone}
        for silo in self.corrupt & set(epoch.members):
            self._steal_shares(silo, epoch, whole)

    def _steal_shares(self, silo, epoch, spoils):
        """What a silo that works with the attacker was dealt."""
        deliver(self.fed, epoch, silo)
        for slot, blob in self.fed.connections[silo].execute("SELECT slot, shares FROM secagg_share"):
            for owner, both in msgpack.unpackb(blob, strict_map_key=False).items():
                spoils.take_share(slot, SEED, owner, silo, both[:REVEALED_BYTES])
                spoils.take_share(slot, KEY, owner, silo, both[REVEALED_BYTES:])

    def _delivery(self, silo):
        told = self.told[silo]
        return told.delivery(silo) if silo in told.dealers else b""

    def _head(self):
        return (self.fed.manifest().session, self.fed.roster.hash(), max(self.epochs))

    def _manifest(self, lie, epoch):
        cohorts, honest = lie.cohorts_of(len(self.everyone)), self.fed.manifest()
        return replace(
            honest,
            epoch=epoch.number,
            slot=lie.slot,
            epoch_hash=epoch.epoch_hash,
            model_hash=bytes([lie.model]) * 32,
            cohorts=cohorts,
            minimum=(3,) * len(cohorts),
            threshold=honest.threshold + lie.threshold,
        )

    def _signers(self, sent):
        return self.signatures.get(Confirmation(sent.manifest.digest(), sent.survivors).to_bytes(), {})

    def _receipt(self, manifest, owner):
        known = self.receipts.get(manifest.digest(), {})
        if owner in self.corrupt:
            statement = Receipt(manifest.digest(), bytes(32))
            return owner, bytes(32), sign_statement(self.fed.identities[owner], statement)
        others = (receipts[owner] for receipts in self.receipts.values() if owner in receipts)
        return known.get(owner) or next(others, (owner, bytes(32), bytes(64)))

    def _ask_for_shares(self, silo, manifest, survivors, padded):
        statement = Confirmation(manifest.digest(), survivors)
        signatures = dict(self.signatures.get(statement.to_bytes(), {}))
        for helper in self.corrupt:
            signatures[helper] = sign_statement(self.fed.identities[helper], statement)
        if padded:
            for others in self.signatures.values():
                signatures = {**others, **signatures}
        confirmations = tuple(sorted(signatures.items()))
        request = UnmaskRequest(*self._head(), manifest.slot, manifest.digest(), survivors, confirmations)
        self._send(silo, Sent("unmask", self.fed.signed(request), manifest, survivors))

    # What silos answer, and what must be true of it

    def _send(self, silo, sent):
        self.sent.append(sent)
        try:
            reply = self.fed.silos[silo].answer(sent.stage, sent.request, self._contribute(silo))
        except Refusal as refused:
            self.rules_named.add(str(refused).split(":")[0])
            return None
        except AutoflipSecureError:
            return None
        if silo in self.honest:
            {"masked": self._vector, "confirm": self._confirmed, "unmask": self._answered}[sent.stage](
                silo, sent, reply
            )
        return reply

    def _contribute(self, silo):
        def words(manifest):
            key = (manifest.epoch, manifest.slot, silo)
            assert key not in self.vectors, "one contribution a slot"
            source = self.fed.contribute(silo)(manifest)
            self.vectors[key], self.roots[key] = self.fed.vectors[silo], self.fed.roots[silo]
            return source

        return words

    def _vector(self, silo, sent, reply):
        key = (sent.manifest.epoch, sent.manifest.slot, silo)
        assert key not in self.replied, "one masked vector a slot"
        self.replied.add(key)
        words, end = self.fed.split_masked(reply)
        receipt = (silo, blake3(words).digest(), end.signature)
        self.receipts.setdefault(sent.manifest.digest(), {})[silo] = receipt
        spoils = self.spoils[sent.manifest.epoch_hash]
        spoils.vectors[sent.manifest.slot, silo] = sent.manifest, np.frombuffer(words, np.uint64)

    def _confirmed(self, silo, sent, reply):
        statement = Confirmation(sent.manifest.digest(), sent.survivors)
        signature = ConfirmReply.from_bytes(reply).signature
        assert statement_holds(self.fed.roster.public(silo), statement, signature)
        key = (sent.manifest.epoch, sent.manifest.slot, silo)
        assert self.statements.setdefault(key, statement) == statement, "one statement a silo and slot"
        self.signatures.setdefault(statement.to_bytes(), {})[silo] = signature
        COUNTS["confirmed"] += 1

    def _answered(self, silo, sent, reply):
        epoch, slot = sent.manifest.epoch, sent.manifest.slot
        assert self.answers.setdefault((epoch, slot, silo), reply) == reply, "one answer a silo and slot"
        said = self.statements[epoch, slot, silo]
        assert said == Confirmation(sent.manifest.digest(), sent.survivors), "shares for what it signed, only"
        spoils = self.spoils[sent.manifest.epoch_hash]
        message = spoils.take_answer(sent.manifest, sent.survivors, reply, self.fed.roster.public(silo))
        self._assert_spared(silo, sent, message.link)
        for owner in self.everyone:
            both = [silo in spoils.shares.get((slot, kind, owner), {}) for kind in (SEED, KEY)]
            assert not all(both), "both kinds of share of one silo"
        opened = self.opened.setdefault((epoch, slot), set())
        opened.add((sent.manifest.digest(), sent.survivors))
        assert len(opened) == 1, "one sum a slot"
        COUNTS["answered"] += 1

    def _assert_spared(self, silo, sent, link):
        """A link takes away only what the lists in the answer, the only ones of the slot that are opened, can spare."""
        places = [(len(c) - len(s), len(c) - 3) for c, s in zip(sent.manifest.cohorts, sent.survivors, strict=True)
                  if silo in s]  # fmt: skip
        missing, most = places[0] if places else (0, 0)
        root = self.roots.get((sent.manifest.epoch, sent.manifest.slot, silo))
        assert link == (later_link(root, missing) if missing < most else b""), "the link after those missing"
        COUNTS["links"] += bool(link)

    def teardown(self):
        if not hasattr(self, "opened"):
            return
        for named in self.rules_named:
            assert named.startswith("refused by rule ")
            COUNTS[named] += 1
        for (epoch, slot), opened in self.opened.items():
            (_, survivors), *others = opened
            assert not others, "one sum a slot"
            honest = [frozenset(silos) - self.corrupt for silos in survivors]
            assert min(map(len, honest)) >= 3, "colluders subtract themselves; three are left"
            allowed = {frozenset().union(*some) for some in subsets(honest)}
            self._assert_only(allowed, epoch, slot)

    def _assert_only(self, allowed, epoch, slot):
        """No other silos' masked vectors add up to their plain sum, nor can both secrets of one be had."""
        residues = {}
        for spoils in (spoils for spoils in self.spoils.values() if spoils.epoch.number == epoch):
            for silo in self.honest:
                both = [spoils.secret(slot, kind, silo) for kind in (SEED, KEY)]
                assert None in both, "both secrets of one silo"
                if (slot, silo) in spoils.vectors:
                    residues[silo] = spoils.residue(slot, silo)
        for silos in subsets(sorted(residues)):
            if not sum(residues[silo] - self.vectors[epoch, slot, silo] for silo in silos).any():
                COUNTS["opened"] += 1
                event("a sum was opened")
                assert frozenset(silos) in allowed, f"the plain sum of silos {silos} is known"


def deliver(fed, epoch, *silos):
    """Hand over the shares dealt to silos with a request that is refused after it."""
    head = (fed.manifest().session, fed.roster.hash(), epoch.number)
    for silo in silos or epoch.members:
        request = fed.signed(MaskedRequest(*head, b"", epoch.delivery(silo)))
        with pytest.raises(ProtocolError, match="not a manifest"):
            fed.silos[silo].answer("masked", request, None)


def subsets(items):
    """All non-empty ones."""
    return chain.from_iterable(combinations(items, size) for size in range(1, len(items) + 1))


def machine(federation, spoils):
    return type("Machine", (Schedule,), {"federation": federation, "new_spoils": spoils})


def run(machine, **changes):
    options = {"deadline": None, "database": None, "report_multiple_bugs": False}
    health = list(HealthCheck)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=SCHEDULES, stateful_step_count=STEPS, suppress_health_check=health, **options, **changes
        ),
    )


@pytest.mark.slow
def test_no_schedule_reveals_more_than_one_sum_a_slot(federation, spoils):
    COUNTS.clear()
    run(machine(federation, spoils))
    print(dict(COUNTS))
    assert COUNTS["schedules"] >= SCHEDULES
    # The machine is worth something only where it often gets as far as a sum.
    assert min(COUNTS["opened"], COUNTS["honest sums"], COUNTS["links"]) > SCHEDULES / 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "broken"), [("_check_receipts", "the plain sum of silos"), ("_check_confirmations", "one sum a slot")]
)
def test_schedules_find_a_rule_that_is_missing(federation, spoils, monkeypatch, check, broken):
    """Without the rule some schedule breaks the promise: the test above could fail."""
    monkeypatch.setattr(silo_round, check, lambda *args: None)
    with pytest.raises(AssertionError, match=broken):
        run(machine(federation, spoils), phases=[Phase.generate])
