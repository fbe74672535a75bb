"""Recovering secrets from revealed shares, and naming the silo at fault where that fails."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoflip_secure.errors import Abort
from autoflip_secure.parties.agreement import public_key
from autoflip_secure.secagg.coordinator_setup import KeyedEpoch
from autoflip_secure.secagg.dealing import KEY, NONCE_BYTES, SEED, revealed_holds
from autoflip_secure.secagg.keys import seed_commitment
from autoflip_secure.secagg.shamir import combine

__all__ = ["Recovery"]

STAGE = "unmask"


@dataclass(frozen=True)
class Recovery:
    """Shares revealed in one slot of an epoch.

    Attributes
    ----------
    seeds, mask_keys : mapping of owner to mapping of responder to bytes
        `nonce | share` as revealed, 49 bytes; responders without a share are absent.
    """

    epoch: KeyedEpoch
    slot: int
    seeds: Mapping[int, Mapping[int, bytes]]
    mask_keys: Mapping[int, Mapping[int, bytes]]

    def seed(self, owner: int) -> bytes:
        """Self-mask seed of a survivor, checked against its commitment.

        Raises
        ------
        Abort
            Too few shares hold; names responders that lied, or the owner where its own dealing was bad.
        """
        context = self.epoch.context
        commitment = self.epoch.advertisers[owner].commitment(self.slot)

        def fits(secret: bytes) -> bool:
            found = seed_commitment(secret, context.session, context.epoch, owner, self.slot)
            return hmac.compare_digest(found, commitment)

        return self._recover(owner, SEED, self.seeds[owner], fits)

    def mask_key(self, owner: int) -> bytes:
        """Private mask key of a dropped silo, checked against its advertised public key.

        Raises
        ------
        Abort
            As `seed`.
        """
        advertised = self.epoch.advertisers[owner].mask_key(self.slot)
        return self._recover(
            owner, KEY, self.mask_keys[owner], lambda secret: hmac.compare_digest(public_key(secret), advertised)
        )

    def _recover(self, owner: int, kind: int, revealed: Mapping[int, bytes], fits: Callable[[bytes], bool]) -> bytes:
        # Checking the secret costs less than checking t shares, so shares are looked at only where it fails.
        secret = self._combine(revealed)
        if secret is not None and fits(secret):
            return secret
        liars = tuple(silo for silo, share in revealed.items() if not self._holds(owner, silo, kind, share))
        for silo in liars:
            self.epoch.desk.misbehaved(silo, STAGE, f"its share of silo {owner}'s secret is not the one dealt to it")
        honest = {silo: share for silo, share in revealed.items() if silo not in liars}
        if len(honest) < self.epoch.graph.threshold:
            raise Abort(self._too_few(owner, len(honest), liars), stage=STAGE, blamed=liars)
        secret = self._combine(honest)
        if secret is None or not fits(secret):
            raise Abort(
                f"silo {owner} dealt shares of another secret than it advertised; no sum was opened, "
                "try again without it",
                stage=STAGE,
                blamed=(owner, *liars),
            )
        return secret

    def _combine(self, revealed: Mapping[int, bytes]) -> bytes | None:
        silos = tuple(sorted(revealed)[: self.epoch.graph.threshold])
        if len(silos) < self.epoch.graph.threshold:
            return None
        return combine(silos, [revealed[silo][NONCE_BYTES:] for silo in silos])

    def _holds(self, owner: int, responder: int, kind: int, share: bytes) -> bool:
        row = self.epoch.row(owner, responder)
        return revealed_holds(self.epoch.context, owner, responder, self.slot, kind, share, row)

    def _too_few(self, owner: int, shares: int, liars: tuple[int, ...]) -> str:
        lied = f"; wrong shares came from silos {list(liars)}" if liars else ""
        return (
            f"{shares} good shares of silo {owner}'s secret, {self.epoch.graph.threshold} are needed{lied}; "
            "no sum was opened, try again with a fresh slot"
        )
