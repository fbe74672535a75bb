"""Bad silos: what they are read from, which they are, and what they send through the honest encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.attacks.bad_silos import BadSilos, flipped_labels, noise_like
from autoflip_secure.errors import ConfigError
from autoflip_secure.seeds import stream


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("noise:0.2", ("noise", 0.2, 10.0)),
        ("noise:0.2:3", ("noise", 0.2, 3.0)),
        ("label-flip:0.4", ("label-flip", 0.4, 1.0)),
        ("scaling:0.1", ("scaling", 0.1, 10.0)),
        ("scaling:0.5:-10", ("scaling", 0.5, -10.0)),
        ("noise:0", ("noise", 0.0, 10.0)),
    ],
)
def test_forms(text: str, read: tuple[str, float, float]) -> None:
    bad = BadSilos.parse(text)
    assert (bad.kind, bad.fraction, bad.strength) == read


@pytest.mark.parametrize(
    "text",
    ["", "noise", "noise:", "noise:x", "noise:0.6", "noise:-0.1", "noise:nan", "noise:0.2:0", "noise:0.2:-1",
     "scaling:0.2:inf", "label-flip:0.2:3", "theft:0.2", "noise:0.2:1:1"],
)  # fmt: skip
def test_what_is_wrong_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--bad-silos") as refused:
        BadSilos.parse(text)
    assert "\n" not in str(refused.value)


@given(st.integers(0, 2**40), st.integers(3, 100), st.floats(0, 0.5))
def test_which_silos_are_bad_follows_from_the_seed(seed: int, silos: int, fraction: float) -> None:
    bad = BadSilos("noise", fraction, 1.0)
    found = bad.silos(seed, silos)
    assert found == bad.silos(seed, silos)
    assert abs(len(found) - fraction * silos) <= 0.5
    assert found <= set(range(1, silos + 1))
    more = BadSilos("noise", 0.5, 1.0).silos(seed, silos)
    assert found <= more, "a larger fraction of the same seed adds silos and changes none"


def test_seeds_differ() -> None:
    assert len({BadSilos("noise", 0.2, 1.0).silos(seed, 20) for seed in range(10)}) > 5


def test_flipping_twice_is_honest() -> None:
    labels = np.arange(10)
    assert flipped_labels(labels, 10).tolist() == list(range(9, -1, -1))
    assert flipped_labels(flipped_labels(labels, 10), 10).tolist() == labels.tolist()


def test_noise_has_the_norm_asked_for() -> None:
    noise = noise_like(3.0, 1000, stream(0, "noise"))
    assert np.linalg.norm(noise) == pytest.approx(3.0)
    assert abs(noise.mean()) < 3 * 3.0 / 1000
    assert not noise_like(0.0, 5, stream(0, "noise")).any()
