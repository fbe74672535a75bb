"""What a silo of either protocol checks about a request before it looks at its own records."""

from __future__ import annotations

from typing import Protocol, TypeVar

from autoflip_secure.errors import EncodingError, ProtocolError
from autoflip_secure.parties.head import Head
from autoflip_secure.parties.roster import Roster
from autoflip_secure.parties.rules import refusal, require_exact_types
from autoflip_secure.parties.signing import open_signed
from autoflip_secure.sums.encoding import word_count
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import LINK_BYTES
from autoflip_secure.sums.words import WordSource

__all__ = ["EpochKeys", "checked_source", "open_request", "own_cohort", "read_manifest"]

H = TypeVar("H", bound=Head)


class EpochKeys(Protocol):
    """An epoch this silo has keys for."""

    @property
    def session(self) -> bytes: ...

    @property
    def epoch(self) -> int: ...

    @property
    def slots(self) -> int: ...

    @property
    def epoch_hash(self) -> bytes: ...


def open_request(kind: type[H], roster: Roster, session: bytes, data: bytes) -> H:
    """A request of this run, signed by the roster's coordinator.

    Raises
    ------
    ProtocolError
        Malformed bytes.
    Refusal
        Not signed by the coordinator, or of another roster or run.
    """
    message = open_signed(kind, roster.coordinator, data)
    if message.roster_hash != roster.hash():
        raise refusal("roster", "the coordinator works with another roster; both sides need the same file")
    if message.session != session:
        raise refusal("session", "the request is of a run that this silo did not join")
    return message


def read_manifest(ready: EpochKeys, data: bytes) -> Manifest:
    """The manifest of a request that was answered for an epoch.

    Raises
    ------
    ProtocolError
        Not a manifest.
    Refusal
        Of another session or epoch, for other keys, or beyond the epoch's slots.
    """
    manifest = Manifest.from_bytes(data)
    require_exact_types(manifest)
    if (manifest.session, manifest.epoch) != (ready.session, ready.epoch):
        raise refusal("manifest", "the manifest is of another session or epoch than its request")
    if manifest.epoch_hash != ready.epoch_hash:
        raise refusal("epoch-keys", "the manifest names other keys than this silo has for the epoch")
    if manifest.slot >= ready.slots:
        raise refusal("slot-once", f"the epoch has {ready.slots} slots, the manifest names slot {manifest.slot}")
    return manifest


def own_cohort(silo: int, manifest: Manifest) -> int:
    """Index of the cohort that a silo is summed in; Refusal where it is in none."""
    try:
        return manifest.cohort_of(silo)
    except ProtocolError as error:
        raise refusal("cohort", str(error)) from error


def checked_source(source: WordSource, manifest: Manifest, cohort: int) -> WordSource:
    """A contribution that has as many words as the manifest asks for; EncodingError where it has not."""
    size = word_count(manifest.channels, len(manifest.cohorts[cohort]))
    if source.size != size:
        raise EncodingError(
            f"the contribution has {source.size} words, the manifest asks for {size}; "
            "the slot is spent and nothing was sent"
        )
    if source.removable is not None and len(source.removable) != LINK_BYTES:
        raise EncodingError(f"the root of a noise chain is {LINK_BYTES} bytes; the slot is spent and nothing was sent")
    return source
