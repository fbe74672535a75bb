"""Checkpoints: a round trip that loses nothing, and a crash at any file operation that loses at most one round."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoflip_secure.errors import StorageError
from autoflip_secure.federation.exchange import Traffic
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.run_state import (
    ARRAYS_FILE,
    MODEL_FILE,
    STATE_FILE,
    RunState,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from autoflip_secure.federation.server_step import ServerMoments
from autoflip_secure.seeds import stream

OPERATIONS = ("rename", "replace", "mkdir", "unlink", "rmdir", "open", "fsync")


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def make_state(model: ModelPayload) -> Callable[[int], RunState]:
    def make(round: int) -> RunState:
        draw = stream(round, "state")
        size = model.mask.size
        return RunState(
            round,
            model,
            ServerMoments(draw.normal(size=size), draw.random(size), 9),
            {"guidance": draw.random(size).astype(np.float32), "energy": draw.normal(size=size)},
            {
                "seconds": 0.1 + 0.2,
                "pruning": {"overall_average": 1 / 3, "guidance_rounds": 2},
                "target": {"rounds": 1},
            },
            Traffic(1, 2, 3, Counter({"masked": 4})),
            epoch=5,
            attempts_aborted=6,
            spare_attempts_used=7,
            spare_steps=8,
        )

    return make


def check_equal(one: RunState, other: RunState) -> None:
    for name in set(vars(one)) - {"model", "server", "pruning"}:
        assert getattr(one, name) == getattr(other, name), name
    assert one.model.to_bytes() == other.model.to_bytes()
    assert one.server.steps == other.server.steps
    for mine, others in ((one.server.velocity, other.server.velocity), (one.server.square, other.server.square)):
        assert (mine.dtype, mine.tobytes()) == (others.dtype, others.tobytes())
    assert set(one.pruning) == set(other.pruning)
    for name, array in one.pruning.items():
        assert (array.dtype, array.tobytes()) == (other.pruning[name].dtype, other.pruning[name].tobytes())


def test_a_checkpoint_holds_everything(tmp_path: Path, make_state) -> None:
    """Every field of the state is different from its default, so one that was forgotten shows."""
    state = make_state(3)
    fresh = RunState(0, state.model, ServerMoments.zeros(1))
    for name in set(vars(state)) - {"model", "server"}:
        assert getattr(state, name) != getattr(fresh, name), name
    save_checkpoint(tmp_path / "checkpoint", state)
    check_equal(load_checkpoint(tmp_path / "checkpoint"), state)
    assert isinstance(load_checkpoint(tmp_path / "checkpoint").traffic.drops, Counter)


def test_a_new_checkpoint_replaces_the_old_one(tmp_path: Path, make_state) -> None:
    folder = tmp_path / "checkpoint"
    for round in (1, 2, 3):
        save_checkpoint(folder, make_state(round))
        assert load_checkpoint(folder).round == round
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_transposed_and_sliced_arrays_are_kept(tmp_path: Path, make_state) -> None:
    state = make_state(1)
    state.server = ServerMoments(np.arange(20.0)[::2], np.arange(30.0)[::3])
    state.pruning = {"m": np.arange(6.0).reshape(2, 3).T}
    save_checkpoint(tmp_path / "c", state)
    loaded = load_checkpoint(tmp_path / "c")
    np.testing.assert_array_equal(loaded.server.velocity, state.server.velocity)
    np.testing.assert_array_equal(loaded.server.square, state.server.square)
    np.testing.assert_array_equal(loaded.pruning["m"], state.pruning["m"])


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(StorageError, match="no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint")


class Operations:
    """Counts file operations; the one with number `fatal` ends the process before it happens."""

    def __init__(self, patch: pytest.MonkeyPatch, fatal: int | None) -> None:
        self.done, self._fatal = 0, fatal
        for name in OPERATIONS:
            patch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.done += 1
            if self._fatal is not None and self.done > self._fatal:
                raise Crash
            return real(*arguments, **options)

        return operation


def crash_in_save(folder: Path, state: RunState, fatal: int | None) -> int:
    """Save up to operation `fatal`; the number of operations done."""
    with pytest.MonkeyPatch.context() as patch:
        operations = Operations(patch, fatal)
        with contextlib.suppress(Crash):
            save_checkpoint(folder, state)
    return operations.done


def prepare(folder: Path, make_state: Callable[[int], RunState], before: int) -> None:
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir()
    if before:
        save_checkpoint(folder, make_state(before))


@pytest.mark.parametrize("before", [0, 4])
def test_a_crash_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path, make_state, before: int) -> None:
    folder = tmp_path / "run" / "checkpoint"
    prepare(folder, make_state, before)
    total = crash_in_save(folder, make_state(5), None)
    assert total > 10, "the operations are not seen"
    reached = []
    for fatal in range(total):
        prepare(folder, make_state, before)
        crash_in_save(folder, make_state(5), fatal)
        if before or has_checkpoint(folder):
            loaded = load_checkpoint(folder)
            assert loaded.round in (before, 5)
            # Between the two renames both are whole: the ledgers know of the newer one.
            assert folder.exists() or loaded.round == 5
            check_equal(loaded, make_state(loaded.round))
            reached.append(loaded.round)
        save_checkpoint(folder, make_state(6))
        assert load_checkpoint(folder).round == 6, "what a crash left behind is in the way"
    assert reached == sorted(reached), "an older state came back"
    assert reached[-1] == 5


def test_two_crashes_in_a_row_lose_no_round(tmp_path: Path, make_state) -> None:
    """The first leaves the new checkpoint under its temporary name; the second comes while the next is written."""
    folder = tmp_path / "run" / "checkpoint"

    def crash_first(fatal: int) -> None:
        prepare(folder, make_state, 4)
        crash_in_save(folder, make_state(5), fatal)

    prepare(folder, make_state, 4)
    total = crash_in_save(folder, make_state(5), None)

    def moved_away(fatal: int) -> bool:
        crash_first(fatal)
        return not folder.exists()

    between = next(fatal for fatal in range(total) if moved_away(fatal))
    for fatal in range(total):
        crash_first(between)
        assert load_checkpoint(folder).round == 5
        crash_in_save(folder, make_state(6), fatal)
        assert load_checkpoint(folder).round in (5, 6)


@pytest.mark.parametrize("name", [MODEL_FILE, ARRAYS_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damage_is_named(tmp_path: Path, make_state, name: str, damage: str) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, make_state(1))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes({"cut": data[: len(data) // 2], "empty": b"", "garbage": b"\xff" * len(data)}[damage])
    with pytest.raises(StorageError, match=r"checkpoint.* is damaged"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, ARRAYS_FILE])
def test_a_missing_file_is_damage(tmp_path: Path, make_state, name: str) -> None:
    save_checkpoint(tmp_path / "checkpoint", make_state(1))
    (tmp_path / "checkpoint" / name).unlink()
    with pytest.raises(StorageError, match="is damaged"):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, make_state, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, make_state(1))
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == ARRAYS_FILE:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        save_checkpoint(folder, make_state(2))
    monkeypatch.undo()
    assert load_checkpoint(folder).round == 1
