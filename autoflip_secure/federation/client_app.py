"""The ClientApp: one named action a stage, all of them answered by the silo whose folder the node has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from autoflip_secure.ckks.silo import CkksSilo
from autoflip_secure.errors import ProtocolError
from autoflip_secure.federation.join import JOIN_STAGE
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.sum_proof import FOLLOW_STAGE, KEY_STAGE
from autoflip_secure.federation.wire import Reply, Request, message_type_of, read_request, reply_message
from autoflip_secure.parties.identity import remember_verifications
from autoflip_secure.secagg.silo import SecAggSilo
from autoflip_secure.sums.plain import PlainSilo

__all__ = ["STAGES", "ClientAppFactory", "answered", "close_silos", "make_client_app", "silo_folder"]

VERIFICATIONS = 8192
"""Enough for one stage of a sum over as many silos as one process is likely to hold."""

STAGES = (JOIN_STAGE, KEY_STAGE, FOLLOW_STAGE, *PlainSilo.stages, *SecAggSilo.stages, *CkksSilo.stages)

_open_silos: dict[Path, Silo] = {}
"""Silos this process has opened: a warm start for the next message, never the only place where something is kept."""


def make_client_app(federation: Path) -> ClientApp:
    """ClientApp of a simulated federation: partition i of Flower is silo i + 1 of `federation`."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        folder = silo_folder(federation, int(context.node_config["partition-id"]) + 1)
        return answered(message, lambda request: _open(folder))

    for stage in STAGES:
        category, action = message_type_of(stage).split(".")
        register: Callable[[Callable[[Message, Context], Message]], object] = getattr(app, category)(action)
        register(answer)
    return app


def answered(message: Message, opened: Callable[[Request], Silo]) -> Message:
    """The reply of the silo that `opened` gives for a request.

    Nothing may escape: Flower would send the text of an exception, which may quote records, to the coordinator.
    """
    try:
        request = read_request(message)
        reply = opened(request).answer(request)
    except ProtocolError:
        reply = Reply("refused", error="ProtocolError")
    except Exception:
        logging.getLogger(__name__).exception("the silo could not be opened")
        reply = Reply("failed")
    return reply_message(reply, message)


@dataclass(frozen=True)
class ClientAppFactory:
    """Picklable maker of the ClientApp, for worker processes."""

    federation: Path

    def __call__(self) -> ClientApp:
        from autoflip_secure.training.device import quiet_threads

        quiet_threads(1)
        remember_verifications(VERIFICATIONS)
        return make_client_app(self.federation)


def silo_folder(federation: Path, silo: int) -> Path:
    """Folder of a simulated silo."""
    return federation / "silos" / f"silo-{silo:03d}"


def close_silos() -> None:
    """Forget the silos this process has opened; the next message opens them from disk."""
    while _open_silos:
        _open_silos.popitem()[1].close()


def _open(folder: Path) -> Silo:
    if folder not in _open_silos:
        _open_silos[folder] = Silo(folder)
    return _open_silos[folder]
