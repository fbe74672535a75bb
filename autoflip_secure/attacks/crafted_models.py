"""Models made so that a sum of honest updates shows single records or a single silo; arithmetic only.

All are weights of the joined network, the perceptron of `models.networks.chains.mlp` (x -> tanh -> tanh -> classes),
and pass every check that a silo makes of a model after round 0: architecture, shape, finite values, the hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.spec import ModelSpec, layout_of

__all__ = ["Imprint", "dead_model", "fished_class", "hidden_weights", "mask_of", "tensors"]

Values = NDArray[np.float64]

GATE = 4.0
"""Weight B of the second layer: its tanh passes a gradient only where |B tanh(a)| is small, which makes bins narrow."""

SIGNAL = 10.0
"""Weight of the output layer: what a record in a bin sends back, against what it leaves in the other layers."""

REACH = 2.0
"""Slope of a unit, in the inverse of the usual distance of two records; 1.5 to 2 recovers most."""

NEVER = -1e4
"""Bias of an output that is never predicted."""


def tensors(spec: ModelSpec, vector: NDArray[np.floating]) -> dict[str, Values]:
    """A flat vector as arrays by parameter name, such as fc1.weight; copies."""
    return {name: vector[part].astype(np.float64).reshape(shape) for name, part, shape in layout_of(spec).slices()}


def mask_of(spec: ModelSpec, live: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Flat mask from one bool array a parameter name; names that are missing are live, shape (parameters,)."""
    parts = [live.get(name, np.ones(shape, bool)).ravel() for name, _, shape in layout_of(spec).slices()]
    return np.concatenate(parts)


def _model(
    spec: ModelSpec, named: Mapping[str, Values], records: int, mask: NDArray[np.bool_] | None = None
) -> ModelPayload:
    layout = layout_of(spec)
    flat = np.concatenate([named.get(name, np.zeros(shape)).ravel() for name, _, shape in layout.slices()])
    mask = np.ones(layout.size, bool) if mask is None else mask
    return ModelPayload(spec, np.where(mask, flat, 0).astype(np.float32), mask, records)


def dead_model(spec: ModelSpec, records: int) -> ModelPayload:
    """A network whose update vanishes but for the output biases, on any records and for any number of steps.

    Pasquini, Francati and Ateniese 2022 (arXiv 2111.07380), gradient suppression: all weights 0, so the layers' outputs
    are 0, and a weight's gradient is an output of the layer below times what comes back through the one above.
    """
    return _model(spec, {}, records)


def fished_class(model: ModelPayload, label: int) -> ModelPayload:
    """The same hidden layers, with output weights of class `label` alone, which is never predicted.

    Wen et al. 2022 (arXiv 2202.00580), class fishing: what comes back to the hidden layers is W_label
    (p_label - y_label), 0 for records of all other classes and -W_label for one of this class.
    """
    named = tensors(model.spec, model.weights)
    output, bias = _output_names(named)
    others = np.arange(len(named[bias])) != label
    named[output][others] = 0.0
    named[bias] = np.where(others, 0.0, NEVER)
    return _model(model.spec, named, model.records, model.mask)


def hidden_weights(spec: ModelSpec) -> NDArray[np.bool_]:
    """All parameters but those of the output layer, shape (parameters,)."""
    output = list(layout_of(spec).slices())[-2:]
    return mask_of(spec, {name: np.zeros(shape, bool) for name, _, shape in output})


@dataclass(frozen=True)
class Imprint:
    """A perceptron in which every unit of the first layer takes up the records of one narrow bin.

    The idea is that of trap weights (Boenisch et al. 2021, arXiv 2112.02918) and of the imprint module (Fowl et al.
    2022, arXiv 2110.13057, "Robbing the Fed"), for tanh in place of ReLU: unit i computes tanh(s_i (w x - c_i)), whose
    derivative vanishes outside of a bin about c_i, so no differences of units are needed. A unit of the second layer
    reads two of them as B (h_i - h_(i+1)) - B, which is 0 at the centre of either bin and saturated elsewhere. Of the
    outputs only one class is read (`fished_class`). A record alone in its bin is the gradient of its unit's weights
    over that of its bias.

    Attributes
    ----------
    direction : float64 array, shape (features,)
        w, the measurement by which records are told apart.
    centres, slopes : float64 array, shape (units,)
        c ascending, and s.
    label : int
        The class whose records are taken up.
    """

    direction: Values
    centres: Values
    slopes: Values
    label: int

    @classmethod
    def over(cls, public: Values, label: int, units: int, expected: float, generator: np.random.Generator) -> Imprint:
        """Bins along a random direction at quantiles of public records, each about as wide as one record is apart.

        Parameters
        ----------
        public : float64 array, shape (n, features)
            Public records of the class.
        expected : float
            How many records of the class a sum is thought to hold.
        """
        direction: Values = generator.normal(size=public.shape[1:])
        seen = public @ direction
        spread, middle = float(seen.std()), float(seen.mean())
        # A normal curve for the few public records there are: their own quantiles would be too coarse for the bins.
        from scipy.stats import norm

        levels = (np.arange(units) + generator.random()) / units
        levels = np.clip(levels, 0.5 / units, 1 - 0.5 / units)
        density = norm.pdf(norm.ppf(levels)) / spread
        width = 1.0 / (expected * density)
        centres, slopes = np.asarray(middle + spread * norm.ppf(levels)), np.asarray(REACH / width)
        return cls(direction, centres, slopes, label)

    @property
    def widths(self) -> Values:
        """Of the bins, in the measurement's units, shape (units,): as far as one expected record is from the next."""
        return REACH / self.slopes

    def model(self, spec: ModelSpec, records: int) -> ModelPayload:
        """The network; parameters it does not need are masked, so that they take nothing of a clipped gradient."""
        units, gates = spec.widths
        pair = np.zeros((gates, units))
        for gate in range(min(gates, units // 2)):
            pair[gate, 2 * gate], pair[gate, 2 * gate + 1] = GATE, -GATE
        output = np.zeros((spec.outputs, gates))
        output[self.label] = SIGNAL
        bias = np.zeros(spec.outputs)
        bias[self.label] = NEVER
        named = {
            "fc1.weight": self.slopes[:, None] * self.direction[None, :],
            "fc1.bias": -self.slopes * self.centres,
            "fc2.weight": pair,
            "fc2.bias": np.full(gates, -GATE),
            "fc3.weight": output,
            "fc3.bias": bias,
        }
        live = {"fc2.weight": pair != 0, "fc3.weight": output != 0}
        return _model(spec, named, records, mask_of(spec, live))

    @staticmethod
    def rows(spec: ModelSpec, mask: NDArray[np.bool_], update: NDArray[np.floating]) -> tuple[Values, Values]:
        """Gradient sums of the first layer's weights and biases, up to a factor: (units, features) and (units,)."""
        full = np.zeros(mask.size)
        full[mask] = update
        named = tensors(spec, full)
        return named["fc1.weight"], named["fc1.bias"]

    @staticmethod
    def read(weights: Values, biases: Values, least: float) -> tuple[NDArray[np.int64], Values]:
        """Units that took something up, and the records that they show, shapes (found,) and (found, features)."""
        found = np.flatnonzero(np.abs(biases) > least)
        return found, weights[found] / biases[found, None]


def _output_names(named: Mapping[str, Values]) -> tuple[str, str]:
    weight, bias = list(named)[-2:]
    return weight, bias
