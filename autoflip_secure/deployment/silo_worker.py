"""python -m autoflip_secure.deployment.silo_worker : answers a SuperNode's messages in one process that stays.

Flower starts a process for every message, which installs and runs the code that the coordinator sent along. Here the
SuperNode runs with `--isolation process`, and this worker takes its tasks instead: it answers with the `Silo` of the
silo's own folder, so that

- no code but this silo's own installation ever runs here, whatever the coordinator sends;
- the process that talks to the network holds neither records nor keys of the secure sum;
- a stage costs no process start, and torch is loaded once.

What it must remember is in the silo's database before a reply leaves: killed at any moment, it goes on as a new one.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import Message

    from autoflip_secure.federation.silo import Silo
    from autoflip_secure.federation.wire import Request

__all__ = ["SiloWorker", "main"]

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.05, 0.5, 1.3
"""Seconds between two looks for a task on the loopback."""

MOST_AT_ONCE = 8
"""Messages that are taken at a time; more than one only where parts of some do not come."""

PULL_WITHIN = 60.0
"""Seconds in which a message's parts have to come from the SuperNode on this machine, which has fetched them before."""

TASKS = frozenset({"flwr-clientapp"})
"""Of the kinds of tasks that a SuperLink can ask for, only messages to a ClientApp are taken."""

log = logging.getLogger(__name__)


class SiloWorker:
    """Takes tasks from a SuperNode on this machine and answers them.

    Parameters
    ----------
    home : Path
        The silo's folder.
    address : str
        host:port of the SuperNode's Runtime API.
    secret : bytes
        Shared with the SuperNode: who does not know it gets no task.
    """

    def __init__(self, home: Path, address: str, secret: bytes) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor

        self._home, self._address = home, address
        acquiring = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._answering = threading.Lock()
        self._pull_within = PULL_WITHIN
        self._client = self._connect(RuntimeVersionHttpInterceptor(component_name="SuperExec"), acquiring)
        self._silo: Silo | None = None
        self._stamps: tuple[tuple[int, int], ...] = ()

    def run(self) -> None:
        """Answer until the process is ended."""
        pause = FIRST_PAUSE
        while True:
            if self.answer_one():
                pause = FIRST_PAUSE
            else:
                time.sleep(pause)
                pause = min(pause * GROWTH, LONGEST_PAUSE)

    def answer_one(self) -> bool:
        """Take one task, which is answered in a thread of its own; whether there was one.

        The thread is for a message whose parts never come, as where a run ended while the SuperNode fetched it: others
        are answered meanwhile. The silo itself answers one message at a time.
        """
        import httpx
        from flwr.proto.runtime_pb2 import AcquireTaskRequest

        self._free.acquire()
        started = False
        try:
            acquired = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=TASKS))
            if acquired.HasField("task") and acquired.token:
                threading.Thread(target=self._answer, args=(acquired.token,), daemon=True).start()
                started = True
        except httpx.HTTPError as error:
            log.warning("the SuperNode does not answer (%s); trying again", type(error).__name__)
            time.sleep(LONGEST_PAUSE)
        finally:
            if not started:
                self._free.release()
        return started

    def _answer(self, token: str) -> None:
        try:
            self._answer_claimed(token)
        except Exception:
            # The claim's heartbeat ends; Flower gives the message up and tells the coordinator that nobody answered.
            log.exception("a message could not be answered")
        finally:
            self._free.release()

    def _answer_claimed(self, token: str) -> None:
        from flwr.common.constant import SubStatus
        from flwr.supercore.heartbeat import HeartbeatSender
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
        from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

        client = self._connect(
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), RuntimeTokenHttpInterceptor(token)
        )
        heartbeat = HeartbeatSender(lambda: _beat(client))
        heartbeat.start()
        # Flower would ask for a missing part for hours; on a closed connection it stops.
        late = threading.Timer(self._pull_within, client.close)
        late.daemon = True
        late.start()
        try:
            message, context, _, _ = pull_task_input(client)
            late.cancel()
            with self._answering:
                reply = self._reply(message)
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
        finally:
            late.cancel()
            with suppress(Exception):
                heartbeat.stop()
            client.close()

    def _reply(self, message: Message) -> Message:
        from autoflip_secure.federation.client_app import answered

        return answered(message, self._opened_for)

    def _opened_for(self, request: Request) -> Silo:
        from autoflip_secure.federation.join import JOIN_STAGE

        if request.stage == JOIN_STAGE and request.attachment:
            self._take_over(request.attachment)
        return self._open()

    def _take_over(self, bundle: bytes) -> None:
        """Install the bundle that the coordinator shows, as far as that needs nobody's consent.

        What needs it is left: the key set-up among another roster is then refused, and the log says what to do.
        """
        from autoflip_secure.deployment.homes import accept_update
        from autoflip_secure.deployment.silo_home import SiloHome
        from autoflip_secure.errors import AutoflipSecureError

        home = SiloHome(self._home)
        try:
            text = bundle.decode("ascii")
            if text != (self._home / "bundle.txt").read_text():
                log.info(
                    "bundle from the coordinator: %s", accept_update(home, text, consent=False, where="the bundle")
                )
        except UnicodeDecodeError:
            log.warning("the coordinator shows a bundle that is none; the installed one is kept")
        except AutoflipSecureError as error:
            log.warning("%s: %s", type(error).__name__, error)

    def _open(self) -> Silo:
        """The silo, opened anew after a change of its roster or policy."""
        from autoflip_secure.federation.silo import Silo

        stamps = tuple(_stamp(self._home / name) for name in ("roster.bin", "policy.toml", "task.json"))
        if self._silo is None or self._stamps != stamps:
            if self._silo is not None:
                self._silo.close()
            self._silo = None
            self._silo, self._stamps = Silo(self._home), stamps
        return self._silo

    def _connect(self, *interceptors: Any) -> Any:
        from flwr.supercore.retry import make_simple_http_retry_invoker
        from flwr.supercore.runtime import RuntimeHttpClient

        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,  # loopback only, to a SuperNode of this machine; every call bears a secret
            root_certificates=None,
            interceptors=list(interceptors),
            retry_invoker=make_simple_http_retry_invoker(),
        )


def _beat(client: Any) -> bool:
    """One heartbeat of a task. Flower's own would end this process where the task is gone, as after a stopped run."""
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    try:
        return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
    except Exception:
        return False


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_ino


def main(arguments: list[str] | None = None) -> int:
    """Run a worker; the secret is read from the file named."""
    parser = argparse.ArgumentParser(prog="silo_worker", description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--secret-file", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    SiloWorker(given.home, given.address, given.secret_file.read_bytes()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
