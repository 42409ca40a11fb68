"""MindIR: the graph and weights as MindSpore saves them, for MindSpore itself and for MindSpore Lite's converter."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import nn

from ..errors import UserError
from ..files import written_whole
from .compare import TOLERANCE, largest_difference
from .manifest import TensorSpec
from .runners import cell_program, mindspore_program

if TYPE_CHECKING:
    from mindspore.train.mind_ir_pb2 import ModelProto, NodeProto


def write_mindir(graph: nn.Cell, path: str | os.PathLike[str], spec: TensorSpec, outputs: tuple[str, ...]) -> None:
    """Write a Cell in evaluation mode as MindIR.

    Args:
        path: ends with .mindir.
        spec: of its input, whose name in the file is that of ``construct``'s argument.
        outputs: the names to give to its outputs.

    Raises:
        UserError: the file cannot be written.
    """
    dtype = ms.uint8 if spec.dtype == "uint8" else ms.float32
    dynamic = None in spec.shape
    example = ms.Tensor(shape=list(spec.shape), dtype=dtype) if dynamic else ms.ops.zeros(spec.shape, dtype)
    with written_whole(path) as temporary:
        ms.export(
            graph,
            example,
            file_name=str(temporary),
            file_format="MINDIR",
            custom_func=lambda model: _name_outputs(model, outputs),
        )
        temporary.chmod(0o644)


def export_mindir(net: nn.Cell, path: str | os.PathLike[str], shape: tuple[int | None, int, int, int]) -> float:
    """Write a network of one input (N, C, H, W) and one output as MindIR, load the file again and compare the two.

    Args:
        shape: of the input; None for a dynamic batch.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        UserError: the file differs by more than TOLERANCE, then it is not kept; or it cannot be written.
    """
    batch, *image = shape
    rng = np.random.default_rng(0)
    trials = [rng.standard_normal((size, *image), np.float32) for size in ((1, 3) if batch is None else (batch,))]
    path = Path(path)
    with written_whole(path) as temporary:
        write_mindir(net, temporary, TensorSpec("x", "float32", tuple(shape)), ("output",))
        found = largest_difference(cell_program(net), mindspore_program(temporary), trials)
        if not found <= TOLERANCE:
            raise UserError(f"{path} was not kept: its output differs from the network's by {found:.1e}, relative")
    return found


def _name_outputs(model: "ModelProto", names: tuple[str, ...]) -> None:
    """Rename the nodes that give the outputs, which MindSpore only numbers: ``graph:CNode_7:9`` → ``graph:logits:9``.

    Several outputs are the inputs of a MakeTuple; a Depend in between only orders the execution.
    """
    nodes = {node.output[0]: node for node in model.graph.node}
    operators = {primitive.name: primitive.op_type for primitive in model.primitives}

    def is_a(node: "NodeProto", operator: str) -> bool:
        return operators.get(node.op_type.removeprefix("REF::")) == operator

    last = nodes[model.graph.output[0].name]
    while is_a(last, "Depend"):
        last = nodes[last.input[0]]
    renamed = {}
    for old, name in zip(list(last.input) if is_a(last, "MakeTuple") else [last.output[0]], names, strict=True):
        graph, _, number = old.split(":")
        renamed[old] = f"{graph}:{name}:{number}"
    for node in model.graph.node:
        node.name = renamed.get(node.name, node.name)
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renamed.get(name, name)
    for output in model.graph.output:
        output.name = renamed.get(output.name, output.name)
