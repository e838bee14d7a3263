"""Multinomial logistic regression towards given probabilities, from a prior: a convex problem.

Minimises the mean over rows of the cross entropy of softmax(W z + b) to ``wanted`` plus
``penalty``/2 ‖(W − W₀) σ‖², σ the standard deviation of every input. The bias isn't penalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from pleas_fx.ir import FloatArray

CURVATURE = 0.1  # of the cross entropy, about: what the scales of the variables are chosen by
STEPS = 100
RANK = 1e-12  # of the largest variance: a direction with less isn't one
PRECISION = 1e-7  # of the objective, relative: it decides when to stop
FLAT = 1e-6  # slope in scaled variables, above what rounding makes of none


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
    inputs, old, old_bias = _Whitened.of(z.double(), penalty), prior.double(), prior_bias.double()
    start = (z.double() - inputs.mean) @ old.T + (old_bias + old @ inputs.mean)
    objective = _Objective.of(inputs, start, wanted)
    found = minimize(
        objective,
        np.zeros(len(old) * (inputs.rows.shape[1] + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": STEPS, "ftol": PRECISION, "gtol": FLAT},
    )
    change, shift = objective.parts(torch.from_numpy(found.x).to(z.device))
    step = change @ inputs.basis.T
    level = shift.mean() + (inputs.rows.mean(0) @ change.T).mean()
    bias = old_bias + shift - step @ inputs.mean - level
    return Answers(old + step, bias, int(found.nit))


@dataclass(frozen=True, slots=True)
class _Objective:
    """Value and slope at changes of the scaled weights, of every row in single precision."""

    rows: Tensor  # (r, d)
    start: Tensor  # (r, m) logits, the largest of a row at 0
    wanted: Tensor  # (r, m)
    penalties: Tensor  # (d,)

    @staticmethod
    def of(inputs: _Whitened, start: Tensor, wanted: Tensor) -> _Objective:
        below = start - start.amax(1, keepdim=True)
        return _Objective(inputs.rows.float(), below.float(), wanted.float(), inputs.penalties)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (m, d) and biases (m,)."""
        classes = self.start.shape[1]
        return x[:-classes].view(classes, -1), x[-classes:]

    def __call__(self, x: FloatArray) -> tuple[float, FloatArray]:
        change, shift = self.parts(torch.from_numpy(x).to(self.rows.device))
        logits = torch.addmm(self.start + shift.float(), self.rows, change.T.float())
        logs = logits.log_softmax(1)
        error = (logs.exp() - self.wanted) / len(logs)
        held = change * self.penalties
        entropy = -(self.wanted * logs).sum(1).double().mean()
        slope = (error.T @ self.rows).double() + held
        value = float(entropy + (held * change).sum() / 2)
        return value, torch.cat([slope.view(-1), error.sum(0).double()]).cpu().numpy()


@dataclass(frozen=True, slots=True)
class _Whitened:
    """Inputs in which the problem is about equally steep, in the directions that rows have."""

    mean: Tensor  # (k,)
    basis: Tensor  # (k, d): from the new inputs' weights to the old ones'
    rows: Tensor  # (r, d): (z − mean) basis
    penalties: Tensor  # (d,): of the new weights' squares

    @staticmethod
    def of(z: Tensor, penalty: float) -> _Whitened:
        mean, deviation = z.mean(0), z.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        standard = (z - mean) / deviation
        values, vectors = _principal(standard)
        scale = (CURVATURE * values + penalty).sqrt()
        basis = vectors / scale
        return _Whitened(
            mean, basis / deviation[:, None], standard @ basis, penalty / scale.square()
        )


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,) and directions (k, d) of centred rows (r, k), by the smaller Gram matrix."""
    count, size = rows.shape
    if size <= count:
        values, vectors = torch.linalg.eigh(rows.T @ rows / count)
        kept = values > RANK * values.amax()
        return values[kept], vectors[:, kept]
    values, sides = torch.linalg.eigh(rows @ rows.T / count)
    kept = values > RANK * values.amax()
    values = values[kept]
    return values, rows.T @ sides[:, kept] / (values * count).sqrt()
