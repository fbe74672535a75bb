"""The federations that membership inference is tried on: a coin for each record and run says who is a patient.

Every run is target once and shadow of all others, as in Carlini et al. 2022 (arXiv 2112.03570, section V.A): an
adversary who has records of the same kind trains shadows with the published options, and starts them from the target's
seed, which a coordinator knows.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.settings import command_line, summaries
from autoflip_secure.data.records import Records

__all__ = ["Game", "deal", "run_all"]

SILOS = 5
WRONG_LABELS = 0.1
"""Part of the records that carry a wrong label: no other record helps to learn them, so each leaves the most behind."""


@dataclass(frozen=True)
class Game:
    """Who takes part in which run.

    Attributes
    ----------
    records : Records
        The candidates: patients that the adversary asks about, n of them.
    wrong : bool array, shape (n,)
        Whose label is wrong.
    silo : int array, shape (n,)
        At which silo each is a patient, where it is one; from 0. The same in all runs.
    member : bool array, shape (runs, n)
        Independent fair coins, so that no record's membership tells another's, nor the target's the shadows'.
    public : Records
        Records of the same kind that nobody trains on.
    """

    records: Records
    wrong: NDArray[np.bool_]
    silo: NDArray[np.int64]
    member: NDArray[np.bool_]
    public: Records

    @property
    def runs(self) -> int:
        """How many federations there are."""
        return len(self.member)


def deal(candidates: int, runs: int, seed: int = 0) -> Game:
    """A game on the digits that come with scikit-learn; their public test records are the public ones.

    Raises
    ------
    ValueError
        More candidates than training records.
    """
    from autoflip_secure.data.registry import load

    generator = np.random.default_rng(seed)
    data = load("digits", None, 0)
    assert data.train is not None
    assert data.public_test is not None
    if candidates > len(data.train):
        raise ValueError(f"{candidates} candidates of {len(data.train)} records")
    chosen = data.train.take(generator.permutation(len(data.train))[:candidates])
    wrong = np.arange(candidates) < round(WRONG_LABELS * candidates)
    shift = np.where(wrong, generator.integers(1, data.task.classes, candidates), 0)
    silo = generator.permutation(candidates) % SILOS
    member = generator.random((runs, candidates)) < 0.5
    labels = (chosen.y + shift) % data.task.classes
    return Game(Records(chosen.x, labels), wrong, silo, member, data.public_test)


def run_all(game: Game, setting: str, options: str, folder: Path, *, keep_data: bool = False) -> list[Path]:
    """Every federation of the game through the command line, one after another in one process.

    Parameters
    ----------
    setting : str
        One of `attacks.settings.SETTINGS`.
    options : str
        Of the command line, beside those of the setting.
    folder : Path
        Where the runs go; must not exist.
    keep_data : bool
        Leave the data of each run beside it, too.

    Returns
    -------
    list of Path
        Their folders, in the order of `game.member`.

    Raises
    ------
    RuntimeError
        A run failed; the message is its own.
    """
    runs = [folder / f"run-{number:03d}" for number in range(game.runs)]
    commands = []
    for member, run in zip(game.member, runs, strict=True):
        data = folder / f"data-{run.name}"
        _write(game, member, data)
        commands.append(command_line(f"--dataset {shlex.quote(f'folder:{data}')} {options}", setting, 0, run))
    summaries(commands)
    for run in runs if not keep_data else ():
        shutil.rmtree(folder / f"data-{run.name}")
    return runs


def _write(game: Game, member: NDArray[np.bool_], folder: Path) -> None:
    """The folder of one run's data (README, Your own data): a silo has its patients, all know the public records."""
    shape, classes = game.records.input_shape, int(game.public.y.max()) + 1
    declared: dict[str, Any] = {
        "task": '"classification"',
        "classes": list(range(classes)),
        "features": int(np.prod(shape)),
        "shape": list(shape),
        "records": member.size // 2,
    }
    folder.mkdir(parents=True)
    (folder / "dataset.toml").write_text("".join(f"{key} = {value}\n" for key, value in declared.items()))
    np.savez(folder / "public_test.npz", X=game.public.x, y=game.public.y)
    for silo in range(SILOS):
        home, own = folder / f"silo-{silo + 1}", member & (game.silo == silo)
        home.mkdir()
        np.savez(home / "train.npz", X=game.records.x[own], y=game.records.y[own])
