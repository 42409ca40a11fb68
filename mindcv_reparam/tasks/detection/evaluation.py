"""COCO's average precision and recall over every image exactly once, on any number of ranks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindcv_reparam.data.objects import DetectionSource
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.tasks.about import About
from mindcv_reparam.tasks.detection.postprocess import SCORE_DIGITS, Detections, coco_box, detections, rounded

_log = logging.getLogger(__name__)
# As pycocotools prints them.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Evaluation:
    """COCO's numbers over all ranks, from 0 to 1; NaN where there is no object to find.

    Attributes:
        numbers: by ``NAMES``.
        of_classes: AP by class name.
        found: detections, a row each: index of the image, label, score, x1 y1 x2 y2; float64 (n, 7).
        source: of the images.
    """

    samples: int
    numbers: dict[str, float]
    of_classes: dict[str, float]
    images_per_second: float
    found: np.ndarray
    source: DetectionSource

    def metrics(self, prefix: str = "") -> dict[str, float]:
        return {f"{prefix}{name}": self.numbers[name] for name in NAMES}

    def line(self) -> str:
        shown = ", ".join(f"{name} {self.numbers[name]:.4f}" for name in NAMES)
        return f"{shown} ({self.samples} images)"

    def record(self) -> dict[str, Any]:
        """NaN, which JSON does not know, is None."""
        finite = {name: None if np.isnan(value) else value for name, value in self.numbers.items()}
        classes = {name: None if np.isnan(value) else value for name, value in self.of_classes.items()}
        return {
            "samples": self.samples,
            **finite,
            "AP_of_classes": classes,
            "images_per_second": self.images_per_second,
        }

    def documents(self) -> dict[str, Any]:
        """The detections as COCO's servers take them, without those of classes that the annotations do not have."""
        ids = self.source.category_ids
        return {
            "detections": [
                {
                    "image_id": self.source.image_id(int(index)),
                    "category_id": ids[int(label)],
                    "bbox": rounded(coco_box(*box)),
                    "score": round(score, SCORE_DIGITS),
                }
                for index, label, score, *box in self.found.tolist()
                if ids[int(label)] is not None
            ]
        }


class CocoEvaluator:
    """Takes logits (B, Q, classes), boxes (B, Q, 4) and what `EvalBatches` have beside the images.

    Args:
        source: of the images, with the annotations to compare with.
    """

    def __init__(self, source: DetectionSource) -> None:
        self.source = source
        self._rows: list[np.ndarray] = []
        self._seen: list[int] = []

    def add(self, outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> int:
        (logits, boxes), (indices, sizes, weights) = outputs, targets
        kept = weights > 0
        for index, found in zip(indices[kept].tolist(), detections(logits[kept], boxes[kept], sizes[kept])):
            self.add_found(index, found)
        return int(kept.sum())

    def add_found(self, index: int, found: Detections | None) -> None:
        """Account for the image of an index in the source; None where nothing could be told of it."""
        self._seen.append(index)
        if found is not None:
            head = np.full((len(found.labels), 1), index, dtype=np.float32)
            self._rows.append(np.concatenate([head, found.labels[:, None], found.scores[:, None], found.boxes], axis=1))

    def result(self, ranks: Ranks, images_per_second: float) -> Evaluation:
        found = _of_all(np.concatenate(self._rows) if self._rows else np.empty((0, 7)), ranks)
        seen = np.unique(_of_all(np.array(self._seen, dtype=np.float64)[:, None], ranks)[:, 0]).astype(np.int64)
        found = found[np.argsort(found[:, 0], kind="stable")]
        classes = self.source.classes
        numbers = np.zeros(len(NAMES) + len(classes))
        if ranks.is_main and len(seen):  # once: a million boxes take seconds
            whole, of_classes = average_precision(self.source, seen, found)
            numbers[:] = [*whole.values(), *of_classes.values()]
        *sums, rate = ranks.sum([*numbers, images_per_second]).tolist()
        return Evaluation(
            samples=len(seen),
            numbers=dict(zip(NAMES, sums)),
            of_classes=dict(zip(classes, sums[len(NAMES) :])),
            images_per_second=rate,
            found=found,
            source=self.source,
        )


class DetectionExaminer(CocoEvaluator):
    """A :class:`CocoEvaluator` whose detections become a report."""

    def report(self, ranks: Ranks, evaluation: Evaluation, about: About) -> dict[str, str]:
        if not ranks.is_main:
            return {}
        from mindcv_reparam.tasks.detection.report import report_files

        return report_files(evaluation, about)


def _of_all(rows: np.ndarray, ranks: Ranks) -> np.ndarray:
    """The rows of all ranks in rank order, float64; ranks may have different numbers of them."""
    rows = rows.astype(np.float32)
    counts = ranks.gather(np.array([len(rows)], dtype=np.int32))[:, 0]
    room = np.zeros((int(counts.max()), rows.shape[1]), dtype=np.float32)
    room[: len(rows)] = rows
    gathered = ranks.gather(room.reshape(-1).view(np.int32)).reshape(len(counts), -1).view(np.float32)
    gathered = gathered.reshape(len(counts), *room.shape)
    return np.concatenate([of_rank[:count] for of_rank, count in zip(gathered, counts.tolist())]).astype(np.float64)


def average_precision(
    source: DetectionSource, seen: Sequence[int] | np.ndarray, found: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's numbers by ``NAMES`` and AP by class name; NaN where there is no object to find.

    Args:
        seen: indices of the images to measure on.
        found: detections, see `Evaluation`.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    ids = source.category_ids
    truth = COCO(source.annotations, print_function=_log.debug)
    answer = COCO(print_function=_log.debug)
    # Without the outlines that ``loadRes`` draws for every one of a million boxes.
    answer.dataset = truth.dataset | {
        "annotations": [
            {
                "id": number,
                "image_id": source.image_id(int(index)),
                "category_id": ids[int(label)],
                "bbox": coco_box(x1, y1, x2, y2),
                "area": (x2 - x1) * (y2 - y1),
                "score": score,
                "iscrowd": 0,
            }
            for number, (index, label, score, x1, y1, x2, y2) in enumerate(found.tolist(), 1)
            if ids[int(label)] is not None
        ]
    }
    answer.createIndex()
    judge = COCOeval_faster(truth, answer, "bbox", print_function=_log.debug)
    judge.params.imgIds = [source.image_id(int(index)) for index in seen]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    columns = {category: column for column, category in enumerate(judge.params.catIds)}
    precisions = judge.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, categories; all areas, most detections
    of_classes = {
        name: _mean(precisions[:, :, columns[category]]) if category in columns else float("nan")
        for name, category in zip(source.classes, ids)
    }
    return {name: _known(value) for name, value in zip(NAMES, judge.stats)}, of_classes


def _mean(precisions: np.ndarray) -> float:
    there = precisions[precisions > -1]
    return float(there.mean()) if there.size else float("nan")


def _known(value: float) -> float:
    """COCO's -1 stands for nothing to find."""
    return float(value) if value > -1 else float("nan")
