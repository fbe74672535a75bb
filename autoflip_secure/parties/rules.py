"""What a silo demands before it helps to open a sum. Decided by the silo; the coordinator can only ask for more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoflip_secure.errors import ConfigError, InputError, PolicyRefusal, Refusal
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.wire import want_bytes, want_ids, want_int
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest

__all__ = [
    "HARD_FLOOR",
    "SiloRules",
    "Survivors",
    "check_enrolled_silo",
    "check_manifest",
    "check_survivors",
    "dropped_silos",
    "most_colluders",
    "only_list",
    "refusal",
    "released_moments",
    "require_exact_types",
    "share_threshold",
]

HARD_FLOOR = 3
SECOND_MOMENTS = frozenset({"unit_energy", "deviation"})

Survivors = tuple[tuple[int, ...], ...]


def refusal(rule: str, what: str) -> Refusal:
    """A Refusal that starts with the rule's name."""
    return Refusal(f"refused by rule {rule}: {what}")


def share_threshold(silos: int) -> int:
    """Shares that recover a secret in a roster of `silos`: t = floor(2n/3) + 1."""
    return 2 * silos // 3 + 1


def most_colluders(silos: int) -> int:
    """Largest c with 2t > n + c.

    Two different survivor lists for one slot would need 2t confirmations from n silos of which c sign twice.
    """
    return 2 * share_threshold(silos) - silos - 1


def only_list(cohort: int, colluders: int) -> int:
    """Fewest silos of a list such that two of a cohort share a silo that does not collude: floor((n + c) / 2) + 1."""
    return (cohort + colluders) // 2 + 1


def released_moments(channels: Sequence[ChannelSpec]) -> int:
    """Sums released about the same coordinates: 2 where squares or deviations come with the update, else 1."""
    names = {spec.name for spec in channels}
    return 2 if "update" in names and names & SECOND_MOMENTS else 1


@dataclass(frozen=True)
class SiloRules:
    """A silo's own limits.

    Attributes
    ----------
    colluders : int
        Silos, c, that may work with the coordinator without weakening the promise.
    minimum : int
        Fewest silos in a sum this silo helps to open, at least 3.
    minimum_fraction : float
        Fewest silos in such a sum as a part of its cohort, within [0, 1].
    """

    colluders: int
    minimum: int = HARD_FLOOR
    minimum_fraction: float = 0.5

    def __post_init__(self) -> None:
        if self.colluders < 0:
            raise ConfigError(f"colluders is {self.colluders}; it counts silos, give 0 or more")
        if self.minimum < HARD_FLOOR:
            raise ConfigError(f"minimum is {self.minimum}; a sum over fewer than {HARD_FLOOR} silos is never opened")
        if not 0 <= self.minimum_fraction <= 1:
            raise ConfigError(f"minimum_fraction is {self.minimum_fraction}; give a number within 0..1")

    def check_roster(self, roster: Roster) -> None:
        """Whether a roster can keep these rules at all.

        Raises
        ------
        ConfigError
            Too many colluders for the threshold, or no sum could ever be large enough.
        """
        silos = len(roster.entries)
        if self.colluders > most_colluders(silos):
            raise ConfigError(
                f"{self.colluders} colluders among {silos} silos break the threshold, "
                f"which holds for at most {most_colluders(silos)}"
            )
        least = self.least(silos, HARD_FLOOR, 1)
        if least > silos:
            raise ConfigError(
                f"no sum could be opened: with {self.colluders} colluders it takes {least} silos, "
                f"the roster has {silos}; enrol more silos or lower colluders or minimum"
            )

    def least(self, cohort_size: int, stated: int, moments: int) -> int:
        """Fewest silos of a cohort whose sum this silo helps to open.

        The largest of: the manifest's own minimum, this silo's minimum, its fraction of the cohort, the hard floor, and
        c + 2 + moments, since c colluders subtract themselves and `moments` sums about the remaining silos must not
        pin down one of them.
        """
        fraction = math.ceil(self.minimum_fraction * cohort_size)
        return max(stated, self.minimum, fraction, HARD_FLOOR, self.colluders + 2 + moments)


def check_enrolled_silo(identity: Identity, silo: int, roster: Roster, rules: SiloRules) -> None:
    """Whether who a silo is and what it insists on fit its roster.

    Raises
    ------
    InputError
        The silo is not in the roster, or with another identity.
    ConfigError
        The roster cannot keep the rules.
    """
    if silo not in roster:
        raise InputError(f"silo {silo} is not in the roster; ids are {', '.join(map(str, roster.silos))}")
    if roster.public(silo) != identity.public:
        raise InputError(f"the identity given is not the one the roster has for silo {silo}")
    rules.check_roster(roster)


def require_exact_types(manifest: Manifest) -> None:
    """Raise ProtocolError where a manifest has, say, 1.0 or true for a counter: equal to 1, but with another hash."""
    counters = (manifest.epoch, manifest.slot, manifest.round, manifest.attempt, manifest.threshold)
    for value in (*counters, *manifest.minimum, *(spec.bits for spec in manifest.channels)):
        want_int("a counter of the manifest", value)
    for spec in manifest.channels:
        want_int(f"the length of channel {spec.name}", spec.length, 1)
    for cohort in manifest.cohorts:
        want_ids("a cohort", cohort)
    for block in manifest.blocks:
        want_ids("a block", block)
    hashes = (manifest.epoch_hash, manifest.model_hash, manifest.mask_hash, manifest.config_hash, manifest.heads_hash)
    for item in (manifest.session, *hashes):
        want_bytes("a hash of the manifest", item)


def check_manifest(manifest: Manifest, rules: SiloRules, roster: Roster, members: Sequence[int]) -> None:
    """Whether a manifest asks for a sum this silo may help with.

    Parameters
    ----------
    members : sequence of int
        Silos that completed the epoch's key set-up; only they can be summed.

    Raises
    ------
    Refusal
        The threshold is not t, or a cohort names a silo outside the roster.
    PolicyRefusal
        A cohort, or its stated minimum, is too small.
    """
    threshold = share_threshold(len(roster.entries))
    if manifest.threshold != threshold:
        raise refusal("threshold", f"the manifest says {manifest.threshold} shares, the roster says {threshold}")
    moments = released_moments(manifest.channels)
    for index, (cohort, stated) in enumerate(zip(manifest.cohorts, manifest.minimum, strict=True)):
        unknown = [silo for silo in cohort if silo not in roster]
        if unknown:
            raise refusal("known-silos", f"silos {unknown} of the cohort are not in the roster")
        if stated < HARD_FLOOR:
            raise PolicyRefusal(
                f"refused by rule size: the manifest would open a sum of {stated}, never below {HARD_FLOOR}"
            )
        able = manifest.whole(index, members)
        _check_size(len(able), rules.least(len(cohort), stated, moments), "could take part")


def check_survivors(manifest: Manifest, survivors: Survivors, rules: SiloRules, members: Sequence[int]) -> None:
    """Whether the sums over `survivors`, one list a cohort, may be opened.

    Raises
    ------
    Refusal
        A list is not an ascending part of its cohort, or has a part of a block, or there is not one a cohort.
    PolicyRefusal
        A list is too small.
    """
    if len(survivors) != len(manifest.cohorts):
        raise refusal("survivors", f"{len(survivors)} lists for {len(manifest.cohorts)} cohorts")
    moments = released_moments(manifest.channels)
    able = set(members)
    for index, (cohort, stated) in enumerate(zip(manifest.cohorts, manifest.minimum, strict=True)):
        present = survivors[index]
        if not set(present) <= able & set(cohort) or list(present) != sorted(set(present)):
            raise refusal("survivors", f"{list(present)} is not an ascending part of the cohort's silos with keys")
        if manifest.whole(index, present) != present:
            raise refusal("blocks", f"{list(present)} has silos of a block without the rest of it")
        _check_size(len(present), rules.least(len(cohort), stated, moments), "are to be summed")


def dropped_silos(manifest: Manifest, survivors: Survivors, members: Sequence[int]) -> tuple[int, ...]:
    """Silos with pair masks in the sums whose vectors are not in them, cohort by cohort, ascending."""
    able = set(members)
    return tuple(
        silo
        for cohort, present in zip(manifest.cohorts, survivors, strict=True)
        for silo in cohort
        if silo in able and silo not in present
    )


def _check_size(silos: int, least: int, what: str) -> None:
    if silos < least:
        raise PolicyRefusal(f"refused by rule minimum: {silos} silos {what}, this silo's rules need {least}")
