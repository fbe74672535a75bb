"""Runs of a coordinator's home: what is made, what is kept going, and what is left alone."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from autoflip_secure import run_cli
from autoflip_secure.config import RunConfig
from autoflip_secure.deployment import coordinator_runtime
from autoflip_secure.deployment.coordinator_runtime import MOST_TRIES, Keeper, coordinator_status, rounds_done
from autoflip_secure.deployment.deployed_run import DeployedRun, create_run, runs_of
from autoflip_secure.deployment.keys import node_public
from autoflip_secure.errors import CannotContinue, ConfigError
from tests.deployment.conftest import Federation, MakeFederation


def chosen(**options: Any) -> RunConfig:
    return RunConfig.model_construct(_fields_set=set(options), **dict(RunConfig.create(**options)))


@pytest.fixture
def federation(make_parties: MakeFederation) -> Federation:
    return make_parties(enrolled=4)


@pytest.fixture
def home(federation: Federation) -> Path:
    """A coordinator's home with an installed bundle of four silos."""
    federation.install()
    return federation.coordinator.path


@pytest.fixture
def run(home: Path) -> DeployedRun:
    return create_run(home, chosen(dp_epsilon=4.0, colluders=0, rounds=3), "trial", "cardiology")


def test_a_run_is_of_all_silos_and_of_the_federations_task(run: DeployedRun) -> None:
    config = run.resolved()
    assert (config.silos, config.partition, config.dataset) == (4, "natural", "federation:cardiology")
    assert run.places() == (1, 2, 3, 4)
    assert len(run.session()) == 16
    assert run.last_epoch() == 0
    assert not list(run.path.rglob("*.key")), "its keys stay in the coordinator's home"
    assert run.coordinator_identity().public == run.roster().coordinator


def test_what_an_operator_starts_proves_models_and_sums_blocks_unless_told_otherwise(home: Path) -> None:
    options: dict[str, Any] = {"dp_epsilon": 4.0, "colluders": 0, "rounds": 3}
    usual = run_cli._create(home, options, None, "usual").resolved()
    assert (usual.prove_models, usual.block) == (True, 3)
    told = run_cli._create(home, {**options, "prove_models": False, "block": 1}, None, "told").resolved()
    assert (told.prove_models, told.block) == (False, 1)


def test_two_runs_have_two_sessions(home: Path, run: DeployedRun) -> None:
    other = create_run(home, chosen(rounds=3, colluders=0), "other", "cardiology")
    assert other.session() != run.session()
    assert [found.name for found in runs_of(home)] == ["other", "trial"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-x", "x" * 65, "x y", "über"])
def test_a_run_that_could_not_be_a_folder_is_refused(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        create_run(home, chosen(rounds=3), name, "cardiology")


def test_a_run_that_is_there_is_not_written_over(home: Path, run: DeployedRun) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        create_run(home, chosen(rounds=3), "trial", "cardiology")


@pytest.mark.parametrize(
    ("option", "value"),
    [("bad_silos", "noise:0.2"), ("insecure_reproducible_noise", True), ("dropout", 0.1), ("engine", "ray"),
     ("workers", 2), ("silos", 4), ("partition", "iid"), ("dataset", "mnist5k")],
)  # fmt: skip
def test_options_of_simulations_are_refused_before_anything_is_made(home: Path, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        create_run(home, chosen(**{option: value}), "trial", "cardiology")
    assert not (home / "runs").exists()


def test_options_that_leave_no_sum_to_open_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="--colluders"):
        create_run(home, chosen(colluders=3, rounds=3), "trial", "cardiology")
    assert not (home / "runs").exists()


def test_a_run_is_wanted_rests_and_is_wanted_again(run: DeployedRun) -> None:
    assert run.state() == "stopped"
    run.want()
    assert run.state() == "wanted"
    run.fail(CannotContinue("silos [4] did not join"))
    assert (run.state(), run.failure()) == ("failed", "silos [4] did not join")
    run.want()
    assert (run.state(), run.failure()) == ("wanted", "")
    run.unwant()
    assert run.state() == "stopped"


def test_a_run_is_finished_when_its_report_is_there_too(run: DeployedRun) -> None:
    run.want()
    run.summary.write_text("{}")
    assert run.state() == "wanted"
    run.unwant()
    assert run.state() == "finished"


def test_a_run_has_one_coordinator_at_a_time(run: DeployedRun) -> None:
    with (
        run.only_coordinator(),
        pytest.raises(CannotContinue, match="already has a coordinator"),
        run.only_coordinator(),
    ):
        raise AssertionError("two coordinators opened the same rounds")


def test_nodes_are_known_by_the_keys_of_the_bundle(federation: Federation, run: DeployedRun) -> None:
    keys = federation.coordinator.installed().node_keys
    pem = {s: node_public(k).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for s, k in keys.items()}
    nodes = [SimpleNamespace(node_id=70 + silo, public_key=key) for silo, key in pem.items()]
    stranger = SimpleNamespace(node_id=99, public_key=b"-----BEGIN PUBLIC KEY-----\n")
    grid = SimpleNamespace(get_nodes=lambda: [stranger, *nodes])
    assert run.nodes(grid) == {71: 1, 72: 2, 73: 3, 74: 4}  # type: ignore[arg-type]


class Control:
    """Stands in for `flwr`: remembers what was asked of it."""

    port = 8000

    def __init__(self) -> None:
        self.registered: list[str] = []
        self.unregistered: list[str] = []
        self.started: list[Mapping[str, str]] = []
        self.state = "running"

    def register(self, public_key: Path, name: str) -> str:
        assert public_key.read_text().startswith("ecdsa-sha2-nistp384 ")
        self.registered.append(name)
        return f"node-{name}"

    def unregister(self, node: str) -> None:
        self.unregistered.append(node)

    def start(self, app: Path, options: Mapping[str, str]) -> int:
        assert (app / "pyproject.toml").exists()
        self.started.append(options)
        return 41 + len(self.started)

    def status(self, run: int) -> str:
        return self.state


@pytest.fixture
def keeper(federation: Federation, home: Path) -> Keeper:
    (home / "flower").mkdir()
    return Keeper(federation.coordinator, Control(), lambda line: None)  # type: ignore[arg-type]


def test_silos_of_the_bundle_are_registered_once(keeper: Keeper, home: Path) -> None:
    keeper.register_nodes()
    keeper.register_nodes()
    again = Keeper(keeper.home, Control(), lambda line: None)  # type: ignore[arg-type]
    again.register_nodes()
    assert keeper.control.registered == ["hospital-a", "hospital-b", "hospital-c", "hospital-d"]
    assert again.control.registered == []
    assert not list((home / "flower").glob("*.pub"))


def test_a_silo_that_was_removed_may_connect_no_longer(keeper: Keeper, federation: Federation) -> None:
    keeper.register_nodes()
    federation.authority.remove("hospital-d")
    federation.install()
    keeper.register_nodes()
    assert keeper.control.unregistered == ["node-hospital-d"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(coordinator_runtime.time, "monotonic", lambda: made.now)
    return made


def test_a_wanted_run_is_started_and_then_left_alone(keeper: Keeper, run: DeployedRun) -> None:
    run.want()
    keeper.keep_going(run)
    keeper.keep_going(run)
    assert keeper.control.started == [{"run": "trial"}]
    assert run.flower_run.read_text() == "42"


def test_runs_go_on_one_after_the_other(keeper: Keeper, home: Path, run: DeployedRun) -> None:
    later = create_run(home, chosen(rounds=3, colluders=0), "a-later-one", "cardiology")
    assert keeper.next_run() is None
    later.want()
    run.want()
    os.utime(run.wanted, (1, 1))
    assert keeper.next_run() == run
    with later.only_coordinator():
        assert keeper.next_run() == later, "one that is at work is not disturbed"
    run.fail(CannotContinue("too few silos"))
    assert keeper.next_run() == later


def test_a_run_that_ended_too_early_is_started_again_with_growing_waits(
    keeper: Keeper, run: DeployedRun, clock: SimpleNamespace
) -> None:
    run.want()
    keeper.control.state = "finished:failed"
    starts = []
    while run.state() == "wanted":
        before = len(keeper.control.started)
        keeper.keep_going(run)
        if len(keeper.control.started) > before:
            starts.append(clock.now)
        clock.now += 1
        assert clock.now < 50000
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert len(starts) == MOST_TRIES
    assert waits == sorted(waits)
    assert "without a round" in run.failure()


def test_rounds_that_were_done_give_a_run_new_tries(keeper: Keeper, run: DeployedRun, clock: SimpleNamespace) -> None:
    run.want()
    keeper.control.state = "finished:failed"
    for rounds in range(3 * MOST_TRIES):
        run.checkpoint.mkdir(exist_ok=True)
        (run.checkpoint / "state.json").write_text(json.dumps({"round": rounds}))
        assert rounds_done(run) == rounds
        keeper.keep_going(run)
        clock.now += 1000
    assert run.state() == "wanted"
    assert len(keeper.control.started) == 3 * MOST_TRIES


@pytest.mark.parametrize("content", ["", "{", "[]", '{"round": null}', '{"round": "x"}'])
def test_a_damaged_checkpoint_counts_as_no_round_yet(run: DeployedRun, content: str) -> None:
    run.checkpoint.mkdir()
    (run.checkpoint / "state.json").write_text(content)
    assert rounds_done(run) == 0


@pytest.mark.parametrize("damage", [b"rounds = ", b'rounds = "many"\n', None])
def test_a_run_whose_configuration_cannot_be_read_hides_no_other(
    home: Path, run: DeployedRun, damage: bytes | None
) -> None:
    create_run(home, chosen(rounds=3, colluders=0), "other", "cardiology")
    if damage is None:
        run.config.unlink()
        run.config.mkdir()
    else:
        run.config.write_bytes(damage)
    other, trial = coordinator_status(home)["runs"]
    assert (other["run"], other["state"], other["of"]) == ("other", "stopped", 3)
    assert (trial["run"], trial["state"]) == ("trial", "unreadable")
    assert "\n" not in trial["reason"]
