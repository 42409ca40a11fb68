"""Accuracy and loss over every sample exactly once, on any number of ranks."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mindspore import Tensor, nn

from mindcv_reparam.errors import UserError


class EvalLoader(Protocol):
    """Yields images (B, C, H, W), labels (B,) and weights (B,): 1 for a sample, 0 for padding."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]: ...


class Ranks(Protocol):
    """What training needs of `mindcv_reparam.distributed.Distributed`."""

    rank: int
    size: int
    is_main: bool

    def sum(self, values: np.ndarray | list[float]) -> np.ndarray: ...

    def check_identical(self, parameters: Iterable[tuple[str, np.ndarray]]) -> None: ...


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
        """For a row of the metrics file; `prefix` tells averaged weights ("ema_") from the online ones."""
        return {f"{prefix}val_loss": self.loss, f"{prefix}top1": self.top1, f"{prefix}top5": self.top5}


def evaluate(network: nn.Cell, loader: EvalLoader, ranks: Ranks) -> Evaluation:
    """Evaluate in eval mode; the network's training flag is restored.

    Ranking and loss are computed in float64 on the host, so the counts do not depend on batch size or ranks. With
    fewer than five classes every finite prediction is among the first five.
    """
    was_training = network.training
    network.set_train(False)
    sums = np.zeros(4)
    clock = _Clock()
    for images, labels, weights in loader.epoch(0):
        logits = network(Tensor(images)).asnumpy().astype(np.float64)
        rank, loss = ranks_and_losses(logits, labels)
        sums += [float((weights * values).sum()) for values in (np.ones_like(rank), rank < 1, rank < 5)] + [
            float(loss[weights > 0].sum())
        ]
        clock.count(float(weights.sum()))
    network.set_train(was_training)
    samples, correct1, correct5, loss_sum, rate = ranks.sum([*sums, clock.rate])
    if samples == 0:
        raise UserError("nothing to evaluate: the validation split has no readable image; check data_dir and val_split")
    return Evaluation(
        samples=round(samples),
        correct1=round(correct1),
        correct5=round(correct5),
        loss=loss_sum / samples,
        images_per_second=rate,
    )


class _Clock:
    """Images per second after the first batch, which is spent on compilation; with it if there is no other."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.images = 0.0
        self.rate = 0.0
        self.warm = False

    def count(self, images: float) -> None:
        self.images += images
        self.rate = self.images / (time.perf_counter() - self.start)
        if not self.warm:
            self.warm, self.images, self.start = True, 0.0, time.perf_counter()


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
