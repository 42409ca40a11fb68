"""One query for every object: the assignment of least cost, inside the graph."""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.scipy.optimize import linear_sum_assignment

from mindcv_reparam.tasks.detection.boxes import corners, overlap
from mindcv_reparam.tasks.detection.denoising import BACKGROUND

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
ALPHA, TINY = 0.25, 1e-8  # of the focal cost
_FORBIDDEN = 1e6  # stands for a cost that is not a number, for which the operator fails; the loss will tell


def costs(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """What it costs to give an object to a query: (…, Q, classes), (…, Q, 4), (…, M), (…, M, 4) → (…, Q, M).

    Twice the focal cost of the object's class, five times the L1 distance of cx cy w h, minus twice the generalised IoU
    (RT-DETR's `HungarianMatcher`). Everything is float32; leading dimensions broadcast.
    """
    probability = ops.sigmoid(logits)
    present = ALPHA * ops.square(1.0 - probability) * -ops.log(probability + TINY)
    absent = (1.0 - ALPHA) * ops.square(probability) * -ops.log(1.0 - probability + TINY)
    shape = (*logits.shape[:-1], labels.shape[-1])
    of_class = ops.gather_elements(present - absent, -1, ops.broadcast_to(ops.expand_dims(labels, -2), shape))
    boxes, targets = ops.expand_dims(boxes, -2), ops.expand_dims(targets, -3)
    distance = ops.abs(boxes - targets).sum(-1)
    _, giou = overlap(corners(boxes), corners(targets))
    return BOX_COST * distance + CLASS_COST * of_class - GIOU_COST * giou


def match(cost: Tensor, objects: Tensor) -> Tensor:
    """The index of its object for every query, or BACKGROUND: costs (B, Q, M), objects (B,) → (B, Q) int32.

    Only the first ``objects`` columns of each matrix count; with more objects than queries the dearest go without. The
    operator has no derivative: nothing that it returns carries one.
    """
    cost = ops.stop_gradient(ops.select(ops.isfinite(cost), cost, ops.full_like(cost, _FORBIDDEN)))
    limits = ops.cast(ops.maximum(objects, 1), ms.int64)  # it refuses 0: an image without objects is masked below
    rows, columns = [], []
    for i in range(cost.shape[0]):
        row, column = linear_sum_assignment(cost[i], False, limits[i])
        rows.append(row)
        columns.append(column)
    queries, found = ops.stack(rows), ops.stack(columns)  # (B, min(Q, M)), -1 behind the last pair
    queries, found = ops.expand_dims(queries, 1), ops.cast(ops.expand_dims(found, 1), ms.int32)
    # By comparison: as an index, the operator's -1 would mean the last query.
    hits = queries == ops.arange(cost.shape[1]).reshape(1, -1, 1)  # (B, Q, min(Q, M))
    hits = ops.logical_and(hits, found < objects.reshape(-1, 1, 1))
    none = ops.full(hits.shape, BACKGROUND, dtype=ms.int32)
    return ops.amax(ops.select(hits, ops.broadcast_to(found, hits.shape), none), -1)
