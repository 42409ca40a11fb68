"""MindIR: the graph and weights as MindSpore saves them, for MindSpore itself and for MindSpore Lite's converter."""

import os

import mindspore as ms
import numpy as np
from mindspore import nn

from ..errors import UserError
from ..files import written_whole
from .compare import TOLERANCE, relative_difference

DYNAMIC_BATCHES = (1, 3)  # what a graph of dynamic batch is tried with


def export_mindir(net: nn.Cell, path: str | os.PathLike[str], shape: tuple[int | None, int, int, int]) -> float:
    """Write a network in evaluation mode as MindIR, load the file again and compare the two on random input.

    Args:
        path: ends with .mindir; written only if the file agrees with the network.
        shape: of the input, (N, C, H, W); None for a dynamic batch.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        UserError: the file differs by more than TOLERANCE, or cannot be written.
    """
    batch, *image = shape
    net.set_train(False)
    example = ms.Tensor(shape=[None, *image], dtype=ms.float32) if batch is None else ms.ops.zeros(shape, ms.float32)
    with written_whole(path) as temporary:
        ms.export(net, example, file_name=str(temporary), file_format="MINDIR")
        temporary.chmod(0o644)
        exported = nn.GraphCell(ms.load(str(temporary)))
        shapes = [(size, *image) for size in (DYNAMIC_BATCHES if batch is None else (batch,))]
        difference = float(np.max([relative_difference(net, exported, shape) for shape in shapes]))  # NaN stays NaN
        if not difference <= TOLERANCE:
            raise UserError(f"{path} was not kept: its output differs from the network's by {difference:.1e}, relative")
    return difference
