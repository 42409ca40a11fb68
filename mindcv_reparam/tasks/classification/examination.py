"""What a classifier told of every single image of a validation, on any number of ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mindcv_reparam.distributed import Ranks
from mindcv_reparam.errors import require
from mindcv_reparam.tasks.classification.batches import EvalBatches
from mindcv_reparam.tasks.classification.calibration import Calibration, binned, fitted_temperature, log_likelihoods
from mindcv_reparam.tasks.classification.evaluation import AccuracyEvaluator, Evaluation
from mindcv_reparam.tasks.classification.results import most_probable, softmax
from mindcv_reparam.tasks.classification.views import average
from mindcv_reparam.tasks.task import About

MOST = 5  # classes that are kept of an image
_ROWS = 1024  # images whose logits are raised to float64 together


class Told(NamedTuple):
    """Of every image, a row each.

    Attributes:
        indices: in the source, (N,).
        labels: the true classes, (N,).
        classes: the most probable ones from the first down, (N, k); -1 where the numbers are not finite.
        probabilities: theirs, (N, k).
        truth: the probability of the true class, (N,).
    """

    indices: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    truth: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.classes[:, 0]

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels


@dataclass(frozen=True)
class Findings:
    """Over all ranks, images in the order of the source; ``temperature`` is NaN where no image has finite numbers."""

    told: Told
    temperature: float
    calibration: Calibration
    mended: Calibration  # with the temperature


class ClassificationExaminer:
    """An :class:`AccuracyEvaluator` that also keeps what is told of every image.

    Args:
        batches: of this rank, whose sampler says which image is where.
    """

    def __init__(self, batches: EvalBatches) -> None:
        require("scipy")
        self._accuracy = AccuracyEvaluator()
        self._batches = batches
        self._step = 0
        self._rows: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []  # with the labels in front, of images with finite ones

    def add(self, outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> int:
        (logits,), (labels, weights) = outputs, targets
        logits = average(logits, len(logits) // len(labels))
        indices = self._batches.sampler.draw(0, self._step).indices
        self._step += 1
        finite = np.isfinite(logits).all(axis=1)
        with np.errstate(invalid="ignore"):
            classes, probabilities = most_probable([logits], "logits", MOST)
            truth = softmax(logits.astype(np.float64))[np.arange(len(labels)), labels]
        classes = np.where(finite[:, None], classes, -1)
        probabilities = np.where(finite[:, None], probabilities, np.nan)
        columns = (weights > 0, indices, labels, np.where(finite, truth, np.nan))
        self._rows.append(np.column_stack([*columns, classes, probabilities]))
        kept = finite & (weights > 0)
        self._logits.append(np.column_stack([labels[kept], logits[kept]]).astype(np.float32))
        return self._accuracy.add((logits,), targets)

    def result(self, ranks: Ranks, images_per_second: float) -> Evaluation:
        return self._accuracy.result(ranks, images_per_second)

    def findings(self, ranks: Ranks) -> Findings:
        """Of all ranks; collective."""
        rows = np.concatenate(self._rows)  # as many on every rank
        gathered = ranks.gather(rows.reshape(-1).view(np.int32)).view(np.float64).reshape(-1, rows.shape[1])
        told = _told(gathered[gathered[:, 0] > 0])
        parts = np.concatenate(self._logits)
        known = ranks.sum([len(parts)])[0] > 0
        temperature = fitted_temperature(lambda value: _loss(parts, value, ranks)) if known else math.nan
        calibrations = (_calibration(parts, value, ranks) for value in (1.0, temperature))
        return Findings(told, temperature, *calibrations)

    def report(self, ranks: Ranks, evaluation: Evaluation, about: About) -> dict[str, str]:
        findings = self.findings(ranks)
        if not ranks.is_main:
            return {}
        from mindcv_reparam.tasks.classification.report import report_files

        return report_files(findings, evaluation, self._batches, about)


def _calibration(parts: np.ndarray, temperature: float, ranks: Ranks) -> Calibration:
    labels, logits = parts[:, 0].astype(np.int64), parts[:, 1:]
    best = logits.argmax(axis=1)
    confidence = np.exp(_likelihoods(logits, best, temperature))
    return Calibration(*ranks.sum(np.stack(binned(confidence, best == labels))))


def _told(rows: np.ndarray) -> Told:
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    count = (rows.shape[1] - 4) // 2
    whole = rows[:, [1, 2, *range(4, 4 + count)]].astype(np.int64)
    return Told(whole[:, 0], whole[:, 1], whole[:, 2:], rows[:, 4 + count :], rows[:, 3])


def _loss(parts: np.ndarray, temperature: float, ranks: Ranks) -> float:
    likelihoods = _likelihoods(parts[:, 1:], parts[:, 0].astype(np.int64), temperature)
    return -float(ranks.sum([likelihoods.sum()])[0])


def _likelihoods(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """A part at a time: twice the memory of all logits would be too much for 50,000 images of 1000 classes."""
    starts: Sequence[int] = range(0, len(labels), _ROWS)
    parts = (slice(start, start + _ROWS) for start in starts)
    found = [log_likelihoods(logits[one].astype(np.float64), labels[one], temperature) for one in parts]
    return np.concatenate([np.zeros(0), *found])
