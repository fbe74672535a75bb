"""The coordinator: what it does with sums, whom it starts with, what it scores when, and what a resumed run repeats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from flwr.app import Message

from autoflip_secure.config import ResolvedConfig
from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.errors import BudgetExhausted, CannotContinue, StorageError
from autoflip_secure.federation import client_app
from autoflip_secure.federation import coordinator as coordinator_module
from autoflip_secure.federation.client_app import ClientAppFactory, silo_folder
from autoflip_secure.federation.coordinator import Coordinator
from autoflip_secure.federation.engines import run_federation
from autoflip_secure.federation.events import read_json_lines
from autoflip_secure.federation.join import JOIN_STAGE, JoinRequest
from autoflip_secure.federation.local_grid import LocalGrid
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.federation.run_state import load_checkpoint
from autoflip_secure.federation.schedule import Schedule
from autoflip_secure.federation.scoring import Scorer
from autoflip_secure.federation.server_step import ServerMoments
from autoflip_secure.federation.terms import update_channel
from autoflip_secure.federation.wire import Reply, read_request, reply_message
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.seeds import stream, torch_stream
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.training.local import train_locally


@pytest.fixture(autouse=True)
def _close_silos() -> Iterator[None]:
    client_app.close_silos()
    yield
    client_app.close_silos()


Build = Callable[..., Coordinator]


@pytest.fixture
def make(make_config, make_federation, cheap_plan, task) -> Iterator[Build]:
    """make(grid=None, **options) -> coordinator of a fresh toy federation, nothing run yet."""
    made: list[Coordinator] = []

    def begin(grid: Any = None, **options: Any) -> Coordinator:
        config = make_config(**options)
        folder = make_federation(config)
        made.append(Coordinator(folder, config, grid, lambda line: None))
        made[-1]._exchange.nodes = {silo: 100 + silo for silo in range(1, config.silos + 1)}
        return made[-1]

    yield begin
    for coordinator in made:
        coordinator._events.close()
        coordinator._metrics.close()


def run(folder: RunFolder, config: ResolvedConfig) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    run_federation(folder, config, lines.append)
    return lines


# A whole run against the same computation done by hand


def test_rounds_are_federated_averaging(make_config, make_federation) -> None:
    config = make_config(rounds=3, local_steps=4, learning_rate=0.2, momentum=0.5, batch_size=8, bits=24)
    folder = make_federation(config)
    run(folder, config)
    spec = dense_spec("mlp", (6,), 3)
    weights = flatten_parameters(build(spec, torch_stream(config.seed, "init")))
    for round in range(3):
        ends = []
        for silo in range(1, 5):
            data = read_silo(silo_folder(folder.path, silo) / "data").train
            network = build(spec)
            load_flat_parameters(network, weights)
            train_locally(
                network, torch.from_numpy(data.x), torch.from_numpy(data.y), steps=4, batch_size=8, learning_rate=0.2,
                momentum=0.5, generator=torch_stream(config.seed, "batches", round, silo),
            )  # fmt: skip
            ends.append(flatten_parameters(network))
        weights = torch.stack(ends).mean(dim=0)
    final = ModelPayload.from_bytes(folder.model.read_bytes())
    np.testing.assert_allclose(final.weights, weights.numpy(), atol=1e-5)
    assert np.abs(final.weights - flatten_parameters(build(spec, torch_stream(0, "init"))).numpy()).max() > 0.05


def test_exploration_without_warm_start_leaves_the_model_where_it_was(make_config, make_federation) -> None:
    for warm in (False, True):
        config = make_config(prune="autoflip", rounds=2, warm_start=warm, prune_flops=1.0, prune_threshold=0.0, silos=6)
        folder = make_federation(config, name=str(warm))
        states: list[np.ndarray] = []
        original = coordinator_module.save_checkpoint

        def keep(path: Path, state: Any, original: Any = original, states: list[Any] = states) -> None:
            states.append(state.model.weights.copy())
            original(path, state)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coordinator_module, "save_checkpoint", keep)
            run(folder, config)
        start = flatten_parameters(build(dense_spec("mlp", (6,), 3), torch_stream(0, "init"))).numpy()
        before, explored, trained = states
        assert (before == start).all()
        unmoved = np.abs(explored - start).max() == 0
        assert unmoved != warm
        assert np.abs(trained - explored).max() > 0


# The step


def aggregates_of(size: int, *silos: int) -> list[Aggregate]:
    draw = stream(1, "aggregates")
    return [Aggregate(0, c, n, {"update": draw.normal(size=size)}) for c, n in enumerate(silos)]


def test_the_distributed_step_is_momentum_sgd_on_the_expected_batch(make: Build) -> None:
    coordinator = make(silos=8, dp_epsilon=8.0, learning_rate=0.5, momentum=0.75, sampling_rate=0.2, prune="none")
    state = coordinator.state
    mask = stream(0, "m").random(state.model.mask.size) < 0.8
    state.model = replace(state.model, mask=mask, weights=np.where(mask, state.model.weights, 0).astype(np.float32))
    start = state.model.weights.astype(np.float64)
    velocity = np.zeros(mask.size)
    expected = start
    for silos in ((4, 3), (8,)):
        sums = aggregates_of(mask.size, *silos)
        total = np.where(mask, np.sum([a.sum("update") for a in sums], axis=0), 0)
        batch = 0.2 * 80 * sum(silos) / 8
        velocity = 0.75 * velocity + 0.5 * total / batch
        expected = expected + velocity
        coordinator._model.step(3, sums)
    np.testing.assert_allclose(state.model.weights, expected, atol=1e-5)
    assert not state.model.weights[~mask].any()
    assert not state.server.velocity[~mask].any()


@pytest.mark.parametrize(("options", "momentum"), [({}, 0.0), ({"dp_epsilon": 8.0, "dp_trust": "local"}, 0.75)])
def test_other_steps_are_the_mean_update_and_server_momentum_under_dp(
    make: Build, options: dict[str, Any], momentum: float
) -> None:
    coordinator = make(silos=8, momentum=0.75, learning_rate=9.0, **options)
    state = coordinator.state
    expected, velocity = state.model.weights.astype(np.float64), np.zeros(state.model.mask.size)
    for silos in ((4, 3), (8,)):
        sums = aggregates_of(velocity.size, *silos)
        mean = np.sum([a.sum("update") for a in sums], axis=0) / sum(silos)
        velocity = momentum * velocity + mean
        expected = expected + velocity
        coordinator._model.step(3, sums)
    np.testing.assert_allclose(state.model.weights, expected, atol=1e-5)


def test_fedadam_is_adam_on_the_mean_update(make: Build) -> None:
    coordinator = make(silos=8, server_optimizer="adam", server_learning_rate=0.3, lr_decay=0.5, prune="none")
    state = coordinator.state
    expected, size = state.model.weights.astype(np.float64), state.model.mask.size
    m, v = np.zeros(size), np.zeros(size)
    for step, silos in enumerate(((4, 3), (8,)), start=1):
        sums = aggregates_of(size, *silos)
        mean = np.sum([a.sum("update") for a in sums], axis=0) / sum(silos)
        m, v = 0.9 * m + 0.1 * mean, 0.99 * v + 0.01 * mean**2
        rate = 0.3 * 0.5 ** (step + 1)
        expected = expected + rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-3)
        coordinator._model.step(step + 1, sums)
    np.testing.assert_allclose(state.model.weights, expected, atol=1e-5)
    assert state.server.steps == 2


def test_fedadam_does_not_move_masked_parameters(make: Build) -> None:
    coordinator = make(silos=8, server_optimizer="adam", prune="none")
    state = coordinator.state
    mask = stream(0, "m").random(state.model.mask.size) < 0.8
    state.model = replace(state.model, mask=mask, weights=np.where(mask, state.model.weights, 0).astype(np.float32))
    sums = [Aggregate(0, 0, 8, {"update": np.where(mask, stream(2, "u").normal(size=mask.size), 0.0)})]
    coordinator._model.step(0, sums)
    assert not state.model.weights[~mask].any()
    assert state.model.weights[mask].all()


def test_the_learning_rate_decays_round_by_round(make: Build) -> None:
    coordinator = make(silos=8, dp_epsilon=8.0, lr_decay=0.5, momentum=0.0, prune="none")
    moved = []
    for round in (0, 2):
        before = coordinator.state.model.weights.astype(np.float64)
        coordinator._model.step(round, aggregates_of(before.size, 8))
        moved.append(coordinator.state.model.weights - before)
    np.testing.assert_allclose(moved[1], moved[0] / 4, atol=1e-6)


def test_pruning_takes_the_momentum_along(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = make(silos=8, dp_epsilon=8.0, prune="autoflip")
    state = coordinator.state
    past = np.arange(1.0, state.model.mask.size + 1)
    state.server = ServerMoments(past, 2 * past, 7)
    kept = np.arange(0, state.model.mask.size, 3)
    mask = stream(0, "p").random(kept.size) < 0.5
    smaller = replace(state.model, weights=np.zeros(kept.size, np.float32), mask=mask)
    monkeypatch.setattr(coordinator._model.pruning, "decide", lambda number, model: (smaller, kept))
    coordinator._model.prune(3)
    np.testing.assert_array_equal(state.server.velocity, np.where(mask, kept + 1.0, 0.0))
    np.testing.assert_array_equal(state.server.square, np.where(mask, 2 * (kept + 1.0), 0.0))
    assert state.server.steps == 7
    (event,) = read_json_lines(coordinator._folder.events)
    assert (event["event"], event["round"]) == ("pruned", 3)
    assert (event["live_before"], event["live_after"]) == (2627, int(mask.sum()))


@pytest.mark.parametrize(
    ("options", "explored", "trained"),
    [
        ({}, {"deviation", "update"}, {"update", "unit_energy"}),
        ({"warm_start": True}, {"deviation", "update"}, {"update", "unit_energy"}),
        ({"dp_epsilon": 8.0, "dp_trust": "local"}, {"deviation", "update"}, {"update", "unit_energy"}),
        ({"dp_epsilon": 8.0}, {"update"}, {"update"}),
        ({"prune": "none"}, {"update"}, {"update"}),
        ({"silos": 4, "colluders": 1}, {"deviation"}, {"update"}),
        ({"prune": "magnitude"}, {"update"}, {"update"}),
        ({"prune": "snip", "warm_start": True}, {"update"}, {"update"}),
        ({"prune": "prunefl"}, {"deviation"}, {"update"}),
        ({"prune": "prunefl", "warm_start": True}, {"deviation", "update"}, {"update"}),
        ({"prune": "prunefl", "dp_epsilon": 8.0, "dp_trust": "local"}, {"update"}, {"update"}),
        ({"explore_every": 3}, {"deviation", "update"}, {"deviation", "update"}),
        ({"explore_every": 3, "warm_start": True}, {"deviation", "update"}, {"deviation", "update"}),
        ({"explore_every": 3, "silos": 4, "colluders": 1}, {"deviation"}, {"deviation"}),
        (
            {"explore_every": 3, "warm_start": True, "dp_epsilon": 8.0, "dp_trust": "local"},
            {"deviation", "update"},
            {"deviation"},
        ),
    ],
)
def test_a_round_asks_for_what_its_phase_needs(
    make: Build, options: dict[str, Any], explored: set[str], trained
) -> None:
    coordinator = make(**{"prune": "autoflip", "silos": 8, **options})
    state = coordinator.state
    state.model = replace(state.model, mask=np.arange(state.model.mask.size) % 2 == 0)
    live = int(state.model.mask.sum())
    for round, expected in ((0, explored), (3, trained)):
        channels = {channel.name: channel.length for channel in coordinator._channels(round)}
        assert channels == {name: 96 if name == "unit_energy" else live for name in expected}


def test_where_nothing_is_masked_no_gradient_is_asked_for(make: Build) -> None:
    coordinator = make(prune="feddst", silos=8, rounds=8)
    state, round = coordinator.state, coordinator._schedule.readjustments[0]
    for masked, channels in ((5, ["update", "gradient"]), (0, ["update"])):
        state.model = replace(state.model, mask=np.arange(state.model.mask.size) >= masked)
        assert [channel.name for channel in coordinator._channels(round)] == channels


@pytest.mark.parametrize(("options", "silos"), [({"participation": 0.5}, 4), ({"cohorts": 2}, 4), ({}, 8)])
def test_an_adaptive_round_asks_for_clip_bits_at_the_scale_of_a_cohort(
    make: Build, options: dict[str, Any], silos: int
) -> None:
    private = {"dp_epsilon": 8.0, "adaptive_clip": 0.5, "sampling_rate": 0.2, "colluders": 0, "cohorts": 1}
    coordinator = make(**{"prune": "autoflip", "silos": 8, **private, **options})
    coordinator.state.model = replace(coordinator.state.model, records=80_000)
    coordinator._model.clip.value = 0.4
    update, bits = coordinator._channels(0)
    assert update == update_channel(coordinator._config, update.length, 0.4, expected_batch=0.2 * 80_000 / 8)
    assert (bits.name, bits.length, bits.limit) == ("clip_bits", 1, 0.2 * 80_000 * silos / 8)
    assert coordinator._terms(0).clip == 0.4


# Joining


class JoinGrid:
    """Five nodes; `answers` says what each replies to the join request."""

    def __init__(self, answers: list[Reply | None]) -> None:
        self.answers, self.requests, self.replies = answers, [], []

    def get_node_ids(self) -> Iterable[int]:
        return range(1, len(self.answers) + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            self.requests.append(read_request(message))
            answer = self.answers[number]
            if answer is not None:
                self.replies.append(reply_message(answer, message))
        return []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies, self.replies = self.replies, []
        return replies


def says(silo: int) -> Reply:
    return Reply("ok", msgpack.packb(silo))


def test_nodes_say_which_silo_they_are(make: Build) -> None:
    grid = JoinGrid([says(3), says(1), says(4), says(2)])
    coordinator = make(grid)
    coordinator._gathering.gather()
    assert coordinator._exchange.nodes == {3: 1, 1: 2, 4: 3, 2: 4}
    assert {request.stage for request in grid.requests} == {JOIN_STAGE}
    (message,) = {request.request for request in grid.requests}
    joined = JoinRequest.open(message, coordinator._folder.roster().coordinator)
    assert (joined.session, joined.config) == (coordinator._folder.session(), coordinator._config)
    assert (joined.planned, joined.task) == (coordinator.plan.mechanisms(), coordinator._folder.task.read_text())
    assert joined.digest() == coordinator._sums.config_hash
    (event,) = read_json_lines(coordinator._folder.events)
    assert (event["event"], event["silos"], event["refused"]) == ("joined", [1, 2, 3, 4], [])


@pytest.mark.parametrize(
    ("answers", "error", "words"),
    [
        ([says(1), says(2), says(3), None], CannotContinue, r"silos \[4\] did not join; .*silo.log"),
        ([says(1), says(2), says(3), Reply("refused", error="PolicyRefusal")], CannotContinue, r"\[4\].*PolicyRefusal"),
        ([says(1), says(2), says(3), Reply("refused", error="BudgetExhausted")], BudgetExhausted, "nothing was spent"),
        ([says(1), says(2), says(3), says(3)], CannotContinue, "two nodes say they are silo 3"),
        ([says(1), says(2), says(3), says(9)], CannotContinue, r"silos \[4\] did not join"),
    ],
)
def test_a_run_starts_with_all_silos_or_not_at_all(
    make: Build, answers: list[Reply | None], error: type[Exception], words: str
) -> None:
    coordinator = make(JoinGrid(answers))
    coordinator._exchange._timeout = 0.1
    with pytest.raises(error, match=words):
        coordinator._gathering.gather()


# Census and scores


def hide_total(folder: RunFolder, config: ResolvedConfig, task: Any) -> None:
    """As if the number of records were not public."""
    secret = replace(task, nominal_records=None).to_json()
    for path in (folder.path, *(silo_folder(folder.path, s) for s in range(1, config.silos + 1))):
        (path / "task.json").write_text(secret)


def test_an_unknown_number_of_records_is_counted_once(make_config, make_federation, task) -> None:
    config = make_config(rounds=2)
    folder = make_federation(config, public_test=False)
    hide_total(folder, config, task)
    held = [len(read_silo(silo_folder(folder.path, s) / "data").train) for s in range(1, 5)]
    run(folder, config)
    assert load_checkpoint(folder.checkpoint).model.records == sum(held) < 80
    phases = Counter(e["phase"] for e in read_json_lines(folder.events) if e["event"] == "sum")
    assert phases == {"census": 1, "train": 2, "evaluate": 2}


def scorer(config: ResolvedConfig, task: Any, public: bool) -> Scorer:
    return Scorer(config, task, None, Schedule(config), None, object() if public else None)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [1, 2, 4, 5, 7, 23, 200])
@pytest.mark.parametrize("evaluations", [1, 3, 5, 8])
def test_private_scores_are_at_most_as_many_as_were_paid_for(rounds, evaluations, make_config, task) -> None:
    config = make_config(rounds=rounds, evaluations=evaluations)
    due = [r for r in range(rounds) if scorer(config, task, False).is_due(r)]
    assert len(due) == min(rounds, evaluations)
    assert due[-1] == rounds - 1
    gaps = np.diff([-1, *due])
    assert gaps.max() - gaps.min() <= 1, "spread evenly"


def test_public_scores_come_at_their_rhythm_and_at_the_end(make_config, task) -> None:
    config = make_config(rounds=11, evaluate_every=4)
    assert [r for r in range(11) if scorer(config, task, True).is_due(r)] == [3, 7, 10]


# Resuming


def test_a_run_that_was_stopped_goes_on_to_the_same_model(make_config, make_federation) -> None:
    """Without DP nothing differs: neither the stopped round nor the checkpoint leaves a trace in the model."""
    config = make_config(rounds=4, prune="autoflip", silos=6, prune_flops=0.6)
    whole, stopped = (make_federation(config, name=name) for name in ("whole", "stopped"))
    run(whole, config)
    client_app.close_silos()

    class Stop(Exception):
        pass

    original = coordinator_module.SumRunner.run

    def stop_in_third(self: Any, state: Any, *arguments: Any) -> Any:
        sums = original(self, state, *arguments)
        if state.round == 2:
            raise Stop
        return sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator_module.SumRunner, "run", stop_in_third)
        with pytest.raises(Stop):
            run(stopped, config)
    client_app.close_silos()
    assert load_checkpoint(stopped.checkpoint).round == 2
    run(stopped, config)
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    assert stopped.importance.read_bytes() == whole.importance.read_bytes()
    lines = [list(read_json_lines(folder.metrics)) for folder in (whole, stopped)]
    volatile = {"seconds", "download_bytes_per_silo", "upload_bytes_total_per_silo"}  # joining again costs bytes
    for one, two in zip(*lines, strict=True):
        assert {k: v for k, v in one.items() if k not in volatile} == {
            k: v for k, v in two.items() if k not in volatile
        }
    assert load_checkpoint(stopped.checkpoint).spare_attempts_used == 1


def test_an_interrupted_attempt_counts_as_spent(make: Build, make_config) -> None:
    local = {"dp_epsilon": 8.0, "dp_trust": "local", "local_steps": 3, "rounds": 4}
    coordinator = make(**local)
    coordinator.state.round = 2
    coordinator._checkpoint()
    config, folder = make_config(**local), coordinator._folder
    resumed = Coordinator(folder, config, None, lambda line: None)  # type: ignore[arg-type]
    assert (resumed.state.spare_attempts_used, resumed.state.spare_steps) == (1, 3)
    coordinator.state.round = 4
    coordinator._checkpoint()
    finished = Coordinator(folder, config, None, lambda line: None)  # type: ignore[arg-type]
    assert (finished.state.spare_attempts_used, finished.state.spare_steps) == (0, 0)
    for one in (resumed, finished):
        one._events.close()
        one._metrics.close()


def test_a_stop_before_the_first_checkpoint_leaves_one_line_a_round(
    make_config, make_federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(rounds=2)
    folder = make_federation(config)

    def full(*_: Any) -> None:
        raise StorageError("cannot write the checkpoint")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator_module, "save_checkpoint", full)
        with pytest.raises(StorageError):
            run(folder, config)
    client_app.close_silos()
    run(folder, config)
    assert [line["round"] for line in read_json_lines(folder.metrics)] == [0, 1]


def test_a_private_run_that_was_stopped_in_its_first_round_goes_on(
    make_config, make_federation, cheap_plan, task
) -> None:
    config = make_config(dp_epsilon=8.0, dp_trust="local", rounds=2, local_steps=1)
    folder = make_federation(config)
    hide_total(folder, config, task)

    def full(*_: Any) -> None:
        raise StorageError("cannot write the checkpoint")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator_module, "save_checkpoint", full)
        with pytest.raises(StorageError):
            run(folder, config)
    client_app.close_silos()
    assert len(run(folder, config)) == 2


def test_records_are_counted_once_also_by_a_run_that_was_stopped(make_config, make_federation, task) -> None:
    config = make_config(rounds=2)
    folder = make_federation(config)
    hide_total(folder, config, task)
    original = coordinator_module.SumRunner.run

    def full(self: Any, state: Any, phase: str, *arguments: Any) -> Any:
        if phase == "train":
            raise StorageError("no space left")
        return original(self, state, phase, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator_module.SumRunner, "run", full)
        with pytest.raises(StorageError):
            run(folder, config)
    client_app.close_silos()
    run(folder, config)
    phases = Counter(e["phase"] for e in read_json_lines(folder.events) if e["event"] == "sum")
    assert phases == {"census": 1, "train": 2}


def test_every_interrupted_attempt_counts_as_spent(make: Build, make_config) -> None:
    local = {"dp_epsilon": 8.0, "dp_trust": "local", "local_steps": 3, "rounds": 4}
    coordinator = make(**local)
    coordinator.state.round = 2
    coordinator._checkpoint()
    config, folder = make_config(**local), coordinator._folder
    for attempts in (1, 2):
        resumed = Coordinator(folder, config, None, lambda line: None)  # type: ignore[arg-type]
        resumed._events.close()
        resumed._metrics.close()
        assert resumed.state.spare_attempts_used == attempts


# Records


def test_the_target_is_the_first_round_that_reached_it(make_config, make_federation) -> None:
    config = make_config(rounds=4, evaluate_every=1, target_accuracy=0.01)
    folder = make_federation(config)
    lines = run(folder, config)
    state = load_checkpoint(folder.checkpoint)
    assert state.facts["target"] == {"rounds": 1, "upload_bytes": lines[0]["upload_bytes_per_silo"]}
    never = make_federation(make_config(rounds=2, evaluate_every=1, target_accuracy=1.0, learning_rate=1e-6), name="n")
    run(never, make_config(rounds=2, evaluate_every=1, target_accuracy=1.0, learning_rate=1e-6))
    assert "target" not in load_checkpoint(never.checkpoint).facts


def test_every_round_is_watched_and_written(make_config, make_federation) -> None:
    config = make_config(rounds=3, evaluate_every=2)
    folder = make_federation(config)
    watched = run(folder, config)
    written = list(read_json_lines(folder.metrics))
    assert json.loads(json.dumps(watched)) == written
    assert [line["round"] for line in written] == [0, 1, 2]
    assert ["accuracy" in line for line in written] == [False, True, True]
    live = written[0]["params_live"]
    # Three 16-bit fields of 4 silos a word: the plain words of one silo a round.
    assert [line["upload_bytes_per_silo"] for line in written] == [8 * -(-live // 3) * n for n in (1, 2, 3)]
    assert [line["upload_bytes_dense_fp32"] for line in written] == [4 * 2627 * n for n in (1, 2, 3)]
    state = load_checkpoint(folder.checkpoint)
    assert state.facts["seconds"] == pytest.approx(sum(line["seconds"] for line in written), abs=1e-3)
    assert 0 < state.facts["seconds_training"] < state.facts["seconds"]


def test_the_grid_s_nodes_are_answered_by_their_own_silo(make_config, make_federation) -> None:
    config = make_config()
    folder = make_federation(config)
    with LocalGrid(ClientAppFactory(folder.path), 4, 0) as grid:
        coordinator = Coordinator(folder, config, grid, lambda line: None)
        coordinator._gathering.gather()
        assert coordinator._exchange.nodes == {silo: 1000 + silo for silo in range(1, 5)}
        coordinator._events.close()
        coordinator._metrics.close()
