"""What mask, widths, agreement scores, guidance, metrics and message sizes of a run tell: all of them are public.

A game of two worlds, over many small federations of the embedded digits that run in this process through the real
silos, the real protocol and the real coordinator. World 1 differs from world 0

- by one patient of one silo, all else being equal and known to the adversary, as differential privacy supposes;
- by whether one silo holds a certain class: a property of one silo;
- by which class is missing from the whole federation: a property of all together, which nobody promises to hide.

Which records the silos have is unknown in the second and third game, and drawn anew for every run. The adversary has
runs in both worlds, of its own making from public records of the same kind, trains a classifier on their public figures
and says of a pair of other runs which is which. Chance is one half. Every run starts from the same public model.

The figures are made from sums, so they are the same whether a coordinator sees single vectors or not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.attacks.outcome import Attack, Outcome, Scale, proportion_interval
from autoflip_secure.attacks.settings import SETTINGS, PrivacyProfile, charges_of, epsilon_of
from autoflip_secure.attacks.world_guesses import Figures, pairs_told
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.records import Records
from autoflip_secure.federation.provisioning import RunFolder
from autoflip_secure.privacy.accounting import Mechanism

__all__ = ["ATTACK", "public_figures", "small_run"]

SILOS, RECORDS = 6, 24
CLASS, OTHER_CLASS = 3, 8
ROUNDS = 5
DELTA = 1e-5
MEASURE = "pairs of runs told right"
OPTIONS: dict[str, Any] = {
    "dataset": "digits", "model": "mlp", "partition": "natural", "silos": SILOS, "rounds": ROUNDS, "colluders": 0,
    "device": "cpu", "workers": 0, "evaluate_every": 1,
}  # fmt: skip
UNDER_DP: dict[str, Any] = {"explore_rounds": 2, "cohorts": 2, "agreement_every": 1, "dp_delta": DELTA}
"""Agreement in every round, for all that it may tell. Without DP it is there anyway."""

FIGURES = ("mask", "scores", "guidance", "agreement", "other lines")
MODEL = ("model",)

Game = tuple[LoadedData, LoadedData]
"""A federation in world 0 and one in world 1."""
Charges = list[tuple[Mechanism, ...]]
"""What silos were charged for their training records, one item for each silo of each run."""


def attack(scale: Scale) -> Iterator[Outcome]:
    """Three games under each setting but plain AutoFLIP, whose public figures are those of the sum."""
    from autoflip_secure.data.registry import load

    few, many = (12, 20) if scale.quick else (150, 150)
    digits = load("digits", None, 0)
    for setting in SETTINGS:
        if setting == "plain":
            continue
        pairs = many if epsilon_of(setting) is None else few
        yield _membership(scale.work, setting, digits, pairs)
        of_one = _all_played(scale.work, setting, _class_of_one, digits, pairs)
        note = "a property of one silo: nothing is promised"
        yield _outcome("class of one silo, from public figures", setting, of_one, note)
        yield _outcome("class of one silo, from agreement", setting, of_one, note, kinds=("agreement",))
        of_all = _all_played(scale.work, setting, _class_missing, digits, pairs)
        yield _outcome("class missing from all, from public figures", setting, of_all, "nothing is promised")


def _membership(work: Path, setting: str, digits: LoadedData, pairs: int) -> Outcome:
    """One patient. Without DP a run repeats itself from public seeds: the adversary need only run both worlds."""
    draw, attack = np.random.default_rng(0), "one patient, from public figures"
    if epsilon_of(setting) is None:
        played = [_played(work, setting, _one_patient(digits, draw)) for _ in range(max(6, pairs // 3))]
        again = _figures(work, setting, _one_patient(digits, np.random.default_rng(0))[0])
        repeats = _same(again, played[0][0])
        told = sum(repeats and not _same(*pair) for pair in played)
        note = "everything but the patient is known and repeatable: the adversary runs both worlds and compares"
        value, low, high = proportion_interval(told, len(played))
        return Outcome(attack, setting, MEASURE, value, low, high, len(played), 1 / 2, note=note)
    federation = _one_patient(digits, draw)
    charges: Charges = []
    played = [_played(work, setting, federation, charges) for _ in range(pairs)]
    proved = PrivacyProfile.of(charges, DELTA)
    return _outcome(attack, setting, played, "all else is known", proved.area(), proved.promise)


def _outcome(
    attack: str, setting: str, played: list[tuple[Figures, Figures]], note: str,
    bound: float | None = None, promise: str = "", kinds: tuple[str, ...] = FIGURES,
) -> Outcome:  # fmt: skip
    """From these kinds of figures, singly or together; the note says how much each choice beside the model tells."""
    told, trials = pairs_told(played, kinds, *((kind,) for kind in kinds))
    value, low, high = proportion_interval(told, trials)
    others = {"agreement alone": ("agreement",), "the model alone": MODEL, "both": ("agreement", *MODEL)}
    shares = ", ".join(f"{name} {pairs_told(played, groups)[0] / trials:.2f}" for name, groups in others.items())
    return Outcome(
        attack, setting, MEASURE, value, low, high, trials, 1 / 2, bound=bound, promise=promise,
        note=f"{note}; {shares}",
    )  # fmt: skip


def _one_patient(digits: LoadedData, draw: np.random.Generator) -> Game:
    """The same records, and in world 1 one more at the first silo: the most unusual there can be."""
    parts = [_drawn(digits, draw, np.ones(digits.task.classes)) for _ in range(SILOS)]
    first = parts[0]
    patient = Records(np.full((1, *first.input_shape), first.x.max(), first.x.dtype), np.array([CLASS]))
    joined = Records(np.concatenate([first.x, patient.x]), np.concatenate([first.y, patient.y]))
    return _federation(digits, parts), _federation(digits, [joined, *parts[1:]])


def _class_of_one(digits: LoadedData, draw: np.random.Generator) -> Game:
    """In world 1 half of the first silo's patients are of one class, in world 0 none of them; the others have it."""
    even = np.ones(digits.task.classes)
    without, half = even.copy(), even.copy()
    without[CLASS], half[CLASS] = 0.0, digits.task.classes - 1.0
    return tuple(  # type: ignore[return-value]
        _federation(digits, [_drawn(digits, draw, share) for share in (first, *[even] * (SILOS - 1))])
        for first in (without, half)
    )


def _class_missing(digits: LoadedData, draw: np.random.Generator) -> Game:
    """No silo has a patient of one class in world 0, and none of another in world 1."""
    worlds = []
    for missing in (CLASS, OTHER_CLASS):
        shares = np.ones(digits.task.classes)
        shares[missing] = 0.0
        worlds.append(_federation(digits, [_drawn(digits, draw, shares) for _ in range(SILOS)]))
    return worlds[0], worlds[1]


def _drawn(digits: LoadedData, draw: np.random.Generator, shares: NDArray[np.float64]) -> Records:
    """A silo's records: classes in these shares."""
    assert digits.train is not None
    chance = shares[digits.train.y]
    return digits.train.take(draw.choice(len(digits.train), RECORDS, replace=False, p=chance / chance.sum()))


def _federation(digits: LoadedData, parts: list[Records]) -> LoadedData:
    silos = tuple(NamedRecords(f"silo {number}", part) for number, part in enumerate(parts, start=1))
    return LoadedData(digits.task, None, digits.public_test, silos)


def _all_played(
    work: Path, setting: str, game: Callable[[LoadedData, np.random.Generator], Game], digits: LoadedData, pairs: int
) -> list[tuple[Figures, Figures]]:
    draw = np.random.default_rng(1)
    return [_played(work, setting, game(digits, draw)) for _ in range(pairs)]


def _played(work: Path, setting: str, game: Game, charges: Charges | None = None) -> tuple[Figures, Figures]:
    return _figures(work, setting, game[0], charges), _figures(work, setting, game[1], charges)


def _figures(work: Path, setting: str, data: LoadedData, charges: Charges | None = None) -> Figures:
    """Public figures of one run, whose folder is gone afterwards. What its silos were charged for joins `charges`."""
    epsilon, run = epsilon_of(setting), work / "small"
    options = {"dp_epsilon": epsilon, **UNDER_DP} if epsilon is not None else {}
    try:
        folder = small_run(run, data, **options)
        if charges is not None:
            charges += charges_of(folder.path)
        return public_figures(folder)
    finally:
        shutil.rmtree(run, ignore_errors=True)


def small_run(run: Path, data: LoadedData, **options: Any) -> RunFolder:
    """A whole run in this process, of these silos.

    Parameters
    ----------
    run : Path
        Its folder; must not exist.
    data : LoadedData
        With natural silos.
    options
        Of the configuration, beside `OPTIONS`.
    """
    from autoflip_secure.config import RunConfig
    from autoflip_secure.federation.defaults import resolve
    from autoflip_secure.federation.engines import run_federation
    from autoflip_secure.federation.provisioning import provision

    folder = RunFolder(run)
    config = resolve(RunConfig.create(**{**OPTIONS, **options}), data.task, natural_silos=SILOS)
    provision(folder, config, data)
    run_federation(folder, config, lambda line: None)
    return folder


def public_figures(folder: RunFolder) -> Figures:
    """What the coordinator publishes of a finished run, by kind; nothing of a silo's folder.

    Returns
    -------
    dict
        mask (of the dense network, which tells the widths too), scores and guidance by parameter of the dense network,
        agreement (of all layers in all rounds), other lines (accuracy, loss, sizes of messages and of the network), and
        model (final weights, where they were in the dense network).
    """
    from safetensors.numpy import load_file

    from autoflip_secure.federation.model_payload import ModelPayload

    maps = load_file(folder.importance)
    mask = maps["mask"].astype(bool)
    final, weights = ModelPayload.from_bytes(folder.model.read_bytes()), np.zeros(mask.size)
    weights[mask] = final.weights[final.mask]
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return {
        "mask": mask.astype(np.float64),
        "scores": np.concatenate([maps[name].astype(np.float64) for name in sorted(maps) if "score" in name]),
        "guidance": maps["guidance"].astype(np.float64),
        "agreement": _numbers(lines, lambda name: name.startswith("agreement")),
        "other lines": _numbers(lines, lambda name: not name.startswith("agreement") and name != "seconds"),
        "model": weights,
    }


def _numbers(lines: list[dict[str, Any]], wanted: Callable[[str], bool]) -> NDArray[np.float64]:
    """All numbers of these names in the lines of metrics.jsonl and their layers, in order; 0 where there is none."""
    found = [
        0.0 if value is None else float(value)
        for line in lines
        for part in (line, *line["layers"])
        for name, value in part.items()
        if wanted(name) and (value is None or isinstance(value, int | float))
    ]
    return np.array(found)


def _same(one: Figures, other: Figures) -> bool:
    return all(np.array_equal(one[group], other[group]) for group in FIGURES)


ATTACK = Attack("mask-leakage", "mask-leakage.md", attack)
