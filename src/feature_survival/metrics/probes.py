"""Linear probes: L2-regularised logistic regression, binary and multinomial in one definition, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

FEWEST = 20  # tokens of a class, below which nothing is measured on it
ITERATIONS, TOLERANCE = 500, 1e-5  # of L-BFGS; of its largest gradient, the loss being a mean over tokens
COARSE = 1e-3  # the tolerance where many inputs are read and only the order or the argmax counts


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
    inputs = (inputs - mean) / scale
    occurrences = np.bincount(target, minlength=classes)
    share = np.full(rows, 1 / rows)
    if balanced:
        share = 1 / (occurrences[target] * np.count_nonzero(occurrences))
    observed = np.zeros((rows, classes))
    observed[np.arange(rows), target] = 1

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = flat[: classes * width].reshape(classes, width), flat[classes * width :]
        logits = inputs @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        likelihood = np.exp(logits)
        total = likelihood.sum(1)
        entropy = share @ (np.log(total) - logits[np.arange(rows), target])
        residual = (likelihood / total[:, None] - observed) * share[:, None]
        slope = residual.T @ inputs + l2 * weight
        return entropy + l2 / 2 * (weight**2).sum(), np.concatenate([slope.ravel(), residual.sum(0)])

    options = {"maxiter": ITERATIONS, "gtol": tolerance, "ftol": 0.0}
    found = minimize(loss, np.zeros(classes * (width + 1)), jac=True, method="L-BFGS-B", options=options).x
    weight = found[: classes * width].reshape(classes, width) / scale
    bias = found[classes * width :] - weight @ mean
    return Probe(torch.from_numpy(weight).to(x.device), torch.from_numpy(bias).to(x.device))


def f1_score(predicted: Tensor, true: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of bool [n]; 0 where there is no positive at all."""
    positives = int(predicted.sum() + true.sum())
    return 2 * int((predicted & true).sum()) / positives if positives else 0.0
