"""Linear probes: L2-regularised logistic regression, binary and multinomial in one definition, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

FEWEST = 20  # tokens of a class, below which nothing is measured on it
ITERATIONS, TOLERANCE = 500, 1e-5  # the most; of the largest gradient, the loss being a mean over tokens
FEW = 32  # inputs, up to which a step of Newton's method costs less than the many of L-BFGS
COARSE = 1e-3  # the tolerance where many inputs are read and only the order or the argmax counts


Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Probe(NamedTuple):
    """A linear classifier of raw inputs."""

    weight: Tensor  # float64 [classes, d]
    bias: Tensor  # float64 [classes]

    def logits(self, x: Tensor) -> Tensor:
        """x [n, d] -> float64 [n, classes]."""
        return x.double() @ self.weight.T + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """x [n, d] -> the likeliest class, int64 [n]."""
        return self.logits(x).argmax(-1)


def fit_probe(
    x: Tensor, y: Tensor, classes: int, l2: float, balanced: bool = False, tolerance: float = TOLERANCE
) -> Probe:
    """Softmax regression: least mean cross-entropy (nats) + l2 / 2 * ||weight||^2 on standardised inputs.

    x: [n, d]; y: int64 [n] in [0, classes). Biases are not regularised. With l2 = 1 / n this is scikit-learn's
    default strength (C = 1). balanced: every class that occurs weighs the same. A class's weights sum to zero over
    classes; of two classes, the difference of the rows is a logistic regression's weight at l2 / 2.
    """
    inputs, target = x.double().cpu().numpy(), y.cpu().numpy()
    rows, width = inputs.shape
    mean, scale = inputs.mean(0), inputs.std(0)
    scale[scale <= 1e-12 * np.abs(mean)] = 1  # a constant input tells nothing; its weight stays zero
    scale[scale == 0] = 1
    inputs = np.column_stack([(inputs - mean) / scale, np.ones(rows)])
    occurrences = np.bincount(target, minlength=classes)
    share = np.full(rows, 1 / rows)
    if balanced:
        share = 1 / (occurrences[target] * np.count_nonzero(occurrences))
    penalty = np.full(width + 1, l2)
    penalty[-1] = 0
    solve = _newton if classes == 2 and width <= FEW else _gradients
    found = solve(inputs, target, classes, share, penalty, tolerance)
    weight = found[:, :-1] / scale
    bias = found[:, -1] - weight @ mean
    return Probe(torch.from_numpy(weight).to(x.device), torch.from_numpy(bias).to(x.device))


def _newton(inputs: Floats, target: Integers, _: int, share: Floats, penalty: Floats, tolerance: float) -> Floats:
    """Two classes by Newton's method: a handful of steps, each a linear system of d + 1. Weights [2, d + 1]."""
    side, penalty = 2.0 * target - 1, penalty / 2  # of the difference of the two rows

    def loss(weight: Floats) -> float:
        return float(share @ np.logaddexp(0, -side * (inputs @ weight)) + penalty @ weight**2 / 2)

    weight = np.zeros(inputs.shape[1])
    value = loss(weight)
    for _ in range(ITERATIONS):
        likelihood = expit(inputs @ weight)
        slope = (share * (likelihood - target)) @ inputs + penalty * weight
        if np.abs(slope).max() <= tolerance:
            break
        curvature = (inputs.T * (share * likelihood * (1 - likelihood))) @ inputs + np.diag(penalty)
        step = np.linalg.lstsq(curvature, slope)[0]  # singular where an input is constant
        while (reached := loss(weight - step)) > value and np.abs(step).max() > tolerance**2:
            step /= 2
        weight, value = weight - step, reached
    return np.stack([-weight, weight]) / 2


def _gradients(
    inputs: Floats, target: Integers, classes: int, share: Floats, penalty: Floats, tolerance: float
) -> Floats:
    """L-BFGS, where second derivatives would be too many. Weights [classes, d + 1]."""
    rows, width = inputs.shape
    observed = np.zeros((rows, classes))
    observed[np.arange(rows), target] = 1

    def loss(flat: Floats) -> tuple[float, Floats]:
        weight = flat.reshape(classes, width)
        logits = inputs @ weight.T
        logits -= logits.max(1, keepdims=True)
        likelihood = np.exp(logits)
        total = likelihood.sum(1)
        entropy = share @ (np.log(total) - logits[np.arange(rows), target])
        residual = (likelihood / total[:, None] - observed) * share[:, None]
        slope = residual.T @ inputs + penalty * weight
        return entropy + (penalty * weight**2).sum() / 2, slope.ravel()

    options = {"maxiter": ITERATIONS, "gtol": tolerance, "ftol": 0.0}
    found = minimize(loss, np.zeros(classes * width), jac=True, method="L-BFGS-B", options=options).x
    return found.reshape(classes, width)


def f1_score(predicted: Tensor, true: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of bool [n]; 0 where there is no positive at all."""
    positives = int(predicted.sum() + true.sum())
    return 2 * int((predicted & true).sum()) / positives if positives else 0.0
