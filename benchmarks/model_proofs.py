"""`make bench-proofs`: what it costs a silo and the network that a run proves its models, and bounds on its sums.

    python benchmarks/model_proofs.py [--quick]

A contribution of 16-bit values for a cohort of ten silos is encoded and masked as a silo does it, without a tag and
with one; its sum's tag is checked and the sum decoded, as each silo does before it moves the model; and the sum is held
against what honest silos can add up to (fields, range, length), as the coordinator does in every run. Times are
processor seconds of one thread, the best of three; bytes are what one silo sends, and is shown, for a round. Beside
it, in the same run: the masks of ten silos, and the model, in whose place the sum travels to a silo.

Writes results/model_proofs.json and model_proofs.md: under a minute; `--quick` leaves out the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from machine import machine

from autoflip_secure.autoflip.sum_bounds import out_of_fields, out_of_range, sum_length
from autoflip_secure.federation.sum_proof import SumProof, tagged, untagged, untagged_sums, with_tag
from autoflip_secure.federation.sums import decode
from autoflip_secure.secagg.masking import masked_words
from autoflip_secure.sums.channels import ChannelSpec
from autoflip_secure.sums.manifest import Manifest, PrivacyTerms
from autoflip_secure.sums.randomness import ReproducibleRandomness
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.words import ContributionWords, FloatChannel, WordSource, all_words

RESULTS = Path(__file__).parent / "results"
SILOS, BITS, LIMIT = 10, 16, 1.0
LENGTHS, QUICK_LENGTHS = (100_000, 1_000_000, 10_000_000), (100_000, 1_000_000)
REPEATS = 3
WORD_BYTES, WEIGHT_BYTES = 8, 4


@dataclass(frozen=True)
class Row:
    """One size of contribution.

    Attributes
    ----------
    length : int
        Values of a contribution.
    masked, with_tag : float
        Seconds a silo takes to encode and mask it, without and with a tag.
    check, decode, bounds : float
        Seconds to check the tag of the sum, to read what is in it, and to hold it against its bounds.
    sent, sent_with_tag, model, shown : int
        Bytes of the vector without and with a tag, of the model in 32-bit floats, and of the opened sum as it is shown.
    """

    length: int
    masked: float
    with_tag: float
    check: float
    decode: float
    bounds: float
    sent: int
    sent_with_tag: int
    model: int
    shown: int


def measure(length: int) -> Row:
    """A row, from real contributions of random values."""
    cohort = tuple(range(1, SILOS + 1))
    terms = PrivacyTerms("none", "train", 1.0, 1, 0.0, 0.0, 0, 1e-5)
    manifest = with_tag(
        Manifest(
            session=bytes(16),
            epoch=1,
            slot=0,
            epoch_hash=bytes(32),
            round=0,
            attempt=0,
            phase="train",
            cohorts=(cohort,),
            minimum=(8,),
            threshold=7,
            model_hash=bytes(32),
            mask_hash=bytes(32),
            config_hash=bytes(32),
            channels=(ChannelSpec("update", length, BITS, LIMIT),),
            privacy=terms,
        )
    )
    plain, run_key = untagged(manifest), os.urandom(32)
    values = np.random.default_rng(0).normal(0.0, 0.1, length).astype(np.float32)

    def words(silo: int) -> WordSource:
        channel = FloatChannel(values, ReproducibleRandomness(0, "rounding", silo))
        return ContributionWords({"update": channel}, plain.channels, SILOS)

    def masks(source: WordSource) -> int:
        keys = [os.urandom(32) for _ in cohort]
        return sum(len(part) for part in masked_words(source, keys, [1] * SILOS))

    sent, sent_with_tag = masks(words(1)), masks(tagged(words(1), manifest, run_key, 1))
    total = np.zeros(sent_with_tag // WORD_BYTES, np.uint64)
    for silo in cohort:
        total += all_words(tagged(words(silo), manifest, run_key, silo))
    opened = SumProof(manifest, (CohortSum(0, cohort, total),))
    assert opened.holds(run_key)
    (untagged_sum,) = untagged_sums(manifest, opened.sums)
    decoded = decode(plain, untagged_sum)

    def bounded() -> float:
        excess = out_of_fields(untagged_sum.words, plain.channels, SILOS, SILOS, {})
        assert excess is None
        assert out_of_range(decoded, plain.channels, SILOS) is None
        return sum_length([decoded], "update")

    return Row(
        length,
        masked=best(lambda: masks(words(1))),
        with_tag=best(lambda: masks(tagged(words(1), manifest, run_key, 1))),
        check=best(lambda: opened.holds(run_key)),
        decode=best(lambda: decode(plain, untagged_sum)),
        bounds=best(bounded),
        sent=sent,
        sent_with_tag=sent_with_tag,
        model=WEIGHT_BYTES * length,
        shown=len(opened.to_bytes()),
    )


def best(work: Callable[[], object]) -> float:
    """Processor seconds, the least of some tries."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = [
        "# What proved models, and bounds on sums, cost",
        "",
        f"One silo, one round, a cohort of {SILOS}, {BITS} bits a value. Encoding and masking goes with the silos of "
        "the cohort; a tag, its check, and what is shown do not. All grow with the values that live. A silo "
        "that has the model by the sum is not sent it. Bounds on what silos may send are held against the sum alone, "
        "by the coordinator, in every run: they cost silos and network nothing.",
        "",
        "| values | encode and mask, s | with a tag, s | tag over masks | check a sum, s | decode it, s | bounds, s "
        "| sent, MB | tag adds, B | model, MB | shown, MB | shown over model |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        more = (row.with_tag - row.masked) / row.masked
        lines.append(
            f"| {row.length:,} | {row.masked:.3f} | {row.with_tag:.3f} | {more:.2f} "
            f"| {row.check:.3f} | {row.decode:.3f} | {row.bounds:.3f} "
            f"| {row.sent / 1e6:.2f} | {row.sent_with_tag - row.sent} "
            f"| {row.model / 1e6:.2f} | {row.shown / 1e6:.2f} | {row.shown / row.model:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the largest contribution")
    arguments = parser.parse_args()
    rows = [measure(length) for length in (QUICK_LENGTHS if arguments.quick else LENGTHS)]
    name = "model_proofs-quick" if arguments.quick else "model_proofs"
    text = markdown(rows) + f"\nMade by `python benchmarks/model_proofs.py` on {json.dumps(machine())}.\n"
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine(), "rows": [asdict(r) for r in rows]}, indent=1)
    )
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
