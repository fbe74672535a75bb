from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.privacy.sampling import poisson_sample
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness

RECORDS, RATE, TRIALS = 400, 0.1, 2000


class Fixed:
    def __init__(self, *words: int) -> None:
        self._words = np.array(words, np.uint64)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._words[:count]


def test_each_record_takes_part_independently_at_the_rate() -> None:
    source = ReproducibleRandomness(1, "poisson")
    taken = np.zeros((TRIALS, RECORDS))
    for row in taken:
        row[poisson_sample(RECORDS, RATE, source)] = 1
    assert taken.mean() == pytest.approx(RATE, abs=4 * np.sqrt(RATE * (1 - RATE) / taken.size))
    assert np.all(np.abs(taken.mean(axis=0) - RATE) < 5 * np.sqrt(RATE * (1 - RATE) / TRIALS))
    # Batch sizes are binomial: a shuffle with fixed batches has variance 0 here.
    assert taken.sum(axis=1).var() == pytest.approx(RECORDS * RATE * (1 - RATE), rel=6 * np.sqrt(2 / TRIALS))
    # The same records are not avoided in the next round, as an epoch of a shuffle would.
    assert (taken[:-1] * taken[1:]).mean() == pytest.approx(RATE**2, rel=0.05)


@given(st.integers(0, 300), st.floats(0, 1))
def test_indices_are_ascending_and_within_range(records: int, rate: float) -> None:
    indices = poisson_sample(records, rate, SecretRandomness())
    assert indices.dtype == np.int64
    assert np.all(np.diff(indices) > 0)
    assert not indices.size or 0 <= indices[0] <= indices[-1] < records


def test_rate_one_takes_all_and_rate_zero_none() -> None:
    assert np.array_equal(poisson_sample(3, 1.0, Fixed(0, 2**64 - 1, 5)), [0, 1, 2])
    assert poisson_sample(3, 0.0, Fixed(0, 2**64 - 1, 5)).size == 0


def test_the_rate_is_cut_exactly_and_never_exceeded() -> None:
    half = 1 << 63
    assert np.array_equal(poisson_sample(2, 0.5, Fixed(half - 1, half)), [0])
    assert poisson_sample(1, 2.0**-53, Fixed(2**11 - 1)).size == 1
    assert poisson_sample(1, 2.0**-53, Fixed(2**11)).size == 0
    assert poisson_sample(1, 2.0**-54, Fixed(0)).size == 0


def test_secret_samples_differ() -> None:
    first, second = (poisson_sample(1000, 0.5, SecretRandomness()) for _ in range(2))
    assert not np.array_equal(first, second)


def test_bad_input_is_refused() -> None:
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="sampling rate"):
            poisson_sample(10, rate, SecretRandomness())
    with pytest.raises(ConfigError, match="-1 records"):
        poisson_sample(-1, 0.5, SecretRandomness())
