"""What a step minimises."""

from typing import Protocol

from mindspore import Tensor, nn

from .distillation import Distillation
from .imitation import Imitation


class ObservableNetwork(Protocol):
    """Besides being called, a student of module imitation shows what happens inside, see `Imitation`."""

    def forward_observed(self, images: Tensor) -> tuple[Tensor, tuple[tuple[Tensor, Tensor, Tensor], ...]]: ...


class Objective(nn.Cell):
    """images (B, C, H, W), labels → scalar.

    Args:
        network: images → logits.
        loss: logits, labels → scalar.
        distillation: takes the loss's place.
        imitation: is added; the network must be an `ObservableNetwork`.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        distillation: Distillation | None = None,
        imitation: Imitation | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss
        self.distillation = distillation
        self.imitation = imitation

    def construct(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.imitation is None:
            return self.classification(images, self.network(images), labels)
        logits, observed = self.network.forward_observed(images)
        return self.classification(images, logits, labels) + self.imitation(images, observed)

    def classification(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if self.distillation is None:
            return self.loss(logits, labels)
        return self.distillation(images, logits, labels)
