"""Run by test_crash_safety in a process of its own: the command line, killed with SIGKILL at a chosen moment.

    python killed_run.py MOMENT ROUND OPTIONS...

MOMENT is `before:STAGE` or `after:STAGE` (of the secure sum, as the coordinator sees it), `silo:charged` (a silo, after
its ledger line), `silo:replied` (a silo, before its masked vector is sent), `checkpoint:begin`, `checkpoint:renaming`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from autoflip_secure.federation import coordinator, run_state
from autoflip_secure.federation.contribution import Contributor
from autoflip_secure.federation.exchange import StageExchange
from autoflip_secure.federation.silo import Silo
from autoflip_secure.sim import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, round: int) -> None:
    """Patch the seam at which the process is to die."""
    where, what = moment.split(":")
    if where in ("before", "after"):
        original = StageExchange.__call__

        def call(self: StageExchange, stage: str, requests: Any) -> Any:
            hit = stage == what and self.round == round
            if hit and where == "before":
                die()
            replies = original(self, stage, requests)
            if hit:
                die()
            return replies

        StageExchange.__call__ = call  # type: ignore[method-assign]
    elif moment == "silo:charged":
        contribute = Contributor.contribute

        def charged(self: Contributor, manifest: Any, model: Any) -> Any:
            if manifest.round == round:
                die()
            return contribute(self, manifest, model)

        Contributor.contribute = charged  # type: ignore[method-assign]
    elif moment == "silo:replied":
        answer = Silo.answer

        def replied(self: Silo, request: Any) -> Any:
            reply = answer(self, request)
            if request.stage == "masked" and request.round == round and self.id == 3:
                die()
            return reply

        Silo.answer = replied  # type: ignore[method-assign]
    elif moment == "checkpoint:begin":
        save = coordinator.save_checkpoint

        def begin(folder: Path, state: Any) -> None:
            if state.round == round + 1:
                die()
            save(folder, state)

        coordinator.save_checkpoint = begin
    else:
        rename, seen = Path.rename, []

        def renaming(self: Path, target: Path) -> Path:
            result = rename(self, target)
            seen.append(target)
            # The old checkpoint has been moved away, the new one is not in its place yet.
            if target.name == "checkpoint.old" and len(seen) >= 2 * round:
                die()
            return result

        run_state.Path.rename = renaming  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
