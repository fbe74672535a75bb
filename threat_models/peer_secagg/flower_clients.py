"""Real Flower clients, each a ClientApp with `secaggplus_mod` and a Context of its own, driven without a network.

A request goes in as a flwr Message through the app's public entry, the reply comes out as one; the server's side of the
scripts here keeps nothing but these replies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import FitIns, Parameters, bytes_to_ndarray
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_multiply
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common import recorddict_compat as compat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1

# Flower's defaults (SecAggPlusWorkflow).
CLIPPING, TARGET, MODULUS, MAX_WEIGHT = 8.0, 2**22, 2**32, 1000.0

Vector = list[NDArray[np.int64]]


class FlowerClient:
    """One client with a random update of shapes (30, 10) and (10,).

    Attributes
    ----------
    update : list of float32 array
    quantised : list of int array
        What the client masked, kept for the comparison at the end; no server code reads it.
    """

    def __init__(self, node: int) -> None:
        random = np.random.default_rng()
        self.node, self.examples = node, 300 + 10 * node
        self.update = [random.normal(0, 0.1, shape).astype(np.float32) for shape in ((30, 10), (10,))]
        self.quantised: list[NDArray[np.int32]] = []
        self.context = Context(1, node, {}, RecordDict(), {})
        client = self

        class Trained(NumPyClient):
            def fit(self, parameters: Any, config: Any) -> Any:
                return client.update, client.examples, {}

        self._app = ClientApp(lambda context: Trained().to_client(), mods=[secaggplus_mod])

    def ask(self, stage: str, configs: Mapping[str, Any]) -> Message:
        """The client's reply to one request."""
        content = RecordDict()
        if stage == Stage.COLLECT_MASKED_VECTORS:
            content = compat.fitins_to_recorddict(FitIns(Parameters([], "numpy.ndarray"), {}), True)
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord({**configs, Key.STAGE: stage})
        message = Message(content, dst_node_id=self.node, message_type=MessageType.TRAIN)
        before = np.random.get_state()
        reply = self._app(message, self.context)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            self._requantise(before)
        return reply

    def _requantise(self, random_state: Any) -> None:
        after = np.random.get_state()
        np.random.set_state(random_state)
        weighted = parameters_multiply(self.update, quantised_weight(self.examples) / TARGET)
        self.quantised = quantize(weighted, CLIPPING, TARGET)
        np.random.set_state(after)


def quantised_weight(examples: int) -> int:
    """First, extra coordinate of a client's vector: its weight on Flower's grid."""
    return round(examples / MAX_WEIGHT * TARGET)


@dataclass
class ServerView:
    """What the server has after the masked vectors came in: content of replies only.

    Attributes
    ----------
    keys : dict of int to tuple of bytes
        The two public keys of each client.
    masked : dict of int to list of int64 array
        First the weight, shape (1,), then the update's arrays.
    examples : dict of int to int
        Sent in the clear by each client next to its masked vector.
    """

    keys: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    masked: dict[int, Vector] = field(default_factory=dict)
    examples: dict[int, int] = field(default_factory=dict)


def configs_of(reply: Message) -> ConfigRecord:
    """The protocol's part of a reply."""
    return reply.content.config_records[RECORD_KEY_CONFIGS]


def collect_masked(clients: Mapping[int, FlowerClient], threshold: int) -> ServerView:
    """Stages setup, share keys and collect masked vectors, as the honest workflow runs them on a complete graph."""
    view, n = ServerView(), len(clients)
    parameters = {
        Key.SAMPLE_NUMBER: n,
        Key.SHARE_NUMBER: n,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIPPING,
        Key.TARGET_RANGE: TARGET,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: MAX_WEIGHT,
    }
    for node, client in clients.items():
        keys = configs_of(client.ask(Stage.SETUP, parameters))
        view.keys[node] = (keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2])
    boxes: dict[int, list[tuple[int, bytes]]] = {node: [] for node in clients}
    for node, client in clients.items():
        shares = configs_of(client.ask(Stage.SHARE_KEYS, {str(peer): list(pair) for peer, pair in view.keys.items()}))
        for receiver, box in zip(shares[Key.DESTINATION_LIST], shares[Key.CIPHERTEXT_LIST], strict=True):
            boxes[receiver].append((node, box))
    for node, client in clients.items():
        forwarded = {
            Key.SOURCE_LIST: [source for source, _ in boxes[node]],
            Key.CIPHERTEXT_LIST: [box for _, box in boxes[node]],
        }
        reply = client.ask(Stage.COLLECT_MASKED_VECTORS, forwarded)
        view.masked[node] = [bytes_to_ndarray(data) for data in configs_of(reply)[Key.MASKED_PARAMETERS]]
        view.examples[node] = compat.recorddict_to_fitres(reply.content, keep_input=True).num_examples
    return view


def unmask(
    clients: Mapping[int, FlowerClient],
    lists: Callable[[int], tuple[Sequence[int], Sequence[int]]],
) -> dict[tuple[str, int], list[bytes]]:
    """Stage unmask: what the clients reveal, by ("seed" or "key", owner).

    Parameters
    ----------
    lists : callable
        lists(node) gives the active and the dead clients this client is told of.
    """
    shares: dict[tuple[str, int], list[bytes]] = {}
    for node, client in clients.items():
        active, dead = map(list, lists(node))
        reply = configs_of(client.ask(Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: active, Key.DEAD_NODE_ID_LIST: dead}))
        kinds = ["seed"] * len(active) + ["key"] * len(dead)
        for kind, owner, share in zip(kinds, reply[Key.NODE_ID_LIST], reply[Key.SHARE_LIST], strict=True):
            shares.setdefault((kind, owner), []).append(share)
    return shares


def recovered(shares: list[bytes]) -> bytes:
    """Secret behind shares, by Flower's own function."""
    return combine_shares(shares)


def mask_of(seed: bytes, like: Vector) -> Vector:
    """Mask that a client adds for a seed, by Flower's own function."""
    return pseudo_rand_gen(seed, MODULUS, [array.shape for array in like])


def pair_mask(private: bytes, owner: int, peer: int, keys: Mapping[int, tuple[bytes, bytes]], like: Vector) -> Vector:
    """What `owner` added because of `peer`, with Flower's sign: the higher id adds, the lower subtracts."""
    seed = generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(keys[peer][0]))
    sign = 1 if owner > peer else -1
    return [sign * array for array in mask_of(seed, like)]


def minus(vector: Vector, *masks: Vector) -> Vector:
    """Vector without masks, modulo 2^32."""
    return [(array - sum(mask[i] for mask in masks)) % MODULUS for i, array in enumerate(vector)]


def update_from(opened: Vector) -> list[NDArray[np.float64]]:
    """The client's update, from its unmasked vector."""
    weight = opened[0][0] / TARGET
    return [array / weight for array in dequantize(opened[1:], CLIPPING, TARGET)]


def grid_step(opened: Vector) -> float:
    """Distance of neighbouring values of an update on Flower's grid."""
    return float(2 * CLIPPING / TARGET / (opened[0][0] / TARGET))


def compare(opened: Vector, client: FlowerClient) -> tuple[bool, float]:
    """Whether the opened vector is exactly what the client masked, and the largest distance from its float32 update."""
    exact = int(opened[0][0]) == quantised_weight(client.examples) and all(
        np.array_equal(mine, theirs) for mine, theirs in zip(opened[1:], client.quantised, strict=True)
    )
    distance = max(np.abs(mine - theirs).max() for mine, theirs in zip(update_from(opened), client.update, strict=True))
    return exact, float(distance)
