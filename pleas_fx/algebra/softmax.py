"""Multinomial logistic regression towards given probabilities, from a prior: a convex problem.

Minimises the mean over rows of the cross entropy of softmax(W z + b) to ``wanted`` plus
``penalty``/2 ‖(W − W₀) σ‖², σ the standard deviation of every input. The bias isn't penalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from pleas_fx.ir import FloatArray

CURVATURE = 0.1  # of the cross entropy, about: what the scales of the variables are chosen by
STEPS = 100
PRECISION = 1e-10  # of the objective, relative: it decides when to stop


@dataclass(frozen=True, slots=True)
class Answers:
    """An affine map whose softmax gives probabilities."""

    weight: Tensor  # (m, k) float64
    bias: Tensor  # (m,)
    steps: int


def fit_answers(
    z: Tensor, wanted: Tensor, prior: Tensor, prior_bias: Tensor, penalty: float
) -> Answers:
    """From rows z (r, k) and probabilities (r, m), towards (m, k) and (m,); r ≥ 1, penalty > 0.

    The level of the logits, which no probability shows, stays that of the prior.
    """
    inputs = _Whitened.of(_numpy(z), penalty)
    target = _numpy(wanted)
    start = inputs.of_weights(_numpy(prior)), _numpy(prior_bias) + _numpy(prior) @ inputs.mean
    shape = start[0].shape

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        change, shift = x[: -shape[0]].reshape(shape), x[-shape[0] :]
        scores = inputs.rows @ (start[0] + change).T + start[1] + shift
        logs = log_softmax(scores, axis=1)
        error = (np.exp(logs) - target) / len(target)
        held = change * inputs.penalties
        value = -float((target * logs).sum()) / len(target) + float((held * change).sum()) / 2
        return value, np.concatenate([(error.T @ inputs.rows + held).ravel(), error.sum(0)])

    found = minimize(
        objective,
        np.zeros(shape[0] * (shape[1] + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": STEPS, "ftol": PRECISION, "gtol": 1e-10},
    )
    change, shift = found.x[: -shape[0]].reshape(shape), found.x[-shape[0] :]
    weight = _numpy(prior) + inputs.to_weights(change)
    bias = start[1] + shift - weight @ inputs.mean
    bias = bias - (shift.mean() + (change @ inputs.rows.mean(0)).mean())
    return Answers(_tensor(weight, prior), _tensor(bias, prior), int(found.nit))


@dataclass(frozen=True, slots=True)
class _Whitened:
    """Inputs in which the problem is about equally steep in all directions."""

    mean: FloatArray  # (k,)
    basis: FloatArray  # (k, k): from the new inputs' weights to the old ones'
    inverse: FloatArray
    rows: FloatArray  # (r, k): (z − mean) basis
    penalties: FloatArray  # (k,): of the new weights' squares

    @staticmethod
    def of(z: FloatArray, penalty: float) -> _Whitened:
        mean, deviation = z.mean(0), z.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        standard = (z - mean) / deviation
        values, vectors = np.linalg.eigh(standard.T @ standard / len(z))
        scale = np.sqrt(CURVATURE * values.clip(0) + penalty)
        basis = vectors / scale / deviation[:, None]
        inverse = vectors.T * scale[:, None] * deviation
        return _Whitened(mean, basis, inverse, (z - mean) @ basis, penalty / scale**2)

    def of_weights(self, weight: FloatArray) -> FloatArray:
        return np.asarray(weight @ self.inverse.T)

    def to_weights(self, weight: FloatArray) -> FloatArray:
        return np.asarray(weight @ self.basis.T)


def _numpy(tensor: Tensor) -> FloatArray:
    return tensor.detach().double().cpu().numpy()


def _tensor(array: FloatArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
