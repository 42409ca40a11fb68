"""What a detector minimises."""

from collections.abc import Sequence
from typing import Protocol

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindcv_reparam.tasks.detection.losses import terms
from mindcv_reparam.tasks.detection.matching import costs, match
from mindcv_reparam.tasks.objective import Objective

WEIGHTS = (1.0, 5.0, 2.0)  # of the classification, the L1 and the GIoU term


class TrainableDetector(Protocol):
    """What a network shows in training, for D denoising queries in front of Q others and L decoder layers.

    `forward_training` takes images (N, 3, H, W) and labels, references and blocked of `denoising.Denoising`. It returns
    logits (L, N, D + Q, classes) and boxes (L, N, D + Q, 4) of all layers, and the encoder's own answer, logits (N, Q,
    classes) and boxes (N, Q, 4). Boxes are normalised cx cy w h.
    """

    layers: int

    def check_sides(self, sides: Sequence[int]) -> None:
        """Raise UserError for square images that the network does not take."""

    def forward_training(
        self, images: Tensor, labels: Tensor, references: Tensor, blocked: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


def part_names(layers: int, kind: str = "vfl") -> tuple[str, ...]:
    """The terms as RT-DETR's `SetCriterion` calls them: the last layer, then the earlier ones and the encoder, which
    is the last ``_aux_``, then the denoising queries layer by layer."""
    outputs = ["", *(f"_aux_{i}" for i in range(layers)), *(f"_dn_{i}" for i in range(layers))]
    return tuple(f"loss_{term}{output}" for output in outputs for term in (kind, "bbox", "giou"))


class DetectionObjective(Objective):
    """images (N, 3, H, W), targets → the weighted terms of RT-DETR's loss (arXiv 2304.08069), named as there.

    Targets are the arrays of a batch: labels (N, M) int32, boxes (N, M, 4) float32 normalised cx cy w h, valid (N, M)
    bool, True for the objects, in front of the padding; and those of `denoising.Denoising`.

    Every layer and the encoder match on their own. Terms are sums over queries, divided by the number of objects: over
    all ranks, per rank, at least 1.

    Args:
        network: a `TrainableDetector`.
        layers: of its decoder.
        kind: of the classification loss, a name in `losses.CLASSIFICATION`.
        size: number of ranks; more than one needs MindSpore's communication initialised.
    """

    def __init__(self, network: nn.Cell, layers: int, kind: str = "vfl", size: int = 1) -> None:
        super().__init__(network)
        self.parts = part_names(layers, kind)
        self.kind = kind
        self.size = size
        self.sum_over_ranks = ops.AllReduce() if size > 1 else None

    def construct(self, images: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        labels, boxes, valid, dn_labels, dn_references, dn_matches, dn_blocked, dn_groups = targets
        outputs = self.network.forward_training(images, dn_labels, dn_references, dn_blocked)
        return self.criterion(outputs, (labels, boxes, valid), dn_matches, dn_groups)

    def criterion(
        self, outputs: tuple[Tensor, ...], objects: tuple[Tensor, ...], dn_matches: Tensor, dn_groups: Tensor
    ) -> tuple[Tensor, ...]:
        """What `forward_training` returned → the weighted terms, in the order of ``parts``."""
        logits, boxes, encoder_logits, encoder_boxes = [ops.cast(output, ms.float32) for output in outputs]
        labels, targets, valid = objects
        count = self.mean_over_ranks(ops.cast(valid, ms.float32).sum())
        denoising = dn_matches.shape[1]
        own_logits = as_named(logits[:, :, denoising:], encoder_logits)
        own_boxes = as_named(boxes[:, :, denoising:], encoder_boxes)
        index = self.assign(own_logits, own_boxes, objects)
        found = self.weighted(own_logits, own_boxes, labels, targets, index, count)
        index = ops.broadcast_to(ops.expand_dims(dn_matches, 0), (logits.shape[0], *dn_matches.shape))
        restored = self.weighted(
            logits[:, :, :denoising], boxes[:, :, :denoising], labels, targets, index, count * dn_groups
        )
        return found + restored

    def mean_over_ranks(self, count: Tensor) -> Tensor:
        if self.sum_over_ranks is not None:
            count = self.sum_over_ranks(count) / self.size
        return ops.maximum(count, 1.0)

    def assign(self, logits: Tensor, boxes: Tensor, objects: tuple[Tensor, ...]) -> Tensor:
        """The object of every query of every output (O, N, Q), or BACKGROUND."""
        labels, targets, valid = objects
        counts = ops.cast(valid, ms.int32).sum(1)
        cost = costs(ops.stop_gradient(logits), ops.stop_gradient(boxes), labels, targets)
        index = match(cost.reshape(-1, *cost.shape[2:]), ops.tile(counts, (logits.shape[0],)))
        return index.reshape(logits.shape[:3])

    def weighted(
        self, logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, index: Tensor, count: Tensor
    ) -> tuple[Tensor, ...]:
        """The three terms of every output, output by output."""
        sums = ops.stack(terms(logits, boxes, labels, targets, index, self.kind), axis=1)  # (O, 3)
        return ops.unstack((sums * Tensor(WEIGHTS, ms.float32) / count).reshape(-1))


def as_named(layers: Tensor, encoder: Tensor) -> Tensor:
    """(layers, N, …) of the decoder and (N, …) of the encoder → the last layer, the others, the encoder."""
    others = (layers[:-1],) if layers.shape[0] > 1 else ()  # an empty slice has no gradient operator by operator
    return ops.concat((layers[-1:], *others, ops.expand_dims(encoder, 0)))
