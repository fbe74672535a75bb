"""Blocks: silos that are summed together or not at all, so that no difference of sums tells of a single one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.config import ResolvedConfig, RunConfig
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, PolicyRefusal
from autoflip_secure.federation.blocks import (
    block_size,
    deal_blocks,
    fewest_in_blocks,
    inside,
    least_block,
    still_enrolled,
)
from autoflip_secure.federation.defaults import resolve
from autoflip_secure.federation.dropout import LEAST_DROPOUT, likely_dropout
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster, RosterEntry
from autoflip_secure.run_cli import BLOCK, LEFT_OF_BLOCKS
from autoflip_secure.secagg.graph import SAFE_BITS, share_graph

TABLE = Task("t", "binary", (30,), 2, ("no", "yes"), "mlp", 500)
TWO = ((1, 2, 3), (4, 5, 6))


def resolved(**options: Any) -> ResolvedConfig:
    return resolve(RunConfig.create(**options), TABLE, natural_silos=None)


@given(st.integers(3, 200), st.integers(1, 12))
def test_blocks_are_as_many_as_there_can_be(silos: int, size: int) -> None:
    blocks = deal_blocks(silos, size)
    assert [silo for block in blocks for silo in block] == list(range(1, silos + 1))
    sizes = [len(block) for block in blocks]
    assert set(sizes[:-1]) <= {size}
    assert min(size, silos) <= sizes[-1] < 2 * size


@given(st.integers(3, 100), st.integers(3, 100), st.integers(1, 30), st.integers(1, 30))
def test_blocks_of_two_runs_do_not_tell_of_less_than_the_smaller_ones(
    silos: int, more: int, one: int, other: int
) -> None:
    """Of the same silos. Where some were added the last block is another, and the new ones are told of alone."""
    small, large = sorted((block_size(one), block_size(other)))
    fine = deal_blocks(silos, small)
    for block in deal_blocks(silos, large):
        assert sorted(silo for part in inside(fine, [block]) for silo in part) == list(block)
    assert set(fine[:-1]) <= set(deal_blocks(silos + more, small)), "nobody else's block moves"


@given(st.lists(st.integers(1, 6), max_size=7), st.integers(1, 30))
def test_the_fewest_silos_of_whole_blocks(sizes: list[int], least: int) -> None:
    unions = {sum(some) for count in range(len(sizes) + 1) for some in itertools.combinations(sizes, count)}
    enough = [total for total in unions if total >= least]
    found = fewest_in_blocks(sizes, least)
    assert found == min(enough) if enough else found > sum(sizes)


def test_blocks_do_not_depend_on_what_a_coordinator_chooses() -> None:
    """A seed would let it put a silo into a block with its friends, and into others in every run."""
    plans = {Schedule(resolved(silos=10, block=3, dp_epsilon=8, seed=seed)).blocks for seed in range(5)}
    assert plans == {((1, 2, 3), (4, 5, 6), (7, 8, 9, 10))}


@pytest.mark.parametrize(
    ("options", "block"),
    [
        ({}, 1),
        ({"block": 3, "dp_epsilon": 8, "colluders": 1}, 3),
        ({"block": 3, "dp_epsilon": 8}, 6),
        ({"block": 2, "dp_epsilon": 8, "colluders": 0}, 3),
        # Without DP pruning sums squares, too: two of them tell apart two silos that are left.
        ({"block": 3, "colluders": 0}, 3),
        ({"block": 3, "colluders": 1}, 6),
        ({"block": 3, "colluders": 1, "prune": "none"}, 3),
        ({"block": 7, "dp_epsilon": 8}, 12),
    ],
)
def test_a_block_hides_its_silos_from_colluders_in_it(options: dict[str, Any], block: int) -> None:
    config = resolved(silos=20, **options)
    assert config.block == block
    assert block == 1 or block >= least_block(config.colluders, Schedule(config).moments)


def test_with_blocks_one_cohort_is_summed() -> None:
    assert resolved(silos=12, dp_epsilon=8, block=3).cohorts == 1
    config = resolved(silos=12, dp_epsilon=8, block=3, cohorts=2, colluders=0, min_cohort=0.5)
    cohorts = Schedule(config).plan(0).cohorts
    assert len(cohorts) == 2
    assert all(inside(Schedule(config).blocks, [cohort]) for cohort in cohorts)
    with pytest.raises(ConfigError, match="--cohorts 2: 5 silos make 1 blocks of 3 or more"):
        Schedule(resolved(silos=5, dp_epsilon=8, block=3, cohorts=2))


@pytest.mark.parametrize("silos", range(3, 25))
def test_across_institutions_a_block_may_be_missing_from_eight_silos_on(silos: int) -> None:
    """Of silos that make blocks of three; the last one, where it is larger, may not always."""
    config = resolved(silos=silos, block=BLOCK, min_cohort=LEFT_OF_BLOCKS, dp_epsilon=8, colluders=min(1, silos // 10))
    assert config.block == 3
    plan = Schedule(config).plan(0)
    sizes = sorted(map(len, plan.blocks))
    assert (silos - sizes[0] >= plan.minimum[0]) == (silos >= 8)
    assert (silos - sizes[-1] >= plan.minimum[0]) == (silos >= 9 and silos != 11)


def test_participants_are_drawn_block_by_block() -> None:
    schedule = Schedule(resolved(silos=14, block=3, dp_epsilon=8, participation=0.5, rounds=30))
    drawn = [schedule.plan(round).cohorts[0] for round in range(30)]
    assert len(set(drawn)) > 3
    for cohort in drawn:
        assert sorted(silo for block in inside(schedule.blocks, [cohort]) for silo in block) == list(cohort)
    kinds = {schedule.plan(round).minimum for round in schedule.kinds}
    assert {schedule.plan(round).minimum for round in range(30)} == kinds, "what is reviewed is all there is"


def test_cohorts_of_the_filter_are_made_of_blocks() -> None:
    for silos, cohorts in ((12, 4), (15, 4), (20, 5), (40, 10)):
        config = resolved(silos=silos, block=3, cohort_filter=True)
        assert config.cohorts == cohorts
        assert Schedule(config).blocks == deal_blocks(silos, 3), "as of runs without the filter"
        plan = Schedule(config).plan(0)
        assert sorted(silo for block in plan.blocks for silo in block) == list(range(1, silos + 1))
    with pytest.raises(ConfigError, match="--cohorts 4: 20 silos make 3 blocks of 6 or more"):
        Schedule(resolved(silos=20, block=6, cohort_filter=True))


def test_a_policy_counts_colluders_out_of_a_block(make_config) -> None:
    options = {"aggregation": "secagg", "dp_epsilon": 8.0, "dp_trust": "distributed", "silos": 12, "min_cohort": 0.6}
    policy = SiloPolicy(proved_models=False, min_block=3)
    policy.check_run(make_config(**options, block=3, colluders=1))
    # A coordinator may say what it likes: nothing on its side is relied on.
    with pytest.raises(PolicyRefusal, match=r"rule min_block: a block has 3 silos; the least is 4"):
        policy.check_run(make_config(**options, block=3, colluders=1).model_copy(update={"colluders": 2}))
    with pytest.raises(
        PolicyRefusal, match=r"rule min_block: blocks of 4 are not made of those of other runs.* 6 would"
    ):
        policy.check_run(make_config(**options, block=3, colluders=1).model_copy(update={"block": 4}))
    with pytest.raises(PolicyRefusal, match=r"rule min_block: a block has 1 silos; the least is 3"):
        policy.check_run(make_config(**options, colluders=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": ()},
        {"blocks": ((1, 2, 3, 4, 5, 6),)},
        {"blocks": ((1, 2), (3, 4), (5, 6))},
        {"blocks": ((1, 2, 4), (3, 5, 6))},
        {"blocks": TWO[::-1]},
        {"cohorts": ((1, 2, 3, 4, 5),), "blocks": ((1, 2, 3), (4, 5))},
        {"cohorts": ((1, 2, 3, 4, 5),), "blocks": ((1, 2, 3, 4, 5),)},
    ],
)
def test_a_round_has_the_blocks_of_the_joined_run(changes: dict[str, Any], institution) -> None:
    silo = institution(silos=6, block=3, min_cohort=0.5)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute(**{"minimum": (3,), **changes}).status == "refused"
    assert "refused by rule blocks: " in silo.refusal
    assert silo.lines() == 0
    assert silo.contribute(minimum=(3,), blocks=TWO).status == "ok", silo.refusal


def test_a_cohort_of_no_whole_block_is_refused(institution) -> None:
    """It would name no block and be summed silo by silo: the coordinator leaves one of each block out."""
    silo = institution(silos=10, block=3, min_cohort=0.5)
    assert silo.join().status == "ok", silo.refusal
    for cohort in ((1, 2, 4, 5, 7, 8, 9), (2, 3, 5, 6, 8, 9, 10), (1, 4, 7, 8, 9)):
        assert silo.contribute(cohorts=(cohort,), minimum=(5,)).status == "refused"
    assert "refused by rule blocks: " in silo.refusal
    assert silo.lines() == 0


def test_a_run_without_blocks_has_none(institution) -> None:
    silo = institution(silos=6, min_cohort=0.5)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute(minimum=(3,), blocks=TWO).status == "refused"
    assert "refused by rule blocks: " in silo.refusal


def test_a_silo_that_is_removed_takes_its_block_along(institution, monkeypatch: pytest.MonkeyPatch) -> None:
    assert still_enrolled((1, 2, 3, 4, 5, 6), TWO, (1, 2, 3, 4, 6)) == (1, 2, 3)
    silo = institution(silos=6, block=3, min_cohort=0.5)
    assert silo.join().status == "ok", silo.refusal
    assert silo.contribute(minimum=(3,), blocks=TWO).status == "ok", silo.refusal
    admission = silo.silo._session._admission
    left = Roster(admission.roster.coordinator, tuple(entry for entry in admission.roster.entries if entry.silo != 5))
    monkeypatch.setattr(silo.silo._session, "_admission", replace(admission, roster=left))
    # A sum with 4 and 6 beside one with 4, 5 and 6 would tell of silo 5 alone, and of the two others.
    rest = {"cohorts": ((1, 2, 3, 4, 6),), "minimum": (3,), "blocks": ((1, 2, 3), (4, 6))}
    assert silo.contribute(attempt=1, **rest).status == "refused"
    assert "refused by rule blocks: " in silo.refusal
    assert silo.contribute(attempt=2, cohorts=((1, 2, 3),), minimum=(3,), blocks=TWO[:1]).status == "ok", silo.refusal


def test_a_run_of_other_silos_than_the_roster_has_no_blocks(institution) -> None:
    """Its places would be other silos after a removal, and blocks with them."""
    silo = institution(silos=6, block=3, min_cohort=0.5)
    entries = silo.folder.roster().entries
    extra = RosterEntry(7, "silo-7", Identity.generate().public)
    (silo.home / "roster.bin").write_bytes(Roster(silo.folder.roster().coordinator, (*entries, extra)).to_bytes())
    silo.restart()
    reply = silo.join()
    assert (reply.status, reply.error) == ("refused", "PolicyRefusal:min_block")
    assert "the run is one of 6 silos, this silo's roster has 7" in silo.refusal
    (silo.home / "roster.bin").write_bytes(silo.folder.roster().to_bytes())
    silo.restart()
    assert silo.join().status == "ok", silo.refusal


@pytest.mark.parametrize("silos", [101, 120, 200, 1000])
def test_above_100_silos_there_are_keys_for_runs_in_blocks(silos: int) -> None:
    """With as many colluders as are usual; blocks are large then, and one that is missing is many silos."""
    config = resolved(silos=silos, block=BLOCK, min_cohort=LEFT_OF_BLOCKS, dp_epsilon=8)
    least = Schedule(config).whole().minimum[0]
    borne = likely_dropout(config.dropout, silos, config.block, least)
    assert borne * silos <= silos - least or borne == LEAST_DROPOUT
    share_graph(silos, config.colluders, borne, sigma=SAFE_BITS)
