"""Distillation of logits from a frozen teacher (Hinton et al., arXiv 1503.02531; Touvron et al., arXiv 2012.12877)."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.classification.losses import CrossEntropy


def freeze(teacher: nn.Cell, prefix: str) -> nn.Cell:
    """Make a network a teacher, in place: evaluation mode, nothing to train, names that no student has.

    Whoever owns a teacher holds it in a tuple, where MindSpore finds it to compile it but does not take it for a part
    of the owner: so it stays in evaluation mode, and out of checkpoints, averages and optimizers.
    """
    for parameter in teacher.get_parameters():
        parameter.requires_grad = False
        parameter.name = f"{prefix}.{parameter.name}"
    return teacher.set_train(False)


class DistillationLoss(nn.Cell):
    """Logits and teacher's logits (B, C), labels → scalar.

    - hard: `(1 − α)·loss + α·CE(the teacher's most probable class)`;
    - soft: `(1 − α)·loss + α·τ²·KL(teacher ‖ student)`, both softened by the temperature τ; the mean over the batch,
      not over batch and classes as DeiT's code takes it.

    With α = 1 the labels are not looked at.
    """

    def __init__(self, loss: nn.Cell, kind: str, alpha: float = 0.5, tau: float = 1.0) -> None:
        super().__init__(auto_prefix=False)
        if kind not in ("soft", "hard"):
            raise UserError(f"distill must be 'soft' or 'hard', got {kind!r}")
        self.loss = loss
        self.hard = kind == "hard"
        self.alpha = alpha
        self.tau = tau
        self.cross_entropy = CrossEntropy()

    def construct(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        taught = self.imitate(logits, ops.stop_gradient(ops.cast(teacher_logits, ms.float32)))
        if self.alpha == 1.0:
            return taught
        return (1.0 - self.alpha) * self.loss(logits, labels) + self.alpha * taught

    def imitate(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if self.hard:
            return self.cross_entropy(logits, ops.cast(ops.argmax(teacher_logits, -1), ms.int32))
        expected = ops.log_softmax(teacher_logits / self.tau, -1)
        actual = ops.log_softmax(ops.cast(logits, ms.float32) / self.tau, -1)
        return self.tau**2 * (ops.exp(expected) * (expected - actual)).sum(-1).mean()


class Distillation(nn.Cell):
    """images, logits, labels → scalar: asks the teacher once and compares.

    Args:
        teacher: frozen, images → logits (B, C); None where it is run before the step, because MindSpore cannot
            differentiate a graph with an exported one inside: then labels are the pair (labels, its logits).
    """

    def __init__(self, loss: DistillationLoss, teacher: nn.Cell | None) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.teachers = () if teacher is None else (teacher,)

    def construct(self, images: Tensor, logits: Tensor, labels: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if self.teachers:
            return self.loss(logits, self.teachers[0](images), labels)
        return self.loss(logits, labels[1], labels[0])
