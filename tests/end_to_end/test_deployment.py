"""A SuperLink and four SuperNodes as processes, over TLS with authenticated nodes, driven by its people's commands."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sklearn.datasets import load_breast_cancer

from autoflip_secure.attacks.byte_search import Finder
from autoflip_secure.data.registry import load
from autoflip_secure.deployment.flower import flower_environment, supernode_command
from autoflip_secure.federation.code_digest import code_digest
from tests.conftest import REPOSITORY
from tests.end_to_end.deployment_harness import CommandFailed, Deployment, Table, command, until

pytestmark = pytest.mark.slow

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
USUAL = ("--dp-epsilon", 4, "--colluders", 0, "--stage-timeout", 25, "--bits", 18)
OPTIONS = (*USUAL, "--min-cohort", 0.75, "--block", 1)
POLICY = """
min_cohort = 0.75
min_block = 1
reply_every = 0.2
epsilon = 16.0
epsilon_per_run = 4.0
"""


def hospital_tables() -> dict[str, Table]:
    """Heart disease in four real hospitals; where that is not at hand, a packaged table cut in four."""
    data = REPOSITORY.parent / "shared" / "data"
    if (data / "heart-4-hospitals").is_dir():
        silos = load("heart", data, 0).natural
        assert silos is not None
        return {name: (s.records.x, s.records.y) for name, s in zip(HOSPITALS, silos, strict=True)}
    print("no heart-4-hospitals beside this repository: breast-cancer of scikit-learn, cut in four, stands in")
    x, y = load_breast_cancer(return_X_y=True)
    scaled = (x - x.mean(0)) / x.std(0)
    return {name: (scaled[i::4], y[i::4]) for i, name in enumerate(HOSPITALS)}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"), HOSPITALS)
    made.found(hospital_tables(), POLICY)
    made.all_up()
    yield made
    made.down()


@pytest.fixture
def trusting(deployment: Deployment) -> Deployment:
    """From now on officers let anything run that is within their policy: this code, this kind of network."""
    standing = f'approval = "standing"\nmodels = ["mlp"]\ncode = ["{code_digest().hex()}"]\n'
    for name in HOSPITALS:
        (deployment.silo(name) / "policy.toml").write_text(standing + POLICY)
    return deployment


def state_rows(home: Path, query: str) -> list[tuple]:
    """Rows of a silo's database, read only."""
    with sqlite3.connect(f"file:{home / 'state.sqlite'}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchall()


def audit_lines(home: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (home / "audit.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def homes(deployment: Deployment) -> list[Path]:
    return [deployment.coordinator, *map(deployment.silo, deployment.names)]


def check_ledgers(deployment: Deployment) -> None:
    """Every ledger adds up, is within its caps, and has a line for everything noised that left."""
    for name in deployment.names:
        home = deployment.silo(name)
        command("ledger", "verify", home)
        left = [line for line in audit_lines(home, "reply") if line["stage"] == "masked" and line["status"] == "ok"]
        manifests = [line["manifest"] for line in left]
        assert len(set(manifests)) == len(manifests), "no manifest was answered twice"
        (lines,) = state_rows(home, "SELECT count(*) FROM privacy_ledger")[0]
        assert lines >= len(left) > 0


def test_four_hospitals_train_a_model_with_dp_through_secure_sums(deployment: Deployment) -> None:
    deployment.begin("first", *USUAL, "--rounds", 6)
    deployment.approve()
    summary = deployment.finished("first")
    assert summary["silos"] == 4
    assert summary["block"] == 3
    assert summary["rounds"] == 6
    assert 0 < summary["epsilon_spent"] <= 4
    assert summary["accuracy"] > 0.5
    assert summary["flops_ratio"] < 0.55
    assert (deployment.run_path("first") / "model.safetensors").stat().st_size > 0
    assert "accuracy" in (deployment.run_path("first") / "report.html").read_text()
    check_ledgers(deployment)
    opened = [event for event in deployment.events("first") if event["event"] == "sum"]
    for name in HOSPITALS:
        (lines,) = state_rows(deployment.silo(name), "SELECT count(*) FROM privacy_ledger")[0]
        assert lines == len(opened), "nobody dropped: one line a sum, in every ledger"
    shown = list((deployment.run_path("first") / "proofs").glob("*.msgpack"))
    assert len(shown) >= summary["rounds"]
    for name in HOSPITALS:
        (state,) = (deployment.silo(name) / "followed").glob("*/state.json")
        followed = json.loads(state.read_text())
        assert followed["facts"]["taken"] == len(shown), "every hospital has computed every model itself"


def test_the_audit_logs_of_all_parties_verify_together(deployment: Deployment) -> None:
    command("audit", "verify", *homes(deployment))


Lines = list[str]
TAMPERINGS: dict[str, Callable[[Lines, Lines], Lines]] = {
    "a size edited": lambda own, other: "".join(own).replace('"bytes":', '"bytes":1', 1).splitlines(keepends=True),
    "a time edited": lambda own, other: [own[0], own[1].replace('"time":1', '"time":2'), *own[2:]],
    "a line deleted": lambda own, other: own[:6] + own[7:],
    "the first line deleted": lambda own, other: own[1:],
    "the last lines deleted": lambda own, other: own[:-3],
    "two lines swapped": lambda own, other: [*own[:4], own[5], own[4], *own[6:]],
    "a line doubled": lambda own, other: [*own[:8], own[7], *own[8:]],
    "a line moved to the end": lambda own, other: [*own[:3], *own[4:], own[3]],
    "another party's line put in": lambda own, other: [*own[:4], other[4], *own[4:]],
    "an older copy put in its place": lambda own, other: own[:-12],
    "a line garbled": lambda own, other: [*own[:4], own[4][:-20] + "}\n", *own[5:]],
    "everything before a line deleted": lambda own, other: own[9:],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_with_a_hospitals_audit_log_is_found(deployment: Deployment, tmp_path: Path, name: str) -> None:
    copies = []
    for home in homes(deployment):
        (tmp_path / home.name).mkdir()
        copies.append(shutil.copy(home / "audit.jsonl", tmp_path / home.name / "audit.jsonl"))
    own, other = Path(copies[1]), Path(copies[2])
    before = own.read_text().splitlines(keepends=True)
    after = TAMPERINGS[name](before, other.read_text().splitlines(keepends=True))
    assert after != before
    own.write_text("".join(after))
    with pytest.raises(CommandFailed, match="exit 3"):
        command("audit", "verify", *copies)


def test_a_hospital_that_comes_late_joins_and_killed_processes_come_back(trusting: Deployment) -> None:
    deployment = trusting
    deployment.processes.pop("va").terminate()
    until(lambda: deployment.status()["nodes_online"] == 3, "one silo is down")
    deployment.begin("second", *OPTIONS, "--rounds", 9, "--reserve", 0.5, "--join-timeout", 20)
    until(lambda: deployment.rounds("second") >= 1, "a round without the late silo")

    deployment.up("va")
    until(lambda: [1, 2, 3, 4] in [e["silos"] for e in deployment.events("second") if e["event"] == "joined"], "joined")

    seen = deployment.rounds("second")
    deployment.kill("cleveland", "supernode")
    deployment.kill("hungarian", "worker")
    until(lambda: deployment.rounds("second") > seen, "rounds after a SuperNode and a worker were killed")

    deployment.kill("coordinator", "superlink")
    until(lambda: deployment.rounds("second") > seen + 1, "rounds after the SuperLink was killed")
    deployment.kill_supervisor("coordinator")
    deployment.up("coordinator")
    summary = deployment.finished("second")
    assert summary["rounds"] == 9
    assert summary["epsilon_spent"] <= 4
    check_ledgers(deployment)
    command("audit", "verify", *homes(deployment))


def test_a_node_that_was_not_enrolled_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    command("silo", "init", "--name", "stranger", home=stranger)
    shutil.copy(deployment.silo("va") / "ca.pem", stranger / "ca.pem")
    (stranger / "flower").mkdir()
    secret = stranger / "flower" / "worker.secret"
    secret.write_bytes(bytes(32))
    given = supernode_command(stranger, f"127.0.0.1:{deployment.port}", 19999, secret)
    ended = subprocess.run(
        given, env=flower_environment(stranger), capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode != 0
    assert "Failed to initialize the connection" in ended.stdout + ended.stderr
    assert deployment.status()["nodes_online"] == 4


def test_a_policy_that_the_run_breaks_is_named_to_both_sides(trusting: Deployment) -> None:
    deployment = trusting
    policy = deployment.silo("va") / "policy.toml"
    before = policy.read_text()
    policy.write_text(before.replace("epsilon_per_run = 4.0", "epsilon_per_run = 1.0"))
    try:
        deployment.begin("third", *OPTIONS, "--rounds", 6)
        answer = until(
            lambda: [
                e["answer"]
                for e in deployment.events("third")
                if e["event"] == "join_answer" and e["silo"] == 4 and "Pending" not in e["answer"]
            ],
            "the silo refuses",
        )
        assert "PolicyRefusal" in answer[0] or "BudgetExhausted" in answer[0]
        assert "epsilon_per_run" in (deployment.silo("va") / "silo.log").read_text()
    finally:
        command("run", "--stop", "third", home=deployment.coordinator)
        policy.write_text(before)


def test_a_hospital_that_leaves_for_good_is_removed_by_a_signed_change_and_the_run_goes_on(
    trusting: Deployment,
) -> None:
    deployment = trusting
    deployment.begin("fourth", *OPTIONS, "--rounds", 6, "--reserve", 0.5)
    until(lambda: deployment.rounds("fourth") >= 1, "a round of four")
    command("provision", "remove", "va", home=deployment.authority)
    deployment.install(only=("coordinator",))
    until(lambda: [e for e in deployment.events("fourth") if e["event"] == "roster_changed"], "the roster has changed")
    summary = deployment.finished("fourth")
    assert summary["rounds"] == 6
    for name in ("cleveland", "hungarian", "switzerland"):
        assert "va" not in json.loads(command("silo", "show", "--json", home=deployment.silo(name)))["silos"]
    last = [e for e in deployment.events("fourth") if e["event"] == "sum"][-1]
    assert last["silos"] == [[1, 2, 3]]


def test_a_second_start_of_one_home_is_refused(deployment: Deployment) -> None:
    with pytest.raises(CommandFailed, match="already up, as process"):
        command("silo", "up", home=deployment.silo("cleveland"))


def test_no_private_key_is_in_anything_that_left_its_machine(deployment: Deployment) -> None:
    secrets = [
        (home / name).read_bytes().split(b"\n")[1]
        for home, names in (
            (deployment.authority, ("authority.key", "ca.key")),
            (deployment.coordinator, ("coordinator.key", "server.key")),
            *((deployment.silo(name), ("identity.key", "node.key")) for name in HOSPITALS),
        )
        for name in names
    ]
    for path in deployment.folder.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            data = path.read_bytes()
            assert not any(secret in data for secret in secrets), path


def test_no_secret_of_a_deployed_silo_is_anywhere_but_in_its_home(deployment: Deployment) -> None:
    """After these runs: Flower's own databases, logs of child processes, command lines and environments.

    The last of the tests here: it ends what is up.
    """
    running = b"".join(process_texts(deployment.folder))
    assert b"silo_worker" in running
    deployment.down()
    files = [path for path in deployment.folder.rglob("*") if path.is_file()]
    for name in deployment.names:
        home = deployment.silo(name)
        held = list(secrets_of_home(home))
        assert len(held) > 5
        finder = Finder([value for _, value in held])
        assert finder.found_in(running) == set()
        for path in files:
            allowed = path.is_relative_to(home) and (path.suffix == ".key" or path.name.startswith("state.sqlite"))
            if not allowed and not (path.is_relative_to(home) and path.name == "worker.secret"):
                assert [held[n][0] for n in finder.found_in(path.read_bytes())] == [], path
    own = [path for home in map(deployment.silo, deployment.names) for path in files if path.parent == home]
    secret = [path for path in own if path.suffix == ".key" or path.name == "worker.secret" or "sqlite" in path.name]
    assert len(secret) >= 3 * len(deployment.names)
    assert [path for path in secret if path.stat().st_mode & 0o077] == []


def secrets_of_home(home: Path) -> list[tuple[str, bytes]]:
    """Secrets in a silo's home: keys, what is left of its slots, and the worker's password."""
    found = [("worker.secret", path.read_bytes()) for path in home.rglob("worker.secret")]
    for path in home.rglob("*.key"):
        body = b"".join(path.read_bytes().split(b"\n")[1:-2])
        found.append((path.name, base64.b64decode(body)[-32:]))
    with sqlite3.connect(f"file:{home / 'state.sqlite'}?mode=ro", uri=True) as connection:
        for query in ("SELECT seed FROM secagg_secret", "SELECT mask_key FROM secagg_secret"):
            found += [(query, value) for (value,) in connection.execute(query)]
    return found


def process_texts(folder: Path) -> list[bytes]:
    """Command line and environment of every process that works below a folder."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            try:
                texts = [(place / name).read_bytes() for name in ("cmdline", "environ")]
            except OSError:
                continue
            found += texts if any(str(folder).encode() in text for text in texts) else []
    return found
