"""What a silo's audit log says about a reply: sizes, digests and public terms; nothing of records or of refusals."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.sums.manifest import Manifest

__all__ = ["ledger_facts", "manifest_facts", "reply_facts"]

LONGEST_WORD = 64


def reply_facts(request: Request, reply: Reply) -> dict[str, Any]:
    """Which request is answered, and the digest and size of what leaves."""
    return {
        "stage": request.stage[:LONGEST_WORD],
        "round": request.round,
        "attempt": request.attempt,
        "status": reply.status,
        "error": reply.error,
        "bytes": len(reply.reply),
        "sha256": hashlib.sha256(reply.reply).digest(),
    }


def manifest_facts(manifest: Manifest, silo: int) -> dict[str, Any]:
    """What the numbers that leave are summed for."""
    cohort = next((len(silos) for silos in manifest.cohorts if silo in silos), 0)
    terms = manifest.privacy
    return {
        "manifest": manifest.digest(),
        "heads": manifest.heads_hash,
        "phase": manifest.phase,
        "channels": [[spec.name, spec.length] for spec in manifest.channels],
        "cohort": cohort,
        "minimum": min(manifest.minimum),
        "privacy": {
            "trust": terms.trust,
            "dataset": terms.dataset,
            "sampling_rate": terms.sampling_rate,
            "noise_multiplier": terms.noise_multiplier,
            "steps": terms.steps,
            "delta": terms.delta,
        },
    }


def ledger_facts(connection: sqlite3.Connection, manifest: Manifest) -> dict[str, Any]:
    """The line of the privacy ledger that this manifest was charged with, and its hash, which fixes all lines before.

    What they cost together is computed when somebody asks: the accountant takes half a second.
    """
    query = "SELECT line, chain FROM privacy_ledger WHERE manifest = ? ORDER BY line DESC LIMIT 1"
    row = connection.execute(query, (manifest.digest(),)).fetchone()
    return {} if row is None else {"ledger": [row[0], row[1]]}
