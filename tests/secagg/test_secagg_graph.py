"""Who holds shares: the two bounds against exact arithmetic, the draws, and adversaries against both."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom

from autoflip_secure.errors import ConfigError, ProtocolError
from autoflip_secure.secagg import graph, share_threshold
from autoflip_secure.secagg.graph import (
    MAX_COMPLETE,
    ShareGraph,
    complete_graph,
    draw_holders,
    failure_bits,
    is_safe,
    share_graph,
)


def exact_tail(others, special, drawn, least):
    """P[Hyp(others, special, drawn) >= least] as a fraction."""
    hits = sum(
        math.comb(special, found) * math.comb(others - special, drawn - found)
        for found in range(least, min(special, drawn) + 1)
        if drawn - found <= others - special
    )
    return Fraction(hits, math.comb(others, drawn))


def exact_bound(silos, corrupt, holders, threshold):
    honest = silos - corrupt
    return sum(
        math.comb(honest, size) * exact_tail(silos - 1, corrupt + size - 1, holders, threshold) ** size
        for size in range(1, max(1, honest // 2) + 1)
    )


def exact_worst(silos, colluders, holders, threshold):
    return max(exact_bound(silos, corrupt, holders, threshold) for corrupt in range(colluders + 1))


# The two bounds


@given(st.data())
def test_tails_are_exact(data):
    others = data.draw(st.integers(1, 40))
    holders = data.draw(st.integers(1, others))
    threshold = data.draw(st.integers(1, holders))
    tails = graph._log_tails(others, holders, threshold)
    for special in range(others + 1):
        exact = exact_tail(others, special, holders, threshold)
        assert math.exp(tails[special]) == pytest.approx(float(exact), rel=1e-11, abs=0)


def test_tails_agree_with_scipy_where_nothing_underflows():
    special = np.arange(1000)
    expected = hypergeom.logsf(25, 999, special, 42)
    tails = graph._log_tails(999, 42, 26)
    close = special[(expected > -200) & (special >= 26)]
    assert len(close) > 900
    np.testing.assert_allclose(tails[close], expected[close], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("silos", "colluders", "holders", "threshold"),
    [(8, 0, 4, 3), (20, 6, 9, 8), (35, 4, 20, 15), (60, 19, 30, 25), (101, 20, 24, 19), (130, 43, 100, 81)],
)
def test_failure_bits_are_exact(silos, colluders, holders, threshold):
    exact = exact_worst(silos, colluders, holders, threshold)
    bits = math.log2(exact.denominator) - math.log2(exact.numerator)
    assert bits > 1
    assert failure_bits(silos, colluders, ShareGraph(holders, threshold)) == pytest.approx(bits, rel=1e-9)


def test_failure_bits_at_the_ends():
    assert failure_bits(200, 10, ShareGraph(40, 1)) == 0.0
    # Fewer than t silos outside any larger half: nobody can be cut off.
    assert failure_bits(20, 0, ShareGraph(18, 18)) == math.inf
    # A single honest silo is still told about t corrupt holders.
    assert failure_bits(10, 9, ShareGraph(5, 5)) == 0.0
    assert 100 < failure_bits(2000, 100, ShareGraph(500, 290)) < math.inf


@pytest.mark.parametrize("threshold", [9, 10, 11])
def test_fewer_colluders_are_never_worse(threshold):
    bits = [failure_bits(40, colluders, ShareGraph(12, threshold)) for colluders in range(14)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > bits[-1]


def test_a_complete_graph_is_all_or_nothing():
    assert complete_graph(MAX_COMPLETE) == ShareGraph(0, 67)
    for silos in range(3, MAX_COMPLETE + 1):
        assert complete_graph(silos).threshold == share_threshold(silos)
    assert failure_bits(100, 66, complete_graph(100)) == math.inf
    assert failure_bits(100, 67, complete_graph(100)) == 0.0
    assert is_safe(100, 33, complete_graph(100))


# The choice


def exact_choice(silos, colluders, dropped, sigma, eta):
    """By trying everything; all thresholds that do at the fewest holders."""
    for holders in range(1, silos - 1):
        thresholds = [
            threshold
            for threshold in range(1, holders + 1)
            if silos * exact_tail(silos - 1, dropped, holders, holders - threshold + 1) <= Fraction(1, 2**eta)
            and exact_worst(silos, colluders, holders, threshold) <= Fraction(1, 2**sigma)
        ]
        if thresholds:
            return [ShareGraph(holders, threshold) for threshold in thresholds]
    return []


@pytest.mark.parametrize(
    ("silos", "colluders", "dropout", "sigma", "eta"),
    [
        (12, 0, 0.0, 3, 3),
        (20, 0, 0.15, 8, 6),
        (24, 3, 0.125, 10, 8),
        (24, 3, 0.25, 4, 3),
        (30, 9, 0.1, 12, 10),
        (30, 9, 0.2, 6, 12),
        (36, 4, 0.3, 5, 4),
        (30, 12, 0.4, 20, 20),
    ],
)
def test_the_choice_is_the_fewest_holders_that_do(silos, colluders, dropout, sigma, eta):
    expected = exact_choice(silos, colluders, math.floor(dropout * silos), sigma, eta)
    if not expected:
        with pytest.raises(ConfigError, match="no share graph"):
            share_graph(silos, colluders, dropout, sigma=sigma, eta=eta)
        return
    assert expected == [share_graph(silos, colluders, dropout, sigma=sigma, eta=eta)]


@pytest.mark.parametrize(
    ("silos", "colluders", "dropout", "expected"),
    [(101, 10, 0.1, (29, 19)), (500, 50, 0.1, (61, 37)), (1000, 100, 0.05, (42, 26)), (2000, 660, 0.2, (462, 314))],
)
def test_choices_that_the_derivation_lists(silos, colluders, dropout, expected):
    assert share_graph(silos, colluders, dropout) == ShareGraph(*expected)
    holders, threshold = expected
    others, dropped = silos - 1, math.floor(dropout * silos)
    assert silos * hypergeom.sf(holders - threshold, others, dropped, holders) <= 2**-30
    assert is_safe(silos, colluders, ShareGraph(holders, threshold))
    assert not is_safe(silos, silos // 2, ShareGraph(holders, threshold))


def test_the_choice_and_the_check_are_fast():
    started = time.process_time()
    chosen = share_graph(1000, 100, 0.05)
    assert time.process_time() - started < 0.5
    started = time.process_time()
    assert is_safe(1000, 100, chosen)
    assert time.process_time() - started < 0.2


def test_a_dropout_that_floats_round_down_counts_whole():
    assert 0.29 * 100 < 29
    assert share_graph(100, 0, 0.29) == share_graph(100, 0, 0.295) != share_graph(100, 0, 0.28)


# Bad numbers


@pytest.mark.parametrize(("holders", "threshold"), [(-1, 1), (0, 0), (3, 4), (3, 0), (3.0, 2), (3, 2.0), (True, True)])
def test_graphs_that_recover_nothing_are_refused(holders, threshold):
    with pytest.raises(ConfigError):
        ShareGraph(holders, threshold)


@pytest.mark.parametrize(("silos", "colluders"), [(1, 0), (10, -1), (10, 10)])
def test_counts_out_of_range_are_refused(silos, colluders):
    with pytest.raises(ConfigError, match="colluders"):
        failure_bits(silos, colluders, ShareGraph(3, 2))
    with pytest.raises(ConfigError, match="colluders"):
        share_graph(silos, colluders, 0.1)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_a_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ConfigError, match="dropout"):
        share_graph(200, 0, dropout)


def test_more_holders_than_silos_are_not_safe():
    with pytest.raises(ConfigError, match="cannot be drawn"):
        failure_bits(10, 1, ShareGraph(10, 8))
    assert not is_safe(10, 1, ShareGraph(10, 8))


# The draw


@given(st.sets(st.integers(1, 65535), min_size=2, max_size=30), st.data())
def test_holders_are_other_advertisers_ascending(advertisers, data):
    listed = data.draw(st.permutations(sorted(advertisers)))
    silo = data.draw(st.sampled_from(listed))
    holders = data.draw(st.integers(1, len(listed) - 1))
    drawn = draw_holders(silo, listed, holders)
    assert len(drawn) == holders
    assert list(drawn) == sorted(set(drawn))
    assert set(drawn) <= advertisers - {silo}
    assert draw_holders(silo, listed, 0) == tuple(sorted(advertisers))


def test_draws_are_uniform_and_not_of_the_seeded_generator():
    random.seed(1)
    first = draw_holders(1, range(1, 400), 100)
    random.seed(1)
    assert draw_holders(1, range(1, 400), 100) != first
    counts = Counter(draw_holders(3, range(1, 7), 2) for _ in range(6000))
    assert len(counts) == 10
    # 9 degrees of freedom: above 60 with probability below 1e-8.
    assert sum((count - 600) ** 2 / 600 for count in counts.values()) < 60


@pytest.mark.parametrize(
    ("silo", "advertisers", "holders"), [(9, [1, 2, 3], 1), (1, [1, 2, 2], 1), (1, [1, 2, 3], 3), (1, [1, 2], -1)]
)
def test_draws_that_cannot_be_made_are_refused(silo, advertisers, holders):
    with pytest.raises(ProtocolError):
        draw_holders(silo, advertisers, holders)


# What the coordinator can do, by brute force on small federations. Silos are bits: the honest 0..h-1, then the corrupt.


def draw_graph(silos, holders):
    """out(u) of every silo as a bit set."""
    return [sum(1 << peer for peer in draw_holders(silo, range(silos), holders)) for silo in range(silos)]


def members(bits):
    return [silo for silo in range(bits.bit_length()) if bits >> silo & 1]


def passes(out, survivors, silo, threshold):
    return (out[silo] & survivors).bit_count() >= threshold


def component(out, among, start):
    """Silos of `among` that masks join to `start`."""
    reached = frontier = 1 << start
    while frontier:
        ahead = sum(
            1 << peer
            for peer in members(among & ~reached)
            if out[peer] & frontier or any(out[silo] >> peer & 1 for silo in members(frontier))
        )
        reached, frontier = reached | ahead, ahead
    return reached


def closed_set(out, honest, threshold):
    """A set of at most half the honest silos that could pass the rule with nobody else but the corrupt, or 0."""
    corrupt = (1 << len(out)) - (1 << honest)
    for size in range(1, max(1, honest // 2) + 1):
        for chosen in combinations(range(honest), size):
            group = sum(1 << silo for silo in chosen)
            if all(passes(out, group | corrupt, silo, threshold) for silo in chosen):
                return group
    return 0


@settings(max_examples=300)
@given(st.data())
def test_survivors_that_pass_the_rule_are_connected_unless_a_small_closed_set_exists(data):
    silos = data.draw(st.integers(3, 9))
    honest = data.draw(st.integers(2, silos))
    threshold = data.draw(st.integers(1, 3))
    everyone = (1 << silos) - 1
    out = [data.draw(st.integers(0, everyone)) & ~(1 << silo) for silo in range(silos)]
    if closed_set(out, honest, threshold):
        return
    for survivors in range(1, everyone + 1):
        honest_left = survivors & ((1 << honest) - 1)
        if honest_left and all(passes(out, survivors, silo, threshold) for silo in members(honest_left)):
            assert 2 * honest_left.bit_count() > honest
            assert component(out, honest_left, members(honest_left)[0]) == honest_left


def isolate(out, honest, target):
    """Survivors left when every honest silo that masks with the target is declared dropped."""
    corrupt = (1 << len(out)) - (1 << honest)
    others = [silo for silo in range(honest) if silo != target]
    kept = [silo for silo in others if not out[silo] >> target & 1 and not out[target] >> silo & 1]
    return sum(1 << silo for silo in kept) | 1 << target | corrupt


@pytest.fixture(scope="module")
def weak():
    """Draws of a federation whose parameters are far too weak, so that attacks on it can be counted."""
    silos, honest, holders, threshold = 14, 9, 6, 5
    return honest, threshold, exact_bound(silos, silos - honest, holders, threshold), [
        draw_graph(silos, holders) for _ in range(2500)
    ]  # fmt: skip


def spread(probability, tries):
    """Six standard deviations of a frequency."""
    return 6 * math.sqrt(probability * (1 - probability) / tries)


def test_an_unbounded_coordinator_stays_below_the_union_bound(weak):
    honest, threshold, bound, graphs = weak
    assert 0.1 < bound < 0.5
    assert failure_bits(14, 5, ShareGraph(6, 5)) == pytest.approx(-math.log2(bound))
    frequency = sum(closed_set(out, honest, threshold) > 0 for out in graphs) / len(graphs)
    assert frequency <= bound + spread(bound, len(graphs))
    # It bites too: a bound that is met by far would be met by any mistake.
    assert frequency > bound / 8


def test_dropping_all_honest_holders_isolates_only_a_silo_with_enough_corrupt_ones(weak):
    honest, threshold, bound, graphs = weak
    alone = passed = 0
    for out in graphs:
        lists = [isolate(out, honest, target) for target in range(honest)]
        alone += all(
            component(out, survivors & ((1 << honest) - 1), target) == 1 << target
            for target, survivors in enumerate(lists)
        )
        passed += any(passes(out, survivors, target, threshold) for target, survivors in enumerate(lists))
    # Without the rule the attack always works.
    assert alone == len(graphs)
    one = float(exact_tail(13, 5, 6, threshold))
    expected = 1 - (1 - one) ** honest
    assert abs(passed / len(graphs) - expected) < spread(expected, len(graphs))
    assert expected < bound


def test_a_rule_for_one_silo_at_a_time_would_open_part_of_the_sum():
    """Why every survivor must pass before anything is revealed: one that fails would be listed, and yet not summed."""
    honest, threshold = 10, 5
    core = 0b111111
    out = [core & ~(1 << silo) for silo in range(6)] + [0b011111] * 3 + [0b110111000000] + [0b011111] * 2
    assert {row.bit_count() for row in out} == {5}
    assert not closed_set(out, honest, threshold)
    survivors = 0b111000111111
    failing = [silo for silo in range(honest) if survivors >> silo & 1 and not passes(out, survivors, silo, threshold)]
    assert failing == [9]
    # Masks of the first six cancel among themselves, so their sum is open, and they were told it is a sum of seven.
    assert component(out, survivors & ((1 << honest) - 1), 0) == core


def test_holders_of_another_cohort_must_not_count():
    """Survivors are those of the silo's own cohort: with others it has no masks."""
    out = [0b111110, 0b111101, 0b111011, 0b110111, 0b101111, 0b011111]
    cohort, slot = 0b000011, 0b111111
    assert passes(out, slot, 0, 3)
    assert not passes(out, cohort, 0, 3)


# Why not one labelling for everybody from a common seed


def harary_neighbours(digest, silos, degree, target):
    """Neighbours of the target on a circulant graph whose places a hash shuffles."""
    order = list(range(silos))
    random.Random(digest).shuffle(order)
    place = order.index(target)
    steps = range(1, degree // 2 + 1)
    return {order[(place + sign * step) % silos] for step in steps for sign in (1, -1)}


def captured(neighbours, honest, threshold):
    return sum(peer >= honest for peer in neighbours) >= threshold


def grind(epoch, tries, silos, honest, degree, threshold):
    """Whether a colluder that tries `tries` advertisements gets the target, silo 0, among its own."""
    for attempt in range(tries):
        digest = hashlib.sha256(f"{epoch} advertisements {attempt}".encode()).digest()
        if captured(harary_neighbours(digest, silos, degree, 0), honest, threshold):
            return True
    return False


def test_a_common_seed_is_ground_and_own_draws_are_not():
    silos, honest, degree, threshold = 30, 21, 6, 5
    one = float(exact_tail(silos - 1, silos - honest, degree, threshold))
    assert 0.003 < one < 0.01
    epochs = 60
    success = {
        tries: sum(grind(epoch, tries, silos, honest, degree, threshold) for epoch in range(epochs)) / epochs
        for tries in (1, 100, 1200)
    }
    for tries, frequency in success.items():
        expected = 1 - (1 - one) ** tries
        assert abs(frequency - expected) <= spread(expected, epochs) + 0.02
    assert success[1] < 0.15 < success[100] < success[1200]
    assert success[1200] > 0.9
    # Drawn by the target after the advertisements are fixed, its holders are one try an epoch.
    draws = 20_000
    own = sum(captured(draw_holders(0, range(silos), degree), honest, threshold) for _ in range(draws)) / draws
    assert abs(own - one) < spread(one, draws)


# Dropouts


def test_dropouts_that_do_not_look_at_the_graph_stay_below_the_bound():
    silos, holders, threshold, dropped = 40, 12, 7, 8
    bound = silos * hypergeom.sf(holders - threshold, silos - 1, dropped, holders)
    assert 0.05 < bound < 0.5
    alive = (1 << silos) - (1 << dropped)
    tries = 1000
    failed = sum(
        not all(passes(out, alive, silo, threshold) for silo in range(silos))
        for out in (draw_graph(silos, holders) for _ in range(tries))
    )
    assert bound / 8 < failed / tries < bound + spread(bound, tries)


def test_silos_that_drop_one_by_one_need_a_larger_fraction():
    """The bound is for a fixed number of dropouts; independent ones at the same rate fail more often."""
    chosen = share_graph(1000, 100, 0.05)
    lost = chosen.holders - chosen.threshold
    fixed = 1000 * hypergeom.sf(lost, 999, 50, chosen.holders)
    independent = 1000 * binom.sf(lost, chosen.holders, 0.05)
    assert fixed <= 2**-30 < independent
