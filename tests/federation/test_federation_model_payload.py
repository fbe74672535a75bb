"""The model as a file: what it round-trips, and that nothing malformed reads as a model or ends in another error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from autoflip_secure.errors import AutoflipSecureError, ProtocolError
from autoflip_secure.federation.model_payload import ModelPayload

Change = Callable[[dict[str, Any], dict[str, Any]], None]


def same(one: ModelPayload, other: ModelPayload) -> bool:
    return (
        (one.spec, one.records) == (other.spec, other.records)
        and one.weights.dtype == other.weights.dtype == np.float32
        and one.weights.tobytes() == other.weights.tobytes()
        and one.mask.dtype == other.mask.dtype == np.bool_
        and one.mask.tobytes() == other.mask.tobytes()
    )


def tampered(model: ModelPayload, change: Change) -> bytes:
    """The model's file after `change(tensors, header)`."""
    data = model.to_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["autoflip_secure"])
    tensors = load(data)
    change(tensors, header)
    return save(tensors, metadata={"autoflip_secure": json.dumps(header)})


@given(seed=st.integers(0, 2**32 - 1), live=st.floats(0, 1), records=st.integers(0, 10**9))
def test_models_round_trip_bit_for_bit(model, seed: int, live: float, records: int) -> None:
    draw = np.random.default_rng(seed)
    mask = draw.random(model.mask.size) < live
    weights = np.where(mask, draw.normal(size=mask.size), 0).astype(np.float32)
    original = ModelPayload(model.spec, weights, mask, records)
    data = original.to_bytes()
    assert same(ModelPayload.from_bytes(data), original)
    assert ModelPayload.from_bytes(data).to_bytes() == data


def test_only_live_weights_travel(model) -> None:
    none = replace(model, weights=np.zeros_like(model.weights), mask=np.zeros_like(model.mask))
    saved = len(model.to_bytes()) - len(none.to_bytes())
    assert abs(saved - 4 * int(model.mask.sum())) < 64
    half = model.mask & (np.arange(model.mask.size) % 2 == 0)
    hidden = replace(model, mask=half)  # masked weights that are not 0 must not travel
    assert not ModelPayload.from_bytes(hidden.to_bytes()).weights[~half].any()


@given(data=st.data())
@settings(deadline=None)
def test_a_cut_file_is_refused(model, data) -> None:
    whole = model.to_bytes()
    length = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 400))
    with pytest.raises(ProtocolError, match="not a model"):
        ModelPayload.from_bytes(whole[:length])


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_flipped_bits_are_refused_or_give_a_model_of_the_same_size(model, data) -> None:
    whole = bytearray(model.to_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in data.draw(
        st.lists(st.integers(0, header - 1) | st.integers(0, len(whole) - 1), min_size=1, unique=True)
    ):
        whole[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = ModelPayload.from_bytes(bytes(whole))
    except AutoflipSecureError:
        return
    assert read.weights.shape == read.mask.shape
    assert not read.weights[~read.mask].any()


@given(st.binary(max_size=200))
def test_other_bytes_are_no_model(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ModelPayload.from_bytes(data)


TAMPERING: dict[str, Change] = {
    "one weight too few": lambda t, h: t.update(weights=t["weights"][:-1].copy()),
    "one weight too many": lambda t, h: t.update(weights=np.append(t["weights"], np.float32(1))),
    "float64 weights": lambda t, h: t.update(weights=t["weights"].astype(np.float64)),
    "no weights": lambda t, h: t.pop("weights"),
    "no mask": lambda t, h: t.pop("mask"),
    "mask of another type": lambda t, h: t.update(mask=t["mask"].astype(np.int64)),
    "mask too short": lambda t, h: t.update(mask=t["mask"][:-1].copy()),
    "fewer parameters": lambda t, h: h.update(parameters=h["parameters"] - 500),
    "negative parameters": lambda t, h: h.update(parameters=-8),
    "no parameters": lambda t, h: h.pop("parameters"),
    "parameters in words": lambda t, h: h.update(parameters="many"),
    "no records": lambda t, h: h.pop("records"),
    "records in words": lambda t, h: h.update(records="many"),
    "no architecture": lambda t, h: h.pop("spec"),
    "architecture of another type": lambda t, h: h.update(spec=7),
}
FLAWS: dict[str, tuple[Change, str]] = {
    "one weight for all": (lambda t, h: t.update(weights=t["weights"][:1].copy()), "is spread over all parameters"),
    "architecture is not JSON": (lambda t, h: h.update(spec="{"), "raises DataError"),
    "unknown architecture": (lambda t, h: h.update(spec=h["spec"].replace("mlp", "mlq")), "raises ConfigError"),
    "another architecture": (lambda t, h: h.update(spec=h["spec"].replace("6", "7", 1)), "sizes are not compared"),
    "infinite parameters": (lambda t, h: h.update(parameters=float("inf")), "raises OverflowError"),
    "infinite records": (lambda t, h: h.update(records=float("inf")), "raises OverflowError"),
    "parameters beyond memory": (lambda t, h: h.update(parameters=1 << 60), "raises MemoryError"),
    "negative records": (lambda t, h: h.update(records=-1), "is taken"),
    "weights that are not finite": (lambda t, h: t["weights"].fill(np.nan), "are taken"),
}


@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(change, id=name) for name, change in TAMPERING.items()),
        *(pytest.param(change, id=name) for name, (change, _) in FLAWS.items()),
    ],
)
def test_what_does_not_fit_together_is_refused(model, change: Change) -> None:
    with pytest.raises(ProtocolError):
        ModelPayload.from_bytes(tampered(model, change))


def test_metadata_is_needed(model) -> None:
    with pytest.raises(ProtocolError):
        ModelPayload.from_bytes(save({"weights": np.zeros(1, np.float32), "mask": np.zeros(1, np.uint8)}))


def test_the_mask_hash_names_architecture_and_mask_and_nothing_else(model) -> None:
    other_mask = model.mask.copy()
    other_mask[-1] = not other_mask[-1]
    narrower = replace(model.spec, widths=(model.spec.widths[0] - 1, *model.spec.widths[1:]))
    hashes = [
        model.mask_hash(),
        replace(model, mask=other_mask).mask_hash(),
        replace(model, spec=narrower).mask_hash(),
    ]
    assert len(set(hashes)) == 3
    assert all(len(value) == 32 for value in hashes)
    assert replace(model, weights=model.weights + 1, records=9).mask_hash() == model.mask_hash()
    assert ModelPayload.from_bytes(model.to_bytes()).mask_hash() == model.mask_hash()
