"""Recognise in a graph of primitives what the Cells meant, and compute what is constant.

A pattern is looked for behind the node that gives its result; what it used to need stays in the graph only where
something else needs it. What does not match is left as it is, to be translated primitive by primitive.

Operations made here, in small letters where MindSpore has none of the kind:

- ``Conv2D`` (x, weight, bias), ``dense`` (x, weight, bias, transpose_a, transpose_b): with their bias.
- ``gelu`` (x): ``approximate`` is "none" or "tanh".
- ``sample norm`` (x, scale, shift): over all axes but the first; scale and shift (C, 1, 1) or None; ``epsilon``.
- ``constant product`` (matrix, x): a constant matrix times (N, K, M) along K.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np

from mindcv_reparam.errors import UserError
from mindcv_reparam.export.onnx.graph import Constant, Graph, Literal, Node, Pack, TensorType, Value, literal, replace
from mindcv_reparam.export.onnx.sizes import Size, product, sizes


def simplify(graph: Graph) -> Graph:
    return replace(graph, _rewritten)


def _rewritten(node: Node) -> Value:
    found = next((found for rule in _RULES if (found := rule(node)) is not None), node)
    if isinstance(found, Node) and found.types:
        sizes(found)  # in this order each takes a step; at the end of the network it would take one through all of it
    return found


def _replaced(node: Node, op: str, inputs: list[Value], **attributes) -> Node:
    """An operation in the place of a node."""
    return Node(op, inputs, node.types, attributes, node.scope)


def _is(value: Value, *ops: str) -> TypeGuard[Node]:
    return isinstance(value, Node) and value.op in ops


def _are_constant(values: Sequence[Value]) -> TypeGuard[Sequence[Constant]]:
    return all(isinstance(value, Constant) for value in values)


# -- Constants ---------------------------------------------------------------------------------------------------------


def _strided_slice(x: np.ndarray, begin, end, strides, begin_mask, end_mask, ellipsis, new_axis, shrink) -> np.ndarray:
    if ellipsis or new_axis:
        raise UserError("a slice of a constant with an ellipsis or a new axis cannot be translated into ONNX")
    axes = []
    for i, (start, stop, step) in enumerate(zip(begin, end, strides)):
        whole = slice(None if begin_mask >> i & 1 else start, None if end_mask >> i & 1 else stop, step)
        axes.append(start if shrink >> i & 1 else whole)
    return x[tuple(axes)]


_LAYOUT: dict[str, Callable[..., np.ndarray]] = {
    "Reshape": np.reshape,
    "Transpose": np.transpose,
    "ExpandDims": np.expand_dims,
    "Squeeze": np.squeeze,
    "StridedSlice": _strided_slice,
}
_ARITHMETIC: dict[str, np.ufunc] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


def _fold_layout(node: Node) -> Value | None:
    """Numbers in another order keep the precision they are stored in."""
    if node.op not in _LAYOUT or not isinstance(node.inputs[0], Constant):
        return None
    constant = node.inputs[0]
    array = _LAYOUT[node.op](constant.array, *map(literal, node.inputs[1:]))
    return Constant(np.ascontiguousarray(array), constant.name, constant.dtype)


def _fold_cast(node: Node) -> Value | None:
    if node.op != "Cast" or not isinstance(node.inputs[0], Constant):
        return None
    constant, dtype = node.inputs[0], node.type.dtype
    if dtype.itemsize > constant.array.itemsize:
        return Constant(constant.array, constant.name, dtype)  # stays small in the file
    return Constant(constant.array.astype(dtype), constant.name)


def _fold_arithmetic(node: Node) -> Value | None:
    if node.op not in _ARITHMETIC or not _are_constant(node.inputs):
        return None
    arrays = [value.array.astype(value.type.dtype) for value in node.inputs]
    return Constant(_ARITHMETIC[node.op](*arrays), node.inputs[0].name)


def _with_number(node: Value, op: str) -> tuple[Value, float] | None:
    """(x, c) of ``x op c`` or, but for quotients, ``c op x``, with one number c."""
    if not _is(node, op, f"{op}s"):
        return None
    left, right = node.inputs
    for value, number in ((left, right), (right, left))[: 1 if op == "Div" else 2]:
        if isinstance(number, Literal):
            return value, float(number.value)
        if isinstance(number, Constant) and number.array.size == 1:
            return value, number.array.item()
    return None


# -- Layers -----------------------------------------------------------------------------------------------------------


def _conv_bias(node: Node) -> Value | None:
    if node.op != "BiasAdd" or not _is(node.inputs[0], "Conv2D"):
        return None
    conv, bias = node.inputs[0], node.inputs[1]
    return _replaced(node, "Conv2D", [*conv.inputs, bias], **conv.attributes)


def _dense_bias(node: Node) -> Value | None:
    if node.op != "BiasAdd" or not _is(node.inputs[0], "MatMul"):
        return None
    x, weight, *transposed = node.inputs[0].inputs
    return _replaced(node, "dense", [x, weight, node.inputs[1], *transposed])


def _dense_of_last_axis(node: Node) -> Value | None:
    """Reshape → dense → reshape, by which MindSpore applies a dense layer to more than two axes."""
    if node.op != "Reshape" or not _is(node.inputs[0], "dense") or not _is(node.inputs[0].inputs[0], "Reshape"):
        return None
    dense, x = node.inputs[0], node.inputs[0].inputs[0].inputs[0]
    rows_are_kept = not literal(dense.inputs[3]) and dense.inputs[0].type.dims[-1] == x.type.dims[-1]
    if not rows_are_kept or sizes(node)[1:-1] != sizes(x)[1:-1]:
        return None
    return _replaced(node, "dense", [x, *dense.inputs[1:]])


def _reshape_twice(node: Node) -> Value | None:
    if node.op != "Reshape" or not _is(node.inputs[0], "Reshape"):
        return None
    return _replaced(node, "Reshape", [node.inputs[0].inputs[0], node.inputs[1]])


def _constant_product(node: Node) -> Value | None:
    """A 1×1 convolution of (N, K, M, 1) with constant weights (F, K, 1, 1)."""
    if node.op != "Squeeze" or not _is(node.inputs[0], "Conv2D") or not _is(node.inputs[0].inputs[0], "ExpandDims"):
        return None
    conv, expanded = node.inputs[0], node.inputs[0].inputs[0]
    weight = conv.inputs[1]
    if not isinstance(weight, Constant) or weight.array.shape[2:] != (1, 1):
        return None
    unit = set(conv.attributes["stride"]) == {1} and not any(conv.attributes["pad"])
    plain = unit and conv.attributes["group"] == 1 and len(conv.inputs) == 2
    last = literal(expanded.inputs[1]) in (-1, 3) and literal(node.inputs[1]) in ((-1,), (3,))
    if not (plain and last and conv.type.dims[3] == 1):
        return None
    matrix = Constant(weight.array[:, :, 0, 0], weight.name, weight.dtype)
    return _replaced(node, "constant product", [matrix, expanded.inputs[0]])


def _one_output_per_channel(node: Node) -> Value | None:
    """A depthwise convolution with several outputs per channel, before a dense one, as one for each of them.

    onnxruntime (NCHWc) and Ascend's compiler (canndev, conv2d_group_fusion_pass.cc) have a depthwise kernel for one
    output per channel alone; of several, onnxruntime makes matrices, and Ascend's compiler fills up groups with zeros.
    """
    if node.op != "Conv2D" or node.attributes["group"] != 1 or not _is(node.inputs[0], "Conv2D"):
        return None
    depthwise, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2:]
    x, parameters = depthwise.inputs[0], depthwise.inputs[1:]
    groups, outputs = depthwise.attributes["group"], depthwise.type.dims[1]
    if not isinstance(weight, Constant) or not _are_constant(parameters):
        return None
    if parameters[0].array.shape[1] != 1 or groups == 1 or groups == outputs:
        return None

    def part(first: int) -> Node:
        batch, _, *image = depthwise.type.dims
        own = [Constant(value.array[first :: outputs // groups], value.name, value.dtype) for value in parameters]
        kind = TensorType(depthwise.type.dtype, (batch, groups, *image))
        return Node("Conv2D", [x, *own], (kind,), depthwise.attributes, depthwise.scope)

    parts = Pack(tuple(part(first) for first in range(outputs // groups)))
    order = np.arange(outputs).reshape(groups, -1).T.ravel()
    joined = Node("Concat", [parts, Literal(1)], depthwise.types, scope=depthwise.scope)
    return _replaced(
        node, "Conv2D", [joined, Constant(weight.array[:, order], weight.name, weight.dtype), *bias], **node.attributes
    )


# -- GELU -------------------------------------------------------------------------------------------------------------


def _gelu_tanh(node: Node) -> Value | None:
    return _replaced(node, "gelu", node.inputs[:1], approximate="tanh") if node.op == "GeLU" else None


def _gelu_exact(node: Node) -> Value | None:
    """``x · (1 + erf(x / √2)) · ½``."""
    halved = _with_number(node, "Mul")
    if not halved or halved[1] != 0.5 or not _is(halved[0], "Mul"):
        return None
    for x, gate in (halved[0].inputs, halved[0].inputs[::-1]):
        one_more = _with_number(gate, "Add")
        if one_more and one_more[1] == 1.0 and _is(one_more[0], "Erf"):
            argument = _with_number(one_more[0].inputs[0], "Div")
            if argument and argument[0] == x and math.isclose(argument[1], math.sqrt(2.0), rel_tol=1e-3):
                return _replaced(node, "gelu", [x], approximate="none")
    return None


# -- Group normalisation ----------------------------------------------------------------------------------------------


def _group_norm(node: Node) -> Value | None:
    """``(x − mean) · rsqrt(var + ε)`` on a flat view of each sample, back in the shape of x, with a scale or not."""
    scale: Value
    if node.op == "Reshape" and _is(node.inputs[0], "Mul"):
        centred, factor = node.inputs[0].inputs
        scale = Literal(None)
    elif node.op == "Mul" and _is(node.inputs[0], "Reshape") and _is(node.inputs[1], "Reshape"):
        centred, scaled = node.inputs[0].inputs[0], node.inputs[1].inputs[0]
        if not _is(scaled, "Mul") or not isinstance(scaled.inputs[1], Constant):
            return None
        factor, scale = scaled.inputs
    else:
        return None
    statistics = _statistics(centred, factor)
    if statistics is None:
        return None
    x, epsilon = statistics
    if len(node.type.dims) != 4 or sizes(node)[1:] != sizes(x)[1:]:
        return None
    if isinstance(scale, Constant):
        channels = x.type.dims[1]
        if scale.array.shape != (channels,) or node.inputs[1].type.dims[1:] != (channels, 1, 1):
            return None
        scale = Constant(scale.array.reshape(-1, 1, 1), scale.name, scale.dtype)
    return _replaced(node, "sample norm", [x, scale, Literal(None)], epsilon=epsilon)


def _statistics(centred: Value, factor: Value) -> tuple[Value, float] | None:
    """x and ε, if ``centred`` is x without the mean of each sample and ``factor`` one over its deviation."""
    if not _is(centred, "Sub") or not _is(centred.inputs[0], "Reshape") or not _is(factor, "Rsqrt"):
        return None
    flat, mean = centred.inputs[0], centred.inputs[1]
    x = flat.inputs[0]
    sample = product(sizes(x)[1:])
    variance = _with_number(factor.inputs[0], "Add")
    if len(flat.type.dims) != 2 or sizes(flat)[1] != sample or variance is None:
        return None
    if not _is_sample_mean(mean, sample, lambda value: value in (flat, x)):
        return None
    if not _is_sample_mean(variance[0], sample, lambda value: _is(value, "Square") and value.inputs[0] is centred):
        return None
    return x, variance[1]


def _is_sample_mean(value: Value, sample: Size | None, of: Callable[[Value], bool]) -> bool:
    """Whether ``value`` (N, 1) is, in any number of steps, the mean of each ``sample`` consecutive numbers of a value
    that ``of`` accepts."""
    if not _is(value, "ReduceMean") or value.type.dims[1:] != (1,):
        return False
    averaged = Size(1)
    while not (averaged == sample and of(value)):
        if _is(value, "ReduceMean"):
            (axis,) = literal(value.inputs[1])
            if axis not in (-1, len(value.inputs[0].type.dims) - 1):
                return False
            averaged = averaged * sizes(value.inputs[0])[-1]
        elif not _is(value, "Reshape"):
            return False
        value = value.inputs[0]
    return True


def _group_norm_shift(node: Node) -> Value | None:
    if node.op != "Add" or not _is(node.inputs[0], "sample norm") or not isinstance(node.inputs[1], Constant):
        return None
    norm, shift = node.inputs[0], node.inputs[1]
    if not isinstance(norm.inputs[2], Literal) or shift.array.shape != (norm.type.dims[1], 1, 1):
        return None
    return _replaced(node, "sample norm", [*norm.inputs[:2], shift], **norm.attributes)


_RULES = (
    _fold_layout,
    _fold_cast,
    _fold_arithmetic,
    _conv_bias,
    _dense_bias,
    _dense_of_last_axis,
    _constant_product,
    _one_output_per_channel,
    _gelu_tanh,
    _gelu_exact,
    _group_norm,
    _group_norm_shift,
    _reshape_twice,
)
