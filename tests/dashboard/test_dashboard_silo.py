"""A silo's own page: what its ledger, policy, officer and audit log say, and that reading them changes nothing."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.dashboard.homes import open_home
from autoflip_secure.dashboard.ledger_watch import TRIES
from autoflip_secure.dashboard.silo_view import MOST_KINDS, MOST_MESSAGES, SiloView
from autoflip_secure.errors import StorageError
from autoflip_secure.federation.approvals import SHOWN_DIGITS, ApprovalStore
from autoflip_secure.privacy import ledger_reading
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.storage import open_silo_database


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))}


def test_what_is_spent_is_what_the_lines_cost(silo_folder: Path) -> None:
    view = SiloView(silo_folder)
    ledger = view.ledger.refresh()
    (train,) = ledger["datasets"]
    spent = epsilon([Mechanism(1.0, 13.0, 4)], 1e-5)
    assert ledger["lines"] == 4
    assert train["epsilon"] == spent
    assert (train["epsilon_cap"], train["epsilon_per_year_cap"]) == (8.0, 4.0)
    assert train["course"] == [(n, epsilon([Mechanism(1.0, 13.0, n)], 1e-5)) for n in (1, 2, 3)] + [(4, spent)]
    assert view.page()["ledger"] == ledger


def test_the_figures_follow_the_ledger(make: Any, silo_folder: Path) -> None:
    view = SiloView(silo_folder)
    assert view.ledger.current()["status"] == "reading"
    until = time.monotonic() + 60
    while view.ledger.current()["status"] == "reading":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert view.ledger.current()["lines"] == 4
    make.charge(silo_folder, 2, first=4)
    while view.ledger.current()["lines"] == 4:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert view.ledger.current()["lines"] == 6


@pytest.mark.parametrize("open_meanwhile", [False, True])
def test_reading_changes_no_file_and_makes_none(make: Any, silo_folder: Path, open_meanwhile: bool) -> None:
    database = open_silo_database(silo_folder / "state.sqlite") if open_meanwhile else None
    if database is not None:
        database.execute("CREATE TABLE more (value TEXT)")  # a write-ahead log is there
    before = contents(silo_folder)
    view = SiloView(silo_folder)
    assert view.ledger.refresh()["status"] == "read"
    view.page()
    after = contents(silo_folder)
    shared = str(silo_folder / "state.sqlite-shm")  # holds locks of readers, and nothing else
    assert {p: h for p, h in after.items() if p != shared} == {p: h for p, h in before.items() if p != shared}
    if database is not None:
        database.execute("INSERT INTO more VALUES ('the silo can still write')")
        database.close()


def test_secrets_and_the_silos_own_log_are_not_shown(make: Any, silo_folder: Path) -> None:
    home = open_home(silo_folder)
    assert home.silo is not None
    home.silo.ledger.refresh()
    asked = make.client(home)
    for path in ("/api/silo", "/api/overview", "/metrics"):
        text = asked.get(path).text
        for secret in ("the secret identity", "what the silo's own log says", "5a17", "d16e57"):
            assert secret not in text
    for path in ("/silo.log", "/identity.key", "/static/../silo.log", "/static/%2e%2e/identity.key", "/api/silo.log"):
        assert asked.get(path).status_code == 404


def test_what_left_is_told_piece_by_piece(make: Any, silo_folder: Path) -> None:
    view = SiloView(silo_folder)
    told = view.page()
    assert told["messages_told"] == 8
    assert told["messages"][0] == {
        "n": 1, "time": 1e9, "kind": "reply", "stage": "masked", "round": 0, "attempt": 0, "status": "ok", "error": "",
        "bytes": 500, "channels": [["update", 120], ["count", 1]], "ledger": [1, "ff"],
    }  # fmt: skip
    assert told["sent"] == [
        {"kind": "reply", "stage": "masked", "lines": 4, "bytes": 2000},
        {"kind": "reply", "stage": "confirm", "lines": 4, "bytes": 320},
    ]
    make.append(silo_folder / "audit.jsonl", {"n": 9, "kind": "reply", "bytes": 20, "stage": "unmask"})
    more = view.page(told["generation"], told["messages_told"])
    assert [message["n"] for message in more["messages"]] == [9]
    assert view.page(more["generation"], more["messages_told"])["messages"] == []


def test_of_a_long_audit_log_the_newest_lines_are_kept_and_all_are_counted(make: Any, silo_folder: Path) -> None:
    lines = [{"n": n, "kind": "reply", "bytes": 1} for n in range(9, MOST_MESSAGES + 100)]
    make.append(silo_folder / "audit.jsonl", *lines)
    told = SiloView(silo_folder).page()
    assert len(told["messages"]) == MOST_MESSAGES
    assert told["messages"][-1]["n"] == MOST_MESSAGES + 99
    assert sum(each["lines"] for each in told["sent"]) == MOST_MESSAGES + 99


def test_stages_that_nobody_knows_are_counted_together(make: Any, silo_folder: Path) -> None:
    make.append(silo_folder / "audit.jsonl", *({"kind": "reply", "stage": f"made up {n}"} for n in range(500)))
    sent = SiloView(silo_folder).page()["sent"]
    assert len(sent) == MOST_KINDS + 1
    assert sent[-1] == {"kind": "reply", "stage": "others", "lines": 500 - MOST_KINDS + 2, "bytes": 0}


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"kind": None, "bytes": -5},
        {"kind": "x", "bytes": True},
        {"kind": ["x"], "channels": "all", "n": float("nan")},
        {"channels": [[[[[[1]]]]]]},
    ],
)
def test_audit_lines_of_another_form_stop_nothing(make: Any, silo_folder: Path, line: dict[str, Any]) -> None:
    make.append(silo_folder / "audit.jsonl", line)
    told = SiloView(silo_folder).page()
    json.dumps(told, allow_nan=False)
    assert told["messages_told"] == 9


def test_a_damaged_ledger_is_said_to_be(silo_folder: Path) -> None:
    database = open_silo_database(silo_folder / "state.sqlite")
    database.execute("DROP TRIGGER privacy_ledger_fixed")
    database.execute("UPDATE privacy_ledger SET count = 2 WHERE line = 3")
    database.close()
    ledger = SiloView(silo_folder).ledger.refresh()
    assert ledger["status"] == "error"
    assert "restore the file from a backup" in ledger["error"]


def test_a_silo_that_has_joined_nothing_has_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("")
    view = SiloView(tmp_path)
    assert view.ledger.refresh() == {"status": "none"}
    told = view.page()
    assert told["approvals"] == {"status": "none", "runs": []}
    assert told["policy"]["status"] == "read"
    assert told["name"] == tmp_path.name


def test_a_policy_is_read_again_when_it_changes(silo_folder: Path) -> None:
    view = SiloView(silo_folder)
    assert view.page()["policy"]["settings"]["epsilon_per_year"] == 4.0
    (silo_folder / "policy.toml").write_text("epsilon_per_year = 2.5\n")
    assert view.page()["policy"]["settings"]["epsilon_per_year"] == 2.5
    (silo_folder / "policy.toml").write_text("epsilonn = 2\n")
    assert view.page()["policy"]["status"] == "error"
    (silo_folder / "policy.toml").unlink()
    assert view.page()["policy"] == {"status": "none"}


def test_runs_that_asked_are_told_with_what_the_officer_said(make: Any, silo_folder: Path) -> None:
    view = SiloView(silo_folder)
    assert view.page()["approvals"]["runs"] == []
    digests = [make.ask_to_join(silo_folder, *run) for run in ((3, "approved"), (4, "denied"), (5, ""))]
    told = view.page()["approvals"]
    assert told["status"] == "read"
    rows = [(run["run"], run["state"], run["by"], run["words"]) for run in told["runs"]]
    assert rows == [
        (digests[2].hex()[:SHOWN_DIGITS], "pending", None, "digits, mlp, 5 rounds, epsilon 2"),
        (digests[1].hex()[:SHOWN_DIGITS], "denied", "officer", "digits, mlp, 4 rounds, epsilon 2"),
        (digests[0].hex()[:SHOWN_DIGITS], "approved", "officer", "digits, mlp, 3 rounds, epsilon 2"),
    ]
    database = open_silo_database(silo_folder / "state.sqlite")
    store = ApprovalStore(database)
    assert store.find(rows[0][0], deciding=True).digest == digests[2], "what is shown is enough to approve it"
    database.close()
    make.ask_to_join(silo_folder, 5, "approved")
    make.ask_to_join(silo_folder, 3, "denied")
    states = {run["run"]: run["state"] for run in view.page()["approvals"]["runs"]}
    assert states == dict(zip((d.hex()[:SHOWN_DIGITS] for d in digests), ("denied", "denied", "approved"), strict=True))


def test_a_request_that_is_not_what_its_digest_says_is_not_put_into_words(make: Any, silo_folder: Path) -> None:
    make.ask_to_join(silo_folder, 3)
    database = open_silo_database(silo_folder / "state.sqlite")
    database.execute("UPDATE asked_runs SET digest = ?", (bytes(32),))
    database.execute("INSERT INTO asked_runs SELECT ?, ?, 2e9, 0.0", (b"\x01" * 32, b"of another version"))
    database.close()
    told = SiloView(silo_folder).page()["approvals"]["runs"]
    assert [(run["state"], run["words"]) for run in told] == [("pending", ""), ("pending", "")]


def test_a_silo_that_begins_to_write_is_waited_for(silo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = ledger_reading.read_ledger, []

    def busy_at_first(path: Path) -> Any:
        tries.append(path)
        if len(tries) < TRIES:
            raise StorageError("a silo began to write while it was read; try again")
        return real(path)

    monkeypatch.setattr(ledger_reading, "read_ledger", busy_at_first)
    assert SiloView(silo_folder).ledger.refresh()["status"] == "read"
    assert len(tries) == TRIES


def test_after_something_unforeseen_the_ledger_is_looked_at_again(
    make: Any, silo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = SiloView(silo_folder)
    with monkeypatch.context() as patch:
        patch.setattr(ledger_reading, "read_ledger", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            view.ledger.refresh()
        assert view.ledger.current()["status"] == "error"
    assert view.ledger.refresh()["status"] == "read"
