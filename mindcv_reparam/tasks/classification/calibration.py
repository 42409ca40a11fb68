"""What accuracies and stated probabilities are worth: intervals, calibration, and the temperature that mends it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BINS = 15  # of confidence, as in arXiv 1706.04599, section 5
_TEMPERATURES = 0.02, 50.0  # between which one is looked for


class Calibration(NamedTuple):
    """Confidences in BINS bins of equal width, each sum (BINS,): images, those that are right, and the confidences."""

    counts: np.ndarray
    right: np.ndarray
    confidence: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error (arXiv 1706.04599, equation 3), from 0 to 1; NaN without images."""
        total = float(self.counts.sum())
        return float(np.abs(self.right - self.confidence).sum()) / total if total else math.nan


def wilson(hits: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion by Wilson's score, from 0 to 1; images: at least one."""
    from scipy.stats import binomtest  # scipy.stats takes a second to import

    interval = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def binned(confidences: np.ndarray, right: np.ndarray) -> Calibration:
    """Of confidences (N,) from 0 to 1, and whether the predictions are right (N,) bool."""
    place = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    sums = (np.bincount(place, weights, BINS) for weights in (np.ones(len(place)), right.astype(float), confidences))
    return Calibration(*sums)


def log_likelihoods(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Of the labels (N,) under softmax(logits / temperature), logits (N, C) float64 and finite."""
    scaled = logits / temperature
    largest = scaled.max(axis=1)
    total = np.log(np.exp(scaled - largest[:, None]).sum(axis=1)) + largest
    return scaled[np.arange(len(labels)), labels] - total


def fitted_temperature(loss: Callable[[float], float]) -> float:
    """The temperature of the least loss (arXiv 1706.04599, section 4.2), which is convex in its inverse.

    Args:
        loss: negative log-likelihood by temperature. Where several ranks look together, it is the sum over them, the
            same number on all.
    """
    from scipy.optimize import minimize_scalar

    low, high = map(math.log, _TEMPERATURES)
    found = minimize_scalar(lambda x: loss(math.exp(x)), bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))
