"""What a silo holds under its public name, and how whole real silos are dealt to fewer simulated ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.data.records import Records
from autoflip_secure.errors import ConfigError
from autoflip_secure.seeds import stream

__all__ = ["NamedRecords", "cut_by_silo", "deal_whole_silos", "numbered_names"]


@dataclass(frozen=True)
class NamedRecords:
    """What one silo holds.

    Attributes
    ----------
    name : str
        The silo's name, public.
    records : Records
    holdout : Records or None
        Records the silo itself set aside for scoring; None: none yet (see `splits.hold_out`).
    """

    name: str
    records: Records
    holdout: Records | None = None


def numbered_names(silos: int) -> tuple[str, ...]:
    """silo-01, silo-02, ...: as many digits as the last needs."""
    width = len(str(silos))
    return tuple(f"silo-{number:0{width}d}" for number in range(1, silos + 1))


def cut_by_silo(records: Records, sizes: Sequence[int]) -> list[Records]:
    """Consecutive parts of `records`, of the given sizes; they share its memory, so that silos and whole are held once.

    The sizes are positive and add up to all records.
    """
    ends = np.cumsum(sizes)
    rows = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
    group, time = records.group, records.time
    return [
        Records(
            records.x[row], records.y[row], None if group is None else group[row], None if time is None else time[row]
        )
        for row in rows
    ]


def deal_whole_silos(natural: Sequence[NamedRecords], silos: int, seed: int) -> tuple[NamedRecords, ...]:
    """Put real silos together into `silos` simulated ones of about as many records each; none is divided.

    The largest goes first, always to whoever has the fewest records (Graham 1969, "Bounds on multiprocessing timing
    anomalies": at most 4/3 of the best possible largest). Who goes first of equally large ones is drawn from `seed`.
    The holdouts of those put together are put together too.

    Raises
    ------
    ConfigError
        Only some of the real silos bring records of their own to score on.
    """
    if len({silo.holdout is None for silo in natural}) > 1:
        raise ConfigError(
            f"--silos {silos}: only some of the {len(natural)} natural silos bring test records, so they cannot be put "
            "together; leave --silos out"
        )
    dealt: list[list[int]] = [[] for _ in range(silos)]
    held: NDArray[np.int64] = np.zeros(silos, np.int64)
    sizes = np.array([len(silo.records) for silo in natural])
    tie_break = stream(seed, "data", "partition", "natural").random(len(natural))
    for index in np.lexsort((tie_break, -sizes)):
        receiver = int(held.argmin())
        dealt[receiver].append(int(index))
        held[receiver] += sizes[index]
    return tuple(
        _together(name, [natural[index] for index in sorted(members)])
        for name, members in zip(numbered_names(silos), dealt, strict=True)
    )


def _together(name: str, members: Sequence[NamedRecords]) -> NamedRecords:
    holdouts = [silo.holdout for silo in members if silo.holdout is not None]
    records = Records.concatenate([silo.records for silo in members])
    return NamedRecords(name, records, Records.concatenate(holdouts) if holdouts else None)
