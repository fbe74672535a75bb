"""The public description of what is learned: shapes, classes, the usual model. Never computed from private records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from autoflip_secure.data.records import Records
from autoflip_secure.errors import ConfigError, DataError

__all__ = ["DEFAULT_MODELS", "KINDS", "Task"]

KINDS = ("multiclass", "binary")
DEFAULT_MODELS = ("cnn-tanh", "cnn6", "mlp")
IMAGE_MODELS = ("cnn-tanh", "cnn6")


@dataclass(frozen=True)
class Task:
    """A classification task. A binary task is two classes with two model outputs.

    Attributes
    ----------
    name : str
        The data set's name.
    kind : str
        multiclass or binary.
    input_shape : tuple of int
        Shape of one record: (channels, height, width) or (features,).
    classes : int
        Number of classes, model outputs.
    class_names : tuple of str
        Their names, by class index.
    default_model : str
        One of `DEFAULT_MODELS`.
    nominal_records : int or None
        Public total of the records the silos hold besides the public test part (each silo may hold a fifth of its
        own back); None where that total is not public.
    note : str
        What a reader of results must know, such as lossy source data; empty where there is nothing.

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

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name and isinstance(self.note, str)):
            raise ConfigError("task: name and note are text, and the name is not empty")
        if self.kind not in KINDS:
            raise ConfigError(f"task {self.name}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if not self.input_shape or not all(_positive(size) for size in self.input_shape):
            raise ConfigError(f"task {self.name}: input shape {self.input_shape} is not a list of positive integers")
        if not _positive(self.classes) or self.classes < 2 or (self.kind == "binary") != (self.classes == 2):
            raise ConfigError(f"task {self.name}: {self.classes!r} classes do not make a {self.kind} task")
        if len(self.class_names) != self.classes or not all(isinstance(name, str) for name in self.class_names):
            raise ConfigError(f"task {self.name}: {len(self.class_names)} class names for {self.classes} classes")
        if self.default_model not in DEFAULT_MODELS:
            raise ConfigError(
                f"task {self.name}: model {self.default_model!r} is not one of {', '.join(DEFAULT_MODELS)}"
            )
        if self.default_model in IMAGE_MODELS and len(self.input_shape) != 3:
            raise ConfigError(f"task {self.name}: {self.default_model} needs images, not shape {self.input_shape}")
        if self.nominal_records is not None and not _positive(self.nominal_records):
            raise ConfigError(f"task {self.name}: the total of records {self.nominal_records!r} is not positive")

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
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"task: not valid JSON of a task ({error}); write it with Task.to_json") from error

    def check(self, records: Records, where: str) -> Records:
        """`records`, if they fit this task.

        Raises
        ------
        DataError
            Another input shape, or a label beyond the classes; the message starts with `where`.
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
        return records


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
