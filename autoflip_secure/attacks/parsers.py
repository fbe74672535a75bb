"""Every parser of bytes or text that come from outside a process.

`tests/attacks/test_fuzz_parsers.py` sees that no parser of the package is missing here.
"""

from __future__ import annotations

from types import MappingProxyType

from autoflip_secure.attacks.parser_calls import Parser
from autoflip_secure.attacks.parser_samples import Samples
from autoflip_secure.attacks.parsers_deployment import deployment_parsers
from autoflip_secure.attacks.parsers_files import file_parsers
from autoflip_secure.attacks.parsers_protocol import message_parsers
from autoflip_secure.attacks.parsers_records import record_parsers

__all__ = ["EXEMPT", "parsers"]

EXEMPT = MappingProxyType(
    {
        "ckks.summation:read_sum": "takes polynomials that the coordinator computed, no bytes",
        "models.layout:load_flat_parameters": "takes a tensor",
        "data.packaged:load_mnist5k": "reads files of an installed package",
        "data.packaged:load_digits": "reads files of an installed package",
        "data.packaged:load_breast_cancer": "reads files of an installed package",
        "data.registry:load": "finds a reader by name; the readers are listed",
        "autoflip.cohort_axis:CohortAxis.from_json": "takes a part of a checkpoint that its own run wrote",
        "federation.exchange:Traffic.from_json": "takes a part of a checkpoint, inside load_checkpoint",
        "federation.server_view:read_server_view": "reads what an attack recorded itself",
        "privacy.ledger_reading:read_entries": "takes an open database, inside read_ledger",
        "federation.audit_log:read_line": "raises ValueError in words, which both callers turn into findings; listed "
        "as read_log and AuditLog.refresh",
    }
)
"""Functions that are named like parsers and are not called here, and why."""


def parsers(samples: Samples) -> list[Parser]:
    """All of them."""
    return [
        *message_parsers(samples),
        *file_parsers(samples),
        *record_parsers(samples),
        *deployment_parsers(samples),
    ]
