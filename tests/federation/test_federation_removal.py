"""What the coordinator makes of a noised sum: the excess is gone, and what is left is stated as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autoflip_secure.errors import Abort
from autoflip_secure.federation.sums import decode
from autoflip_secure.federation.terms import count_channel, metric_channel, noise_levels, update_channel
from autoflip_secure.sums.channels import Aggregate
from autoflip_secure.sums.manifest import Manifest
from autoflip_secure.sums.noise_chain import fresh_root
from autoflip_secure.sums.plain import REVEAL, PlainCoordinator, PlainSilo
from autoflip_secure.sums.randomness import SecretRandomness
from autoflip_secure.sums.secure_sum import CohortSum
from autoflip_secure.sums.words import ContributionWords, WordSource

LENGTH = 4000
Make = Callable[..., Manifest]


@pytest.fixture
def noised(make_config, make_manifest, model) -> Make:
    """noised(silos, minimum, cohorts=None, **terms) -> manifest of one wide channel with distributed noise."""

    def make(silos: int, minimum: int, cohorts: Any = None, channels: Any = None, **terms: Any) -> Manifest:
        config = make_config(silos=silos, dp_epsilon=8.0, colluders=0)
        cohorts = cohorts or (tuple(range(1, silos + 1)),)
        return make_manifest(
            config, model, cohorts=cohorts, minimum=(minimum,) * len(cohorts), terms=terms,
            channels=channels or (update_channel(config, LENGTH),),
        )  # fmt: skip

    return make


def zeros(manifest: Manifest, silo: int) -> WordSource:
    """A contribution of nothing but noise, as a silo draws it."""
    cohort, root = manifest.cohort_of(silo), fresh_root()
    noise = {}
    for channel in manifest.channels:
        levels = noise_levels(manifest, channel, cohort)
        assert levels is not None
        noise[channel.name] = levels.draw(channel.length, channel.name, SecretRandomness(), root)
    return ContributionWords(noise, manifest.channels, len(manifest.cohorts[cohort]), root)


Tamper = Callable[[str, int, bytes], bytes]


def plain_sums(
    manifest: Manifest, away: Iterable[int] = (), late: Iterable[int] = (), tamper: Tamper = lambda *reply: reply[-1]
) -> tuple[CohortSum, ...]:
    """Sums of zero contributions; silos `away` send none, silos `late` vanish before they reveal a link."""
    silos: dict[int, PlainSilo] = {}

    def exchange(stage: str, requests: Mapping[int, bytes]) -> Iterable[tuple[int, bytes]]:
        for silo, request in requests.items():
            if silo in away or (stage == REVEAL and silo in late):
                continue
            own = silos.setdefault(silo, PlainSilo(sqlite3.connect(":memory:", isolation_level=None)))
            yield silo, tamper(stage, silo, own.answer(stage, request, lambda m, silo=silo: zeros(m, silo)))

    return PlainCoordinator().sum(manifest, exchange)


def summed(manifest: Manifest, away: Iterable[int] = (), late: Iterable[int] = ()) -> list[Aggregate]:
    return [decode(manifest, item) for item in plain_sums(manifest, away, late)]


def within(values: np.ndarray, variance: float) -> bool:
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], values.size) / values.size
    return bool(low < values.var() / variance < high) and abs(values.mean()) < 5.5 * (variance / values.size) ** 0.5


def steps(aggregate: Aggregate, manifest: Manifest, channel: int = 0) -> np.ndarray:
    """The sum in grid steps, which are whole."""
    spec = manifest.channels[channel]
    values = aggregate.sum(spec.name) / spec.step
    np.testing.assert_allclose(values, np.rint(values), atol=1e-6)
    return np.rint(values)


@pytest.mark.parametrize(("silos", "minimum"), [(4, 3), (10, 7), (30, 24)])
@pytest.mark.parametrize("colluders", [0, 1])
def test_every_number_of_drops_leaves_what_it_needs(noised: Make, silos: int, minimum: int, colluders: int) -> None:
    manifest = noised(silos, minimum, colluders=colluders)
    channel = manifest.channels[0]
    owed = (2.0 * manifest.privacy.clip / channel.step) ** 2
    for missing in range(silos - minimum + 1):
        (aggregate,) = summed(manifest, away=range(1, missing + 1))
        present = silos - missing
        least = owed * present / (present - colluders)
        assert within(steps(aggregate, manifest), least * aggregate.noise_over_least)
        assert aggregate.noise_std["update"] == pytest.approx(least**0.5 * channel.step, rel=0.011)
        assert aggregate.noise_over_least == pytest.approx(1, abs=1e-9), "so few silos have a level for each number"


def test_without_a_link_all_noise_stays_and_is_stated(noised: Make) -> None:
    manifest = noised(10, 7)
    (before,) = summed(manifest, late=range(1, 11))
    assert before.noise_over_least == pytest.approx(10 / 7, rel=1e-6)
    (after,) = summed(manifest, late=(2, 5))
    assert after.noise_over_least == pytest.approx((8 + 2 * 10 / 7) / 10, rel=1e-6)
    for aggregate in (before, after):
        levels = noise_levels(manifest, manifest.channels[0], 0)
        assert levels is not None
        variance = 10 * levels.owed[0] * aggregate.noise_over_least
        assert within(steps(aggregate, manifest), variance)
        assert aggregate.noise_std["update"] == pytest.approx(variance**0.5 * manifest.channels[0].step)
    (none_left,) = summed(manifest, away=(1, 2, 3), late=(4, 5))
    assert none_left.noise_over_least == pytest.approx(1, abs=1e-9), "with the fewest survivors there is no excess"


def test_each_cohort_has_its_own_excess_removed(noised: Make) -> None:
    manifest = noised(12, 3, cohorts=((1, 3, 5, 7, 9), (2, 4, 6, 8, 10, 11, 12)))
    first, second = summed(manifest, away=(3, 8, 11, 12))
    for aggregate, cohort, missing in ((first, 0, 1), (second, 1, 3)):
        levels = noise_levels(manifest, manifest.channels[0], cohort)
        assert levels is not None
        assert within(steps(aggregate, manifest), aggregate.silos * levels.owed[missing])
        assert aggregate.noise_over_least == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("phase", ["census", "evaluate"])
def test_counts_and_metrics_lose_their_excess_too(noised: Make, phase: str) -> None:
    channels = (metric_channel(LENGTH, 3.0), count_channel(3.0))
    manifest = replace(noised(9, 6, channels=channels, clip=1.0, noise_multiplier=3.0), phase=phase)
    (aggregate,) = summed(manifest, away=(4,))
    assert within(steps(aggregate, manifest), (3.0 / channels[0].step) ** 2 * aggregate.noise_over_least)
    assert aggregate.noise_std["count"] == pytest.approx(3.0, rel=0.02)
    assert aggregate.noise_over_least == pytest.approx(1, abs=1e-9)


def test_rounds_do_not_share_noise(noised: Make) -> None:
    manifest = noised(4, 3)
    (one,), (two,) = summed(manifest), summed(manifest)
    assert abs(np.corrcoef(one.sum("update"), two.sum("update"))[0, 1]) < 5.5 / LENGTH**0.5


def test_local_trust_keeps_each_silo_s_noise_whole(make_config, make_manifest, model) -> None:
    config = make_config(silos=10, dp_epsilon=8.0, dp_trust="local")
    channel = metric_channel(6, 3.0)
    terms = {"noise_multiplier": 3.0, "clip": 1.0}
    manifest = make_manifest(config, model, phase="evaluate", channels=(channel,), terms=terms)
    levels = noise_levels(manifest, channel, 0)
    assert levels is not None
    assert len(levels.stds) == 1
    asked = set()

    def noting(stage: str, silo: int, reply: bytes) -> bytes:
        asked.add(stage)
        return reply

    (aggregate,) = (decode(manifest, item) for item in plain_sums(manifest, tamper=noting))
    assert asked == {"clear"}, "nothing is there to be removed"
    assert aggregate.noise_over_least is None
    assert aggregate.noise_std["metric"] == pytest.approx(3.0 * 10**0.5, rel=0.02)


def test_a_false_link_shifts_the_sum_by_noise_and_nothing_else(noised: Make) -> None:
    manifest = noised(10, 7)
    (honest,) = plain_sums(manifest)
    lying = replace(honest, links={**honest.links, 3: fresh_root()})
    levels = noise_levels(manifest, manifest.channels[0], 0)
    assert levels is not None
    shift = steps(decode(manifest, lying), manifest) - steps(decode(manifest, honest), manifest)
    assert within(shift, 2 * (levels.drawn - levels.left(0)))


def test_a_link_of_another_length_is_a_reason_to_start_again(noised: Make) -> None:
    manifest = noised(4, 3)

    def shortened(stage: str, silo: int, reply: bytes) -> bytes:
        return reply[:-1] if (stage, silo) == (REVEAL, 2) else reply

    with pytest.raises(Abort, match="silo 2 revealed 31 bytes") as caught:
        plain_sums(manifest, tamper=shortened)
    assert caught.value.blamed == (2,)
