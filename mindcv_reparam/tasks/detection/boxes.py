"""Boxes in the graph: from centres to corners, and how much two of them overlap."""

from mindspore import Tensor, ops


def corners(boxes: Tensor) -> Tensor:
    """Boxes (…, 4) of the form cx cy w h → x1 y1 x2 y2, in the same unit."""
    cx, cy, w, h = boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]
    return ops.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), axis=-1)


def overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and its generalisation (arXiv 1902.09630, algorithm 1), of boxes x1 y1 x2 y2.

    Leading dimensions broadcast: (…, 4) and (…, 4) → two of (…); (…, Q, 1, 4) and (…, 1, M, 4) compare all with all.
    No denominator has an epsilon, as in the reference: one of each pair must have an area.
    """
    left, top = ops.maximum(first[..., 0], second[..., 0]), ops.maximum(first[..., 1], second[..., 1])
    right, bottom = ops.minimum(first[..., 2], second[..., 2]), ops.minimum(first[..., 3], second[..., 3])
    intersection = ops.relu(right - left) * ops.relu(bottom - top)
    union = _area(first) + _area(second) - intersection
    iou = intersection / union
    left, top = ops.minimum(first[..., 0], second[..., 0]), ops.minimum(first[..., 1], second[..., 1])
    right, bottom = ops.maximum(first[..., 2], second[..., 2]), ops.maximum(first[..., 3], second[..., 3])
    hull = (right - left) * (bottom - top)
    return iou, iou - (hull - union) / hull


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
