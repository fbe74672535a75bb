"""Which round does what, fixed before the run: phases, cohorts, minimums. Public, and the same on resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.errors import ConfigError
from autoflip_secure.federation.blocks import deal_blocks, fewest_in_blocks, inside
from autoflip_secure.parties.rules import HARD_FLOOR, most_colluders, only_list, share_threshold
from autoflip_secure.secagg.graph import MAX_COMPLETE
from autoflip_secure.seeds import stream
from autoflip_secure.sums.manifest import Blocks

__all__ = ["LEAST_FILTERED", "RoundPlan", "Schedule", "cohort_minimum", "default_colluders", "largest_cohorts"]

LEAST_FILTERED = 4
"""Fewest cohorts among which one can be told from the rest."""

FILTERED_SIZE = 4
"""Silos of a cohort where the cohort filter is on and nobody says otherwise."""


UNEXPLORED = ("none", "random", "feddst", "eflprune")
"""Methods that need no exploration."""

READJUST_EVERY = 10
"""Rounds between readjustments of a sparse mask: the default of --rounds-between-readjustments in FedDST's code."""


@dataclass(frozen=True)
class RoundPlan:
    """One round.

    Attributes
    ----------
    phase : str
        explore or train.
    cohorts : tuple of tuple of int
        Silo ids summed together.
    minimum : tuple of int
        Fewest survivors of each cohort.
    blocks : tuple of tuple of int
        Parts of the cohorts that are summed whole or not at all; empty: each silo by itself.
    """

    phase: str
    cohorts: tuple[tuple[int, ...], ...]
    minimum: tuple[int, ...]
    blocks: Blocks = ()


def default_colluders(silos: int, moments: int, smallest: int | None = None) -> int:
    """One colluder in ten silos, one where threshold and `smallest` cohort (default: all silos) can bear it."""
    bears = (silos if smallest is None else smallest) - 2 - moments
    return max(0, min(max(1, silos // 10), most_colluders(silos), bears))


def largest_cohorts(silos: int) -> int:
    """Cohorts of the filter: of four silos where there are enough, at least `LEAST_FILTERED` of them, at most 16."""
    return min(16, max(LEAST_FILTERED, silos // FILTERED_SIZE))


def cohort_minimum(
    size: int, silos: int, colluders: int, min_cohort: float, moments: int, blocks: Sequence[int] = ()
) -> int:
    """Fewest survivors whose sum may be opened: max(min_cohort of the cohort, 3, colluders + 2 + moments).

    A cohort that is the whole roster also needs the share threshold that its key shares need. Of blocks, given by their
    sizes, it is the fewest silos in whole ones: silos whose block is incomplete still hold shares, and that enough of
    these are there is counted when the sum is opened.
    """
    least = max(math.ceil(min_cohort * size), HARD_FLOOR, colluders + 2 + moments)
    if blocks:
        return fewest_in_blocks(blocks, least)
    return max(least, share_threshold(silos)) if size == silos else least


def bears_two_moments(size: int, silos: int, colluders: int, min_cohort: float) -> bool:
    """Whether a cohort of so many silos may release a sum and squares of the same coordinates."""
    return cohort_minimum(size, silos, colluders, min_cohort, 2) <= size


class Schedule:
    """The plan of a resolved configuration.

    Raises
    ------
    ConfigError
        Silos, cohorts, colluders and participation leave no sum that may be opened.
    """

    def __init__(self, config: ResolvedConfig) -> None:
        self._config = config
        self._silos, self._colluders = config.silos, config.colluders
        self.rounds, self._cohorts = config.rounds, config.cohorts
        if self._colluders > most_colluders(self._silos):
            raise ConfigError(
                f"--colluders {self._colluders}: with {self._silos} silos the protocol bears at most "
                f"{most_colluders(self._silos)}"
            )
        if self._cohorts > 1 and self._silos > MAX_COMPLETE:
            raise ConfigError(f"--cohorts {self._cohorts}: above {MAX_COMPLETE} silos a sum is over one cohort, give 1")
        if config.cohort_filter:
            self._check_filter()
        if self.explores and config.explore_rounds >= self.rounds:
            raise ConfigError(f"--explore-rounds {config.explore_rounds}: must be below --rounds {self.rounds}")
        if config.prune == "fedmask" and self.rounds < 2 + config.warm_start:
            raise ConfigError(f"--rounds {self.rounds}: --prune fedmask needs 2 or more, and one more to start warm")
        if config.prune == "feddst" and not self.readjustments:
            every = f"--explore-every {config.explore_every}" if config.explore_every else f"--rounds {self.rounds}"
            raise ConfigError(
                f"{every}: --prune feddst readjusts in the first half of the run; give 2 rounds or more, "
                "and --explore-every of at most their half"
            )
        self.blocks = deal_blocks(self._silos, config.block)
        """Silos that are summed together or not at all, of the whole run; with --block 1 each is one of its own."""
        if config.block > 1 and len(self.blocks) < self._cohorts:
            raise ConfigError(
                f"--cohorts {self._cohorts}: {self._silos} silos make {len(self.blocks)} blocks of {config.block} or "
                "more; give fewer --cohorts or a smaller --block"
            )
        self._groups = self._drawn_groups()
        self.kinds = self._kinds()
        """One round of each kind of cohorts; which silos are in them may differ in others of the kind."""
        for round in self.kinds:
            self.plan(round)

    @property
    def prunes(self) -> bool:
        """Whether masks are chosen as the run goes on."""
        return self._config.prune not in ("none", "random")

    @property
    def explores(self) -> bool:
        """Whether the run explores, and prunes by what these sums say."""
        if self._config.prune == "fedmask":
            return self._config.warm_start  # its fixed parameters are then those that a first round trained
        return self._config.prune not in UNEXPLORED

    @property
    def readjustment_end(self) -> int:
        """R_end: dynamic sparse training readjusts its mask in rounds below it, the first half of the run."""
        return self.rounds // 2

    @cached_property
    def readjustments(self) -> tuple[int, ...]:
        """Rounds after which dynamic sparse training readjusts its mask, and which sum the gradients it needs.

        Every `--explore-every` rounds, or every ten as FedDST's authors do, but at least as often as the FLOP target is
        reached in steps.
        """
        if self._config.prune != "feddst":
            return ()
        usual = min(READJUST_EVERY, max(1, self.readjustment_end // self._config.prune_steps))
        every = self._config.explore_every or usual
        return tuple(range(every - 1, self.readjustment_end, every))

    def is_readjustment(self, round: int) -> bool:
        """Whether `round` is one of `readjustments`."""
        return round in self.readjustments

    @property
    def moments(self) -> int:
        """Moments of one coordinate that a round releases: sums, and energies or deviations where they come along."""
        return 2 if self.sends_energy or self._explores_in_two_moments else 1

    @property
    def sums_squares(self) -> bool:
        """Whether exploring silos send squares (channel deviation): of how far they moved, or for PruneFL, without DP,
        of their gradients."""
        if self._config.prune == "prunefl":
            return self._config.trust == "none"
        return self._config.prune == "autoflip" and self._config.trust != "distributed"

    @property
    def _explores_in_two_moments(self) -> bool:
        return self.sums_squares and self._config.warm_start

    @property
    def sends_energy(self) -> bool:
        """Whether training rounds carry unit energies (the moments form of agreement).

        Not where the silos are too few for two moments of one coordinate: pruning then rests on the exploration alone.
        Nor with the cohort filter: the cohorts' sums tell the agreement, and cohorts bear one moment with a silo less.
        """
        if self._config.cohort_filter:
            return False
        if self._config.prune != "autoflip" or self._config.trust == "distributed":
            return False
        if self._config.warm_start:
            return True  # its exploration releases two moments anyway
        size = 0
        for group in self._groups:
            sizes = sorted(map(len, inside(self.blocks, [group])))
            size += sum(sizes[: _drawn(self._config.participation, len(sizes))])
        return bears_two_moments(size, self._silos, self._colluders, self._config.min_cohort)

    def is_exploration(self, round: int) -> bool:
        """Whether `round` belongs to the first phase, or maps the landscape anew."""
        if not self.explores:
            return False
        every = self._config.explore_every
        return round < self._config.explore_rounds or (every > 0 and round % every == 0)

    def leaves_the_model(self, round: int) -> bool:
        """Whether `round` only maps the landscape: exploration with a cold start, and every later one."""
        if self._config.trust == "distributed" or not self.is_exploration(round):
            return False
        return not self._config.warm_start or round >= self._config.explore_rounds

    def sums_explored_updates(self, round: int) -> bool:
        """Whether an exploring round that sums squares sums updates beside them: where the model goes on from there,
        and where single weights are ranked by what is left of the silos' moves in the sum, which deviations, being
        squares, do not show."""
        return not self.leaves_the_model(round) or (self._config.trust == "none" and self.sends_energy)

    def plan(self, round: int) -> RoundPlan:
        """Plan of one round. Silos of a run with the cohort filter compute it too, and refuse other cohorts."""
        return self._planned("explore" if self.is_exploration(round) else "train", self._cohorts_of(round))

    def whole(self) -> RoundPlan:
        """Plan of a census or an evaluation: everybody in one cohort."""
        everybody = tuple(range(1, self._silos + 1))
        return self._planned("evaluate", (everybody,))

    def _cohorts_of(self, round: int) -> Blocks:
        present = self._participants(round)
        return tuple(tuple(silo for silo in group if silo in present) for group in self._groups_of(round))

    def _planned(self, phase: str, cohorts: tuple[tuple[int, ...], ...]) -> RoundPlan:
        blocks = inside(self.blocks, cohorts) if self._config.block > 1 else ()
        return RoundPlan(phase, cohorts, tuple(self._minimum(cohort, blocks) for cohort in cohorts), blocks)

    def _kinds(self) -> tuple[int, ...]:
        """Cohorts have the same sizes in all rounds that measure agreement, and in all that do not; but those of drawn
        blocks, of which the last may be larger."""
        draws_blocks = self._config.block > 1 and (
            self._config.participation < 1
            or self._config.explore_participation is not None
            or self._config.allow_cohort_rotation
        )
        rounds = self.rounds if draws_blocks else min(self.rounds, 2 + 2 * self._period())
        kinds: dict[tuple[object, ...], int] = {}
        for round in range(rounds):
            sizes = sorted(map(len, self._cohorts_of(round))) if draws_blocks else []
            kinds[self._measures_agreement(round), self.is_exploration(round), *sizes] = round
        return tuple(kinds.values())

    def _check_filter(self) -> None:
        config = self._config
        if self._cohorts < LEAST_FILTERED:
            raise ConfigError(f"--cohorts {self._cohorts}: --cohort-filter compares {LEAST_FILTERED} cohorts or more")
        for flag, share in (
            ("--participation", config.participation),
            ("--explore-participation", config.explore_participation),
        ):
            if share is not None and share < 1 and not config.allow_cohort_rotation:
                raise ConfigError(
                    f"{flag} {share}: changes who is in a cohort from round to round, and the sums then estimate "
                    "single silos; with --cohort-filter give 1, or --allow-cohort-rotation"
                )

    def _drawn_groups(self, *round: int) -> list[list[int]]:
        """Silos, block by block, dealt to cohorts, for the whole run or for one round."""
        order = stream(self._config.seed, "cohorts", *round).permutation(len(self.blocks))
        return [
            sorted(silo for block in order[i :: self._cohorts] for silo in self.blocks[block])
            for i in range(self._cohorts)
        ]

    def _groups_of(self, round: int) -> list[list[int]]:
        if self._config.allow_cohort_rotation:
            return self._drawn_groups(round)
        if self._config.cohort_filter or self._measures_agreement(round):
            return self._groups
        return [list(range(1, self._silos + 1))]

    def _measures_agreement(self, round: int) -> bool:
        if self._config.prune != "autoflip" or self._cohorts == 1:
            return False
        every = self._config.agreement_every
        return every > 0 and round % every == 0

    def _period(self) -> int:
        return max(self._config.explore_rounds, self._config.agreement_every, self._config.explore_every)

    def _participants(self, round: int) -> frozenset[int]:
        """The same share of each cohort, drawn anew each round."""
        config = self._config
        share = config.participation
        if self.is_exploration(round) and config.explore_participation is not None:
            share = config.explore_participation
        if share == 1:
            return frozenset(range(1, self._silos + 1))
        generator = stream(self._config.seed, "participation", round)
        present: list[int] = []
        for group in self._groups_of(round) if config.allow_cohort_rotation else self._groups:
            blocks = inside(self.blocks, [group])
            drawn = generator.permutation(len(blocks))[: _drawn(share, len(blocks))]
            present += [silo for i in drawn for silo in blocks[i]]
        return frozenset(present)

    def _minimum(self, cohort: Sequence[int], blocks: Blocks) -> int:
        size, sizes = len(cohort), [len(block) for block in inside(blocks, [cohort])]
        least = cohort_minimum(size, self._silos, self._colluders, self._config.min_cohort, self.moments, sizes)
        if self._config.aggregation == "ckks":
            # Silos open no list that leaves room for a second one (`CkksSilo`): ask them for none.
            least = max(least, only_list(size, self._colluders))
            least = fewest_in_blocks(sizes, least) if sizes else least
        if least > size:
            raise ConfigError(
                f"--colluders {self._colluders}: a cohort of {size} silos is opened with {least} survivors or more; "
                "use more silos, fewer --cohorts, fewer --colluders or a larger --participation"
            )
        return least


def _drawn(share: float, silos: int) -> int:
    return min(silos, max(1, round_half_up(share * silos)))


def round_half_up(value: float) -> int:
    """Nearest integer, halves up."""
    return math.floor(value + 0.5)
