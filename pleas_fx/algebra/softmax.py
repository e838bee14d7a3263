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
RANK = 1e-12  # of the largest variance: a direction with less isn't one
PRECISION = 1e-7  # of the objective, relative: it decides when to stop


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
    target, old = _numpy(wanted), _numpy(prior)
    start = (_numpy(z) - inputs.mean) @ old.T + (_numpy(prior_bias) + old @ inputs.mean)
    classes = len(old)

    def parts(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        return x[:-classes].reshape(classes, -1), x[-classes:]

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        change, shift = parts(x)
        logs = log_softmax(start + inputs.rows @ change.T + shift, axis=1)
        error = (np.exp(logs) - target) / len(target)
        held = change * inputs.penalties
        value = -float((target * logs).sum()) / len(target) + float((held * change).sum()) / 2
        return value, np.concatenate([(error.T @ inputs.rows + held).ravel(), error.sum(0)])

    found = minimize(
        objective,
        np.zeros(classes * (inputs.rows.shape[1] + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": STEPS, "ftol": PRECISION, "gtol": 1e-10},
    )
    change, shift = parts(found.x)
    step = change @ inputs.basis.T
    level = shift.mean() + (inputs.rows.mean(0) @ change.T).mean()
    bias = _numpy(prior_bias) + shift - step @ inputs.mean - level
    return Answers(_tensor(old + step, prior), _tensor(bias, prior), int(found.nit))


@dataclass(frozen=True, slots=True)
class _Whitened:
    """Inputs in which the problem is about equally steep, in the directions that rows have."""

    mean: FloatArray  # (k,)
    basis: FloatArray  # (k, d): from the new inputs' weights to the old ones'
    rows: FloatArray  # (r, d): (z − mean) basis
    penalties: FloatArray  # (d,): of the new weights' squares

    @staticmethod
    def of(z: FloatArray, penalty: float) -> _Whitened:
        mean, deviation = z.mean(0), z.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        standard = (z - mean) / deviation
        values, vectors = _principal(standard)
        scale = np.sqrt(CURVATURE * values + penalty)
        basis = vectors / scale
        rows = standard @ basis
        return _Whitened(mean, basis / deviation[:, None], rows, penalty / scale**2)


def _principal(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Variances (d,) and directions (k, d) of centred rows (r, k), by the smaller Gram matrix."""
    count, size = rows.shape
    if size <= count:
        values, vectors = np.linalg.eigh(rows.T @ rows / count)
        kept = values > RANK * values.max(initial=0.0)
        return values[kept], vectors[:, kept]
    values, sides = np.linalg.eigh(rows @ rows.T / count)
    kept = values > RANK * values.max(initial=0.0)
    values = values[kept]
    return values, rows.T @ sides[:, kept] / np.sqrt(values * count)


def _numpy(tensor: Tensor) -> FloatArray:
    return tensor.detach().double().cpu().numpy()


def _tensor(array: FloatArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
