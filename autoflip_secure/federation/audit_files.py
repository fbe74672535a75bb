"""Where audit logs lie, and the rosters beside them. Reads only, and imports neither Flower nor torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoflip_secure.errors import ConfigError, InputError
from autoflip_secure.federation.audit_log import AUDIT_FILE
from autoflip_secure.parties.roster import Roster

__all__ = ["Names", "audit_files", "is_run", "names_of"]

ROSTER = "roster.bin"
COORDINATOR = "coordinator"


def audit_files(path: Path) -> tuple[Path, ...]:
    """Logs at a path: the file itself, that of a home, or those of all parties of a simulated run.

    Raises
    ------
    ConfigError
        There is none.
    """
    found: tuple[Path, ...] = (path,)
    if is_run(path):
        homes = [path / "federation", *sorted(each for each in (path / "silos").glob("*") if each.is_dir())]
        found = tuple(home / AUDIT_FILE for home in homes if (home / AUDIT_FILE).exists())
    elif path.is_dir():
        found = (path / AUDIT_FILE,)
    missing = [file for file in found if not file.is_file()]
    if missing or not found:
        where = missing[0] if missing else path
        raise ConfigError(
            f"{where}: no audit log is there; give a home that has joined a run, its {AUDIT_FILE}, or a run directory"
        )
    return found


def is_run(path: Path) -> bool:
    """Whether this is the directory of a simulated run, in which the logs of all parties lie."""
    return (path / "federation").is_dir() and (path / "silos").is_dir()


@dataclass(frozen=True)
class Names:
    """Who has which identity key, as the rosters beside the logs say.

    Attributes
    ----------
    parties : dict of bytes to str
        Name in words by identity; empty where there is no roster.
    silos : dict of int to bytes
        Identity by silo id.
    coordinators : frozenset of bytes
    """

    parties: dict[bytes, str]
    silos: dict[int, bytes]
    coordinators: frozenset[bytes]

    def of(self, public: bytes) -> str:
        """Name of a party."""
        return self.parties.get(public, f"the party of identity {public.hex()[:16]}...")


def names_of(files: Sequence[Path]) -> Names:
    """Read the rosters beside logs.

    Raises
    ------
    ConfigError
        A roster is malformed.
    """
    parties: dict[bytes, str] = {}
    silos: dict[int, bytes] = {}
    coordinators = set()
    for file in dict.fromkeys(each.parent / ROSTER for each in files):
        if not file.is_file():
            continue
        try:
            roster = Roster.from_bytes(file.read_bytes())
        except (OSError, InputError) as error:
            raise ConfigError(f"{file}: is not a roster ({error})") from error
        parties[roster.coordinator] = COORDINATOR
        coordinators.add(roster.coordinator)
        for entry in roster.entries:
            parties[entry.public] = f"silo {entry.silo} ({entry.name})"
            silos[entry.silo] = entry.public
    return Names(parties, silos, frozenset(coordinators))
