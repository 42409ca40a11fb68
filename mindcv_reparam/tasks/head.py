"""What export puts behind a network."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from mindspore import nn

from mindcv_reparam.tensors import TensorSpec


class Head(Protocol):
    """From the outputs of a task's networks to those of one of its kinds, in the graph and in NumPy.

    Attributes:
        takes_sizes: whether the graph takes, behind the images, their sizes (N, 2) int32: width and height of every
            image as it was decoded, in pixels.
    """

    @property
    def takes_sizes(self) -> bool: ...

    def network(self, network: nn.Cell) -> nn.Cell:
        """What of a network is exported; the network is not touched."""

    def cell(self) -> nn.Cell:
        """outputs of that → outputs of the model; with ``takes_sizes``, (outputs, sizes) → outputs of the model."""

    def expected(self, outputs: tuple[np.ndarray, ...], sizes: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """What ``Results.difference`` compares the model's outputs with, from the network's, without the graph."""

    def specs(self, expected: Sequence[np.ndarray], batch: int | None, any_size: bool) -> tuple[TensorSpec, ...]:
        """The forms of the model's outputs, from an example of :meth:`expected`.

        Args:
            batch: None for any.
            any_size: the images' size may vary.

        Raises:
            UserError: the network cannot give what was asked for.
        """
