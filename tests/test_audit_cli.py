"""`autoflip-secure audit` on real runs: whole logs pass, and every way of tampering is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoflip_secure.cli import main
from autoflip_secure.federation import audit_log, client_app
from autoflip_secure.federation.audit_log import AuditLog, Head, LogLine, read_line
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.parties.identity import Identity
from autoflip_secure.sim import main as simulate

SMALL = (
    "--dataset",
    "digits",
    "--model",
    "mlp",
    "--silos",
    "4",
    "--rounds",
    "3",
    "--workers",
    "0",
    "--quiet",
    "--no-report",
)
PLAIN = ("--prune", "none")
PRIVATE = ("--prune", "none", "--dp-epsilon", "8", "--colluders", "0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished federations of four silos, without DP and with it."""
    made = {}
    for name, options in (("plain", PLAIN), ("private", PRIVATE)):
        client_app.close_silos()
        made[name] = tmp_path_factory.mktemp("audit") / name
        assert simulate([*SMALL, *options, "--run-dir", str(made[name])]) == 0
    client_app.close_silos()
    return made


class Party:
    """A party's log, for tampering with."""

    def __init__(self, home: Path, key: str) -> None:
        self.path, self.key = home / "audit.jsonl", home / key

    def read(self) -> list[bytes]:
        return self.path.read_bytes().splitlines()

    def write(self, lines: list[bytes]) -> None:
        self.path.write_bytes(b"".join(line + b"\n" for line in lines))

    def lines(self) -> list[LogLine]:
        return [read_line(raw) for raw in self.read()]

    def place(self, stage: str, which: int = 0) -> int:
        """Index of a line about a stage."""
        return [i for i, line in enumerate(self.lines()) if line.fields.get("stage") == stage][which]

    def signed_anew(self, lines: list[bytes], start: int, identity: Identity, changes: dict[str, Any]) -> list[bytes]:
        """The lines with the first from `start` on changed, and all of them numbered, chained and signed again."""
        made = lines[:start]
        before = read_line(made[-1]).digest if made else audit_log.FIRST
        for number, raw in enumerate(lines[start:], start=start + 1):
            fields = {**read_line(raw).fields, **(changes if number == start + 1 else {})}
            fields |= {"n": number, "previous": before.hex()}
            text = json.dumps(fields, separators=(",", ":"))[:-1].encode()
            head = Head.signed(number, audit_log._digest(text), identity)
            end = f',"digest":"{head.digest.hex()}","signature":"{head.signature.hex()}"}}'
            made.append(text + end.encode())
            before = head.digest
        return made

    @property
    def identity(self) -> Identity:
        return Identity.load(self.key)


class Run:
    """A copy of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.coordinator = Party(path / "federation", "coordinator.key")

    def silo(self, number: int) -> Party:
        return Party(silo_folder(self.path, number), "identity.key")


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Run:
    shutil.copytree(runs["plain"], tmp_path / "run")
    return Run(tmp_path / "run")


Verify = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """verify(paths...) -> exit code, JSON on stdout, stderr."""

    def call(*paths: Path) -> tuple[int, dict[str, Any], str]:
        code = main(["audit", "verify", "--json", *map(str, paths)])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if printed.out else {}, printed.err

    return call


def found(values: dict[str, Any], path: Path) -> list[tuple[str, int]]:
    """(kind, line) of all that was found in one log."""
    (log,) = [each for each in values["logs"] if each["path"] == str(path)]
    return [(finding["kind"], finding["line"]) for finding in log["findings"]]


# Whole logs


@pytest.mark.parametrize("name", ["plain", "private"])
def test_the_logs_of_a_run_are_whole_and_agree(runs: dict[str, Path], name: str, verify: Verify) -> None:
    code, values, error = verify(runs[name])
    assert (code, error) == (0, "")
    assert len(values["logs"]) == 5
    assert [log["party"] for log in values["logs"]] == ["coordinator", *(f"silo {n} (silo-{n})" for n in range(1, 5))]
    assert not any(log["findings"] for log in values["logs"])
    for log in values["logs"]:
        assert verify(Path(log["path"]))[0] == 0, "by itself, too"


def test_a_silo_s_log_says_what_left_and_what_paid_for_it(runs: dict[str, Path]) -> None:
    silo = Run(runs["private"]).silo(1)
    lines = silo.lines()
    assert [line.kind for line in lines[:2]] == ["opened", "join"]
    sent = [line.fields for line in lines if "manifest" in line.fields and line.fields["status"] == "ok"]
    assert {line["phase"] for line in sent} >= {"train"}
    for line in sent:
        assert line["channels"]
        assert (line["cohort"], line["privacy"]["trust"]) == (4, "distributed")
        assert line["bytes"] > 8 * line["channels"][0][1] // 4
    numbers = [line["ledger"][0] for line in sent]
    assert numbers == sorted(set(numbers))
    statuses = {line.fields["status"] for n in range(1, 5) for line in Run(runs["private"]).silo(n).lines()[1:]}
    assert statuses == {"ok"}


def test_every_head_that_left_is_in_the_coordinator_s_log(runs: dict[str, Path]) -> None:
    run = Run(runs["plain"])
    held = {
        (key, head[0]) for line in run.coordinator.lines() for key, head in line.fields.get("witnessed", {}).items()
    }
    for number in range(1, 5):
        public = run.silo(number).identity.public.hex()
        assert {count for key, count in held if key == public} == set(range(2, len(run.silo(number).read()) + 1))


def test_every_silo_witnesses_every_other_party(runs: dict[str, Path]) -> None:
    run = Run(runs["plain"])
    publics = {party.identity.public.hex() for party in (run.coordinator, *(run.silo(n) for n in range(1, 5)))}
    for number in range(1, 5):
        seen = {key for line in run.silo(number).lines() for key in line.fields.get("witnessed", {})}
        assert seen == publics - {run.silo(number).identity.public.hex()}


# Tampering that a log shows by itself


def edited(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("masked")
    lines[at] = lines[at].replace(b'"bytes":', b'"bytes":9')
    silo.write(lines)
    return silo, [("edited", at + 1)]


def edited_with_a_new_digest(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    """Anybody can compute the digest, but not sign it."""
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("masked")
    fields = {**read_line(lines[at]).fields, "cohort": 400}
    text = json.dumps(fields, separators=(",", ":"))[:-1].encode()
    lines[at] = text + f',"digest":"{audit_log._digest(text).hex()}"'.encode() + lines[at][-144:]
    silo.write(lines)
    return silo, [("forged", at + 1), ("replaced", at + 2), ("rewritten", at + 1)]


def line_signed_anew(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    """By the silo itself, without the lines after it."""
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("masked")
    silo.write([*silo.signed_anew(lines[: at + 1], at, silo.identity, {"cohort": 400}), *lines[at + 1 :]])
    return silo, [("replaced", at + 2), ("rewritten", at + 1)]


def tail_with_new_digests_and_another_key(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    at = silo.place("unmask", -1)
    silo.write(silo.signed_anew(silo.read(), at, Identity.generate(), {"bytes": 1}))
    return silo, [("forged", at + 1), ("rewritten", at + 1)]


def deleted(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("confirm")
    silo.write([*lines[:at], *lines[at + 1 :]])
    return silo, [("deleted", at + 1)]


def first_line_deleted(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    silo.write(silo.read()[1:])
    return silo, [("deleted", 1)]


def swapped(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("confirm")
    silo.write([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])
    return silo, [("moved", at + 1), ("moved", at + 2)]


def inserted(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("confirm")
    extra = silo.signed_anew([*lines[:at], lines[at]], at, silo.identity, {"bytes": 1})[-1]
    silo.write([*lines[: at + 1], extra, *lines[at + 1 :]])
    return silo, [("inserted", at + 2)]


def duplicated(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("confirm")
    silo.write([*lines[: at + 1], lines[at], *lines[at + 1 :]])
    return silo, [("duplicate", at + 2)]


def spliced(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("confirm")
    lines[at] = run.silo(3).read()[at]
    silo.write(lines)
    return silo, [("replaced", at + 1), ("replaced", at + 2), ("spliced", at + 1), ("rewritten", at + 1)]


def cut_within_a_line(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    data = silo.path.read_bytes()
    silo.path.write_bytes(data[:-100])
    return silo, [("cut", data.count(b"\n")), ("cut-off", data.count(b"\n") - 1)]


def garbled(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, at = silo.read(), silo.place("confirm")
    lines[at] = b"\xff" + lines[at][1:]
    silo.write(lines)
    return silo, [("malformed", at + 1)]


def begun_anew_by_a_stranger(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines, thief = silo.read(), Identity.generate()
    silo.write(silo.signed_anew(lines, 0, thief, {"key": thief.public.hex()}))
    return silo, [("stranger", 1)]


# Tampering that only others show


def last_lines_deleted(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    lines = silo.read()
    silo.write(lines[:-2])
    return silo, [("cut-off", len(lines) - 2)]


def older_copy(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    silo.write(silo.read()[:4])
    return silo, [("cut-off", 4)]


def history_signed_anew(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    """A silo that takes a use of its records out of its history and has all keys to do it well."""
    silo = run.silo(2)
    at = silo.place("masked")
    silo.write(silo.signed_anew(silo.read(), at, silo.identity, {"status": "dropped", "bytes": 0}))
    return silo, [("rewritten", at + 1)]


def coordinator_s_history_signed_anew(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    """Only as far as silos saw its heads is it held to them."""
    party = run.coordinator
    at = party.place("masked")
    party.write(party.signed_anew(party.read(), at, party.identity, {"cohorts": [[1, 2, 3]]}))
    shown = min(n for n in party_heads(run) if n > at)
    return party, [("rewritten", shown)]


def party_heads(run: Run) -> set[int]:
    """Lines of the coordinator whose heads silos saw."""
    public = run.coordinator.identity.public.hex()
    return {line.fields["witnessed"][public][0] for n in range(1, 5) for line in run.silo(n).lines()
            if public in line.fields.get("witnessed", {})}  # fmt: skip


def forged_head(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    """A coordinator that makes up a head of a silo, to accuse it."""
    party, silo = run.coordinator, run.silo(2)
    at = party.place("unmask", -1)
    fields = party.lines()[at].fields
    victim = silo.identity.public.hex()
    accused = {**fields["witnessed"], victim: [fields["witnessed"][victim][0], "ab" * 32, "cd" * 64]}
    party.write(party.signed_anew(party.read(), at, party.identity, {"witnessed": accused}))
    return party, [("forged", at + 1)]


def lie_about_what_was_received(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    party = run.coordinator
    at = party.place("unmask", -1)
    replies = {**party.lines()[at].fields["replies"], "2": ["ok", 5, "00" * 32]}
    party.write(party.signed_anew(party.read(), at, party.identity, {"replies": replies}))
    return party, [("contradiction", at + 1)]


def concealed_manifest(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    party = run.coordinator
    at = [i for i, line in enumerate(party.lines()) if "manifest" in line.fields][-1]
    party.write(party.signed_anew(party.read(), at, party.identity, {"manifest": "00" * 32}))
    return party, [("concealed", 0)]


def ledger_of_another_silo(run: Run) -> tuple[Party, list[tuple[str, int]]]:
    silo = run.silo(2)
    for file in silo.path.parent.glob("state.sqlite*"):
        file.unlink()
    for file in run.silo(3).path.parent.glob("state.sqlite*"):
        shutil.copy(file, silo.path.parent)
    return silo, [("ledger", silo.place("masked", n) + 1) for n in range(3)]


ALONE = [
    edited, edited_with_a_new_digest, line_signed_anew, tail_with_new_digests_and_another_key, deleted,
    first_line_deleted, swapped, inserted, duplicated, spliced, cut_within_a_line, garbled, begun_anew_by_a_stranger,
    forged_head, ledger_of_another_silo,
]  # fmt: skip
WITNESSED = [
    last_lines_deleted, older_copy, history_signed_anew, coordinator_s_history_signed_anew, lie_about_what_was_received,
    concealed_manifest,
]  # fmt: skip
Tampering = Callable[[Run], tuple[Party, list[tuple[str, int]]]]


@pytest.mark.parametrize("tamper", [*ALONE, *WITNESSED], ids=lambda tamper: tamper.__name__)
def test_tampering_is_found_and_named(run: Run, tamper: Tampering, verify: Verify) -> None:
    assert verify(run.path)[0] == 0
    party, expected = tamper(run)
    code, values, error = verify(run.path)
    assert code == 3
    assert sorted(found(values, party.path)) == sorted(expected), values
    if tamper is not begun_anew_by_a_stranger:
        others = [log for log in values["logs"] if log["path"] != str(party.path)]
        assert not any(log["findings"] for log in others), "nobody else is accused"
        assert f"the audit log {party.path}: " in error
        assert any(f"{kind}: " in error for kind, _ in expected)
    assert error.count("\n") == 1


@pytest.mark.parametrize("tamper", ALONE, ids=lambda tamper: tamper.__name__)
def test_such_tampering_shows_in_the_log_alone(run: Run, tamper: Tampering, verify: Verify) -> None:
    party, _ = tamper(run)
    assert verify(party.path)[0] == 3


@pytest.mark.parametrize("tamper", WITNESSED, ids=lambda tamper: tamper.__name__)
def test_such_tampering_takes_the_logs_of_others(run: Run, tamper: Tampering, verify: Verify) -> None:
    party, _ = tamper(run)
    assert verify(party.path)[0] == 0, "the party has the key to make a whole log of it"
    code, values, _ = verify(party.path, *(run.silo(n).path for n in (1, 2)), run.coordinator.path)
    assert code == 3
    assert found(values, party.path)


def test_one_honest_silo_is_enough_to_convict(run: Run, verify: Verify) -> None:
    """Coordinator and two silos rewrite together; the log of the third is the only one left as it was."""
    silo, _ = history_signed_anew(run)
    code, values, _ = verify(silo.path, run.silo(4).path)
    assert code == 3
    ((kind, line),) = found(values, silo.path)
    assert kind == "rewritten"
    assert line > silo.place("masked")


def test_a_log_that_is_gone_is_missed_in_a_run(run: Run, verify: Verify) -> None:
    run.silo(2).path.unlink()
    code, values, error = verify(run.path)
    assert code == 3
    assert len(values["logs"]) == 4
    assert "missing: the log of silo 2 (silo-2) is gone" in error
    assert verify(run.silo(1).path, run.silo(3).path)[0] == 0, "who gives single logs may leave others out"


def test_two_copies_of_a_log_that_differ_are_named(run: Run, tmp_path: Path, verify: Verify) -> None:
    silo = run.silo(2)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(silo.path.read_bytes())
    assert verify(silo.path, copy)[0] == 0
    copy.write_bytes(b"\n".join(silo.read()[:6]) + b"\n")
    code, values, _ = verify(silo.path, copy)
    assert (code, found(values, copy)) == (3, [("copy", 6)])


def test_two_heads_of_one_number_are_a_fork_though_their_log_is_away(run: Run, verify: Verify) -> None:
    """A silo that shows one history to the coordinator and another to a second one."""
    silo, witness = run.silo(2), run.silo(3)
    at = witness.place("masked", -1)
    fields = witness.lines()[at].fields
    public = silo.identity.public.hex()
    other = Head.signed(fields["witnessed"][public][0], b"\x01" * 32, silo.identity)
    seen = {**fields["witnessed"], public: [other.count, other.digest.hex(), other.signature.hex()]}
    witness.write(witness.signed_anew(witness.read(), at, witness.identity, {"witnessed": seen}))
    code, values, error = verify(run.coordinator.path, witness.path)
    assert code == 3
    assert "forked" in {kind for kind, _ in found(values, witness.path)}
    assert "silo 2 (silo-2) signed two different lines" in json.dumps(values) + error


# Who resumes


def test_a_silo_that_lost_lines_refuses_and_is_left_out(run: Run, verify: Verify) -> None:
    """The next run notices by itself, before anybody verifies."""
    silo, _ = last_lines_deleted(run)
    log = AuditLog(silo.path, silo.identity, "silo 2")
    log.append("join", status="ok")
    from autoflip_secure.federation.audit_trail import CoordinatorTrail
    from autoflip_secure.federation.wire import Reply
    from autoflip_secure.parties.roster import Roster

    roster = Roster.from_bytes((run.path / "federation/roster.bin").read_bytes())
    trail = CoordinatorTrail(AuditLog(run.coordinator.path, run.coordinator.identity, "coordinator"), roster)
    assert log.head is not None
    trail.joined({2: Reply("ok", head=log.head.to_bytes())})
    assert run.coordinator.lines()[-2].kind == "rejected"


# The commands


def test_the_table_names_parties_and_heads(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(runs["plain"])]) == 0
    printed = capsys.readouterr().out
    for words in ("coordinator", "silo 4 (silo-4)", "no sign of tampering; these logs agree"):
        assert words in printed


def test_findings_are_listed_with_file_and_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    silo, ((_, line),) = deleted(run)
    assert main(["audit", "verify", str(run.path)]) == 3
    printed = capsys.readouterr()
    assert f"{silo.path}: line {line}: deleted: line {line} is missing" in printed.out


def test_show_says_what_left(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "show", str(silo_folder(runs["private"], 1))]) == 0
    printed = capsys.readouterr().out
    for words in ("masked", "ledger line 1", "cohort of 4", "update["):
        assert words in printed
    assert main(["audit", "show", str(silo_folder(runs["private"], 1)), "--last", "1", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["lines"]
    assert line["kind"] == "reply"


def test_nothing_is_written(runs: dict[str, Path]) -> None:
    home = silo_folder(runs["plain"], 1)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(home.iterdir())}
    assert main(["audit", "verify", str(home)]) == 0
    assert main(["audit", "show", str(home)]) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(home.iterdir())} == before


@pytest.mark.parametrize(
    "arguments", [["verify"], ["verify", "nowhere"], ["show", "nowhere"], ["show", ".", "--last=-1"]]
)
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_without_a_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(tmp_path)]) == 2
    assert "no audit log is there" in capsys.readouterr().err
