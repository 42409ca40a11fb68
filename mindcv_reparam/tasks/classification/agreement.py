"""Whether an exported classifier tells what its checkpoint does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindcv_reparam.data.source import ImageSource


@dataclass(frozen=True)
class Agreement:
    """Predictions of an exported file, and of a checkpoint's network on the same labelled images if there is one."""

    images: int
    checkpoint_correct: int | None  # top-1
    exported_correct: int
    same: int  # predictions

    def __str__(self) -> str:
        told = f"top-1 {100 * self.exported_correct / self.images:.3f} % ({self.exported_correct}/{self.images})"
        if self.checkpoint_correct is None:
            return told
        checkpoint = 100 * self.checkpoint_correct / self.images
        return f"{told}, the checkpoint {checkpoint:.3f} %, {self.images - self.same} predictions differ"

    @property
    def apart(self) -> float:
        known = self.exported_correct if self.checkpoint_correct is None else self.checkpoint_correct
        return abs(self.exported_correct - known) / self.images


class Top1Comparison:
    """Counts hits of the checkpoint's logits (N, classes), and of the exported outputs of a kind that has classes."""

    def __init__(self, kind: str, source: ImageSource) -> None:
        self._kind = kind
        self._source = source
        self._images = 0
        self._compared = True
        self._hits = np.zeros(3, np.int64)  # of the checkpoint, of the exported file, equal predictions

    def add(
        self,
        exported: Sequence[np.ndarray],
        checkpoint: Sequence[np.ndarray] | None,
        indices: np.ndarray,
        valid: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        best = exported[1][:, 0] if self._kind == "topk" else exported[0].argmax(axis=1)
        self._compared = checkpoint is not None
        expected = best if checkpoint is None else checkpoint[0].argmax(axis=1)
        labels = np.array([self._source.target(index) for index in indices.tolist()])
        self._images += int(valid.sum())
        equal = (expected == labels, best == labels, best == expected)
        self._hits += [int((one & valid).sum()) for one in equal]

    def result(self) -> Agreement:
        checkpoint, exported, same = self._hits.tolist()
        return Agreement(self._images, checkpoint if self._compared else None, exported, same)
