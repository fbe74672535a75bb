"""A loaded data set, and how it becomes silos."""

from __future__ import annotations

from dataclasses import dataclass

from autoflip_secure.data.named_records import NamedRecords, deal_whole_silos, numbered_names
from autoflip_secure.data.partition import PartitionSpec, parse_partition, partition
from autoflip_secure.data.records import Records
from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, DataError

__all__ = ["LoadedData", "NamedRecords", "split_into_silos"]


@dataclass(frozen=True)
class LoadedData:
    """A data set before it is spread over silos.

    Attributes
    ----------
    task : Task
    train : Records or None
        All records to be spread by a partition; None where they only come by silo.
    public_test : Records or None
        Public records to score on; None: scores come from a noised sum over the silos' own holdouts.
    natural : tuple of NamedRecords or None
        Real silos, where the data set has them.
    """

    task: Task
    train: Records | None
    public_test: Records | None
    natural: tuple[NamedRecords, ...] | None

    def __post_init__(self) -> None:
        if self.train is None and not self.natural:
            raise DataError(f"data set {self.task.name} holds no records")
        if self.train is not None:
            self.task.check_unit(self.task.check(self.train, "train"), "train")
        if self.public_test is not None:
            self.task.check(self.public_test, "public test")
        for silo in self.natural or ():
            self.task.check_unit(self.task.check(silo.records, f"silo {silo.name}"), f"silo {silo.name}")
            if silo.holdout is not None:
                where = f"silo {silo.name}, holdout"
                self.task.check_unit(self.task.check(silo.holdout, where), where)

    @property
    def default_partition(self) -> str:
        """`natural` where the data set has real silos, else dirichlet:0.5."""
        return "natural" if self.natural else str(PartitionSpec("dirichlet", 0.5))


def split_into_silos(
    data: LoadedData, how: str | None, silos: int | None, seed: int, *, default_silos: int = 10
) -> tuple[NamedRecords, ...]:
    """Spread a data set over silos.

    Parameters
    ----------
    how : str or None
        `--partition`; None: `data.default_partition`.
    silos : int or None
        `--silos`; None: as many as the data set has, else `default_silos`. Fewer than there are natural silos: whole
        ones are dealt (see `deal_whole_silos`).
    seed : int
        Run seed; natural silos, as they are, do not depend on it.

    Raises
    ------
    ConfigError
        The partition or the number of silos does not fit the data set; the message names the option.
    """
    spec = parse_partition(data.default_partition if how is None else how)
    if spec.kind == "natural":
        return _natural_silos(data, silos, seed)
    if data.train is None:
        raise ConfigError(f"--partition {spec}: {data.task.name} comes by silo; use --partition natural")
    count = default_silos if silos is None else silos
    parts = partition(data.train, str(spec), count, seed)
    return tuple(NamedRecords(name, part) for name, part in zip(numbered_names(count), parts, strict=True))


def _natural_silos(data: LoadedData, silos: int | None, seed: int) -> tuple[NamedRecords, ...]:
    if not data.natural:
        raise ConfigError(
            f"--partition natural: {data.task.name} does not come by silo; use iid, dirichlet:0.5 or pathological:2"
        )
    if silos is None or silos == len(data.natural):
        return data.natural
    if not 0 < silos < len(data.natural):
        raise ConfigError(
            f"--silos {silos}: {data.task.name} has {len(data.natural)} natural silos; "
            f"leave --silos out or give at most {len(data.natural)}"
        )
    return deal_whole_silos(data.natural, silos, seed)
