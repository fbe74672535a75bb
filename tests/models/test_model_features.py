"""Fixed features in front of a network: of each record alone, normalised, and only where a network has them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from autoflip_secure.errors import ConfigError
from autoflip_secure.models.features import feature_shape, features_of


def images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, *shape), np.float32)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 32, 32), (2, 17, 21)])
def test_shape_is_that_of_the_features(shape: tuple[int, ...]) -> None:
    features = features_of("scatter", images(3, *shape))
    assert features.shape == (3, *feature_shape("scatter", shape))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_known_shapes() -> None:
    assert feature_shape("scatter", (1, 28, 28)) == (81, 7, 7)
    assert feature_shape("scatter", (1, 8, 8)) == (9, 4, 4)
    assert feature_shape("cnn-tanh", (1, 28, 28)) == (1, 28, 28)


def test_a_network_without_features_gets_the_records_themselves() -> None:
    x = images(2, 1, 28, 28)
    assert features_of("cnn-tanh", x) is x


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28)])
def test_features_of_a_record_are_the_same_to_the_last_bit_whoever_is_beside_it(shape: tuple[int, ...]) -> None:
    x = images(70, *shape)
    features = features_of("scatter", x)
    assert np.array_equal(features_of("scatter", np.delete(x, 3, axis=0)), np.delete(features, 3, axis=0))
    assert np.array_equal(features_of("scatter", x[69:]), features[69:])


def test_a_record_beyond_all_bounds_has_no_features_and_spoils_no_other() -> None:
    x = images(3, 1, 8, 8)
    features = features_of("scatter", x)
    x[1, 0, 0, 0] = 1e37
    spoiled = features_of("scatter", x)
    assert not spoiled[1].any()
    assert np.array_equal(spoiled[[0, 2]], features[[0, 2]])


def test_groups_of_channels_are_normalised_within_a_record() -> None:
    features = features_of("scatter", images(4, 1, 28, 28)).reshape(4, 27, -1)
    np.testing.assert_allclose(features.mean(-1), 0.0, atol=1e-4)
    deviation = features.std(-1)
    assert (deviation < 1.001).all()  # a floor damps channels in which nearly nothing happens
    assert (deviation[:, 0] > 0.99).all()


def test_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="convolutional"):
        feature_shape("scatter", (13,))


def test_loading_the_transform_leaves_warning_filters_alone() -> None:
    code = (
        "import warnings; before = list(warnings.filters)\n"
        "import numpy as np\n"
        "from autoflip_secure.models.features import features_of\n"
        "import torch; before = list(warnings.filters)\n"
        "features_of('scatter', np.zeros((1, 1, 8, 8), np.float32))\n"
        "assert [f for f in warnings.filters if f[0] == 'always'] == [f for f in before if f[0] == 'always']"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
