"""ModelSpec: validation, JSON, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.errors import ConfigError, DataError
from autoflip_secure.models.architectures import MODELS
from autoflip_secure.models.names import MODEL_DESCRIPTIONS, MODEL_NAMES
from autoflip_secure.models.spec import ModelSpec, dense_spec, unit_layers


def test_names_are_the_registry_and_cost_no_torch() -> None:
    assert tuple(MODELS) == MODEL_NAMES
    assert all(MODELS[name].description == MODEL_DESCRIPTIONS[name] for name in MODEL_NAMES)
    code = "import sys, autoflip_secure.models.names; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.integers(1, 16), st.integers(1, 32), st.integers(1, 32), st.integers(8, 40), st.integers(2, 30))
def test_json_round_trip(first: int, second: int, third: int, side: int, outputs: int) -> None:
    spec = ModelSpec("cnn-tanh", (1, side, side), outputs, (first, second, third))
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_json() == spec.to_json()


def spoiled(**changes: object) -> str:
    fields = json.loads(dense_spec("mlp", (13,), 2).to_json())
    fields.update(changes)
    return json.dumps({key: value for key, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        spoiled(name=None),
        spoiled(extra=1),
        spoiled(name=7),
        spoiled(widths="64"),
        spoiled(widths=[64, "32"]),
        spoiled(widths=[64, 32.0]),
        spoiled(input_shape={"0": 13}),
        spoiled(outputs="2"),
        spoiled(outputs=True),
        '{"name": "mlp", "input_shape": [13], "outputs": NaN, "widths": [64, 32]}',
    ],
)
def test_what_is_not_a_spec_is_a_data_error_in_one_line(text: str) -> None:
    with pytest.raises(DataError) as caught:
        ModelSpec.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        ("resnet", (1, 28, 28), 10, (1,)),
        ("mlp", (13,), 2, (64,)),
        ("mlp", (13,), 2, (64, 0)),
        ("mlp", (13,), 2, (65, 32)),
        ("mlp", (13,), 0, (64, 32)),
        ("mlp", (), 2, (64, 32)),
        ("mlp", (-13,), 2, (64, 32)),
        ("cnn6", (3, 32, 32), 10, (32, 30, 64, 64, 128)),
        ("cnn6", (3, 32, 7), 10, (32, 32, 64, 64, 128)),
        ("resnet-small", (3, 32, 32), 10, (16, 16, 32, 30, 64, 64)),
        ("resnet-small", (3, 32, 32), 10, (16, 16, 32, 32, 64)),
        ("resnet-small", (80,), 10, (16, 16, 32, 32, 64, 64)),
        ("femnist-cnn", (1, 28, 28), 10, (32, 64, 2049)),
        ("femnist-cnn", (1, 28, 7), 10, (32, 64, 2048)),
        ("char-lstm", (80,), 10, (256, 257)),
        ("char-lstm", (80,), 10, (0, 256)),
        ("char-lstm", (1, 28, 28), 10, (256, 256)),
        ("char-lstm", (), 10, (256, 256)),
        ("resnet18", (3, 32), 10, (64,) * 12),
        ("cnn-tanh", (28, 28), 10, (16, 32, 32)),
        ("cnn-tanh", (1, 7, 28), 10, (16, 32, 32)),
    ],
)
def test_impossible_networks_are_refused(fields: tuple[str, tuple[int, ...], int, tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelSpec(*fields)
    assert "\n" not in str(caught.value)


def test_refusals_name_what_would_be_right() -> None:
    with pytest.raises(ConfigError, match=r"--model: unknown network 'resnet'.*cnn-tanh, cnn6, .*char-lstm, mlp"):
        dense_spec("resnet", (1, 28, 28), 10)
    with pytest.raises(ConfigError, match=r"records are 13.*--model mlp"):
        dense_spec("cnn-tanh", (13,), 2)
    with pytest.raises(ConfigError, match="multiples of 4 up to 32"):
        ModelSpec("cnn6", (3, 32, 32), 10, (31, 32, 64, 64, 128))


def test_unit_layers_carry_the_specs_own_widths() -> None:
    spec = ModelSpec("cnn6", (3, 32, 32), 10, (8, 32, 16, 4, 100))
    layers = unit_layers(spec)
    assert [layer.module for layer in layers] == ["conv1", "conv2", "conv3", "conv4", "fc1"]
    assert [layer.width for layer in layers] == [8, 32, 16, 4, 100]
    assert [layer.units for layer in layers] == [2, 8, 4, 1, 100]
