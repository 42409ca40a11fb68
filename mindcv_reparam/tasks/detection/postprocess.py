"""Outputs of a detector → detections, in NumPy: for validation, inference and serving."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 300  # detections of an image
PIXEL_DIGITS, SCORE_DIGITS = 2, 4  # after the point, in files


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: x1 y1 x2 y2 in pixels of the original image, within it, float32 (k, 4).
        scores: float32 (k,).
        labels: class indices, int32 (k,).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def above(self, threshold: float) -> "Detections":
        """Those whose score is at least the threshold."""
        kept = self.scores >= threshold
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept])


def coco_box(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """x y width height, which COCO's files have."""
    return [x1, y1, x2 - x1, y2 - y1]


def rounded(values: Sequence[float]) -> list[float]:
    """Pixels as files have them."""
    return [round(value, PIXEL_DIGITS) for value in values]


def detections(logits: np.ndarray, boxes: np.ndarray, sizes: np.ndarray, most: int = MOST) -> list[Detections]:
    """The best of every query's classes: RT-DETR's post-processor, whose boxes are clipped to the image.

    Every query may appear under several classes; there is no threshold and no suppression. Among equal scores the
    earlier query and the lower class come first. A score that is not finite counts as 0.

    Args:
        logits: (N, Q, classes).
        boxes: (N, Q, 4), normalised cx cy w h.
        sizes: width and height of the original images, (N, 2).
        most: detections of an image; fewer where there are not as many pairs of query and class.
    """
    images, queries, classes = logits.shape
    scores = sigmoid(logits.astype(np.float32).reshape(images, queries * classes))
    most = min(most, queries * classes)
    best = _best(scores, most)
    found = np.take_along_axis(boxes.astype(np.float32), (best // classes)[:, :, None], axis=1)
    corners = corners_in_pixels(found, sizes)
    scores = np.take_along_axis(scores, best, axis=1)
    labels = (best % classes).astype(np.int32)
    return [Detections(*image) for image in zip(corners, scores, labels)]


def corners_in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes (N, n, 4) as cx cy w h in 0 to 1 → x1 y1 x2 y2 in pixels of images of ``sizes`` (N, 2), width and height,
    within them; 0 for what is not finite."""
    half = boxes[:, :, 2:] / 2
    corners = np.concatenate([boxes[:, :, :2] - half, boxes[:, :, :2] + half], axis=2)
    limits = np.tile(sizes, 2).astype(np.float32)[:, None]
    return np.clip(np.nan_to_num(corners * limits, posinf=0.0, neginf=0.0), 0.0, limits)


def _best(scores: np.ndarray, most: int) -> np.ndarray:
    """Positions of the ``most`` largest of every row, largest first, the earlier first among equals."""
    # Sorting all of 300 × 80 takes ten times as long as sorting the candidates.
    threshold = -np.partition(-scores, most - 1, axis=1)[:, most - 1]
    best = np.empty((len(scores), most), dtype=np.int64)
    for row, (values, least) in enumerate(zip(scores, threshold)):
        candidates = np.flatnonzero(values >= least)
        best[row] = candidates[np.argsort(-values[candidates], kind="stable")[:most]]
    return best


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Scores of logits; 0 for what is not a number."""
    with np.errstate(over="ignore"):  # exp(89) is infinite, which is as good
        return np.nan_to_num(1.0 / (1.0 + np.exp(-logits)))
