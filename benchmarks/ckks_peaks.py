"""How much memory a step takes at its highest, from the kernel's own high-water mark of this process."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

__all__ = ["NoPeaks", "Peaks"]

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_HIGH_WATER = "5"


class Peaks:
    """Highest resident memory of named steps over where they began, bytes."""

    def __init__(self) -> None:
        self.highest: dict[str, int] = defaultdict(int)

    def now(self) -> int:
        """Resident memory, bytes."""
        return _read("VmRSS")

    def reset(self) -> int:
        """Start a step; returns resident memory."""
        CLEAR.write_text(RESET_HIGH_WATER)
        return self.now()

    def note(self, name: str, base: int) -> None:
        """End a step: keep its peak over `base`, if it is the highest of that name."""
        self.highest[name] = max(self.highest[name], _read("VmHWM") - base)


class NoPeaks(Peaks):
    """Measures nothing, where times are taken."""

    def now(self) -> int:
        return 0

    def reset(self) -> int:
        return 0

    def note(self, name: str, base: int) -> None:
        pass


def _read(name: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
