"""AIR, the graph of Ascend's own compiler: MindSpore writes it, and only where there is an Ascend device."""

import os
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.plain_paths import plain_output
from mindcv_reparam.tensors import TensorSpec


def check_air(device_target: str, spec: TensorSpec) -> None:
    """Raise UserError where AIR cannot be written."""
    if device_target != "Ascend":
        raise UserError(
            "AIR is written by MindSpore on an Ascend host only: here give --file_format ONNX, "
            "which atc --framework=5 takes as well"
        )
    if None in spec.shape:
        raise UserError("AIR has a fixed input: give one --export_batch_size, or --file_format ONNX")


def write_air(graph: nn.Cell, path: str | os.PathLike[str], inputs: Sequence[TensorSpec]) -> None:
    """Write a Cell in evaluation mode as AIR, for ``atc --framework=1``. Not run on Ascend here.

    MindSpore cannot load AIR, so nothing is compared.

    Raises:
        UserError: the file cannot be written.
    """
    with written_whole(path) as temporary, plain_output(temporary, ".air") as plain:
        shapes = [[size or 1 for size in spec.shape] for spec in inputs]  # all known, see check_air
        examples = [ms.Tensor(np.zeros(shape, spec.dtype)) for shape, spec in zip(shapes, inputs)]
        ms.export(graph, *examples, file_name=str(plain), file_format="AIR")
