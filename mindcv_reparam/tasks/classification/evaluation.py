"""Accuracy and cross-entropy over every sample exactly once, on any number of ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mindcv_reparam.distributed import Ranks
from mindcv_reparam.tasks.classification.views import average


@dataclass(frozen=True)
class Evaluation:
    """Counts over all ranks; `loss` is the mean cross-entropy, the accuracies are percentages, the rate is of all."""

    samples: int
    correct1: int
    correct5: int
    loss: float
    images_per_second: float

    @property
    def top1(self) -> float:
        return 100.0 * self.correct1 / self.samples

    @property
    def top5(self) -> float:
        return 100.0 * self.correct5 / self.samples

    def metrics(self, prefix: str = "") -> dict[str, float]:
        return {f"{prefix}val_loss": self.loss, f"{prefix}top1": self.top1, f"{prefix}top5": self.top5}

    def line(self) -> str:
        return (
            f"top-1 {self.top1:.3f} % ({self.correct1}/{self.samples}), "
            f"top-5 {self.top5:.3f} % ({self.correct5}/{self.samples}), loss {self.loss:.4f}"
        )

    def record(self) -> dict[str, Any]:
        names = ("samples", "correct1", "correct5", "top1", "top5", "loss", "images_per_second")
        return {name: getattr(self, name) for name in names}

    def documents(self) -> dict[str, Any]:
        return {}


class AccuracyEvaluator:
    """Takes logits (B, C) with labels (B,) and weights (B,): 1 for a sample, 0 for padding. Of several views of every
    image, logits (B·views, C), the probabilities are averaged.

    Ranking and loss are computed in float64 on the host, so the counts do not depend on batch size or ranks. With
    fewer than five classes every finite prediction is among the first five.
    """

    def __init__(self) -> None:
        self.sums = np.zeros(4)

    def add(self, outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> int:
        (logits,), (labels, weights) = outputs, targets
        rank, loss = ranks_and_losses(average(logits, len(logits) // len(labels)).astype(np.float64), labels)
        self.sums += [float((weights * values).sum()) for values in (np.ones_like(rank), rank < 1, rank < 5)] + [
            float(loss[weights > 0].sum())
        ]
        return int(weights.sum())

    def result(self, ranks: Ranks, images_per_second: float) -> Evaluation:
        samples, correct1, correct5, loss, rate = ranks.sum([*self.sums, images_per_second])
        return Evaluation(
            samples=round(samples),
            correct1=round(correct1),
            correct5=round(correct5),
            loss=loss / samples if samples else float("nan"),
            images_per_second=rate,
        )


def ranks_and_losses(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For logits (B, C) float64 and labels (B,): position of the true class among the predictions, cross-entropy (B,).

    Equal logits rank by class index, as argmax does. A row with a non-finite logit ranks last.
    """
    rows = np.arange(len(labels))
    true = logits[rows, labels][:, None]
    before = (logits > true) | ((logits == true) & (np.arange(logits.shape[1]) < labels[:, None]))
    finite = np.isfinite(logits).all(axis=1)
    rank = np.where(finite, before.sum(axis=1), max(logits.shape[1], 5))
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is a NaN loss, which is what such a row deserves
        shifted = logits - logits.max(axis=1, keepdims=True)
        return rank, np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
