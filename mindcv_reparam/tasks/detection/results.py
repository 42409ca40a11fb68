"""What a detector tells: the objects of an image, where they are and how surely."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from mindcv_reparam.config import Config
from mindcv_reparam.tasks.detection.drawing import marked
from mindcv_reparam.tasks.detection.postprocess import (
    MOST,
    PIXEL_DIGITS,
    SCORE_DIGITS,
    Detections,
    coco_box,
    detections,
    rounded,
    sigmoid,
)
from mindcv_reparam.tasks.detection.transforms import EvalTransform, eval_transform
from mindcv_reparam.tasks.results import KnownNumber, Label, Number
from mindcv_reparam.tensors import TOLERANCE, TensorSpec, relative_difference

_NAMES = {"topk": ("labels", "boxes", "scores"), "logits": ("logits", "boxes")}


class Object(BaseModel):
    """One of an image; ``box`` is x1 y1 x2 y2 in pixels of the image as decoded, ``category_id`` what the annotations
    of the training images call its class, null where the bundle does not know."""

    index: int
    label: str
    category_id: int | None
    score: float
    box: tuple[float, float, float, float]


class Objects(BaseModel):
    """Those of an image, from the best down; ``width`` and ``height`` of it as decoded, in pixels."""

    model_name: str
    model_version: str
    width: int
    height: int
    objects: list[Object]


@dataclass(frozen=True)
class Found:
    """The objects of an image of ``size`` (width, height) in pixels."""

    objects: Detections
    size: tuple[int, int]

    def rows(self) -> Iterator[tuple[int, float, list[float]]]:
        """Class index, score and box of every object."""
        one = self.objects
        return zip(one.labels.tolist(), one.scores.tolist(), one.boxes.tolist(), strict=True)


class DetectionResults:
    """Detections (N, k), of "topk", or what the network gives for every query, of "logits"; see :meth:`meanings`."""

    kinds = ("topk", "logits")
    what = "objects"
    marks = True
    selects = True
    route = "detect"
    most = MOST
    least = 0.5
    columns = ("label", "score", "x1", "y1", "x2", "y2", "index")
    answer = Objects

    def tells(self, kind: str) -> bool:
        return True

    def fits(self, kind: str, outputs: Sequence[TensorSpec]) -> bool:
        shapes = [output.shape for output in outputs]
        if [len(shape) for shape in shapes] != ([2, 3, 2] if kind == "topk" else [3, 3]) or shapes[1][2] != 4:
            return False
        return len({shape[1] for shape in shapes}) == 1

    def classes(self, kind: str, outputs: Sequence[TensorSpec]) -> int | None:
        return outputs[0].shape[2] if kind == "logits" else None

    def plain(self, hparams: Mapping[str, Any], batch: int | None) -> tuple[str, tuple[TensorSpec, ...]]:
        queries = hparams.get("num_queries")
        logits = TensorSpec("logits", "float32", (batch, queries, hparams["num_classes"]))
        return "logits", (logits, TensorSpec("boxes", "float32", (batch, queries, 4)))

    def meanings(self, kind: str) -> Mapping[str, str]:
        if kind == "logits":
            return {
                "logits": "of every query and class, before the sigmoid; there is no class for the background",
                "boxes": "of the queries: centre x and y, width and height, as parts of the image from 0 to 1",
            }
        return {
            "sizes": "width and height, in this order, of every image as it was decoded, in pixels",
            "labels": "class indices, counted from 0, as the lines of labels.txt are; from the best score down",
            "boxes": "x1 y1 x2 y2 in pixels of the image as it was decoded, within it",
            "scores": "from 0 to 1, the best first; all are given, and no suppression is needed; infer and serve tell "
            f"those from {self.least} on",
        }

    def transform(self, config: Config) -> EvalTransform:
        return eval_transform(config)

    def find(
        self, kind: str, outputs: Sequence[np.ndarray], sizes: np.ndarray, most: int, least: float
    ) -> list[Found | None]:
        if kind == "topk":
            found = [Detections(boxes[:most], scores[:most], labels[:most]) for labels, boxes, scores in zip(*outputs)]
        else:
            logits, boxes = outputs
            found = detections(logits, boxes, sizes, most)
        finite = [all(np.isfinite(image).all() for image in images) for images in zip(*outputs)]
        return [
            Found(one.above(least), (width, height)) if whole else None
            for one, (width, height), whole in zip(found, sizes.tolist(), finite, strict=True)
        ]

    def line(self, found: Found, label: Label) -> str:
        """``label 0.93 at 10 20 30 40; …``, or ``nothing``."""
        told = [f"{label(i)} {score:.2f} at {' '.join(f'{x:.0f}' for x in box)}" for i, score, box in found.rows()]
        return "; ".join(told) or "nothing"

    def record(self, found: Found, label: Label, number: KnownNumber) -> dict[str, Any]:
        width, height = found.size
        objects = [
            {"index": i, "label": label(i), "category_id": number(i), "score": score, "box": box}
            for i, score, box in found.rows()
        ]
        return {"width": width, "height": height, "objects": objects}

    def document(
        self, found: Sequence[tuple[str, Found]], skipped: Sequence[tuple[str, str]], label: Label, number: Number
    ) -> dict[str, Any]:
        """COCO's form, with scores: ids of images count from 1, those of categories are the training images', boxes
        are x y width height. What was ``skipped`` is beside it."""
        rows = [(image_id, *row) for image_id, (_, one) in enumerate(found, 1) for row in one.rows()]
        return {
            "images": [
                {"id": image_id, "file_name": file, "width": one.size[0], "height": one.size[1]}
                for image_id, (file, one) in enumerate(found, 1)
            ],
            "categories": [
                {"id": number(index), "name": label(index)} for index in sorted({index for _, index, *_ in rows})
            ],
            "annotations": [
                {
                    "id": place,
                    "image_id": image_id,
                    "category_id": number(index),
                    "bbox": rounded(coco_box(x1, y1, x2, y2)),
                    "area": round((x2 - x1) * (y2 - y1), PIXEL_DIGITS),
                    "iscrowd": 0,
                    "score": round(score, SCORE_DIGITS),
                }
                for place, (image_id, index, score, (x1, y1, x2, y2)) in enumerate(rows, 1)
            ],
            "skipped": [{"file": file, "reason": reason} for file, reason in skipped],
        }

    def table(self, found: Sequence[tuple[str, Found]], label: Label) -> Iterator[Sequence[object]]:
        """One row per object: file, index, label, score, x1, y1, x2, y2."""
        yield ["file", "index", "label", "score", "x1", "y1", "x2", "y2"]
        for file, one in found:
            for index, score, box in one.rows():
                yield [file, index, label(index), f"{score:.{SCORE_DIGITS}f}", *(f"{x:.{PIXEL_DIGITS}f}" for x in box)]

    def rows(self, found: Found, label: Label) -> list[tuple[Any, ...]]:
        """One per object, from the best down; the box in pixels of the image as decoded."""
        return [(label(index), score, *box, index) for index, score, box in found.rows()]

    def caption(self, found: Found, label: Label) -> tuple[str, str]:
        """How many objects there are, and the first of them."""
        told = [f"{label(index)} {score:.2f}" for index, score, _ in found.rows()]
        return f"{len(told)} object{'s' * (len(told) != 1)}", ", ".join(told)

    def drawn(self, image: Image.Image, found: Found, label: Label) -> Image.Image:
        one = found.objects
        scale = np.array([image.width / found.size[0], image.height / found.size[1]] * 2)
        texts = [f"{label(index)} {score:.2f}" for index, score, _ in found.rows()]
        return marked(image, one.boxes * scale, one.labels.tolist(), texts)

    def difference(self, kind: str, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
        return _of_detections(expected, actual) if kind == "topk" else _of_queries(expected, actual)

    def difference_note(self, kind: str) -> str:
        if kind == "topk":
            return (
                "That of boxes is divided by the largest coordinate, that of scores by the largest score and, if it is "
                "above 1, the largest logit; every detection is compared with the nearest of its class."
            )
        return "Queries whose scores are equal but for rounding may come in another order."

    def expected_names(self, kind: str, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """For "topk", too, those of all queries: they tell ties from faults. Their boxes are in pixels then."""
        return _NAMES["logits"]

    def expected_fits(self, kind: str, outputs: Sequence[TensorSpec], expected: Sequence[np.ndarray]) -> bool:
        if [(one.ndim, one.dtype) for one in expected] != [(3, np.float32)] * 2:
            return False
        logits, boxes = expected
        if logits.size == 0 or boxes.shape != (*logits.shape[:2], 4):
            return False
        if kind == "topk":
            return logits.shape[1] * logits.shape[2] >= (outputs[0].shape[1] or 1)
        return outputs[0].accepts(logits.shape)


def _of_queries(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """max|Δ| / max|expected|, in whatever order the queries come; NaN or infinite as ``relative_difference``.

    Equal networks may select two queries the other way round whose scores are equal but for rounding; the decoder gives
    each what it gives it in any order. In another order the difference is from the nearest, both ways round.
    """
    in_order = relative_difference(expected, actual)
    if not TOLERANCE < in_order < np.inf:
        return in_order
    scales = [np.abs(one).max() for one in expected]
    ours, theirs = (np.concatenate([a / s for a, s in zip(side, scales)], axis=2) for side in (expected, actual))
    worst = [
        np.array([np.abs(queries - query).max(axis=1) for query in others]) for queries, others in zip(ours, theirs)
    ]
    return float(max(max(image.min(axis=0).max(), image.min(axis=1).max()) for image in worst))


def _of_detections(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """Of labels (N, k), boxes (N, k, 4) in pixels and scores (N, k) from what all queries say: logits (N, Q, classes)
    and boxes (N, Q, 4) in pixels.

    The scores have to be the k largest, and every detection to be one of them, which in a tie may be any.
    """
    (logits, places), (labels, boxes, scores) = expected, actual
    images, queries, classes = logits.shape
    count = scores.shape[-1]
    if (images, count) != labels.shape or labels.shape != scores.shape or (*labels.shape, 4) != boxes.shape:
        return float("inf")
    if not 0 <= labels.min() <= labels.max() < classes or count > queries * classes:
        return float("inf")
    probabilities = sigmoid(logits)
    largest = -np.sort(-probabilities.reshape(images, -1), axis=1)[:, :count]
    of_scores = float(largest.max()) * max(1.0, float(np.abs(logits).max()))
    of_boxes = max(1.0, float(np.abs(places).max()))
    differences = [np.abs(scores - largest).max() / of_scores]
    for image in range(images):
        own = probabilities[image, :, labels[image]]  # (k, Q)
        apart = np.abs(own - scores[image, :, None]) / of_scores
        away = np.abs(places[image] - boxes[image, :, None]).max(axis=2) / of_boxes
        differences.append(np.maximum(apart, away).min(axis=1).max())
    return float(np.max(differences))  # NaN stays NaN
