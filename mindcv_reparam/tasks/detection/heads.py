"""What export puts behind a detector: the best of every query's classes with their boxes in pixels, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.detection.postprocess import MOST, corners_in_pixels
from mindcv_reparam.tensors import TensorSpec


@dataclass(frozen=True)
class DetectionHead:
    """The head of one of the kinds that DetectionResults describes; ``most`` is the number of detections of "topk"."""

    kind: str
    most: int | None = None

    @property
    def takes_sizes(self) -> bool:
        return self.kind == "topk"

    def network(self, network: nn.Cell) -> nn.Cell:
        return network

    def cell(self) -> nn.Cell:
        return BestDetections(self.most or MOST) if self.kind == "topk" else nn.Identity()

    def expected(self, outputs: tuple[np.ndarray, ...], sizes: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Logits and boxes of all queries; for "topk" in pixels, see DetectionResults.difference."""
        logits, boxes = outputs
        return (logits, corners_in_pixels(boxes, sizes)) if self.kind == "topk" and sizes is not None else outputs

    def specs(self, expected: Sequence[np.ndarray], batch: int | None, any_size: bool) -> tuple[TensorSpec, ...]:
        if any_size:
            raise UserError("the image size of a detector is fixed: its anchors are of one size")
        _, queries, classes = expected[0].shape
        if self.kind != "topk":
            logits = TensorSpec("logits", "float32", (batch, queries, classes))
            return logits, TensorSpec("boxes", "float32", (batch, queries, 4))
        if self.most is not None and self.most > queries * classes:
            raise UserError(
                f"top_k {self.most} is more than the {queries * classes} detections that the model has: {queries} "
                f"queries of {classes} classes"
            )
        count = min(self.most or MOST, queries * classes)
        labels, boxes = TensorSpec("labels", "int32", (batch, count)), TensorSpec("boxes", "float32", (batch, count, 4))
        return labels, boxes, TensorSpec("scores", "float32", (batch, count))


@ops.constexpr
def _tensor_of(number: int) -> Tensor:
    """With which MindSpore Lite multiplies; it has no product with a number."""
    return Tensor([number], ms.int32)


class BestDetections(nn.Cell):
    """Of logits (N, Q, classes) and boxes (N, Q, 4) as cx cy w h in 0 to 1, and of sizes (N, 2) int32 → labels (N, k)
    int32, boxes (N, k, 4) as x1 y1 x2 y2 in pixels within the image, and scores (N, k), the best first.

    Ranked by logits, which sigmoid keeps in order, and where it makes 1 of several it does not. k is ``most``, or as
    many pairs of a query and a class as there are.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most = most
        self.top = ops.TopK(sorted=True)
        self.sigmoid = ops.Sigmoid()
        self.half = Tensor([0.5], ms.float32)

    def construct(self, outputs, sizes):
        logits, boxes = outputs
        _, queries, classes = logits.shape
        best, places = self.top(logits.reshape((-1, queries * classes)), min(self.most, queries * classes))
        rows = ops.floor_divide(places, classes)
        labels = places - rows * _tensor_of(classes)
        centres, sides = ops.split(ops.gather(boxes, rows, 1, 1), 2, 2)
        reach = sides * self.half
        limits = ops.cast(ops.concat((sizes, sizes), 1), ms.float32).expand_dims(1)
        corners = ops.concat((centres - reach, centres + reach), 2) * limits
        return labels, ops.minimum(ops.maximum(corners, 0.0), limits), self.sigmoid(best)
