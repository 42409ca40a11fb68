"""The terms of a detector's loss, on the fixed grid of its queries, always in float32.

Sums over what has an object are sums over all queries with zeros elsewhere, so no shape depends on the targets. Queries
come in outputs (O, N, Q, …): O decoder layers and the like, N images. Every term is a sum per output, (O,).
"""

import mindspore as ms
from mindspore import Tensor, ops

from mindcv_reparam.tasks.detection.boxes import corners, overlap
from mindcv_reparam.tasks.detection.denoising import IGNORED

VARIFOCAL_ALPHA, FOCAL_ALPHA = 0.75, 0.25


def terms(
    logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, index: Tensor, kind: str = "vfl"
) -> tuple[Tensor, Tensor, Tensor]:
    """Classification, L1 and GIoU term of every output, neither weighted nor divided by the number of objects.

    Args:
        logits: (O, N, Q, classes).
        boxes: (O, N, Q, 4), normalised cx cy w h.
        labels: (N, M) int32.
        targets: the objects' boxes (N, M, 4).
        index: (O, N, Q) int32, the object of every query, BACKGROUND or IGNORED.
        kind: a name in CLASSIFICATION.

    Returns:
        three of (O,).
    """
    matched = index >= 0
    distance, giou, iou = box_terms(boxes, pick(targets, index), matched)
    hits = ops.expand_dims(pick(labels, index), -1) == ops.arange(logits.shape[-1])
    classes = ops.cast(ops.logical_and(hits, ops.expand_dims(matched, -1)), ms.float32)
    loss = CLASSIFICATION[kind](logits, classes, ops.expand_dims(iou, -1)).sum(-1)
    loss = ops.select(index != IGNORED, loss, ops.zeros_like(loss)).sum((1, 2))
    return loss, distance, giou


def pick(values: Tensor, index: Tensor) -> Tensor:
    """The objects' values (N, M, …) by queries: index (O, N, Q) → (O, N, Q, …); the first object's where it is < 0."""
    first = (ops.arange(values.shape[0]) * values.shape[1]).reshape(1, -1, 1)  # row of every image's first object
    rows = ops.maximum(index, 0) + ops.cast(first, ms.int32)
    return ops.gather(values.reshape(-1, *values.shape[2:]), rows, 0)


def box_terms(boxes: Tensor, targets: Tensor, matched: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L1 and GIoU term, and the IoU of every query that has an object, 0 for others.

    Args:
        boxes: (O, N, Q, 4), normalised cx cy w h.
        targets: the same, of the queries' objects; arbitrary where ``matched`` is False.
        matched: (O, N, Q), bool.

    Returns:
        (O,), (O,), (O, N, Q); the last without gradient.
    """
    # A box with an area for the others: what is masked out must not be NaN, nor its gradient.
    present = ops.broadcast_to(ops.expand_dims(matched, -1), targets.shape)
    targets = ops.select(present, targets, ops.full_like(targets, 0.5))
    iou, giou = overlap(corners(boxes), corners(targets))
    zeros = ops.zeros_like(iou)
    return (
        ops.select(matched, ops.abs(boxes - targets).sum(-1), zeros).sum((1, 2)),
        ops.select(matched, 1.0 - giou, zeros).sum((1, 2)),
        ops.stop_gradient(ops.select(matched, iou, zeros)),
    )


def varifocal(logits: Tensor, classes: Tensor, iou: Tensor) -> Tensor:
    """Varifocal loss (arXiv 2008.13367, equation 2): an object's class aims at the IoU, the others at 0.

    As in RT-DETR a class that aims at 0 weighs VARIFOCAL_ALPHA·p², and weights have no gradient.

    Args:
        logits: (O, N, Q, classes).
        classes: the same, 1 at the class of the query's object, else 0.
        iou: (O, N, Q, 1), of the query's box and its object.

    Returns:
        what is summed, (O, N, Q, classes).
    """
    aim = classes * iou
    weight = VARIFOCAL_ALPHA * ops.square(ops.stop_gradient(ops.sigmoid(logits))) * (1.0 - classes) + aim
    return cross_entropy(logits, aim) * weight


def focal(logits: Tensor, classes: Tensor, iou: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5) with γ 2; arguments and result as in `varifocal`."""
    probability = ops.sigmoid(logits)
    miss = probability * (1.0 - classes) + (1.0 - probability) * classes
    alpha = FOCAL_ALPHA * classes + (1.0 - FOCAL_ALPHA) * (1.0 - classes)
    return cross_entropy(logits, classes) * ops.square(miss) * alpha


def binary(logits: Tensor, classes: Tensor, iou: Tensor) -> Tensor:
    """Binary cross-entropy of every class; arguments and result as in `varifocal`."""
    return cross_entropy(logits, classes)


def cross_entropy(logits: Tensor, aim: Tensor) -> Tensor:
    """−aim·log p − (1 − aim)·log(1 − p) for p = sigmoid(logits), which does not overflow."""
    return ops.relu(logits) - logits * aim + ops.log1p(ops.exp(-ops.abs(logits)))


CLASSIFICATION = {"vfl": varifocal, "focal": focal, "bce": binary}
