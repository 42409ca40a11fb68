"""Classification losses on soft or integer labels, always computed in float32."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindcv_reparam.errors import UserError


class _SmoothedLoss(nn.Cell):
    """What the losses share: float32 logits, dense smoothed targets, reduction over the batch."""

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(auto_prefix=False)
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if reduction not in ("mean", "sum"):
            raise UserError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Dense targets (B, classes) from class indices (B,) or from probabilities (B, classes).

        Smoothing is linear in the labels, so smoothing mixed labels here equals mixing smoothed ones (timm's order).
        """
        if labels.ndim == 1:
            labels = ops.one_hot(labels, classes, Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
        labels = ops.cast(labels, ms.float32)
        if self.label_smoothing > 0.0:
            labels = labels * (1.0 - self.label_smoothing) + self.label_smoothing / classes
        return labels

    def reduce(self, loss: Tensor) -> Tensor:
        return loss.mean() if self.reduction == "mean" else loss.sum()


class CrossEntropy(_SmoothedLoss):
    """Softmax cross-entropy: logits (B, C), labels (B,) or (B, C) → scalar; the mean is over the batch."""

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probability = ops.log_softmax(ops.cast(logits, ms.float32), -1)
        return self.reduce(-(self.targets(labels, logits.shape[-1]) * log_probability).sum(-1))


class BinaryCrossEntropy(_SmoothedLoss):
    """One sigmoid per class: logits (B, C), labels (B,) or (B, C) → scalar; the mean is over batch and classes."""

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = ops.cast(logits, ms.float32)
        # max(x, 0) − x·y + log(1 + e^−|x|) does not overflow for large logits of either sign.
        softplus = ops.relu(logits) + ops.log1p(ops.exp(-ops.abs(logits)))
        return self.reduce(softplus - logits * self.targets(labels, logits.shape[-1]))


LOSSES = {"CE": CrossEntropy, "BCE": BinaryCrossEntropy}


def create_loss(name: str = "CE", label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Cell:
    """The loss of that name (MindCV's `loss` key, any case)."""
    if name.upper() not in LOSSES:
        raise UserError(f"unknown loss {name!r}; choose one of {', '.join(LOSSES)}")
    return LOSSES[name.upper()](label_smoothing=label_smoothing, reduction=reduction)
