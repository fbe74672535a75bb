"""What the coordinators of both protocols do alike: when to make new keys, with whom, and which slot comes next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from autoflip_secure.errors import Abort, ConfigError, InputError
from autoflip_secure.parties.desk import Desk
from autoflip_secure.parties.head import MAX_SLOTS
from autoflip_secure.parties.identity import Identity
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import HARD_FLOOR
from autoflip_secure.parties.wire import SESSION_BYTES
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.secure_sum import CohortSum, Exchange

__all__ = ["DEFAULT_SLOTS", "KeyedEpoch", "KeyedSums", "check_enrolled"]

DEFAULT_SLOTS = 64
# A silo that missed the key set-up waits at most this many slots before new keys are made for its sake.
REJOIN_AFTER = 8


class KeyedEpoch(Protocol):
    """An epoch whose key set-up is complete."""

    slots: int
    used: int
    epoch_hash: bytes
    members: tuple[int, ...]

    @property
    def number(self) -> int:
        """The epoch's number."""
        ...

    def take_slot(self) -> int:
        """The next unused slot."""
        ...


E = TypeVar("E", bound=KeyedEpoch)


def check_enrolled(identity: Identity, roster: Roster, session: bytes) -> None:
    """Raise InputError unless a coordinator's identity and session fit its roster."""
    if identity.public != roster.coordinator:
        raise InputError("the identity given is not the coordinator's in the roster")
    if len(session) != SESSION_BYTES:
        raise InputError(f"a session id has {SESSION_BYTES} bytes, this one has {len(session)}")


class KeyedSums(ABC, Generic[E]):
    """A coordinator half whose sums need keys; what a set-up and an attempt are is for the protocol to say.

    A restarted coordinator is a new object with a later `first_epoch`.

    Parameters
    ----------
    desk : Desk
    slots : int
        Rounds and retries one key set-up serves.
    first_epoch : int
        Number of the first epoch to open; greater than every one used in the session.
    on_epoch : callable
        on_epoch(number), called before the first message of an epoch is sent, so that the number can be stored.
    aborts_before_new_keys : int
        Aborts in a row after which the keys are given up.

    Raises
    ------
    ConfigError
        A number is out of range.
    """

    set_up_stage = "share"
    """Last stage of a key set-up, at which an attempt ends for which too few silos have keys."""

    def __init__(
        self,
        desk: Desk,
        *,
        slots: int,
        first_epoch: int,
        on_epoch: Callable[[int], None],
        aborts_before_new_keys: int,
    ) -> None:
        if not 1 <= slots <= MAX_SLOTS:
            raise ConfigError(f"slots is {slots}; give a number within 1..{MAX_SLOTS}")
        if first_epoch < 0:
            raise ConfigError(f"first_epoch is {first_epoch}; epochs are numbered from 0")
        self._desk, self._slots, self._next_epoch, self._on_epoch = desk, slots, first_epoch, on_epoch
        self._most_aborts = aborts_before_new_keys
        self._epoch: E | None = None
        self._aborts = 0
        self._excluded: set[int] = set()

    @property
    def threshold(self) -> int:
        """Shares that recover a secret; the manifest must state it."""
        return self._desk.threshold

    def rekey(self) -> None:
        """Make the next sum start with a new key set-up, for example after silos joined or came back."""
        self._epoch = None

    def sum(self, manifest: Manifest, exchange: Exchange) -> tuple[CohortSum, ...]:
        """Run one attempt; epoch, slot and epoch_hash of `manifest` are filled in.

        Parameters
        ----------
        manifest : Manifest
        exchange : callable
            See `sums.secure_sum.Exchange`.

        Returns
        -------
        tuple of CohortSum, one a cohort, in order; exact sums modulo 2^64

        Raises
        ------
        Abort
            No sum; the slot is used up, the next call takes a fresh one, or new keys where those seem to be the reason.
        ConfigError
            The manifest is of another session, states another threshold or a minimum below 3, or names unknown silos;
            nothing was sent.
        """
        self._check(manifest)
        epoch = self._epoch_for(manifest, exchange)
        slot = epoch.take_slot()
        bound = manifest.with_slot(epoch=epoch.number, slot=slot, epoch_hash=epoch.epoch_hash, attempt=manifest.attempt)
        try:
            sums = self._attempt(epoch, bound, exchange)
        except Abort as abort:
            self._aborts += 1
            self._exclude(abort.blamed)
            if len(epoch.members) < len(self._desk.roster.entries) or self._aborts >= self._most_aborts:
                self.rekey()
            raise
        self._aborts = 0
        return sums

    @abstractmethod
    def _attempt(self, epoch: E, manifest: Manifest, exchange: Exchange) -> tuple[CohortSum, ...]:
        """One attempt in a slot of an epoch."""

    @abstractmethod
    def _set_up(self, number: int, exchange: Exchange, invited: Sequence[int]) -> E:
        """A key set-up with the silos invited."""

    def _exclude(self, blamed: Sequence[int]) -> None:
        """Make keys without silos whose fault an abort provably was, while enough others are left to go on."""
        culprits = sorted(set(blamed) - self._excluded)
        left = len(self._desk.roster.entries) - len(self._excluded) - len(culprits)
        if culprits and left >= self.threshold:
            self._excluded.update(culprits)
            self._desk.events("silo_excluded", {"silos": culprits})
            self.rekey()

    def _check(self, manifest: Manifest) -> None:
        if manifest.session != self._desk.session:
            raise ConfigError("the manifest is of another session than the coordinator")
        if manifest.threshold != self.threshold:
            raise ConfigError(
                f"the manifest states a threshold of {manifest.threshold}, the roster has {self.threshold}"
            )
        if min(manifest.minimum) < HARD_FLOOR:
            raise ConfigError(
                f"the manifest states a minimum of {min(manifest.minimum)}, silos open {HARD_FLOOR} or more"
            )
        unknown = [silo for cohort in manifest.cohorts for silo in cohort if silo not in self._desk.roster]
        if unknown:
            raise ConfigError(f"the manifest names silos {unknown}, which are not in the roster")

    def _epoch_for(self, manifest: Manifest, exchange: Exchange) -> E:
        epoch = self._epoch
        if epoch is None or epoch.used >= epoch.slots or self._should_rekey(epoch, manifest):
            self._epoch = epoch = self._open(exchange)
        short = _short_cohorts(epoch, manifest)
        if short:
            raise Abort(
                f"cohorts {short} have too few silos with keys in epoch {epoch.number}; "
                "the model is unchanged, try again when more silos are there",
                stage=self.set_up_stage,
            )
        return epoch

    def _should_rekey(self, epoch: E, manifest: Manifest) -> bool:
        missing = (silo for cohort in manifest.cohorts for silo in cohort if silo not in epoch.members)
        absent = any(silo not in self._excluded for silo in missing)
        return bool(_short_cohorts(epoch, manifest)) or (absent and epoch.used >= REJOIN_AFTER)

    def _open(self, exchange: Exchange) -> E:
        number = self._next_epoch
        self._next_epoch += 1
        self._epoch = None
        self._aborts = 0
        self._on_epoch(number)
        return self._set_up(number, exchange, [silo for silo in self._desk.roster.silos if silo not in self._excluded])


def _short_cohorts(epoch: KeyedEpoch, manifest: Manifest) -> list[int]:
    members = set(epoch.members)
    return [index for index, least in enumerate(manifest.minimum) if len(manifest.whole(index, members)) < least]
