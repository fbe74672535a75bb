"""The same coordinator and silo as a plain Flower app: the ClientApp opens the silo's home for each message."""

import json
import os
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from autoflip_secure.deployment.server import app as server
from autoflip_secure.federation.client_app import STAGES
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.wire import message_type_of, read_request, reply_message

__all__ = ["client", "server"]

client = ClientApp()


def _age() -> float:
    """Seconds since this process was started (Linux)."""
    started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def answer(message: Message, context: Context) -> Message:
    age, home = _age(), Path(str(context.node_config["home"]))
    begun, request = time.perf_counter(), read_request(message)
    silo = Silo(home)
    reply = silo.answer(request)
    silo.close()
    line = {"pid": os.getpid(), "stage": request.stage, "start": age, "compute": time.perf_counter() - begun}
    with (home / "processes.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return reply_message(reply, message)


for stage in STAGES:
    category, action = message_type_of(stage).split(".")
    getattr(client, category)(action)(answer)
