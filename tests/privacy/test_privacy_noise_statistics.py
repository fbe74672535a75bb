"""The noise of decoded sums, from real silos: its variance, its grid, its shape, and that no two draws know each other.

The silos hold one record without a gradient, so all that a sum shows is noise. Thresholds are set for about one false
alarm in a hundred thousand runs of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.signal import fftconvolve

from autoflip_secure.federation.terms import ROUNDING_SHARE, update_channel
from autoflip_secure.privacy.audit_canaries import CanaryFederation
from autoflip_secure.privacy.audit_settings import AuditSettings
from autoflip_secure.privacy.discrete_noise import rounded_sensitivity
from autoflip_secure.sums.encoding import unpack, word_count

COORDINATES = 3000
LEVEL = 1e-7
SURPRISE = 6.0
"""Standard deviations of a correlation of independent draws that do not happen: two in a thousand million."""


class Ears:
    """Listens to what silos answer, by (round, attempt, silo); may lose a first attempt or silence a silo."""

    def __init__(self, federation: CanaryFederation, *, lose_first: bool = False, silent: frozenset[int] = frozenset()):
        self.inner, self.lose_first, self.silent = federation._sums.exchange, lose_first, silent
        self.channel = update_channel(federation.config, COORDINATES + 3)
        self.silos = federation.config.silos
        self.heard: dict[tuple[int, int, int], np.ndarray] = {}
        federation._sums.exchange = self  # type: ignore[assignment]

    @property
    def refusals(self) -> Any:
        return self.inner.refusals

    def begin(self, round: int, attempt: int, attachment: bytes) -> None:
        self.at = round, attempt
        self.inner.begin(round, attempt, attachment)

    def __call__(self, stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        for silo, reply in self.inner(stage, requests):
            if stage == "clear":
                self.heard[*self.at, silo] = unpack(np.frombuffer(reply, np.uint64), self.channel, self.silos)
            if silo in self.silent:
                if stage == "clear":
                    yield silo, bytes(8 * word_count([self.channel], self.silos))
            elif not (self.lose_first and self.at[1] == 0):
                yield silo, reply


MakeFederation = Callable[..., CanaryFederation]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[MakeFederation]:
    """federation(**settings) -> four silos without colluders, unless said otherwise, that hold nothing to be learnt."""
    made: list[CanaryFederation] = []

    def make(**changes: Any) -> CanaryFederation:
        options = {"silos": 4, "colluders": 0, "rounds": 2, "sampling_rate": 1.0, "epsilon": 2.0, **changes}
        nothing = np.zeros(COORDINATES, np.bool_)
        made.append(CanaryFederation(tmp_path / str(len(made)), AuditSettings(**options), nothing))
        return made[-1]

    yield make
    for one in made:
        one.close()


def in_steps(federation: CanaryFederation) -> np.ndarray:
    """Noise of every release in grid steps, shape (releases, coordinates)."""
    step = update_channel(federation.config, COORDINATES + 3).step
    return np.array(list(federation.releases())) * (federation.config.clip / step)


def owed_variance(federation: CanaryFederation) -> float:
    """(sigma Delta)^2 + 1/12, Delta the rounded sum's sensitivity: the accountant's noise on the grid."""
    channel, config = update_channel(federation.config, COORDINATES + 3), federation.config
    sensitivity = rounded_sensitivity(config.clip / channel.step, channel.length, ROUNDING_SHARE * config.dp_delta)
    assert sensitivity >= config.clip / channel.step
    return (federation.plan.privacy.noise_multiplier * sensitivity) ** 2 + 1 / 12


def chi_square_tails(noise: np.ndarray, variance: float) -> tuple[float, float]:
    """Probability of so little, and of so much, if the variance were this."""
    total = float((noise**2).sum()) / variance
    return float(stats.chi2.cdf(total, noise.size)), float(stats.chi2.sf(total, noise.size))


@pytest.mark.parametrize(
    "changes",
    [{}, {"silos": 10, "colluders": 1}, {"silos": 10, "absent": 2}, {"silos": 10, "colluders": 1, "absent": 1}],
    ids=str,
)
def test_the_sum_carries_the_noise_that_is_owed_and_no_more(
    changes: dict[str, Any], federation: MakeFederation
) -> None:
    """With colluders' shares taken off, whoever is absent; 2 % is the most that removal may leave."""
    one = federation(**changes)
    noise, owed = in_steps(one), owed_variance(one)
    assert np.abs(noise - np.rint(noise)).max() < 1e-6, "whole on the grid"
    little, _ = chi_square_tails(noise, owed)
    _, much = chi_square_tails(noise, 1.02 * owed)
    assert little > LEVEL, f"variance {noise.var():.0f} is below the {owed:.0f} that is owed"
    assert much > LEVEL, f"variance {noise.var():.0f} is above the {owed:.0f} that is owed"
    assert abs(noise.mean()) < SURPRISE * (owed / noise.size) ** 0.5


def test_one_silent_silo_is_borne_and_two_are_seen(federation: MakeFederation) -> None:
    """The plan counts on one colluder, which sends zeros here. A second silo without noise is below what is owed."""
    one = federation(silos=5, colluders=1)
    little, _ = chi_square_tails(in_steps(one), owed_variance(one))
    assert little > LEVEL
    one = federation(silos=5, colluders=1)
    Ears(one, silent=frozenset({2}))
    little, _ = chi_square_tails(in_steps(one), owed_variance(one))
    assert little < LEVEL


def exact_pmf(std: float, silos: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and probabilities of a sum of discrete Gaussians, by convolution of exp(-k^2 / (2 std^2))."""
    reach = int(12 * std)
    k = np.arange(-reach, reach + 1)
    one = np.exp(-(k**2) / (2 * std**2))
    one /= one.sum()
    total = one
    for _ in range(silos - 1):
        total = fftconvolve(total, one)
    half = len(total) // 2
    return np.arange(-half, half + 1), np.clip(total, 0, None) / total.sum()


def test_the_sum_has_the_shape_of_discrete_gaussians(federation: MakeFederation) -> None:
    """Goodness of fit over 60 cells of equal probability, and the third and fourth moments."""
    one = federation()
    noise, owed = np.rint(in_steps(one)).ravel(), owed_variance(one)
    values, pmf = exact_pmf((owed / 4) ** 0.5, 4)
    assert (pmf * values**2).sum() == pytest.approx(owed, rel=1e-9)
    edges = np.unique(np.searchsorted(np.cumsum(pmf), np.linspace(0, 1, 61)[1:-1]))
    expected = np.array([part.sum() for part in np.split(pmf, edges + 1)]) * noise.size
    cells = np.searchsorted(values[edges], noise, "left")
    seen = np.bincount(cells, minlength=len(expected))
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > LEVEL
    assert abs(stats.skew(noise)) < SURPRISE * (6 / noise.size) ** 0.5
    assert abs(stats.kurtosis(noise)) < SURPRISE * (24 / noise.size) ** 0.5


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """In standard deviations of what independent draws would show."""
    return float(np.corrcoef(one, other)[0, 1]) * one.size**0.5


def test_coordinates_rounds_attempts_and_silos_are_independent(federation: MakeFederation) -> None:
    one = federation()
    ears = Ears(one, lose_first=True)
    noise = in_steps(one)
    assert {attempt for _, attempt, _ in ears.heard} == {0, 1}
    flat = noise.ravel()
    for lag in (1, 2, 3, 4, 7, 8, 16, 31, 32, 63, 64, 128, 1024, 1501):
        assert abs(correlation(flat[:-lag], flat[lag:])) < SURPRISE, f"coordinates {lag} apart"
        assert abs(correlation(flat[:-lag] ** 2, flat[lag:] ** 2)) < SURPRISE, f"squares {lag} apart"
    keys = sorted(ears.heard)
    assert {silo for _, _, silo in keys} == {1, 2, 3, 4}
    for i, key in enumerate(keys):
        for other in keys[:i]:
            assert abs(correlation(ears.heard[key], ears.heard[other])) < SURPRISE, f"{key} and {other}"


def test_the_same_seed_does_not_give_the_same_noise(federation: MakeFederation) -> None:
    heard = []
    for _ in range(2):
        one = federation()
        ears = Ears(one)
        next(one.releases())
        heard.append(ears.heard)
        assert one.config.seed == 0
    for key, words in heard[0].items():
        assert (words != heard[1][key]).mean() > 0.9
        assert abs(correlation(words, heard[1][key])) < SURPRISE, "noise follows the seed"


def test_local_updates_carry_the_whole_noise_each(federation: MakeFederation) -> None:
    """One step from a fresh optimiser: noise of one multiplier a clip, and the grid's own rounding beside it."""
    one = federation(trust="local")
    noise = np.array(list(one.releases()))
    multiplier = one.plan.privacy.noise_multiplier
    little, _ = chi_square_tails(noise, multiplier**2)
    _, much = chi_square_tails(noise, 1.001 * multiplier**2)
    assert min(little, much) > LEVEL
    assert abs(correlation(noise[0], noise[1])) < SURPRISE
