"""autoflip-secure ledger, as an auditor types it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoflip_secure.cli import main
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.privacy.accounting import Mechanism, epsilon
from autoflip_secure.privacy.ledger import Ledger, LedgerLine
from autoflip_secure.storage import open_silo_database

SESSION = b"s" * 16
SPENT = 5
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A silo's folder whose ledger has five lines."""
    folder = tmp_path / "run" / "silos" / "silo-001"
    folder.mkdir(parents=True)
    (folder / "policy.toml").write_text(SiloPolicy(epsilon_per_run=2.0, epsilon_per_year=4.0).to_toml())
    (folder / "identity.key").write_text("a secret")
    database = open_silo_database(folder / "state.sqlite")
    database.execute("CREATE TABLE secrets (secret TEXT)")
    database.execute("INSERT INTO secrets VALUES ('a secret of a slot')")
    ledger = Ledger(database, silo="1", session=SESSION, budgets={"train": 8.0}, delta=1e-5, trust="distributed")
    for number in range(SPENT):
        ledger.charge(LedgerLine(SESSION, "train", number, 0, "train", 1.0, 13.0, 0.1, 1, bytes(32)))
    database.close()
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run(command, *arguments) -> exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["ledger", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def spend_more_than_is_allowed(home: Path) -> None:
    """Lines and hashes are in order, the sum is not: as a silo whose own check is broken would leave them."""
    database = open_silo_database(home / "state.sqlite")
    budgets = {"train": 100.0}
    ledger = Ledger(database, silo="1", session=SESSION, budgets=budgets, delta=1e-5, trust="distributed")
    ledger.charge(LedgerLine(SESSION, "train", SPENT, 0, "train", 1.0, 1.0, 0.1, 20, bytes(32)))
    database.close()


def spend_for_more_colluders(home: Path) -> None:
    """Three uses of another run, noised for three colluders."""
    session = b"t" * 16
    database = open_silo_database(home / "state.sqlite")
    options = {"trust": "distributed", "colluders": 3}
    ledger = Ledger(database, silo="1", session=session, budgets={"train": 8.0}, delta=1e-5, **options)
    ledger.charge(LedgerLine(session, "train", 0, 0, "train", 1.0, 13.0, 0.1, 3, bytes(32)))
    database.close()


def test_help_answers_at_once() -> None:
    started = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "autoflip_secure.cli", "ledger", "show", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert not loaded & {"torch", "opacus", "dp_accounting", "flwr", "numpy", "sqlite3"}
    assert "--lines" in found.stdout
    assert time.perf_counter() - started < 20, "hangs"


def test_show_says_what_was_spent_and_what_is_left(run: Run, home: Path) -> None:
    code, text, _ = run("show", home)
    spent = epsilon([Mechanism(1.0, 13.0, SPENT)], 1e-5)
    assert code == 0
    for words in (
        "Silo 1, train records: epsilon of a record",
        "delta 1e-05",
        "distributed",
        "73737373",
        f"{spent:.4g} of 8 ({8 - spent:.4g} left)",
    ):
        assert words in text
    assert f"{spent:.4g} of 4 ({4 - spent:.4g} left) within 365 days; cap of one run: 2 (caps: policy.toml)" in text
    assert "a secret" not in text
    assert "Silo 1: lines" not in text
    assert "Silo 1: lines" in run("show", home, "--lines")[1]


def test_what_holds_against_fewer_colluders_is_told_apart(run: Run, home: Path) -> None:
    spend_for_more_colluders(home)
    words = f"{SPENT} uses hold against 0 colluders at most, and a run promises 3: against these the other 3 uses cost "
    spent = epsilon([Mechanism(1.0, 13.0, 3)], 1e-5)
    assert f"{words}epsilon {spent:.4g}" in run("show", home)[1]
    code, text, _ = run("verify", home)
    assert code == 0, "it is told, and is no failure"
    assert f"silo 1, train records: {words}epsilon {spent:.4g}" in text
    (ledger,) = json.loads(run("show", home, "--json")[1])["ledgers"]
    (train,) = ledger["datasets"]
    assert [(each["unit"], each["colluders"]) for each in train["sessions"]] == [("record", 0), ("record", 3)]
    assert train["adversaries"][1] == {"colluders": 3, "epsilon": spent, "uses": 3, "uses_that_bear_fewer": SPENT}


def test_show_as_json(run: Run, home: Path) -> None:
    code, text, _ = run("show", home / "state.sqlite", "--json", "--lines", "--delta", "1e-6")
    (ledger,) = json.loads(text)["ledgers"]
    (train,) = ledger["datasets"]
    assert code == 0
    assert (train["delta"], train["epsilon_cap"], train["lines"]) == (1e-6, 8.0, SPENT)
    assert train["epsilon"] == epsilon([Mechanism(1.0, 13.0, SPENT)], 1e-6)
    assert train["sessions"][0]["uses"][0]["uses"] == SPENT
    assert [line["round"] for line in ledger["every_line"]] == list(range(SPENT))


def test_verify_passes_and_prints_both_accountants(run: Run, home: Path) -> None:
    for path in (home, home / "state.sqlite", home.parents[1]):
        code, text, error = run("verify", path)
        assert (code, error) == (0, "")
        for words in ("PRV", "PLD", "RDP", "0.", "silo 1: adds up; hash of the last line "):
            assert words in text
    head = text.split("hash of the last line ")[1].split()[0]
    assert run("verify", home, "--head", head)[0] == 0
    assert run("verify", home, "--head", "ab" * 32)[0] == 3
    assert run("verify", home, "--head", "ab")[0] == 2


def test_verify_fails_with_one_line_where_caps_are_exceeded(run: Run, home: Path) -> None:
    spend_more_than_is_allowed(home)
    code, text, error = run("verify", home)
    assert code == 3
    assert error.count("\n") == 1
    assert f"the ledger of silo 1 ({home / 'state.sqlite'}) does not add up: train records: epsilon " in error
    assert "was spent in all, the cap is 8 (policy.toml) (and 2 more, listed above)" in error
    assert "within 365 days, the cap is 4" in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE privacy_ledger SET noise_multiplier = 99.0 WHERE line = 2", "damaged at line 2"),
        ("DELETE FROM privacy_ledger WHERE line = 3", "damaged at line 3"),
        ("DELETE FROM privacy_ledger WHERE line = 5", "lost its last lines (4 of 5 are there)"),
        ("UPDATE privacy_ledger_terms SET epsilon = 99.0", "damaged at the terms of line 1"),
    ],
)
def test_verify_names_the_damage(run: Run, home: Path, damage: str, words: str) -> None:
    with sqlite3.connect(home / "state.sqlite") as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute(damage)
        for _, sql in triggers:
            database.execute(sql)
    for command in ("verify", "show", "export"):
        code, _, error = run(command, home)
        assert code == 3
        assert error.count("\n") == 1
        assert words in error


def test_verify_holds_a_run_against_its_summary(run: Run, home: Path) -> None:
    spent = epsilon([Mechanism(1.0, 13.0, SPENT)], 1e-5)
    row = {"silo": 1, "dataset": "train", "lines": SPENT, "epsilon": spent}
    for claimed, expected in ((spent, 0), (spent * 0.9, 3)):
        summary = {"ledgers": [{**row, "epsilon": claimed}]}
        (home.parents[1] / "summary.json").write_text(json.dumps(summary))
        code, text, error = run("verify", home.parents[1])
        assert code == expected, error
        assert f"{claimed:.4g}" in text


def test_verify_fails_where_the_accountants_differ(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoflip_secure.privacy import accounting

    pld = accounting._pld
    accounting._epsilon.cache_clear()
    monkeypatch.setattr(accounting, "_pld", lambda *args: pld(*args) * 0.98)
    code, _, error = run("verify", home)
    accounting._epsilon.cache_clear()
    assert code == 3
    assert "PRV gives epsilon" in error
    assert "apart at delta 1e-05" in error


def test_export_is_whole_private_and_never_replaces_what_it_should_not(run: Run, home: Path, tmp_path: Path) -> None:
    target = tmp_path / "ledger.csv"
    assert run("export", home, "--output", target)[0] == 0
    assert target.stat().st_mode & 0o077 == 0
    text = target.read_text()
    assert text == run("export", home)[1]
    assert text.count("\n") == SPENT + 1
    assert "secret" not in text
    code, _, error = run("export", home, "--output", target, "--format", "jsonl")
    assert (code, target.read_text()) == (2, text)
    assert "--force" in error
    assert run("export", home, "--output", target, "--format", "jsonl", "--force")[0] == 0
    assert [json.loads(line)["line"] for line in target.read_text().splitlines()] == [1, 2, 3, 4, 5]
    before = (home / "state.sqlite").read_bytes()
    (tmp_path / "link").hardlink_to(home / "state.sqlite")
    for name in ("state.sqlite", "state.sqlite-wal", "../../../link"):
        code, _, error = run("export", home, "--output", home / name, "--force")
        assert code == 2
        assert "is the ledger itself" in error
    assert (home / "state.sqlite").read_bytes() == before
    assert sorted(path.name for path in home.iterdir()) == ["identity.key", "policy.toml", "state.sqlite"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", "nowhere"), 2, "nowhere: is not there; give a silo's folder"),
        (("verify", "."), 2, "state.sqlite: is not there"),
        (("export", "text"), 3, "cannot read the privacy ledger text: file is not a database"),
        (("export", "empty"), 2, "empty: holds no privacy ledger"),
        (("export", "home", "--format", "xml"), 2, "--format xml: is neither csv nor jsonl"),
        (("export", "home", "--output", "nowhere/file"), 2, "--output nowhere/file: its folder does not exist"),
        (("export", "home", "--output", ".", "--force"), 2, "--output .: exists"),
        (("show", "home", "--delta", "2"), 2, "--delta 2.0: is not within"),
        (("show", "--jason", "home"), 2, "No such option"),
    ],
)
def test_bad_input_is_one_line(
    run: Run,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("not a database " * 300)
    (tmp_path / "empty").touch()
    home.rename(tmp_path / "home")
    found = run(*arguments)
    assert found[0] == code, found
    assert words in found[2]
    assert found[2].count("\n") == 1
    assert not found[1]


def test_a_silo_that_spent_nothing(run: Run, tmp_path: Path) -> None:
    database = open_silo_database(tmp_path / "state.sqlite")
    Ledger(database, silo="4", session=SESSION, budgets={"train": 8.0}, delta=1e-5)
    database.close()
    assert run("show", tmp_path)[1] == "Silo 4: no line yet; nothing is spent\n"
    assert run("verify", tmp_path)[0] == 0
    assert run("export", tmp_path)[1].count("\n") == 1
