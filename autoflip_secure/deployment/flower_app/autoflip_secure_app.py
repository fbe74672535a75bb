"""Entry points of the app that `flwr run` starts: the coordinator here, and nothing for silos to run."""

from flwr.clientapp import ClientApp

from autoflip_secure.deployment.server import app as server

client = ClientApp()
"""Has no actions: a SuperNode that runs it instead of the silo's own worker answers nothing."""

__all__ = ["client", "server"]
