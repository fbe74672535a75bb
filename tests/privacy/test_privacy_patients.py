"""The patient as unit: whatever a patient's records are and however many, they move a sum by the clip at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autoflip_secure.errors import ConfigError
from autoflip_secure.models.layout import flatten_parameters
from autoflip_secure.models.spec import build, dense_spec
from autoflip_secure.privacy import gradient_sum as gradient_sum_module
from autoflip_secure.privacy import local_sgd as local_sgd_module
from autoflip_secure.privacy import per_record
from autoflip_secure.privacy.gradient_sum import ClippedGradientSum
from autoflip_secure.privacy.local_sgd import dp_sgd
from autoflip_secure.privacy.per_patient import norms, patient_pieces
from autoflip_secure.privacy.per_record import PerRecordGradients
from autoflip_secure.privacy.sampling import poisson_rows, poisson_sample
from autoflip_secure.sums.randomness import ReproducibleRandomness, SecretRandomness

Batch = Callable[[int], tuple[Tensor, Tensor]]
Patients = NDArray[np.int64]

FEATURES = 3
CLIP = 0.5


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patients' records span chunks."""
    monkeypatch.setattr(per_record, "CHUNK_RECORDS", 4)


def by_record(gradients: Any, masters: Any, x: Tensor, y: Tensor, live: Any, patient: Patients | None) -> Any:
    """The mutant that clips each record by itself."""
    return patient_pieces(gradients, masters, x, y, live, None)


def sum_of_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient of a linear model's weights is then the record itself."""
    return outputs.sum()


def linear() -> nn.Module:
    return nn.Linear(FEATURES, 1, bias=False)


def moved_by_removing(x: NDArray[np.float32], patient: Patients) -> float:
    """Largest L2 distance by which one patient less moves the sum."""
    records, targets = torch.from_numpy(x), torch.zeros(len(x))
    with ClippedGradientSum(linear(), sum_of_outputs) as gradients:
        whole = gradients(records, targets, CLIP, None, patient)
        rest = [patient != one for one in np.unique(patient)]
        return max(
            float(np.linalg.norm(whole - gradients(records[keep], targets[keep], CLIP, None, patient[keep])))
            for keep in rest
        )


ADVERSARIAL = st.integers(1, 14).flatmap(
    lambda n: st.tuples(
        arrays(
            np.float32,
            (n, FEATURES),
            elements=st.one_of(
                st.floats(-10, 10, width=32),
                st.sampled_from([3e38, -3e38, 1e30, -1e30, 1e-40, 1.0, -1.0, 2.0**60, -(2.0**60)]),
            ),
        ),
        arrays(np.int64, n, elements=st.integers(0, 4)),
    )
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ADVERSARIAL)
def test_a_patient_moves_the_sum_by_the_clip_at_most(small_chunks: None, drawn: tuple[Any, Patients]) -> None:
    assert moved_by_removing(*drawn) <= CLIP


@pytest.fixture
def one_large_family() -> tuple[NDArray[np.float32], Patients]:
    """A patient with nine records that pull one way, among four with one."""
    x = np.ones((13, FEATURES), np.float32)
    return x, np.array([7] * 5 + [1, 2] + [7] * 4 + [3, 4])


def test_clipping_by_record_is_caught(one_large_family: tuple[Any, Patients], monkeypatch: pytest.MonkeyPatch) -> None:
    assert moved_by_removing(*one_large_family) <= CLIP
    monkeypatch.setattr(gradient_sum_module, "patient_pieces", by_record)
    assert moved_by_removing(*one_large_family) > 8 * CLIP


def test_a_patient_s_gradient_is_the_same_wherever_chunks_end(small_chunks: None) -> None:
    """Records that cancel but for rounding: added up chunk by chunk, their clipped mean would be another vector."""
    cancelling = np.array([[2.0**60, 1, 0], [1, 0, 0], [-(2.0**60), 1, 0], [1, 0, 2]], np.float32)
    patient = np.array([5, 5, 5, 5])
    alone = None
    for before in range(6):
        x = np.concatenate([np.zeros((before, FEATURES), np.float32), cancelling])
        with ClippedGradientSum(linear(), sum_of_outputs) as gradients:
            found = gradients(
                torch.from_numpy(x), torch.zeros(len(x)), 100.0, None, np.concatenate([np.zeros(before, int), patient])
            )
        alone = found if alone is None else alone
        assert np.array_equal(found, alone), before


def plain_loop(module: nn.Module, x: Tensor, y: Tensor, clip: float, patient: Patients) -> NDArray[np.float64]:
    """One patient at a time: ordinary autograd of the mean loss over the patient's records."""
    parameters = list(module.parameters())
    total = np.zeros(sum(p.numel() for p in parameters))
    for one in np.unique(patient):
        mine = torch.from_numpy(np.flatnonzero(patient == one))
        grads = torch.autograd.grad(F.cross_entropy(module(x[mine]), y[mine]), parameters)
        flat = torch.cat([g.reshape(-1) for g in grads]).double().numpy()
        total += flat * min(1.0, clip / np.linalg.norm(flat))
    return total


@pytest.mark.parametrize("clip", [0.02, 1e6])
@pytest.mark.parametrize("chunk", [3, 16, 64])
def test_equals_a_plain_loop_over_patients(
    cnn: nn.Module, batch: Batch, clip: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_record, "CHUNK_RECORDS", chunk)
    x, y = batch(40)
    patient = np.random.default_rng(1).integers(0, 9, 40)
    patient[patient == 8] = 0  # one has many
    expected = plain_loop(cnn, x, y, clip, patient)
    with ClippedGradientSum(cnn) as gradients:
        found = gradients(x, y, clip, None, patient)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_patients_of_one_record_are_the_plain_sum(cnn: nn.Module, batch: Batch, small_chunks: None) -> None:
    x, y = batch(10)
    singles = np.arange(10)
    with ClippedGradientSum(cnn) as gradients:
        assert np.array_equal(gradients(x, y, 0.1, None, singles), gradients(x, y, 0.1))
        first, second = (gradients.with_clip_bits(x, y, 0.1, None, patient) for patient in (singles, None))
    assert first[1] == second[1]
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(poisson_rows(10, singles, 0.5, _stream()), poisson_sample(10, 0.5, _stream()))


def _stream() -> ReproducibleRandomness:
    return ReproducibleRandomness(3, "sampling")


def whole_patients_at_the_rate(sample: Callable[..., NDArray[np.int64]], rate: float = 0.3, rounds: int = 400) -> bool:
    """Whether records of a patient come together, and patients (not records) independently at the rate."""
    patient = np.repeat(np.arange(40), np.r_[np.ones(20, int), np.full(20, 6)])
    np.random.default_rng(0).shuffle(patient)
    patient = np.unique(patient, return_inverse=True)[1]
    source, taken = _stream(), np.zeros((rounds, 40), bool)
    sizes = np.bincount(patient)
    for row in taken:
        rows = sample(len(patient), patient, rate, source)
        found = np.bincount(patient[rows], minlength=40)
        if np.any(np.diff(rows) <= 0) or np.any((found != 0) & (found != sizes)):
            return False
        row[:] = found > 0
    close = 5 * np.sqrt(rate * (1 - rate) / rounds)
    variance = taken.sum(axis=1).var() / (40 * rate * (1 - rate))
    return bool(np.all(np.abs(taken.mean(axis=0) - rate) < close) and abs(variance - 1) < 6 * np.sqrt(2 / rounds))


def test_patients_are_sampled_whole() -> None:
    assert whole_patients_at_the_rate(poisson_rows)
    assert poisson_rows(0, np.zeros(0, np.int64), 0.5, SecretRandomness()).size == 0
    assert np.array_equal(poisson_rows(4, np.array([0, 1, 1, 0]), 1.0, SecretRandomness()), np.arange(4))


def test_sampling_by_record_is_caught() -> None:
    def sampled_by_record(records: int, patient: Patients, rate: float, source: Any) -> NDArray[np.int64]:
        return poisson_sample(records, rate, source)

    def patient_of_any_sampled_record(records: int, patient: Patients, rate: float, source: Any) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(patient, patient[poisson_sample(records, rate, source)]))

    assert not whole_patients_at_the_rate(sampled_by_record)
    assert not whole_patients_at_the_rate(patient_of_any_sampled_record)


def local_move(x: Tensor, patient: Patients | None, rate: float = 1.0) -> float:
    """L2 norm of one local step without noise to speak of, of learning rate and expected batch 1."""
    module = linear()
    before = flatten_parameters(module)
    dp_sgd(
        module, x, torch.zeros(len(x)), nominal_records=1, steps=1, sampling_rate=rate, clip=CLIP,
        noise_multiplier=1e-9, learning_rate=1.0, momentum=0.0, live=None, sampling=_stream(), noise=_stream(),
        loss=sum_of_outputs, patient=patient,
    )  # fmt: skip
    return float((flatten_parameters(module) - before).norm())


def test_local_training_clips_and_samples_patients(monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> None:
    x = torch.ones(9, FEATURES)
    family = np.zeros(9, np.int64)
    assert local_move(x, family) == pytest.approx(CLIP, rel=1e-5)
    assert local_move(x, None) == pytest.approx(9 * CLIP, rel=1e-5)
    monkeypatch.setattr(local_sgd_module, "patient_pieces", by_record)
    assert local_move(x, family) == pytest.approx(9 * CLIP, rel=1e-5), "the mutant is seen"
    monkeypatch.undo()
    sampled: list[tuple[Any, ...]] = []

    def recording(*arguments: Any) -> NDArray[np.int64]:
        sampled.append(arguments)
        return poisson_rows(*arguments)

    monkeypatch.setattr(local_sgd_module, "poisson_rows", recording)
    local_move(x, family, rate=0.5)
    assert sampled[0][:3] == (9, family, 0.5)


def test_clip_bits_count_patients_within_the_clip(small_chunks: None) -> None:
    x = np.zeros((11, FEATURES), np.float32)
    x[:, 0] = [0.1, 0.4, 3, -3, 5, 5, 5, 5, 5, 5, 0.5]
    patient = np.array([0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 4])  # patient 2's records cancel; 4 is exactly at the clip
    records, targets = torch.from_numpy(x), torch.zeros(11)
    with ClippedGradientSum(linear(), sum_of_outputs) as gradients:
        total, bits = gradients.with_clip_bits(records, targets, CLIP, None, patient)
        assert bits == 4 * 0.5 - 0.5
        np.testing.assert_allclose(total, gradients(records, targets, CLIP, None, patient))
        for one in range(5):
            keep = patient != one
            fewer = gradients.with_clip_bits(records[keep], targets[keep], CLIP, None, patient[keep])[1]
            assert abs(bits - fewer) == 0.5, "a patient moves the bits by one half"
        assert gradients.with_clip_bits(records[:0], targets[:0], CLIP, None, patient[:0])[1] == 0.0


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("name", "shape"), [("cnn-tanh", (1, 28, 28)), ("mlp", (29,))])
def test_norms_do_not_depend_on_who_else_is_there(name: str, shape: tuple[int, ...], grouped: bool) -> None:
    """Bit for bit: else one patient more could turn another's clip bit."""
    network = build(dense_spec(name, shape, 2), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(70, *shape, generator=generator), torch.randint(0, 2, (70,), generator=generator)
    patient = np.sort(np.random.default_rng(0).integers(0, 30, 70)) if grouped else np.arange(70)
    with PerRecordGradients(network) as gradients:
        masters = gradients.masters()

        def norm_of(keep: NDArray[np.bool_]) -> dict[int, float]:
            found: list[float] = []
            whose = patient[keep] if grouped else None
            for real in patient_pieces(gradients, masters, x[keep], y[keep], gradients.tensors(None), whose):
                found += norms(masters)[:real].tolist()
            return dict(zip(np.unique(patient[keep]).tolist(), found, strict=True))

        whole = norm_of(np.ones(70, bool))
        for one in np.unique(patient)[:: 6 if grouped else 16]:
            rest = norm_of(patient != one)
            assert rest == {number: norm for number, norm in whole.items() if number != one}


def test_patients_that_do_not_fit_are_refused(mlp: nn.Module, batch: Batch) -> None:
    x, y = batch(4)
    with ClippedGradientSum(mlp) as gradients, pytest.raises(ConfigError, match="4 records have 3 patients"):
        gradients(x, y, 0.1, None, np.arange(3))
    with pytest.raises(ConfigError, match="4 records have 3 patients"):
        poisson_rows(4, np.arange(3), 0.5, SecretRandomness())
