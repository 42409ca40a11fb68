"""What a network costs: parameters, multiply-accumulates (MACs) and operators, read from the network itself.

MACs and operators come from the graph that MindSpore exports, where every operator stands with the shape of its output,
so that a matrix product written in a ``construct`` counts like any layer. A MAC is one multiply-add of a convolution,
dense layer or matrix product, as in the papers (fvcore's convention); biases, norms, activations and pooling count
nothing.

Building the whole zoo takes minutes, so what ``benchmarks/model_table.py`` measured is kept beside this file, to be
read without MindSpore.
"""

import dataclasses
import importlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindcv_reparam.files import written_whole
from mindcv_reparam.plain_paths import plain_folder
from mindcv_reparam.registry import list_models

if TYPE_CHECKING:
    from mindspore import nn

MEASURED = Path(__file__).with_name("complexity.json")
STATES = ("train", "branches", "full")  # of a network: as it trains, and re-parameterized at either level

# Nodes that hand values on or order the execution.
_BOOKKEEPING = {"Constant", "Depend", "Load", "MakeTuple", "Return", "TupleGetItem", "UpdateState"}


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs."""

    macs: int
    operators: Counter[str]  # by MindSpore's name of the operator


@dataclass(frozen=True)
class Measured:
    """What a model of the zoo costs, with the classes of the data set that it is published for."""

    params: dict[str, int]  # trainable, by state
    macs: int  # fully fused, for one image of the model's input size


def count_parameters(net: "nn.Cell") -> int:
    """Trainable scalars, as the papers count; the moving statistics of norms are none."""
    return sum(parameter.size for parameter in net.trainable_params())


def cost(net: "nn.Cell", shape: tuple[int, int, int, int]) -> Cost:
    """The cost of a network in evaluation mode on an input of ``shape`` (N, C, H, W)."""
    model = _exported(net, shape)
    operators = {primitive.name: primitive.op_type for primitive in model.primitives}
    shapes = {parameter.name: tuple(parameter.dims) for parameter in model.graph.parameter}
    shapes |= {entry.name: tuple(entry.tensor[0].dims) for entry in model.graph.input}
    shapes |= {node.output[0]: _shape(node) for node in model.graph.node}
    macs, counts = 0, Counter[str]()
    for node in model.graph.node:
        operator = operators.get(node.op_type.removeprefix("REF::"), node.op_type)
        if operator not in _BOOKKEEPING:
            counts[operator] += 1
            macs += _macs(operator, shapes[node.output[0]], [shapes.get(name, ()) for name in node.input])
    return Cost(macs, counts)


def measured() -> dict[str, Measured]:
    """What was measured, by name, in the order of the registry."""
    rows = json.loads(MEASURED.read_text())
    return {name: Measured(**rows[name]) for name in list_models() if name in rows}


def record(rows: Mapping[str, Measured]) -> None:
    """Keep what was measured, one model a line, beside the rows of other models."""
    rows = {**measured(), **rows}
    lines = [f'  "{name}": {json.dumps(dataclasses.asdict(rows[name]))}' for name in list_models() if name in rows]
    with written_whole(MEASURED) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _exported(net: "nn.Cell", shape: tuple[int, int, int, int]) -> Any:
    ms = importlib.import_module("mindspore")
    seen: list[Any] = []
    with plain_folder() as folder:
        example = ms.ops.zeros(shape, ms.float32)
        ms.export(net, example, file_name=f"{folder}/graph", file_format="MINDIR", custom_func=seen.append)
    return seen[0]


def _shape(node: Any) -> tuple[int, ...]:
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
    if operator == "Dense":
        return math.prod(output) * inputs[0][-1]
    if "MatMul" in operator or "Conv" in operator:
        raise NotImplementedError(f"no rule for the multiply-accumulates of {operator}")
    return 0
