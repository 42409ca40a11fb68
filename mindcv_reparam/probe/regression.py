"""Multinomial logistic regression with an L2 penalty, by L-BFGS (Liu and Nocedal, 1989)."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

STRENGTHS = tuple(10.0**-exponent for exponent in range(7))  # of the penalty, from the strongest down
_ITERATIONS = 500
_UNUSED = 0.01  # where there is no image to choose by


@dataclass(frozen=True)
class Linear:
    """``features @ weight.T + bias``; float64 (classes, channels) and (classes,)."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N, channels) → (N, classes), in float32, as the network has them."""
        return features @ self.weight.astype(np.float32).T + self.bias.astype(np.float32)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    l2: float,
    weights: np.ndarray | None = None,
    start: Linear | None = None,
) -> Linear:
    """Minimise the mean cross-entropy plus ``l2 / 2`` times the squared norm of the weights.

    The penalty is that of weights for features whose deviation is 1, so that it means the same for every network.

    Args:
        features: (N, channels).
        labels: (N,), below ``classes``.
        weights: of the images, (N,); all equal by default.
        start: where to begin; at zero by default.
    """
    mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    deviation = np.where(deviation > 1e-6 * max(deviation.max(), 1e-30), deviation, 1.0)  # of a channel that is dead
    inputs = (features - mean) / deviation
    share = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    share = share / share.sum()
    rows, size = np.arange(len(labels)), classes * features.shape[1]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = values[:size].reshape(classes, -1), values[size:]
        logits = inputs @ weight.T + bias
        logs = logits - logsumexp(logits, axis=1, keepdims=True)
        value = -(share * logs[rows, labels]).sum() + 0.5 * l2 * (weight**2).sum()
        slopes = np.exp(logs)
        slopes[rows, labels] -= 1.0
        slopes *= share[:, None]
        return value, np.concatenate([(slopes.T @ inputs + l2 * weight).ravel(), slopes.sum(0)])

    first = np.zeros(size + classes)
    if start is not None:
        first[:size] = (start.weight * deviation).ravel()
        first[size:] = start.bias + start.weight @ mean
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS, "maxcor": 20}).x
    weight = found[:size].reshape(classes, -1) / deviation
    return Linear(weight, found[size:] - weight @ mean)


def choose_l2(
    features: np.ndarray, labels: np.ndarray, classes: int, held_out: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The one of STRENGTHS with the least cross-entropy on a part of the images, after a fit to the others.

    Args:
        held_out: bools (N,): that part. Where it is empty, 0.01.
    """
    if not held_out.any() or held_out.all():
        return _UNUSED
    own = ~held_out
    model, losses = None, []
    for l2 in STRENGTHS:
        model = fit(features[own], labels[own], classes, l2, None if weights is None else weights[own], model)
        logits = model.logits(features[held_out]).astype(np.float64)
        logs = logits - logsumexp(logits, axis=1, keepdims=True)
        share = np.ones(held_out.sum()) if weights is None else weights[held_out]
        losses.append(-(share * logs[np.arange(len(logs)), labels[held_out]]).sum() / share.sum())
    return STRENGTHS[int(np.argmin(losses))]
