"""AIR, the graph of Ascend's own compiler: MindSpore writes it, and only where there is an Ascend device."""

import os

import mindspore as ms
import numpy as np
from mindspore import nn

from ..errors import UserError
from ..files import written_whole
from .manifest import TensorSpec


def check_air(device_target: str, spec: TensorSpec) -> None:
    """Raise UserError where AIR cannot be written."""
    if device_target != "Ascend":
        raise UserError(
            "AIR is written by MindSpore on an Ascend host only: here give --file_format ONNX, "
            "which atc --framework=5 takes as well"
        )
    if None in spec.shape:
        raise UserError("AIR has a fixed input: give one --batch_size, or --file_format ONNX")


def write_air(graph: nn.Cell, path: str | os.PathLike[str], spec: TensorSpec) -> None:
    """Write a Cell in evaluation mode as AIR, for ``atc --framework=1``. Not run on Ascend here.

    MindSpore cannot load AIR, so nothing is compared.

    Raises:
        UserError: the file cannot be written.
    """
    with written_whole(path) as temporary:
        ms.export(graph, ms.Tensor(np.zeros(spec.shape, spec.dtype)), file_name=str(temporary), file_format="AIR")
