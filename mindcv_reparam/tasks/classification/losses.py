"""Classification losses on soft or integer labels, always computed in float32."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindcv_reparam.errors import UserError


class _Loss(nn.Cell):
    """What the losses share: float32 logits, dense targets, reduction over the batch."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(auto_prefix=False)
        if reduction not in ("mean", "sum"):
            raise UserError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Dense targets (B, classes) from class indices (B,) or from probabilities (B, classes)."""
        if labels.ndim == 1:
            labels = ops.one_hot(labels, classes, Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
        return ops.cast(labels, ms.float32)

    def reduce(self, loss: Tensor) -> Tensor:
        return loss.mean() if self.reduction == "mean" else loss.sum()


class CrossEntropy(_Loss):
    """Softmax cross-entropy: logits (B, C), labels (B,) or (B, C) → scalar; the mean is over the batch."""

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probability = ops.log_softmax(ops.cast(logits, ms.float32), -1)
        return self.reduce(-(self.targets(labels, logits.shape[-1]) * log_probability).sum(-1))


class BinaryCrossEntropy(_Loss):
    """One sigmoid per class: logits (B, C), labels (B,) or (B, C) → scalar; the mean is over batch and classes."""

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = ops.cast(logits, ms.float32)
        # max(x, 0) − x·y + log(1 + e^−|x|) does not overflow for large logits of either sign.
        softplus = ops.relu(logits) + ops.log1p(ops.exp(-ops.abs(logits)))
        return self.reduce(softplus - logits * self.targets(labels, logits.shape[-1]))


LOSSES = {"CE": CrossEntropy, "BCE": BinaryCrossEntropy}


def create_loss(name: str = "CE", reduction: str = "mean") -> nn.Cell:
    """The loss of that name (MindCV's `loss` key, any case)."""
    if name.upper() not in LOSSES:
        raise UserError(f"unknown loss {name!r}; choose one of {', '.join(LOSSES)}")
    return LOSSES[name.upper()](reduction=reduction)
