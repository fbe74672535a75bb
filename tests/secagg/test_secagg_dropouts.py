"""Exactness of the sums, and explicit aborts, for every way silos can drop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.errors import Abort
from autoflip_secure.secagg import SiloRules, share_threshold
from autoflip_secure.secagg.coordinator_round import MaskedStage
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.words import PackedWords

STAGES = ("masked", "confirm", "unmask")
NEVER = len(STAGES)


def run_pattern(fed, epoch, pattern, absent_at):
    """One attempt under a pattern; compared with what the protocol's limits say must happen."""
    n, t = fed.n, share_threshold(fed.n)
    here = {stage: [s for s in range(1, n + 1) if not absent_at(pattern[s - 1], stage)] for stage in STAGES}
    confirmed = here["confirm"]
    answered = [silo for silo in confirmed if silo in here["unmask"]]
    survivors = tuple(here["masked"])
    possible = len(survivors) >= 3 and len(confirmed) >= t and len(answered) >= t
    exchange = fed.exchange(
        absent=lambda stage, silo: stage in STAGES and absent_at(pattern[silo - 1], stage),
    )
    fed.failures.clear()
    if possible:
        fed.assert_exact(attempt(fed, epoch, exchange), survivors)
    else:
        with pytest.raises(Abort) as caught:
            attempt(fed, epoch, exchange)
        expected = "masked" if len(survivors) < 3 else "confirm" if len(confirmed) < t else "unmask"
        assert caught.value.stage == expected
        assert caught.value.blamed == ()
    assert not fed.failures
    return possible


def attempt(fed, epoch, exchange, blocks=()):
    """`SecAggCoordinator.sum` on one key set-up for all patterns; it would make new keys after two aborts."""
    stage = MaskedStage(epoch, fed.bind(epoch, fed.manifest(blocks=blocks)))
    return stage.collect(exchange).collect(exchange).collect(exchange)


def gone_from(drop, stage):
    """Dropped for good from a stage on."""
    return STAGES.index(stage) >= drop


def gone_in(mask, stage):
    """Absent from single stages, bit by bit, and back afterwards."""
    return bool(mask >> STAGES.index(stage) & 1)


@pytest.mark.parametrize(("n", "successes"), [(3, 1), (4, 13), pytest.param(5, 16, marks=pytest.mark.slow)])
def test_every_lasting_dropout_pattern(federation, n, successes):
    fed = federation(n)
    epoch = fed.open_epoch(4**n)
    patterns = itertools.product(range(NEVER + 1), repeat=n)
    assert sum(run_pattern(fed, epoch, pattern, gone_from) for pattern in patterns) == successes


@pytest.mark.slow
def test_lasting_dropout_patterns_of_six(federation):
    """Every pattern that leaves a sum, in every order of the silos; every other pattern in two orders."""
    fed = federation(6)
    epoch = fed.open_epoch(256)
    single = [tuple(drop if silo == i else NEVER for i in range(6)) for silo in range(6) for drop in range(NEVER)]
    assert all(run_pattern(fed, epoch, pattern, gone_from) for pattern in [(NEVER,) * 6, *single])
    for pattern in itertools.combinations_with_replacement(range(NEVER + 1), 6):
        run_pattern(fed, epoch, pattern, gone_from)
        run_pattern(fed, epoch, tuple(fed.random.permutation(pattern)), gone_from)


def test_every_pattern_of_absence_from_single_stages(federation):
    """A silo that misses one stage may come back for the next, as a share holder."""
    fed = federation(3)
    epoch = fed.open_epoch(512)
    for pattern in itertools.product(range(8), repeat=3):
        run_pattern(fed, epoch, pattern, gone_in)


BLOCKS = (1, 2, 3), (4, 5, 6)


@pytest.mark.parametrize("gone", [gone for size in range(7) for gone in itertools.combinations(range(1, 7), size)])
def test_every_pattern_of_absence_with_blocks(keyed_six, gone):
    """At masked, with each silo missing at a later stage besides: five of six must confirm and answer."""
    fed, epoch = keyed_six
    survivors = tuple(silo for block in BLOCKS if not set(block) & set(gone) for silo in block)
    later = [("never", 0), *itertools.product(("confirm", "unmask"), range(1, 7))] if survivors else [("never", 0)]
    for late in later:
        exchange = fed.exchange(lambda *at, late=late: at == late or (at[0] == "masked" and at[1] in gone))
        if survivors:
            fed.assert_exact(attempt(fed, epoch, exchange, BLOCKS), survivors)
        else:
            alone = f", {6 - len(gone)} of them without their whole block" if len(gone) < 6 else ""
            words = f"{6 - len(gone)} of 6 silos of a cohort sent a masked vector{alone}, 3 are needed"
            with pytest.raises(Abort, match=words) as caught:
                attempt(fed, epoch, exchange, BLOCKS)
            assert (caught.value.stage, caught.value.blamed) == ("masked", ())
    assert not fed.failures


@pytest.fixture(scope="module")
def keyed_six(federation):
    fed = federation(6)
    return fed, fed.open_epoch(300)


def test_absence_patterns_of_seven(federation):
    fed = federation(7, rules=SiloRules(0, minimum_fraction=0.0))
    epoch = fed.open_epoch(1000)

    # Few absences, so that most patterns reach the last stage: t = 5.
    @settings(max_examples=60, deadline=None, database=None)
    @given(absences=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=5))
    def check(absences):
        pattern = [0] * 7
        for silo, stage in absences:
            pattern[silo] |= 1 << stage
        run_pattern(fed, epoch, pattern, gone_in)

    check()


def test_dropped_silo_comes_back_as_share_holder(federation):
    """Four of five must confirm: the sum opens only because the silo without a vector helps."""
    fed = federation(5)
    for helper in range(1, 6):
        other = helper % 5 + 1
        exchange = fed.exchange(
            absent=lambda stage, silo, h=helper, o=other: (
                (stage == "masked" and silo == h) or (silo == o and stage in ("confirm", "unmask"))
            )
        )
        sums = fed.coordinator.sum(fed.manifest(), exchange)
        fed.assert_exact(sums, tuple(silo for silo in range(1, 6) if silo != helper))


def test_abort_leaves_the_next_attempt_whole(federation):
    fed = federation(3)
    with pytest.raises(Abort):
        fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lambda stage, silo: stage == "unmask" and silo == 2))
    fed.assert_exact(fed.coordinator.sum(fed.manifest(attempt=1), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1], "a retry takes a slot of the same key set-up"


COHORTS = ((1, 3, 5, 7), (2, 4, 6, 8))


@pytest.mark.parametrize("gone", [(), (2,), (5,), (2, 5)])
def test_two_cohorts_each_get_their_own_sum(federation, gone):
    fed = federation(8)
    exchange = fed.exchange(absent=lambda stage, silo: stage == "masked" and silo in gone)
    sums = fed.coordinator.sum(fed.manifest(*COHORTS), exchange)
    fed.assert_exact(sums, *(tuple(silo for silo in cohort if silo not in gone) for cohort in COHORTS))


def test_one_cohort_below_its_minimum_aborts_both(federation):
    fed = federation(8)
    exchange = fed.exchange(absent=lambda stage, silo: stage == "masked" and silo in (2, 6))
    with pytest.raises(Abort, match="2 of 4 silos of a cohort sent") as caught:
        fed.coordinator.sum(fed.manifest(*COHORTS), exchange)
    assert caught.value.stage == "masked"


def test_silos_outside_the_cohorts_help(federation):
    """Cohorts far below t open, since every silo of the epoch holds shares and confirms."""
    fed = federation(10)
    asked: dict[str, set[int]] = {}

    def exchange(stage, requests):
        asked.setdefault(stage, set()).update(requests)
        return fed.exchange(absent=lambda stage, silo: silo == 3 and stage == "masked")(stage, requests)

    sums = fed.coordinator.sum(fed.manifest((2, 3, 5, 9), (1, 4, 6)), exchange)
    fed.assert_exact(sums, (2, 5, 9), (1, 4, 6))
    assert asked["masked"] == {1, 2, 3, 4, 5, 6, 9}
    assert asked["confirm"] == asked["unmask"] == set(range(1, 11))
    assert set(fed.vectors) == {1, 2, 4, 5, 6, 9}, "a helper never computes a contribution"


@pytest.mark.parametrize("absent_silo", [1, 4])
def test_silo_absent_at_key_setup_is_not_masked_with(federation, absent_silo):
    fed = federation(4)
    exchange = fed.exchange(absent=lambda stage, silo: silo == absent_silo and stage in ("advertise", "share"))
    sums = fed.coordinator.sum(fed.manifest(), exchange)
    fed.assert_exact(sums, tuple(silo for silo in range(1, 5) if silo != absent_silo))


def test_silo_that_advertised_but_did_not_deal_is_left_out(federation):
    fed = federation(4)
    exchange = fed.exchange(absent=lambda stage, silo: silo == 2 and stage == "share")
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 3, 4))


def test_masked_vectors_are_fresh_each_time_and_unlike_the_contribution(federation):
    fed = federation(3, channels=(ChannelSpec("update", 12_000, 16, 1.0),))
    same = np.arange(4000, dtype=np.uint64)
    fed.contribute = lambda silo: lambda manifest: PackedWords(same)
    seen = []

    def tamper(stage, silo, reply):
        if stage == "masked":
            seen.append(np.frombuffer(reply[: same.nbytes], np.uint64))
        return reply

    for _ in range(2):
        (total,) = fed.coordinator.sum(fed.manifest(), fed.exchange(tamper=tamper))
        np.testing.assert_array_equal(total.words, same * np.uint64(3))
    assert len(seen) == 6
    for one, other in itertools.combinations([*seen, same], 2):
        assert not (one == other).any()
    bits = np.unpackbits(np.concatenate(seen).view(np.uint8))
    # Standard deviation of the mean of 1.5 million fair bits is 0.0004.
    assert abs(bits.mean() - 0.5) < 0.0025


@pytest.mark.parametrize("n", [3, 4])
def test_restart_of_every_silo_before_every_message(federation, n, tmp_path):
    fed = federation(n, folder=tmp_path)
    for _ in range(2):
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange(restart=True)), tuple(range(1, n + 1)))
    gone = fed.exchange(restart=True, absent=lambda stage, silo: stage == "masked" and silo == n)
    if n == 4:
        fed.assert_exact(fed.coordinator.sum(fed.manifest(), gone), (1, 2, 3))


@pytest.mark.parametrize("stage", ["share", "masked", "confirm", "unmask"])
def test_restart_between_two_stages(federation, stage, tmp_path):
    fed = federation(3, folder=tmp_path)

    def exchange(now, requests):
        if now == stage:
            for silo in (1, 3):
                fed.connections[silo].close()
                fed.silos[silo] = fed.start(silo)
        return fed.exchange()(now, requests)

    fed.assert_exact(fed.coordinator.sum(fed.manifest(), exchange), (1, 2, 3))


def test_restarted_coordinator_opens_a_later_epoch(federation):
    fed = federation(3)
    fed.coordinator.sum(fed.manifest(), fed.exchange())
    fed.coordinator = fed.new_coordinator(first_epoch=fed.epochs[-1] + 1)
    fed.assert_exact(fed.coordinator.sum(fed.manifest(), fed.exchange()), (1, 2, 3))
    assert fed.epochs == [1, 2]


def test_thirty_silos_with_nine_dropouts(federation):
    fed = federation(30, slots=1)
    gone = range(4, 31, 3)
    sums = fed.coordinator.sum(
        fed.manifest(), fed.exchange(absent=lambda stage, silo: stage == "masked" and silo in gone)
    )
    fed.assert_exact(sums, tuple(silo for silo in range(1, 31) if silo not in gone))


@pytest.mark.slow
def test_a_hundred_silos_with_thirty_three_dropouts(federation):
    fed = federation(100, slots=1)
    gone = range(2, 101, 3)
    lost = lambda stage, silo: stage in ("masked", "confirm", "unmask") and silo in gone  # noqa: E731
    sums = fed.coordinator.sum(fed.manifest(), fed.exchange(absent=lost))
    fed.assert_exact(sums, tuple(silo for silo in range(1, 101) if silo not in gone))
