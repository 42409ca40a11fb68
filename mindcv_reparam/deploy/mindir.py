"""MindIR: the graph and weights as MindSpore saves them, for MindSpore itself and for MindSpore Lite's converter."""

import os
from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import nn

from ..files import written_whole
from .manifest import TensorSpec

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
