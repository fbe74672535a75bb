"""What the server answers, to whom, and with which headers."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from autoflip_secure.dashboard.app import STATIC
from autoflip_secure.dashboard.guard import read_token
from autoflip_secure.dashboard.homes import open_home
from autoflip_secure.errors import ConfigError

Ask = Callable[..., Any]


@pytest.fixture
def client(make: Any) -> Ask:
    """client(path, token=..., names=...): asks the page about what lies there."""
    return lambda path, **options: make.client(open_home(path), **options)


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, values of its labels by name) -> value."""
    return {
        (sample.name.removeprefix("autoflip_secure_"), tuple(v for _, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_and_its_files_are_there(client: Ask, run_folder: Path) -> None:
    asked = client(run_folder)
    page = asked.get("/")
    assert page.status_code == 200
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert named
    for path in named:
        assert asked.get(path).status_code == 200, path
    for script in STATIC.glob("*.js"):
        for module in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert asked.get(f"/static/{module}").status_code == 200, module


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/overview", "/metrics", "/nothing", "/api/runs/nothing"])
def test_every_answer_has_the_headers_that_protect_it(client: Ask, run_folder: Path, path: str) -> None:
    headers = client(run_folder).get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "set-cookie" not in headers
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_nothing_in_the_page_makes_markup_of_data_or_asks_another_host() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\(\"style"
    for file in STATIC.iterdir():
        text = file.read_text()
        assert not re.search(forbidden, text), file.name
        addresses = set(re.findall(r"https?://[^\s\"')]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=\"|style=", text if file.suffix == ".html" else "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/api/overview", "/metrics", "/nothing", "/static/app.js"])
def test_nothing_but_reading_is_answered(client: Ask, run_folder: Path, method: str, path: str) -> None:
    assert client(run_folder).request(method, path).status_code == 405


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8265", "localhost", "localhost:9", "LOCALHOST.", "[::1]:8265", "192.168.1.7:8265", "node.example:1"],
)
def test_names_that_are_ours_are_answered(client: Ask, run_folder: Path, host: str) -> None:
    asked = client(run_folder, names=["Node.Example"])
    assert asked.get("/api/overview", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8265", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "a:b"]
)
def test_names_that_are_not_ours_are_refused(client: Ask, run_folder: Path, host: str) -> None:
    for path in ("/", "/api/overview", "/static/app.js", "/metrics"):
        answer = client(run_folder).get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "digits" not in answer.text


@pytest.mark.parametrize("path", ["/api/overview", "/api/runs/run", "/api/silo", "/metrics", "/nothing"])
def test_where_there_is_a_token_nothing_is_told_without_it(client: Ask, make: Any, run_folder: Path, path: str) -> None:
    asked, token = client(run_folder, token=make.token), make.token
    wrong = ["", "Bearer", "Bearer ", f"Bearer {token[:-1]}", f"Bearer {token}x", f"Basic {token}", token]
    for header in wrong:
        answer = asked.get(path, headers={"authorization": header})
        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert token not in answer.text
    assert asked.get(path).status_code == 401
    assert asked.get(f"{path}?token={token}").status_code == 401, "a token in an address ends up in logs"
    assert asked.get(path, headers={"authorization": f"Bearer {token}"}).status_code != 401


def test_the_pages_own_files_need_no_token(client: Ask, make: Any, run_folder: Path) -> None:
    asked = client(run_folder, token=make.token)
    assert asked.get("/").status_code == asked.get("/static/app.js").status_code == 200
    assert asked.get("/static/../api/overview").status_code == 401
    assert asked.get("/static/%2e%2e/%2e%2e/app.py").status_code in (401, 404)


def test_a_token_file_is_for_its_owner_alone(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(make.token + "\n")
    path.chmod(0o600)
    assert read_token(path) == make.token
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read it; chmod 600"):
        read_token(path)


@pytest.mark.parametrize("content", ["", "short", "two words of a long enough token", "x" * 600, "ü" * 30])
def test_what_is_no_token_is_refused_and_not_repeated(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="--token-file") as refused:
        read_token(path)
    assert not content or content not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "missing")


@pytest.mark.parametrize(
    "name", ["..", "../run", "%2e%2e", "run/..", "run%2F..%2Frun", "federation", "nothing", "\x00", "run\n", "x" * 5000]
)
def test_names_that_are_no_run_find_nothing(client: Ask, make: Any, tmp_path: Path, name: str) -> None:
    make.run(tmp_path / "home" / "runs" / "first")
    make.run(tmp_path / "run")
    answer = client(tmp_path / "home").get("/api/runs/" + "".join(f"%{b:02x}" for b in name.encode()))
    assert answer.status_code == 404
    assert "secagg" not in answer.text


def test_runs_with_odd_names_are_found(client: Ask, make: Any, tmp_path: Path) -> None:
    name = "a b&c <i>#é?"
    make.run(tmp_path / "runs" / name)
    asked = client(tmp_path / "runs")
    (found,) = asked.get("/api/overview").json()["runs"]
    assert found["name"] == name
    address = "".join(f"%{b:02x}" for b in name.encode())
    assert asked.get(f"/api/runs/{address}").json()["name"] == name


@pytest.mark.parametrize(
    "query", ["rounds=-1", "rounds=x", "events=1e9", "rounds=9999999999999", f"generation={'x' * 99}"]
)
def test_places_that_are_none_are_refused(client: Ask, run_folder: Path, query: str) -> None:
    assert client(run_folder).get(f"/api/runs/run?{query}").status_code == 422


@pytest.mark.parametrize(("rounds", "events"), list(itertools.product((0, 3, 6, 99), (0, 2, 99))))
def test_any_place_may_be_asked_for(client: Ask, run_folder: Path, rounds: int, events: int) -> None:
    asked = client(run_folder)
    generation = asked.get("/api/runs/run").json()["generation"]
    told = asked.get(f"/api/runs/run?generation={generation}&rounds={rounds}&events={events}").json()
    assert len(told["rounds"]) == max(0, 6 - rounds)
    assert len(told["events"]) == max(0, 3 - events)


def test_a_silo_has_no_runs_and_a_run_no_silo(client: Ask, run_folder: Path, silo_folder: Path) -> None:
    assert client(run_folder).get("/api/silo").status_code == 404
    assert client(silo_folder).get("/api/runs/silo").status_code == 404


def test_a_thousand_rounds_stay_small_where_little_is_new(client: Ask, make: Any, tmp_path: Path) -> None:
    folder = make.run(tmp_path / "run", rounds=1)
    make.append(folder / "metrics.jsonl", *(make.metrics_line(number, layers=40) for number in range(1, 1000)))
    asked = client(folder)
    told = asked.get("/api/runs/run").json()
    assert len(told["rounds"]) == 1000
    make.append(folder / "metrics.jsonl", make.metrics_line(1000, layers=40))
    more = asked.get(f"/api/runs/run?generation={told['generation']}&rounds=1000&events={told['events_told']}")
    assert [row["round"] for row in more.json()["rounds"]] == [1000]
    assert len(more.content) < 6000


def test_metrics_of_a_run_can_be_read_by_prometheus(client: Ask, run_folder: Path) -> None:
    answer = client(run_folder).get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = samples(answer.text)
    assert found["rounds_total", ("run",)] == 6
    assert found["rounds_planned", ("run",)] == 20
    assert found["epsilon_planned", ("run",)] == 0.05
    assert found["epsilon_target", ("run",)] == 8
    assert found["score", ("run", "accuracy")] == 0.505
    assert found["params_live", ("run",)] == 500
    assert found["upload_dense_fp32_bytes_total", ("run",)] == 24000
    assert found["silo_up", ("north", "run", "1")] == 1
    assert found["silo_up", ("west", "run", "3")] == 0
    assert found["silo_drops_total", ("west", "run", "3")] == 1
    assert found["drops_total", ("run", "masked")] == 5
    assert found["events_total", ("abort", "run")] == 1
    assert found["layer_agreement", ("conv2", "run")] == 0.2
    assert found["run_state", ("run", "running")] == 1


def test_metrics_escape_what_comes_from_outside(client: Ask, make: Any, tmp_path: Path) -> None:
    names = ('a"b\\c', "x{y}=1", make.hostile)
    folder = make.run(tmp_path / "run", names=names)
    make.append(folder / "events.jsonl", {"event": 'odd"\nname 1\n# TYPE', "time": 1.0})
    found = samples(client(folder).get("/metrics").text)
    assert {labels[0] for name, labels in found if name == "silo_up"} == set(names)
    assert found["events_total", ('odd"\nname 1\n# TYPE', "run")] == 1


def test_metrics_leave_out_all_finished_runs_but_the_newest(client: Ask, make: Any, tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new", "going")):
        folder = make.run(tmp_path / "runs" / name)
        if name != "going":
            (folder / "summary.json").write_text('{"rounds": 6}')
        for file in folder.glob("*.json*"):
            os.utime(file, (1000.0 * (number + 1),) * 2)
    found = samples(client(tmp_path / "runs").get("/metrics").text)
    assert {labels[0] for name, labels in found if name == "rounds_total"} == {"new", "going"}


def test_metrics_of_a_silo(make: Any, silo_folder: Path) -> None:
    home = open_home(silo_folder)
    assert home.silo is not None
    home.silo.ledger.refresh()
    found = samples(make.client(home).get("/metrics").text)
    assert found["ledger_lines", ()] == 4
    assert found["ledger_readable", ()] == 1
    assert 0 < found["ledger_epsilon", ("train", "total")] < 4
    assert found["ledger_epsilon_cap", ("train", "year")] == 4
    assert found["messages_sent_total", ("reply", "masked")] == 4
    assert found["sent_bytes_total", ("reply", "masked")] == 2000
