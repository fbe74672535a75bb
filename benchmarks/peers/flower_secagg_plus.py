"""One round of the SecAgg+ that Flower ships, by Flower's own functions, in one process.

    python benchmarks/peers/flower_secagg_plus.py [--clients 10] [--coordinates 1000000] [--drop-before 9]

The client is `secaggplus_mod` with a real Context each, the server is `SecAggPlusWorkflow`, stage by stage; only the
network is replaced. Measured: the time inside these functions, without (de)serialisation and without training. The
server's unmask stage is measured without the strategy's own aggregation, which comes after the sum is open.

Parameters. Flower's defaults: max_weight 1000, clipping_range 8.0, quantization_range 2^22, modulus_range 2^32.
`num_shares` and `reconstruction_threshold` have none: here every client is a neighbour of every other (1.0, the value
of Flower's SecAggWorkflow) and the threshold is floor(2n/3) + 1, the same as SecAgg-S has. Each client reports
max_weight examples, which gives Flower its finest grid and makes its weighted mean the plain mean.

Bytes. Flower 1.41 sends a reply as the message without content (protobuf) and then every object of its object tree
as the bytes of `deflate()`; both are counted, HTTP headers and request envelopes (about 100 bytes an object) are not.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from peer_round import PeerRound, random_updates

MAX_WEIGHT = 1000
EMPTY = Parameters([], "numpy.ndarray")


class InProcessGrid:
    """Carries messages between the real workflow and the real client mod, and keeps times and sizes.

    Parameters
    ----------
    updates : dict of int to float32 array, shape (d,)
    silent : callable
        silent(stage, client) is true where the client does not answer.
    """

    def __init__(self, updates: dict[int, NDArray[np.float32]], silent: Callable[[str, int], bool]) -> None:
        self._updates = updates
        self._silent = silent
        self._contexts = {client: Context(1, client, {}, RecordDict(), {}) for client in updates}
        self.seconds: dict[str, dict[int, float]] = defaultdict(dict)
        self.bytes: dict[str, dict[int, int]] = defaultdict(dict)
        self.busy = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Replies of the clients that answer; what this takes is added to `busy`, since the server only waits."""
        began = time.perf_counter()
        replies = [reply for message in messages if (reply := self._deliver(message)) is not None]
        self.busy += time.perf_counter() - began
        return replies

    def _deliver(self, message: Message) -> Message | None:
        client = message.metadata.dst_node_id
        stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        if self._silent(stage, client):
            return None
        # A copy, as the network would make: the mod takes its records apart.
        copied = recorddict_from_proto(recorddict_to_proto(message.content))
        received = Message(copied, dst_node_id=client, message_type=message.metadata.message_type)
        training = 0.0

        def train(instruction: Message, context: Context) -> Message:
            nonlocal training
            began = time.perf_counter()
            result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([self._updates[client]]), MAX_WEIGHT, {})
            answer = Message(compat.fitres_to_recorddict(result, False), reply_to=instruction)
            training = time.perf_counter() - began
            return answer

        began = time.perf_counter()
        reply = secaggplus_mod(received, self._contexts[client], train)
        self.seconds[stage][client] = time.perf_counter() - began - training
        self.bytes[stage][client] = upload_size(reply)
        return reply


class SumOnly(FedAvg):
    """FedAvg that takes Flower's securely computed mean as it is."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[Parameters, dict[str, Any]]:
        """The workflow has put the mean into every result."""
        return results[0][1].parameters, {}


def upload_size(reply: Message) -> int:
    """Bytes of a reply as Flower uploads it, see above."""
    tree = get_all_nested_objects(reply).values()
    return sum(len(item.deflate()) for item in tree) + message_to_proto(remove_content_from_message(reply)).ByteSize()


def server_context(clients: int, grid: InProcessGrid) -> LegacyContext:
    """What Flower's default workflow would hand to SecAgg+: strategy, clients and the round's number."""
    manager = SimpleClientManager()
    for client in range(1, clients + 1):
        manager.register(GridClientProxy(client, grid, 1))  # type: ignore[arg-type]
    strategy = SumOnly(fraction_fit=1.0, min_fit_clients=clients, min_available_clients=clients)
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    # The model's download is no part of the sum, so an empty model is sent.
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(EMPTY, True)
    return context


def run_round(
    updates: dict[int, NDArray[np.float32]],
    *,
    dropped_before: tuple[int, ...] = (),
    dropped_after: tuple[int, ...] = (),
) -> PeerRound:
    """One SecAgg+ round.

    Parameters
    ----------
    updates : dict of int to float32 array, shape (d,)
        Of clients 1..n; values outside [-8, 8] would be clipped.
    dropped_before : tuple of int
        Clients that go silent after the key shares, before their masked vector is sent; they are not in the sum.
    dropped_after : tuple of int
        Clients that go silent after their masked vector was sent; they are in the sum.

    Raises
    ------
    RuntimeError
        Flower stopped the round, for example because too few clients are left.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    n, late = len(updates), (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK)
    grid = InProcessGrid(
        updates,
        lambda stage, client: (
            (client in dropped_before and stage in late) or (client in dropped_after and stage == Stage.UNMASK)
        ),
    )
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=2 * n // 3 + 1)
    context, state, server_seconds = server_context(n, grid), WorkflowState(), {}
    steps = (
        workflow.setup_stage,
        workflow.share_keys_stage,
        workflow.collect_masked_vectors_stage,
        workflow.unmask_stage,
    )
    for name, step in zip(Stage.all(), steps, strict=True):
        began, waited = time.perf_counter(), grid.busy
        if not step(grid, context, state):  # type: ignore[arg-type]
            raise RuntimeError(f"Flower stopped the round in stage {name}")
        server_seconds[name] = time.perf_counter() - began - (grid.busy - waited)
    return _report(updates, dropped_before, context, grid, server_seconds, workflow)


def _report(
    updates: dict[int, NDArray[np.float32]],
    dropped_before: tuple[int, ...],
    context: LegacyContext,
    grid: InProcessGrid,
    server_seconds: dict[str, float],
    workflow: SecAggPlusWorkflow,
) -> PeerRound:
    from flwr import __version__

    summed = tuple(client for client in sorted(updates) if client not in dropped_before)
    mean = parameters_to_ndarrays(
        compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], True)
    )
    whole = [client for client in updates if all(client in sizes for sizes in grid.bytes.values())]
    sizes = [sum(stage[client] for stage in grid.bytes.values()) for client in whole]
    return PeerRound(
        f"Flower {__version__} SecAgg+",
        len(updates),
        updates[1].size,
        {stage: float(np.mean(list(seconds.values()))) for stage, seconds in grid.seconds.items()},
        server_seconds,
        round(np.mean(list(grid.bytes[Stage.COLLECT_MASKED_VECTORS].values()))),
        round(np.mean(sizes)),
        mean[0] * len(summed),
        summed,
        # Stochastic rounding moves each vector by less than one quantum.
        len(summed) * 2 * workflow.clipping_range / workflow.quantization_range,
    )


def main() -> None:
    """Run one round and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--drop-before", type=int, nargs="*", default=[], help="clients that send no masked vector")
    parser.add_argument("--drop-after", type=int, nargs="*", default=[], help="clients that do not help to unmask")
    arguments = parser.parse_args()
    updates = random_updates(arguments.clients, arguments.coordinates)
    done = run_round(updates, dropped_before=tuple(arguments.drop_before), dropped_after=tuple(arguments.drop_after))
    print(done.line())
    for who, seconds in (("client", done.client_seconds), ("server", done.server_seconds)):
        print(f"{who} seconds by stage: " + ", ".join(f"{stage} {value:.4f}" for stage, value in seconds.items()))
    print(f"largest error {done.error(updates):.3g}, its encoding explains {done.step:.3g}")


if __name__ == "__main__":
    main()
