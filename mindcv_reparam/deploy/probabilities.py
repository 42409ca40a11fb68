"""From a model's outputs to classes and their probabilities."""

from collections.abc import Sequence

import numpy as np

from .manifest import OutputKind


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis; NaN where a logit is NaN or +∞."""
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def most_probable(outputs: Sequence[np.ndarray], kind: OutputKind, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and probabilities (N, count) of the most probable classes; of equal ones the first, as in validation.

    Fewer than ``count`` where a model has or tells fewer.
    """
    if kind == "topk":
        probabilities, classes = outputs
        return classes[:, :count], probabilities[:, :count]
    values = outputs[0].astype(np.float64)
    classes = np.argsort(-values, axis=1, kind="stable")[:, :count]
    probabilities = softmax(values) if kind == "logits" else values
    return classes, np.take_along_axis(probabilities, classes, axis=1)
