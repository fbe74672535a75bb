"""Spreading records over silos, with the partitioners of flwr-datasets on an in-memory table of labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autoflip_secure.data.records import Records
from autoflip_secure.errors import ConfigError
from autoflip_secure.seeds import stream, stream_seed

__all__ = ["MINIMUM_RECORDS", "PartitionSpec", "parse_partition", "partition"]

MINIMUM_RECORDS = 2
"""Fewest records of a silo: one to train on, one to hold out."""

SMALLEST_ALPHA = 1e-3
LARGEST_ALPHA = 1e6
FORMS = "iid, dirichlet:ALPHA (such as dirichlet:0.5), pathological:CLASSES (such as pathological:2) or natural"


@dataclass(frozen=True)
class PartitionSpec:
    """How records are spread.

    Attributes
    ----------
    kind : str
        iid, dirichlet, pathological or natural.
    parameter : float or None
        Concentration of the Dirichlet distribution over silos a class is spread by (small: skewed), or the number of
        classes each silo holds; None for iid and natural.
    """

    kind: str
    parameter: float | None = None

    def __post_init__(self) -> None:
        value = self.parameter
        if self.kind not in {"iid", "dirichlet", "pathological", "natural"}:
            raise ConfigError(f"--partition {self.kind}: unknown; use {FORMS}")
        if (value is None) != (self.kind in {"iid", "natural"}):
            needs = "takes no number" if value is not None else "needs a number after a colon"
            raise ConfigError(f"--partition {self.kind}: {needs}; use {FORMS}")
        if self.kind == "dirichlet" and not SMALLEST_ALPHA <= float(value or 0) <= LARGEST_ALPHA:
            raise ConfigError(
                f"--partition {self}: ALPHA is not between {SMALLEST_ALPHA:g} and {LARGEST_ALPHA:g}; "
                "use one such as dirichlet:0.5"
            )
        if self.kind == "pathological" and not (float(value or 0) >= 1 and float(value or 0).is_integer()):
            raise ConfigError(
                f"--partition {self}: CLASSES is not a positive whole number; use one such as pathological:2"
            )

    def __str__(self) -> str:
        return self.kind if self.parameter is None else f"{self.kind}:{self.parameter:g}"


def parse_partition(text: str) -> PartitionSpec:
    """Read `--partition`.

    Raises
    ------
    ConfigError
        Not one of the forms; the message shows them.
    """
    kind, colon, number = text.strip().partition(":")
    if not colon:
        return PartitionSpec(kind)
    try:
        value = float(number.replace("_", "x"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"--partition {text}: {number!r} is not a number; use {FORMS}")
    return PartitionSpec(kind, value)


def partition(records: Records, how: str, silos: int, seed: int) -> list[Records]:
    """Spread every record over `silos` silos: disjoint, complete, the same for the same seed.

    A patient's records stay together; what is counted and shared out are patients, each of the class of the first
    record.

    Parameters
    ----------
    how : str
        iid: equal sizes at random. dirichlet:ALPHA: for each class, silos' shares are drawn from Dirichlet(ALPHA)
        (Yurochkin et al. 2019, arXiv 1905.12022). pathological:CLASSES: each silo holds that many classes, classes
        are dealt evenly and each class is shared evenly among its silos (after Li et al. 2021, arXiv 2102.02079).

    Returns
    -------
    list of Records, one a silo, each with at least `MINIMUM_RECORDS` patients.

    Raises
    ------
    ConfigError
        The records cannot be spread that way; the message names the option.
    """
    spec = parse_partition(how)
    if spec.kind == "natural":
        raise ConfigError(
            "--partition natural: these records do not come by silo; use iid, dirichlet:0.5 or pathological:2"
        )
    if silos < 1:
        raise ConfigError(f"--silos {silos}: not a positive number")
    patient = records.patient_numbers()
    first = np.unique(patient, return_index=True)[1]
    if silos * MINIMUM_RECORDS > len(first):
        unit = "records" if records.group is None else "patients"
        raise ConfigError(
            f"--silos {silos}: {len(first)} {unit} are enough for at most {len(first) // MINIMUM_RECORDS} silos "
            f"of {MINIMUM_RECORDS}"
        )
    # Shuffled first, because source files are often sorted by class and two of the methods cut in order.
    order = stream(seed, "data", "partition", "order").permutation(len(first))
    labels = records.y[first[order]]
    if spec.kind == "pathological":
        _check_pathological(spec, labels, silos)
    parts = _rows(spec, labels, silos, stream_seed(seed, "data", "partition", str(spec)))
    smallest = min(len(rows) for rows in parts)
    if smallest < MINIMUM_RECORDS:
        raise ConfigError(
            f"--partition {spec}: a silo gets {smallest} records, {MINIMUM_RECORDS} are needed; use fewer --silos"
        )
    return [_take_patients(records, patient, order[rows]) for rows in parts]


def _take_patients(records: Records, patient: np.ndarray, chosen: np.ndarray) -> Records:
    """All records of the chosen patients, in the order chosen."""
    if records.group is None:
        return records.take(chosen)
    place = np.full(int(patient.max()) + 1, -1)
    place[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(place[patient] >= 0)
    return records.take(rows[np.argsort(place[patient[rows]], kind="stable")])


def _rows(spec: PartitionSpec, labels: np.ndarray, silos: int, seed: int) -> list[np.ndarray]:
    # Loads flwr-datasets, about two seconds; nothing else in this module needs it.
    from autoflip_secure.data import label_partitioners

    if spec.kind == "iid":
        return label_partitioners.iid_rows(labels, silos)
    parameter = float(spec.parameter or 0)
    if spec.kind == "pathological":
        return label_partitioners.pathological_rows(labels, silos, int(parameter), seed)
    rows = label_partitioners.dirichlet_rows(labels, silos, parameter, MINIMUM_RECORDS, seed)
    if rows is None:
        raise ConfigError(
            f"--partition {spec}: no draw gave each of {silos} silos {MINIMUM_RECORDS} of the {len(labels)} records; "
            "use a larger ALPHA or fewer --silos"
        )
    return rows


def _check_pathological(spec: PartitionSpec, labels: np.ndarray, silos: int) -> None:
    """Refuse what would lose records or leave a silo without one of its classes."""
    counts = np.unique(labels, return_counts=True)[1]
    classes, each = len(counts), int(spec.parameter or 0)
    if each > classes:
        raise ConfigError(f"--partition {spec}: the records have {classes} classes; use at most pathological:{classes}")
    if silos * each < classes:
        raise ConfigError(
            f"--partition {spec}: {silos} silos of {each} leave out {classes - silos * each} of {classes} classes; "
            f"use pathological:{-(-classes // silos)} or at least --silos {-(-classes // each)}"
        )
    if -(-silos * each // classes) > int(counts.min()):
        raise ConfigError(
            f"--partition {spec}: a class of {int(counts.min())} records would be shared by "
            f"{-(-silos * each // classes)} silos; use fewer --silos or fewer CLASSES"
        )
