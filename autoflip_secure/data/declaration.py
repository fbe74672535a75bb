"""dataset.toml: what a folder of silos declares in public, so that nothing has to be read off private records."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.follow_up import FollowUp
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, DataError

__all__ = ["DECLARATION_FILE", "Declaration", "declaration_of", "read_declaration"]

DECLARATION_FILE = "dataset.toml"
REQUIRED = {
    "classification": ("task", "classes", "features"),
    "survival": ("task", "features", "cuts", "hazards"),
}
OPTIONAL = ("shape", "columns", "minimum", "maximum", "records", "patient", "patients")
EXAMPLES = {
    "classification": """write it with three lines: task = "classification" | classes = [0, 1] | features = 13""",
    "survival": """write it with four lines: task = "survival" | features = 39 | cuts = [4] | hazards = [0.03, 0.03]""",
}
EXAMPLE = EXAMPLES["classification"]


@dataclass(frozen=True, eq=False)
class Declaration:
    """The public facts of a folder of silos.

    Attributes
    ----------
    name : str
        Name of the data set, from the folder's.
    classes : tuple of int or tuple of str
        Labels as they are written in the tables; the class index is the position. Survival: 0, 1.
    features : int
        Number of feature columns.
    shape : tuple of int
        Shape of one record: (features,), or (channels, height, width) for images in npz files.
    columns : tuple of str or None
        Names of the feature columns, in order; None: any, but the same in every silo.
    minimum, maximum : float64 arrays of shape (features,) or None
        Public ranges; features are scaled from them to [-1, 1] and clipped. None: features are used as they are.
    records : int or None
        Public total of training records of all silos; of training patients where the tables name them.
    patient : str or None
        Column that holds the patient's key (in npz files the array `patient`); None: each record is a patient.
    follow_up : FollowUp or None
        Public intervals and baseline hazards, from `cuts` and `hazards`, of a survival task; None: classification.
    """

    name: str
    classes: tuple[int, ...] | tuple[str, ...]
    features: int
    shape: tuple[int, ...]
    columns: tuple[str, ...] | None
    minimum: NDArray[np.float64] | None
    maximum: NDArray[np.float64] | None
    records: int | None
    patient: str | None = None
    follow_up: FollowUp | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Columns that are no features: the label, or the event and the time; not the patient."""
        return ("label",) if self.follow_up is None else ("event", "time")

    def task(self) -> Task:
        """The task."""
        kind = "survival" if self.follow_up else "binary" if len(self.classes) == 2 else "multiclass"
        model = "cnn6" if len(self.shape) == 3 else "mlp"
        names = tuple(str(label) for label in self.classes)
        unit = "record" if self.patient is None else "patient"
        return Task(
            f"folder:{self.name}", kind, self.shape, len(names), names, model, self.records,
            unit=unit, follow_up=self.follow_up,
        )  # fmt: skip

    def scale(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features of shape (n, features), NaN where missing, to float32 of shape (n, *shape); missing becomes 0.

        With ranges, 0 is the middle of the range.
        """
        scaled = values.astype(np.float64)
        if self.minimum is not None and self.maximum is not None:
            scaled = np.clip((scaled - self.minimum) * (2 / (self.maximum - self.minimum)) - 1, -1, 1)
        return np.nan_to_num(scaled, nan=0.0).astype(np.float32).reshape(len(values), *self.shape)


def read_declaration(folder: Path) -> Declaration:
    """Read and validate `folder`/dataset.toml.

    Raises
    ------
    DataError
        Missing (the message shows the lines to write), not TOML, or a key that is missing, unknown or wrong; the
        message names file and line.
    """
    path = folder / DECLARATION_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file; {EXAMPLE}")
    try:
        text = path.read_bytes().decode()
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # of TOML, also where a number is too long or nesting too deep
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{path}:{place[1]}:{place[2]}" if place else str(path)
        raise DataError(f"{where}: not TOML ({str(error).split(' (at ')[0]}); {EXAMPLE}") from error
    return declaration_of(path, text, values)


def declaration_of(path: Path, text: str, values: dict[str, Any]) -> Declaration:
    """Validate the keys of dataset.toml, wherever they were written.

    Parameters
    ----------
    path : Path
        File the keys come from, for messages; the data set is called after its folder.
    text : str
        Content of the file, in which the line of a wrong key is looked up.
    values : dict
        The keys.

    Raises
    ------
    DataError
        A key is missing, unknown or wrong; the message names file and line.
    """
    return _Reader(path, text, values).declaration()


class _Reader:
    """Checks one key after another; each complaint names the key's line."""

    def __init__(self, path: Path, text: str, values: dict[str, Any]) -> None:
        self._path, self._text, self._values = path, text, values

    def declaration(self) -> Declaration:
        task = self._values.get("task", "classification")
        if task not in tuple(REQUIRED):
            self._fail("task", 'only "classification" and "survival" are known; write task = "classification"')
        known = REQUIRED[task] + OPTIONAL
        unknown = [key for key in self._values if key not in known]
        if unknown:
            self._fail(unknown[0], f"unknown key; known keys are {', '.join(known)}")
        absent = [key for key in REQUIRED[task] if key not in self._values]
        if absent:
            raise DataError(f"{self._path}: {', '.join(absent)} is missing; {EXAMPLES[task]}")
        features = self._count("features")
        minimum, maximum = self._ranges(features)
        return Declaration(
            self._path.parent.resolve().name, (0, 1) if task == "survival" else self._classes(), features,
            self._shape(features), self._columns(features), minimum, maximum, self._total(), self._patient(),
            self._follow_up() if task == "survival" else None,
        )  # fmt: skip

    def _fail(self, key: str, complaint: str) -> NoReturn:
        found = re.search(rf"^\s*{re.escape(key)}\s*=", self._text, re.MULTILINE)
        line = self._text[: found.end()].count("\n") + 1 if found else 1
        raise DataError(f"{self._path}:{line}: {key}: {complaint}")

    def _count(self, key: str) -> int:
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._fail(key, f"not a positive whole number; write {key} = 13")
        return int(value)

    def _classes(self) -> tuple[int, ...] | tuple[str, ...]:
        value = self._values["classes"]
        kinds = {type(label) for label in value} if isinstance(value, list) else set()
        if kinds not in ({int}, {str}) or len(value) < 2 or len(set(value)) != len(value):
            self._fail("classes", 'not a list of two or more different labels; write classes = [0, 1] or ["no", "yes"]')
        if kinds == {str} and any(label != label.strip() or not label for label in value):
            self._fail("classes", "a label is empty or has spaces around it; write it without")
        return tuple(value)

    def _shape(self, features: int) -> tuple[int, ...]:
        value = self._values.get("shape", [features])
        whole = isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
        if not whole or len(value) not in (1, 3) or math.prod(value) != features:
            self._fail("shape", f"not [channels, height, width] with product features = {features}; correct either")
        return tuple(value)

    def _columns(self, features: int) -> tuple[str, ...] | None:
        value = self._values.get("columns")
        if value is None:
            return None
        named = isinstance(value, list) and all(isinstance(name, str) and name not in self._reserved for name in value)
        if not named or len(value) != features or len(set(value)) != features:
            self._fail(
                "columns", f"not a list of {features} different feature names (without {' or '.join(self._reserved)})"
            )
        return tuple(value)

    def _total(self) -> int | None:
        counted, other = ("patients", "records") if "patient" in self._values else ("records", "patients")
        if other in self._values:
            self._fail(other, f"the total that counts here is that of {counted}; write {counted} = 900 or leave it out")
        return self._count(counted) if counted in self._values else None

    def _patient(self) -> str | None:
        value = self._values.get("patient")
        if value is None:
            return None
        if not isinstance(value, str) or not value or value != value.strip() or value in self._reserved:
            self._fail("patient", 'not the name of a column of its own; write patient = "patient_id"')
        if value in self._values.get("columns", ()):
            self._fail("patient", "the column is among the features in columns; a patient's key is none, leave it out")
        return value

    @property
    def _reserved(self) -> tuple[str, ...]:
        return ("label",) if "classes" in self._values else ("event", "time")

    def _follow_up(self) -> FollowUp:
        cuts, hazards = self._values["cuts"], self._values["hazards"]
        for key, value in (("cuts", cuts), ("hazards", hazards)):
            if not isinstance(value, list) or not value:
                self._fail(key, "not a list of numbers; write cuts = [4.0] and hazards = [0.03, 0.03]")
        try:
            return FollowUp(tuple(cuts), tuple(hazards))
        except ConfigError as error:
            self._fail("cuts", f"{error}; write cuts = [4.0] and hazards = [0.03, 0.03]")

    def _ranges(self, features: int) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
        if ("minimum" in self._values) != ("maximum" in self._values):
            self._fail("minimum" if "minimum" in self._values else "maximum", "give minimum and maximum, or neither")
        if "minimum" not in self._values:
            return None, None
        minimum, maximum = self._range("minimum", features), self._range("maximum", features)
        if not (minimum < maximum).all():
            feature = int(np.flatnonzero(~(minimum < maximum))[0])
            self._fail("maximum", f"feature {feature + 1}: the maximum is not above the minimum; correct either")
        return minimum, maximum

    def _range(self, key: str, features: int) -> NDArray[np.float64]:
        value = self._values[key]
        listed = value if isinstance(value, list) else [value] * features
        numeric = all(type(bound) in (int, float) and _is_finite(bound) for bound in listed)
        if not numeric or len(listed) != features:
            self._fail(key, f"not a finite number or a list of {features} of them, one for each feature")
        return np.array(listed, np.float64)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
