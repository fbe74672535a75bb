"""Peak memory of one approach's sum, in a process of its own, for benchmarks/ckks.py; prints one line of JSON.

    python benchmarks/ckks_memory.py APPROACH VALUES

Three silos; each step's highest resident memory over what the process had when the step began (the coordinator: when
the sum began), replies included.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from ckks_federation import TimedSums
from ckks_peaks import Peaks
from ckks_peers import SharedKeySums
from ckks_rows import BITS, CHAINS, PROTOCOLS, SLOTS
from secagg_federation import TINY, silo_values, update_channel

SILOS = 3


def main(approach: str, values: int) -> None:
    """One small sum first, so that what is loaded once does not count."""
    peaks = Peaks()
    if approach in CHAINS:
        shared = SharedKeySums(CHAINS[approach], peaks)
        for length in (TINY, values):
            peaks.highest.clear()
            shared.sum({silo: silo_values(0, silo, length) for silo in range(1, SILOS + 1)})
    else:
        with tempfile.TemporaryDirectory() as folder:
            sums = TimedSums(PROTOCOLS[approach], SILOS, Path(folder), slots=SLOTS, seed=0, peaks=peaks)
            for length in (TINY, values):
                peaks.highest.clear()
                sums.sum(update_channel(length, BITS))
            sums.close()
    print(json.dumps({"approach": approach, "silos": SILOS, "values": values, "peaks": dict(peaks.highest)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
