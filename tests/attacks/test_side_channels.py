"""Sizes of messages do not depend on private data; reply times do, unless a silo's policy holds its replies back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from pydantic import ValidationError

from autoflip_secure.attacks.side_channels import (
    guessed_sizes,
    prepared_run,
    rank_correlation,
    reply_seconds,
    sizes_sent,
    told_apart,
)
from autoflip_secure.federation import client_app
from autoflip_secure.federation.client_app import silo_folder
from autoflip_secure.federation.exchange import KNOWN_ERRORS
from autoflip_secure.federation.policy import SiloPolicy
from autoflip_secure.federation.server_view import ServerView, read_server_view
from autoflip_secure.federation.silo import Silo
from autoflip_secure.federation.wire import Reply, Request
from autoflip_secure.sim import main

ONE, OTHER = (30, 60, 40, 50), (200, 45, 130, 330)
"""Records of the silos of two federations."""


@pytest.fixture(autouse=True)
def _fresh_process_state() -> None:
    client_app.close_silos()


def federation(folder: Path, records: tuple[int, ...], seed: int, options: dict[str, Any]) -> Path:
    """A run in this process over silos of made-up records that differ in everything: numbers, values, labels, gaps."""
    usual = {"rounds": 3, "evaluate_every": 2, "bits": 18, "sampling_rate": 0.3, "prune": "none"}
    prepared_run({**usual, **options}, folder, records=records, seed=seed)
    assert main(["--resume", str(folder), "--quiet", "--no-report"]) == 0
    return folder


CASES: dict[str, dict[str, Any]] = {
    "secure sums without DP": {},
    "secure sums, distributed DP, drops": {"dp_epsilon": 8.0, "dropout": 0.1, "reserve": 1.0, "min_cohort": 0.5},
}
SLOW_CASES: dict[str, dict[str, Any]] = {
    "no protection": {"aggregation": "none"},
    "local DP": {"dp_epsilon": 8.0, "dp_trust": "local"},
    "an adaptive clip": {"dp_epsilon": 8.0, "adaptive_clip": 0.5},
    "ckks": {"aggregation": "ckks"},
    "ckks, distributed DP": {"aggregation": "ckks", "dp_epsilon": 8.0},
    "units drawn at random are pruned": {"prune": "random", "prune_flops": 0.6},
    "unit energies and squares": {"prune": "autoflip", "explore_rounds": 1, "prune_threshold": 0.0, "prune_flops": 1.0},
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES)])
def test_two_federations_of_other_records_send_messages_of_the_same_sizes(case: str, tmp_path: Path) -> None:
    """Every stage of every phase, silo by silo: join, keys, shares, vectors, confirmations, openings, drops."""
    options = {**CASES, **SLOW_CASES}[case]
    sent = []
    for name, records in (("one", ONE), ("other", OTHER)):
        client_app.close_silos()
        run = federation(tmp_path / name, records, 3, options)
        sent.append(sizes_sent(run))
        assert {m["fields"]["error"] for m in read_server_view(run / "server_view")} <= {"", *KNOWN_ERRORS}
    one, other = sent
    assert one.keys() == other.keys() == {1, 2, 3, 4}
    assert sum(map(len, one.values())) > 20
    assert one == other


def test_refusals_and_failures_have_one_size_whatever_the_records(tmp_path: Path) -> None:
    """A silo of few records with gaps, one of many, and one whose file is damaged, asked for anything at any stage."""
    prepared_run({}, tmp_path / "run", records=(30, 60, 400))
    (silo_folder(tmp_path / "run", 3) / "data" / "train.npz").write_bytes(b"damaged")
    replies = []
    for number in (1, 2, 3):
        silo = Silo(silo_folder(tmp_path / "run", number))
        asked = [Request(stage, 0, 0, bytes(40), bytes(9), b"") for stage in client_app.STAGES]
        replies.append([_lengths(silo.answer(request)) for request in asked])
        silo.close()
    assert replies[0] == replies[1] == replies[2]


def _lengths(reply: Reply) -> tuple[int, ...]:
    return len(reply.status), len(reply.reply), len(reply.error), len(reply.head)


# The attacks

SENT = [(("join",), 1, 0, 102), (("masked", (4, 3)), 250, 0, 102)]


def test_silos_that_send_the_same_are_not_told_apart() -> None:
    assert told_apart({1: SENT, 2: SENT}, {1: 10, 2: 100}) == [0.5]


def test_a_size_that_depends_on_a_count_is_seen() -> None:
    """As a count in msgpack, or as text, would make it."""
    for written in (msgpack.packb, lambda count: str(count).encode()):
        sent = {
            silo: [*SENT, (("extra",), len(written(count)), 0, 102)] for silo, count in ((1, 40), (2, 400), (3, 90000))
        }
        assert told_apart(sent, {1: 40, 2: 400, 3: 90000}) == [1.0, 1.0, 1.0]


def test_what_is_public_of_a_message_tells_nothing() -> None:
    """A silo in another cohort may send another size."""
    other = [SENT[0], (("masked", (5, 3)), 282, 0, 102)]
    assert told_apart({1: SENT, 2: other}, {1: 10, 2: 100}) == [0.5]


def test_silos_of_like_size_are_no_pair() -> None:
    assert told_apart({1: SENT, 2: SENT}, {1: 10, 2: 25}) == []


def recorded(folder: Path, seconds: Callable[[int], float]) -> Path:
    """What a coordinator saw of silos 1 to 6 that take so long to train, written at made-up times."""
    import os

    view, now, place = ServerView(folder / "server_view"), 1000.0, 0
    for round_number in range(3):
        for silo in range(1, 7):
            fields = {"status": "ok", "reply": bytes(50), "error": "", "head": b""}
            view.received(stage="masked", round=round_number, attempt=0, sender=silo, fields=fields)
            now += seconds(silo)
            os.utime(folder / "server_view" / f"{place:06d}.msgpack", (now, now))
            place += 1
    return folder


def test_times_tell_the_order_of_silos(tmp_path: Path) -> None:
    guessed = guessed_sizes(recorded(tmp_path, lambda silo: 0.01 * silo**2))
    assert sorted(guessed, key=guessed.__getitem__) == [2, 3, 4, 5, 6], "nothing is known of who answers first"
    value, low, high = rank_correlation(list(guessed.values()), list(guessed))
    assert value == pytest.approx(1.0)
    assert low > 0.5
    assert high == pytest.approx(1.0)


def test_equal_times_tell_nothing(tmp_path: Path) -> None:
    seconds = reply_seconds(recorded(tmp_path, lambda silo: 0.25))
    assert {len(times) for kinds in seconds.values() for times in kinds.values()} == {3}
    assert rank_correlation([0.25] * 6, [1, 2, 3, 4, 5, 6])[0] == 0.0


def test_the_interval_of_a_correlation_holds_the_true_one() -> None:
    generator, inside = np.random.default_rng(0), 0
    for _ in range(200):
        _, low, high = rank_correlation(generator.normal(size=12).tolist(), generator.normal(size=12).tolist())
        inside += low <= 0 <= high
    assert inside >= 180


# Holding replies back


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float, float], tuple[float, Silo]]:
    """timed(stage, takes, every): seconds until a silo whose records take so long answers, under that reply_every."""
    prepared_run({}, tmp_path / "run", records=(30, 60, 40))

    def measured(stage: str, takes: float, every: float) -> tuple[float, Silo]:
        home = silo_folder(tmp_path / "run", 1)
        policy = home / "policy.toml"
        rest = [line for line in policy.read_text().splitlines() if not line.startswith("reply_every")]
        policy.write_text("\n".join([f"reply_every = {every}", *rest]))
        silo = Silo(home)

        def slowly(request: Request, facts: dict[str, Any]) -> Reply:
            time.sleep(takes)
            return Reply("ok")

        monkeypatch.setattr(silo, "_answer", slowly)
        started = time.monotonic()
        silo.answer(Request(stage, 0, 0, b""))
        return time.monotonic() - started, silo

    return measured


@pytest.mark.parametrize("stage", ["join", "masked", "encrypt", "clear"])
def test_replies_that_depend_on_records_leave_at_whole_multiples(timed, stage: str) -> None:
    for takes in (0.0, 0.15):
        seconds, silo = timed(stage, takes, 0.3)
        assert 0.3 <= seconds < 0.45
        silo.close()
    seconds, silo = timed(stage, 0.35, 0.3)
    assert 0.6 <= seconds < 0.8
    silo.close()


def test_a_reply_that_is_late_is_said_in_the_silos_own_log(timed, tmp_path: Path) -> None:
    timed("masked", 0.15, 0.1)[1].close()
    log = (silo_folder(tmp_path / "run", 1) / "silo.log").read_text()
    assert "took longer than reply_every = 0.1 s" in log


def test_stages_without_records_and_policies_without_it_are_not_held_back(timed) -> None:
    for stage, every in (("confirm", 0.5), ("unmask", 0.5), ("advertise", 0.5), ("masked", 0.0)):
        seconds, silo = timed(stage, 0.0, every)
        assert seconds < 0.25
        silo.close()


def test_the_line_of_the_audit_log_is_written_after_the_wait(timed, tmp_path: Path) -> None:
    """Its time is shown to others when logs are verified together."""
    before = time.time()
    timed("masked", 0.0, 0.3)[1].close()
    line = (silo_folder(tmp_path / "run", 1) / "audit.jsonl").read_text().splitlines()[-1]
    import json

    assert json.loads(line)["time"] >= before + 0.29


def test_the_wait_is_not_negative_and_not_for_ever() -> None:
    assert SiloPolicy().reply_every == 2.0
    for value in (-1.0, 4000.0):
        with pytest.raises(ValidationError):
            SiloPolicy(reply_every=value)
