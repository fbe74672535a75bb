"""One tree of errors. Each message says what happened, what was kept, and what to do next."""

from __future__ import annotations

__all__ = [
    "Abort",
    "ApprovalPending",
    "AutoflipSecureError",
    "BudgetExhausted",
    "CannotContinue",
    "ConfigError",
    "DataError",
    "EncodingError",
    "EnrolmentError",
    "InputError",
    "Interrupted",
    "NotAvailable",
    "PolicyRefusal",
    "ProtocolError",
    "Refusal",
    "StorageError",
]


class AutoflipSecureError(Exception):
    """Root of every error this package raises on purpose."""


class InputError(AutoflipSecureError):
    """The user gave something that cannot be used; nothing was started. Exit code 2, one line."""


class ConfigError(InputError):
    """An option or configuration file is wrong; the message names the option."""


class NotAvailable(ConfigError):
    """The option is known but its part is not in this version."""


class EnrolmentError(InputError):
    """A request or federation bundle is malformed, forged, or does not follow the installed one; nothing changed."""


class DataError(InputError):
    """A data file is missing or malformed; the message names the file, and line and column where it can."""


class CannotContinue(AutoflipSecureError):
    """The run cannot go on; the message names the reason and the checkpoint to resume from. Exit code 3."""


class BudgetExhausted(CannotContinue):
    """The privacy budget does not cover the next step; raised before any data is touched."""


class Interrupted(AutoflipSecureError):
    """The user stopped the run; the message says how to go on. Exit code 130."""


class StorageError(CannotContinue):
    """Durable state could not be written or read (disk full, damaged file)."""


class EncodingError(AutoflipSecureError):
    """A vector or word stream does not fit the channel it is meant for."""


class ProtocolError(AutoflipSecureError):
    """A message is malformed or arrives in an order the protocol does not have."""


class Refusal(ProtocolError):
    """A silo will not answer: a rule of the protocol would be broken. The slot counts as spent."""


class PolicyRefusal(Refusal):
    """A silo will not answer: the request asks for less protection than the silo's own policy.

    Parameters
    ----------
    message : str
    rule : str
        Name of the rule (`federation.policy_rules.Rule`), for machines; empty where the protocol's own rules refuse.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


class ApprovalPending(PolicyRefusal):
    """A silo will not answer yet: its officer has not approved the run. Asking again later may be answered."""


class Abort(AutoflipSecureError):
    """One attempt at a secure sum ended without a sum; the model is unchanged and a fresh slot may retry.

    Parameters
    ----------
    reason : str
        What happened, in words for the event log.
    stage : str
        The stage at which the attempt ended.
    blamed : tuple of int
        Silo ids that provably misbehaved, empty where nobody can be named.
    """

    def __init__(self, reason: str, *, stage: str, blamed: tuple[int, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stage = stage
        self.blamed = blamed
