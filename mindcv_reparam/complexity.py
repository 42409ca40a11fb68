"""What a network costs: parameters, multiply-accumulates (MACs) and operators, read from the network itself.

MACs and operators come from the graph that MindSpore exports, where every operator stands with the shape of its output,
so that a matrix product written in a ``construct`` counts like any layer. A MAC is one multiply-add of a convolution,
dense layer or matrix product, as in the papers (fvcore's convention, batch of one); biases, norms, activations and
pooling count nothing.
"""

import math
import tempfile
from collections import Counter
from dataclasses import dataclass

import mindspore as ms
from mindspore import nn, ops
from mindspore.train.mind_ir_pb2 import ModelProto, NodeProto

# Nodes that hand values on or order the execution.
_BOOKKEEPING = {"Constant", "Depend", "Load", "MakeTuple", "Return", "TupleGetItem", "UpdateState"}


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs."""

    macs: int
    operators: Counter[str]  # by MindSpore's name of the operator


def count_parameters(net: nn.Cell) -> int:
    """Trainable scalars, as the papers count; the moving statistics of norms are none."""
    return sum(parameter.size for parameter in net.trainable_params())


def cost(net: nn.Cell, shape: tuple[int, int, int, int]) -> Cost:
    """The cost of a network in evaluation mode on an input of ``shape`` (N, C, H, W)."""
    model = _exported(net, shape)
    operators = {primitive.name: primitive.op_type for primitive in model.primitives}
    shapes = {parameter.name: tuple(parameter.dims) for parameter in model.graph.parameter}
    shapes |= {entry.name: tuple(entry.tensor[0].dims) for entry in model.graph.input}
    shapes |= {node.output[0]: _shape(node) for node in model.graph.node}
    macs, counts = 0, Counter()
    for node in model.graph.node:
        operator = operators.get(node.op_type.removeprefix("REF::"), node.op_type)
        if operator not in _BOOKKEEPING:
            counts[operator] += 1
            macs += _macs(operator, shapes[node.output[0]], [shapes.get(name, ()) for name in node.input])
    return Cost(macs, counts)


def _exported(net: nn.Cell, shape: tuple[int, int, int, int]) -> ModelProto:
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        example = ops.zeros(shape, ms.float32)
        ms.export(net, example, file_name=f"{folder}/graph", file_format="MINDIR", custom_func=seen.append)
    return seen[0]


def _shape(node: NodeProto) -> tuple[int, ...]:
    """Of the (first) output; constants have it in their value."""
    tensors = [tensor for attribute in node.attribute for tensor in attribute.tensors]
    return tuple(tensors[0].dims) if tensors else ()


def _macs(operator: str, output: tuple[int, ...], inputs: list[tuple[int, ...]]) -> int:
    if operator == "Conv2D":
        weight = inputs[1]  # (out, in / groups, kh, kw)
        return math.prod(output) * math.prod(weight[1:])
    if operator in ("MatMul", "BatchMatMul"):
        # Transposed or not, the last two axes of the left operand are the rows of the output and the summed axis.
        return math.prod(output) * math.prod(inputs[0][-2:]) // output[-2]
    if "MatMul" in operator or "Conv" in operator or operator == "Dense":
        raise NotImplementedError(f"no rule for the multiply-accumulates of {operator}")
    return 0
