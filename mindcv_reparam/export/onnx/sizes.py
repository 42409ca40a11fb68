"""Sizes that are known only up to products of dynamic dimensions."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mindcv_reparam.export.onnx.graph import DYNAMIC, Literal, Node, Output, Value, elements, literal

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Adds", "Subs", "Muls", "Divs", "Square", "Rsqrt", "Erf", "ReLU", "Sigmoid"}
_ELEMENTWISE |= {"BiasAdd", "Softmax", "BatchNorm", "Cast", "GeLU", "gelu", "sample norm"}
_ELEMENTWISE |= {"SiLU", "Floor", "Equal", "Maximum", "Minimum"}


@dataclass(frozen=True)
class Size:
    """An integer times dynamic dimensions, each the axis of a value."""

    factor: int
    dynamic: tuple[tuple[Value, int], ...] = ()

    def __mul__(self, other: "Size") -> "Size":
        return _size(self.factor * other.factor, Counter(self.dynamic) + Counter(other.dynamic))

    def divided(self, other: "Size") -> "Size | None":
        """The quotient, if it is certain that nothing remains."""
        own, theirs = Counter(self.dynamic), Counter(other.dynamic)
        if self.factor % other.factor or theirs - own:
            return None
        return _size(self.factor // other.factor, own - theirs)


def _size(factor: int, dynamic: Counter) -> Size:
    return Size(factor, tuple(sorted(dynamic.elements(), key=lambda entry: (id(entry[0]), entry[1]))))


def product(sizes: Sequence[Size | None]) -> Size | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known, start=Size(1)) if len(known) == len(sizes) else None


def scalar(value: Value) -> Size | None:
    """An integer that the graph computes from shapes; None where that is not understood, and for -1."""
    if isinstance(value, Literal):
        return Size(value.value) if value.value != DYNAMIC else None
    if isinstance(value, Output) and value.node.op == "Shape":
        return sizes(value.node.inputs[0])[value.index]
    if isinstance(value, Node) and value.op in ("ScalarMul", "ScalarFloorDiv"):
        left, right = (scalar(operand) for operand in value.inputs)
        if left and right:
            return left * right if value.op == "ScalarMul" else left.divided(right)
    return None


def sizes(value: Value) -> tuple[Size, ...]:
    """The dimensions of a tensor."""
    node, index = (value.node, value.index) if isinstance(value, Output) else (value, 0)
    if not isinstance(node, Node):
        return _sizes(value)
    if index not in node.sizes:
        node.sizes[index] = _sizes(value)
    return node.sizes[index]


def _sizes(value: Value) -> tuple[Size, ...]:
    dims = value.type.dims
    known = _derived(value) if DYNAMIC in dims else [None] * len(dims)
    return tuple(
        Size(dim) if dim != DYNAMIC else known[axis] or Size(1, ((value, axis),)) for axis, dim in enumerate(dims)
    )


def _derived(value: Value) -> list[Size | None]:
    """What is known of the dynamic dimensions from the operands."""
    rank = len(value.type.dims)
    node = value.node if isinstance(value, Output) else value
    if not isinstance(node, Node):
        return [None] * rank
    if node.op == "Reshape":
        return [scalar(element) for element in elements(node.inputs[1])]
    if node.op == "Split":
        return list(sizes(node.inputs[0]))  # the axis that is split has a static size
    if node.op == "Concat":
        known: list[Size | None] = [*sizes(elements(node.inputs[0])[0])]
        known[literal(node.inputs[1])] = None
        return known
    if node.op == "Conv2D":
        batch, channels, *image = sizes(node.inputs[0])
        kernel, pads = node.attributes["kernel_size"], node.attributes["pad"]
        strided = set(node.attributes["stride"]) | set(node.attributes["dilation"]) != {1}
        kept = not strided and [sum(pads[:2]), sum(pads[2:])] == [size - 1 for size in kernel]
        return [batch, channels, *(image if kept else (None, None))]
    if node.op in ("AvgPool", "MaxPool"):
        return [*sizes(node.inputs[0])[:2], None, None]
    if node.op == "Pad":
        paddings = zip(sizes(node.inputs[0]), node.attributes["paddings"])
        return [size if before == behind == 0 else None for size, (before, behind) in paddings]
    if node.op == "BatchMatMul":
        left, right, transpose_left, transpose_right = node.inputs
        row, column = (-1 if literal(transpose_left) else -2), (-2 if literal(transpose_right) else -1)
        return [*sizes(left)[:-2], sizes(left)[row], sizes(right)[column]]
    if node.op not in _ELEMENTWISE:
        return [None] * rank
    shapes = [sizes(operand) for operand in node.inputs if not isinstance(operand, Literal)]
    shapes = [(Size(1),) * (rank - len(shape)) + shape for shape in shapes]
    return [_common(candidates) for candidates in zip(*shapes)]


def _common(candidates: tuple[Size, ...]) -> Size | None:
    """The size along one axis of tensors that are broadcast."""
    different = set(candidates) - {Size(1)}
    return different.pop() if len(different) == 1 else None
