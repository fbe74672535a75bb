"""After the last round: summary.json, and the report made from the run directory."""

from __future__ import annotations

import json
from typing import Any

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.federation.server_app import RunOutcome
from autoflip_secure.federation.summary import build_summary
from autoflip_secure.storage import write_atomically

__all__ = ["finish"]


def finish(folder: RunFolder, config: ResolvedConfig, outcome: RunOutcome) -> dict[str, Any]:
    """Write summary.json; returns its figures."""
    coordinator, state = outcome.coordinator, outcome.state
    assert coordinator is not None
    assert state is not None
    task = load_task(folder)
    facts = {
        **state.facts,
        "round": state.round,
        "attempts_aborted": state.attempts_aborted,
        "spare_steps": state.spare_steps,
        "task_kind": task.kind,
        "task_note": task.note,
        "seconds_total": state.facts["seconds"],
    }
    summary = build_summary(folder, config, coordinator.plan, facts)
    write_atomically(folder.summary, json.dumps(summary, indent=2).encode())
    return summary
