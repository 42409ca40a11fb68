"""MindIR: the graph and weights as MindSpore saves them, for MindSpore itself and for MindSpore Lite's converter."""

import os
from typing import Any

import mindspore as ms
from mindspore import nn

from mindcv_reparam.files import written_whole
from mindcv_reparam.plain_paths import plain_output
from mindcv_reparam.tensors import TensorSpec


def write_mindir(
    graph: nn.Cell,
    path: str | os.PathLike[str],
    spec: TensorSpec,
    outputs: tuple[str, ...],
    sizes: TensorSpec | None = None,
) -> None:
    """Write a Cell in evaluation mode as MindIR.

    Args:
        spec: of its input, whose name in the file is that of ``construct``'s argument.
        outputs: the names to give to its outputs.
        sizes: of its second input, if it takes the images' sizes.

    Raises:
        UserError: the file cannot be written.
    """
    examples = [_example(one) for one in (spec, sizes) if one is not None]
    with written_whole(path) as temporary, plain_output(temporary, ".mindir") as plain:
        ms.export(
            graph,
            *examples,
            file_name=str(plain),
            file_format="MINDIR",
            custom_func=lambda model: _name_outputs(model, outputs),
        )
        plain.chmod(0o644)


def _example(spec: TensorSpec) -> ms.Tensor:
    """A tensor of zeros, or of no numbers where a size is unknown."""
    dtype = getattr(ms, spec.dtype)
    return ms.Tensor(shape=list(spec.shape), dtype=dtype) if None in spec.shape else ms.ops.zeros(spec.shape, dtype)


def _name_outputs(model: Any, names: tuple[str, ...]) -> None:
    """Rename the nodes that give the outputs, which MindSpore only numbers: ``graph:CNode_7:9`` → ``graph:logits:9``.

    Several outputs are the inputs of a MakeTuple; a Depend in between only orders the execution.
    """
    nodes = {node.output[0]: node for node in model.graph.node}
    operators = {primitive.name: primitive.op_type for primitive in model.primitives}

    def is_a(node: Any, operator: str) -> bool:
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
        for ends in (node.input, node.output):
            for i, name in enumerate(ends):
                ends[i] = renamed.get(name, name)
    for output in model.graph.output:
        output.name = renamed.get(output.name, output.name)
