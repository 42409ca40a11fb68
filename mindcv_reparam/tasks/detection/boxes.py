"""Boxes in the graph: from centres to corners, and how much two of them overlap."""

import numpy as np
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
    (left, other_left), (top, other_top), (right, other_right), (bottom, other_bottom) = (
        _alike(first[..., 0], second[..., 0]),
        _alike(first[..., 1], second[..., 1]),
        _alike(first[..., 2], second[..., 2]),
        _alike(first[..., 3], second[..., 3]),
    )
    width = ops.minimum(right, other_right) - ops.maximum(left, other_left)
    height = ops.minimum(bottom, other_bottom) - ops.maximum(top, other_top)
    intersection = ops.relu(width) * ops.relu(height)
    union = _area(first) + _area(second) - intersection
    iou = intersection / union
    width = ops.maximum(right, other_right) - ops.minimum(left, other_left)
    height = ops.maximum(bottom, other_bottom) - ops.minimum(top, other_top)
    hull = width * height
    return iou, iou - (hull - union) / hull


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two in one shape: minima that broadcast take ten divisions per number on a CPU."""
    if first.shape == second.shape:
        return first, second
    shape = _common(first.shape, second.shape)
    return ops.broadcast_to(first, shape), ops.broadcast_to(second, shape)


@ops.constexpr
def _common(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return np.broadcast_shapes(first, second)
