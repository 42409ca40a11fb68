"""Whether an exported detector finds what its checkpoint does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindcv_reparam.data.objects import DetectionSource
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.tasks.detection.evaluation import CocoEvaluator
from mindcv_reparam.tasks.detection.results import DetectionResults


@dataclass(frozen=True)
class Precision:
    """COCO's average precision of an exported file, and of a checkpoint's network on the same images or None, from 0 to
    1; NaN where these have no objects."""

    images: int
    checkpoint: float | None
    exported: float

    def __str__(self) -> str:
        beside = "" if self.checkpoint is None else f", the checkpoint {self.checkpoint:.4f}"
        return f"AP {self.exported:.4f} on {self.images} images{beside}"

    @property
    def apart(self) -> float:
        return 0.0 if self.checkpoint is None or np.isnan(self.checkpoint) else abs(self.exported - self.checkpoint)


class PrecisionComparison:
    """Measures AP of the checkpoint's logits and boxes, and of the exported outputs of a kind."""

    def __init__(self, kind: str, source: DetectionSource) -> None:
        self._kind = kind
        self._results = DetectionResults()
        self._exported, self._checkpoint = CocoEvaluator(source), CocoEvaluator(source)
        self._compared = True

    def add(
        self,
        exported: Sequence[np.ndarray],
        checkpoint: Sequence[np.ndarray] | None,
        indices: np.ndarray,
        valid: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        self._compared = checkpoint is not None
        kinds = (self._exported, self._kind, exported), (self._checkpoint, "logits", checkpoint)
        for evaluator, kind, outputs in kinds:
            if outputs is None:
                continue
            found = self._results.find(kind, outputs, sizes, self._results.most, 0.0)
            for index, one, there in zip(indices.tolist(), found, valid):
                if there:
                    evaluator.add_found(index, one.objects if one else None)

    def result(self) -> Precision:
        evaluators = (self._exported, self._checkpoint) if self._compared else (self._exported,)
        exported, *checkpoint = (one.result(Distributed(), images_per_second=0.0) for one in evaluators)
        beside = checkpoint[0].numbers["AP"] if checkpoint else None
        return Precision(exported.samples, beside, exported.numbers["AP"])
