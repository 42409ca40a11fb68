"""What a classifier minimises."""

from collections.abc import Callable
from typing import Protocol

import mindspore as ms
from mindspore import Tensor, nn

from mindcv_reparam.tasks.classification.device import Augmentation
from mindcv_reparam.tasks.classification.distillation import Distillation
from mindcv_reparam.tasks.classification.imitation import Imitation
from mindcv_reparam.tasks.objective import Objective


class ObservableNetwork(Protocol):
    """Besides being called, a student of module imitation shows what happens inside, see `Imitation`."""

    def forward_observed(self, images: Tensor) -> tuple[Tensor, tuple[tuple[Tensor, Tensor, Tensor], ...]]: ...


class ClassificationObjective(Objective):
    """images (B, C, H, W), labels → (scalar,).

    Args:
        network: images → logits.
        loss: logits, labels → scalar.
        distillation: takes the loss's place; where its teacher runs before the step, labels are a pair.
        imitation: is added; the network must be an `ObservableNetwork`.
        teacher: images → logits, a graph that cannot be part of the step; its answers go with the labels.
        augmentation: of the images, for batches that leave it to the graph; what it needs goes with the labels.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        distillation: Distillation | None = None,
        imitation: Imitation | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(network)
        self.loss = loss
        self.distillation = distillation
        self.imitation = imitation
        self.teacher = teacher
        self.augmentation = augmentation
        self.variant = int(imitation is not None and imitation.active)

    def construct(self, images: Tensor, labels: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
        if self.augmentation is not None:
            images, labels = self.augmentation(images, labels)
        if self.imitation is None:
            return (self.classification(images, self.network(images), labels),)
        logits, observed = self.network.forward_observed(images)
        return (self.classification(images, logits, labels) + self.imitation(images, observed),)

    def classification(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if self.distillation is None:
            return self.loss(logits, labels)
        return self.distillation(images, logits, labels)

    def start_epoch(self, epoch: int) -> None:
        if self.imitation is not None:
            self.imitation.start_epoch(epoch)
            self.variant = int(self.imitation.active)

    def complete(self, inputs: Tensor, targets: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return targets if self.teacher is None else ms.mutable((targets, self.teacher(inputs)))
