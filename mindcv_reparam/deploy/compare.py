"""Whether two programs of one network compute the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .manifest import OutputKind
from .runners import Program

# max|Δ| / max|output| in float32 up to which two programs of one network are taken for equal.
TOLERANCE = 2e-5
_SMALLEST = np.finfo(np.float32).tiny


def difference(kind: OutputKind, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """max|Δ| / max|expected| over all outputs; NaN where one of them has NaN, infinite where the shapes differ.

    Probabilities move by as much as their logits, not by as large a part of themselves: their difference is divided by
    the spread of the logits, so that the tolerance is as strict for every kind of output.

    Args:
        kind: for "topk", ``expected`` is the probabilities of all classes, (N, classes), and ``actual`` the k largest
            and their classes: the classes may be any that have these probabilities, in case of ties.
    """
    scale = 1.0 if kind in ("logits", "features") else max(1.0, _logit_spread(expected[0]))
    if kind == "topk":
        (probabilities,), (values, classes) = expected, actual
        largest = -np.sort(-probabilities, axis=1)[:, : values.shape[1]]
        expected = largest, np.take_along_axis(probabilities, classes.astype(np.int64), axis=1)
        actual = values, values
    if [output.shape for output in expected] != [output.shape for output in actual]:
        return float("inf")
    found = [np.abs(a - e).max() / np.abs(e).max() for e, a in zip(expected, actual)]
    return float(np.max(found)) / scale  # NaN stays NaN


def _logit_spread(probabilities: np.ndarray) -> float:
    """The largest difference of two logits of an image that gives the probabilities (N, classes)."""
    logs = np.log(np.maximum(probabilities, _SMALLEST))
    return float(np.ptp(logs, axis=1).max())


def largest_difference(
    expected: Program, actual: Program, trials: Sequence[np.ndarray], kind: OutputKind = "logits"
) -> float:
    """The largest :func:`difference` of two programs on some inputs."""
    return float(np.max([difference(kind, expected(images), actual(images)) for images in trials]))


def random_input(hparams: Mapping[str, Any], batch: int) -> np.ndarray:
    """Random normalised images for a network, from the arguments of create_model."""
    size = hparams["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(0).standard_normal((batch, hparams["in_channels"], height, width), np.float32)
