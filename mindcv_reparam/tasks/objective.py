"""What a training step minimises."""

from mindspore import Tensor, nn


class Objective(nn.Cell):
    """inputs, targets → a tuple of scalars, one per name in ``parts``, whose sum is minimised.

    Args:
        network: what is trained.

    Attributes:
        parts: names of the terms, for logs, files and messages.
        variant: changes, between two epochs, where the graph does: each is compiled on its own, once.
    """

    parts: tuple[str, ...] = ("loss",)
    variant = 0

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def start_epoch(self, epoch: int) -> None:
        """Called before every epoch, counted from 0."""

    def complete(self, inputs: Tensor, targets: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Targets as the graph takes them: with what can only be computed outside of it."""
        return targets
