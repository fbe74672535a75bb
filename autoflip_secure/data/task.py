"""The public description of what is learned: shapes, classes, the usual model. Never computed from private records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.follow_up import FollowUp
from autoflip_secure.data.records import Records
from autoflip_secure.errors import ConfigError, DataError

__all__ = ["DEFAULT_MODELS", "KINDS", "Task"]

KINDS = ("multiclass", "binary", "survival")
DEFAULT_MODELS = ("cnn-tanh", "cnn6", "femnist-cnn", "mlp", "char-lstm")
IMAGE_MODELS = ("cnn-tanh", "cnn6", "femnist-cnn")
UNITS = ("record", "patient")


@dataclass(frozen=True)
class Task:
    """A classification or a survival task. A binary task is two classes with two model outputs.

    A survival task has two classes, by whether the event was seen, and one output: the log of the patient's hazard over
    the public baseline's.

    Attributes
    ----------
    name : str
        The data set's name.
    kind : str
        multiclass, binary or survival.
    input_shape : tuple of int
        Shape of one record: (channels, height, width), (features,), or (characters,) where records are text, whose
        characters are numbered from 0.
    classes : int
        Number of classes.
    class_names : tuple of str
        Their names, by class index.
    default_model : str
        One of `DEFAULT_MODELS`.
    nominal_records : int or None
        Public total of the records the silos hold besides the public test part (each silo may hold a fifth of its
        own back), or of patients where they are the unit; None where that total is not public.
    note : str
        What a reader of results must know, such as lossy source data; empty where there is nothing.
    unit : str
        What is sampled, clipped, counted and protected as one: a record, or a patient where records name theirs.
    follow_up : FollowUp or None
        Public intervals and baseline hazards of a survival task.

    Raises
    ------
    ConfigError
        The fields do not describe a task.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    default_model: str
    nominal_records: int | None = None
    note: str = ""
    unit: str = "record"
    follow_up: FollowUp | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name and isinstance(self.note, str)):
            raise ConfigError("task: name and note are text, and the name is not empty")
        if self.kind not in KINDS:
            raise ConfigError(f"task {self.name}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if not self.input_shape or not all(_positive(size) for size in self.input_shape):
            raise ConfigError(f"task {self.name}: input shape {self.input_shape} is not a list of positive integers")
        if not _positive(self.classes) or self.classes < 2 or (self.kind != "multiclass") != (self.classes == 2):
            raise ConfigError(f"task {self.name}: {self.classes!r} classes do not make a {self.kind} task")
        if len(self.class_names) != self.classes or not all(isinstance(name, str) for name in self.class_names):
            raise ConfigError(f"task {self.name}: {len(self.class_names)} class names for {self.classes} classes")
        if self.default_model not in DEFAULT_MODELS:
            raise ConfigError(
                f"task {self.name}: model {self.default_model!r} is not one of {', '.join(DEFAULT_MODELS)}"
            )
        if self.default_model in IMAGE_MODELS and len(self.input_shape) != 3:
            raise ConfigError(f"task {self.name}: {self.default_model} needs images, not shape {self.input_shape}")
        if (self.follow_up is not None) != (self.kind == "survival"):
            raise ConfigError(f"task {self.name}: follow-up is for survival tasks, and they need it; it is {self.kind}")
        if self.unit not in UNITS:
            raise ConfigError(f"task {self.name}: unit {self.unit!r} is not one of {', '.join(UNITS)}")
        if self.nominal_records is not None and not _positive(self.nominal_records):
            raise ConfigError(f"task {self.name}: the total of records {self.nominal_records!r} is not positive")

    @property
    def outputs(self) -> int:
        """Outputs of a model."""
        return 1 if self.kind == "survival" else self.classes

    @property
    def expected_cuts(self) -> tuple[float, ...]:
        """Survival: events expected at the baseline by the cuts of follow-up; else empty."""
        return () if self.follow_up is None else self.follow_up.expected_cuts()

    @property
    def loss(self) -> str:
        """Name of the loss in `models.losses.LOSSES`."""
        return "survival" if self.kind == "survival" else "cross_entropy"

    def targets(self, records: Records) -> NDArray[np.generic]:
        """What a record's loss and score are computed from: the class index, int64 (n,); or, survival, float32 (n, 2):
        events expected by the end of the patient's follow-up at the baseline, and 1 where the event was seen."""
        if self.follow_up is None or records.time is None:
            return records.y
        return np.stack([self.follow_up.expected_events(records.time), records.y], axis=1).astype(np.float32)

    def to_json(self) -> str:
        """One line of JSON with sorted keys: equal tasks give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read and validate what `to_json` wrote.

        Raises
        ------
        ConfigError
            The text is not such JSON.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if not isinstance(values, dict) or set(values) != {field.name for field in fields(cls)}:
                raise ConfigError("task: not the JSON object of a task; write it with Task.to_json")
            values["input_shape"] = tuple(values["input_shape"])
            values["class_names"] = tuple(values["class_names"])
            if values["follow_up"] is not None:
                parts = {name: tuple(numbers) for name, numbers in values["follow_up"].items()}
                values["follow_up"] = FollowUp(**parts)
            return cls(**values)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"task: not valid JSON of a task ({error}); write it with Task.to_json") from error

    def check(self, records: Records, where: str) -> Records:
        """`records`, if they fit this task.

        Raises
        ------
        DataError
            Another input shape, a label beyond the classes, or times where there should be none or none where there
            should be; the message starts with `where`.
        """
        if records.input_shape != self.input_shape:
            raise DataError(
                f"{where}: records have shape {records.input_shape}, task {self.name} needs {self.input_shape}"
            )
        if int(records.y.max()) >= self.classes:
            raise DataError(
                f"{where}: record {int(records.y.argmax())} has a label beyond the {self.classes} classes of "
                f"task {self.name}; labels are class indices 0 to {self.classes - 1}"
            )
        if (records.time is not None) != (self.kind == "survival"):
            has = "have no times of follow-up" if records.time is None else "have times of follow-up"
            raise DataError(f"{where}: records {has}, task {self.name} is {self.kind}")
        return records

    def check_unit(self, records: Records, where: str) -> Records:
        """A silo's own `records`, if they name patients exactly where patients are the unit.

        Raises
        ------
        DataError
            They do not; the message starts with `where`.
        """
        if (records.group is not None) != (self.unit == "patient"):
            has = "names no patient" if records.group is None else "names patients"
            raise DataError(f"{where}: {has}, but the unit of task {self.name} is the {self.unit}; provision it anew")
        return records


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
