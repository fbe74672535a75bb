"""A coordinator that says of silos that they dropped out, and asks for the sum of the others."""

from __future__ import annotations

from contextlib import suppress

from autoflip_secure.attacks.lying_coordinator import LyingCoordinator
from autoflip_secure.errors import Abort
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.sums import decode
from autoflip_secure.federation.wire import Reply
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.sums.manifest import Manifest

__all__ = ["HidingCoordinator"]


class HidingCoordinator(LyingCoordinator):
    """Silos that it hides are not asked for their vector; to the others they look as if they had dropped out.

    They do take part in the set-up of keys, so that other sums can have them, and help to open sums without them.
    """

    hidden: frozenset[int] = frozenset()
    answered: int = 0
    """Vectors that silos have sent so far, whether their sum was opened or not."""

    def hide(self, *silos: int) -> None:
        """From now on these, and no others."""
        self.hidden = frozenset(silos)

    @property
    def present(self) -> tuple[int, ...]:
        """Silos that are asked for their vector."""
        return tuple(silo for silo in self.roster.silos if silo not in self.hidden)

    def ask(
        self, silo: int, stage: str, request: bytes, model: bytes = b"", *, round: int = 1, attempt: int = 0
    ) -> Reply:
        """As `LyingCoordinator.ask`; a hidden silo is not asked for a vector, and counts as away."""
        if silo in self.hidden and stage == "masked":
            return Reply("silent")
        reply = super().ask(silo, stage, request, model, round=round, attempt=attempt)
        self.answered += stage == "masked" and reply.status == "ok"
        return reply

    def opened(self, manifest: Manifest, model: ModelPayload) -> Aggregate | None:
        """The first cohort's sum of a manifest; None where too few silos answered."""
        content = model.to_bytes()
        exchange = self.exchange(lambda silo: content, round=manifest.round, attempt=manifest.attempt)
        with suppress(Abort):
            return decode(manifest, self.cohort_sum(manifest, exchange))
        return None
