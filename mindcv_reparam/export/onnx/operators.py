"""Rules for arithmetic, layers, normalisation and layout; what chooses parts of tensors is in :mod:`selection`."""

import math

import numpy as np

from mindcv_reparam.errors import UserError
from mindcv_reparam.export.onnx.graph import DYNAMIC, Constant, Literal, Node, Output, Value, elements, literal
from mindcv_reparam.export.onnx.rules import rule
from mindcv_reparam.export.onnx.sizes import product, scalar, sizes
from mindcv_reparam.export.onnx.writer import Writer

# -- Element by element ----------------------------------------------------------------------------------------------

_SAME = {
    "Add": "Add",
    "Sub": "Sub",
    "Mul": "Mul",
    "Div": "Div",
    "Equal": "Equal",
    "Erf": "Erf",
    "Floor": "Floor",
    "Maximum": "Max",
    "Minimum": "Min",
    "ReLU": "Relu",
    "Sigmoid": "Sigmoid",
}


@rule(*_SAME)
def _elementwise(writer: Writer, node: Node) -> list[str]:
    return writer.add(_SAME[node.op], node.inputs)


@rule("SiLU")
def _silu(writer: Writer, node: Node) -> list[str]:
    return writer.add("Mul", [node.inputs[0], *writer.add("Sigmoid", node.inputs)])


@rule("Adds", "Subs", "Muls", "Divs")
def _with_scalar(writer: Writer, node: Node) -> list[str]:
    x, number = node.inputs
    return writer.add(node.op[:-1], [x, writer.number(literal(number), node.type.dtype)])


@rule("Square")
def _square(writer: Writer, node: Node) -> list[str]:
    return writer.add("Mul", node.inputs * 2)


@rule("Rsqrt")
def _rsqrt(writer: Writer, node: Node) -> list[str]:
    return writer.add("Reciprocal", writer.add("Sqrt", node.inputs))


@rule("BiasAdd")
def _bias_add(writer: Writer, node: Node) -> list[str]:
    """Of what is neither a convolution nor a dense layer, along the second axis."""
    x, bias, _ = node.inputs
    if not isinstance(bias, Constant):
        raise UserError("a bias that the network computes cannot be translated into ONNX")
    column = bias.array.reshape(-1, *[1] * (len(node.type.dims) - 2))
    return writer.add("Add", [x, Constant(column, bias.name, bias.dtype)])


@rule("Cast")
def _cast(writer: Writer, node: Node) -> list[str]:
    return writer.cast(node.inputs[0], node.type.dtype)


@rule("gelu")
def _gelu(writer: Writer, node: Node) -> list[str]:
    """The operator, or the nodes that runtimes take together to one (onnxruntime's GeluFusion and FastGeluFusion)."""
    (x,), approximate = node.inputs, node.attributes["approximate"]
    if writer.opset >= 20:
        return writer.add("Gelu", [x], approximate=approximate)

    def number(value: float) -> str:
        return writer.number(value, node.type.dtype)

    if approximate == "none":
        gate = writer.add("Add", writer.add("Erf", writer.add("Div", [x, number(math.sqrt(2.0))])) + [number(1.0)])
        return writer.add("Mul", writer.add("Mul", [x, number(0.5)]) + gate)
    cubic = writer.add("Mul", writer.add("Pow", [x, number(3.0)]) + [number(0.044715)])
    argument = writer.add("Mul", writer.add("Add", [x, *cubic]) + [number(math.sqrt(2.0 / math.pi))])
    gate = writer.add("Add", writer.add("Tanh", argument) + [number(1.0)])
    return writer.add("Mul", writer.add("Mul", [x, number(0.5)]) + gate)


# -- Layers -----------------------------------------------------------------------------------------------------------


@rule("Conv2D")
def _conv2d(writer: Writer, node: Node) -> list[str]:
    attributes = node.attributes
    kernel, strides, dilations = attributes["kernel_size"], attributes["stride"][-2:], attributes["dilation"][-2:]
    if attributes["pad_mode"] == "pad":
        top, bottom, left, right = attributes["pad"]
        pads = [top, left, bottom, right]
    else:
        extents = [1 + (size - 1) * dilation for size, dilation in zip(kernel, dilations)]
        pads = _pads(attributes["pad_mode"], node.inputs[0], extents, strides)
    return writer.add(
        "Conv",
        node.inputs,
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=attributes["group"],
    )


def _pads(mode: str, x: Value, kernel: list[int], strides: list[int]) -> list[int]:
    """MindSpore's padding modes; "same" leaves ceil(size / stride) windows and puts an odd pixel behind."""
    if mode == "valid":
        return [0, 0, 0, 0]
    totals = []
    for size, extent, stride in zip(x.type.dims[2:], kernel, strides):
        if stride > 1 and size == DYNAMIC:
            raise UserError("a strided window with padding 'same' cannot be translated into ONNX for a dynamic size")
        totals.append(extent - 1 if stride == 1 else max((math.ceil(size / stride) - 1) * stride + extent - size, 0))
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


@rule("AvgPool")
def _avg_pool(writer: Writer, node: Node) -> list[str]:
    x, kernel, strides, mode, _ = node.inputs
    kernel, strides = literal(kernel), literal(strides)
    pads = _pads({1: "same", 2: "valid"}[literal(mode)], x, kernel, strides)
    return writer.add("AveragePool", [x], kernel_shape=kernel, strides=strides, pads=pads, count_include_pad=0)


@rule("MaxPool")
def _max_pool(writer: Writer, node: Node) -> list[str]:
    (x,), attributes = node.inputs, node.attributes
    kernel, strides = list(attributes["kernel_size"][-2:]), list(attributes["strides"][-2:])
    pads = _pads(attributes["pad_mode"].lower(), x, kernel, strides)
    return writer.add("MaxPool", [x], kernel_shape=kernel, strides=strides, pads=pads)


@rule("Pad")
def _pad(writer: Writer, node: Node) -> list[str]:
    """With zeros: all before the axes, then all behind them."""
    before, behind = zip(*node.attributes["paddings"])
    return writer.add("Pad", [node.inputs[0], writer.integers([*before, *behind])])


@rule("MatMul", "BatchMatMul")
def _matmul(writer: Writer, node: Node) -> list[str]:
    left, right, *transposed = node.inputs
    return writer.add("MatMul", [_transposed(writer, *pair) for pair in zip((left, right), transposed)])


def _transposed(writer: Writer, x: Value, transpose: Value) -> Value | str:
    """x with its last two axes exchanged, if asked for."""
    if not literal(transpose):
        return x
    if isinstance(x, Constant):
        return Constant(np.ascontiguousarray(x.array.swapaxes(-1, -2)), x.name, x.dtype)
    rank = len(x.type.dims)
    return writer.add("Transpose", [x], perm=[*range(rank - 2), rank - 1, rank - 2])[0]


@rule("dense")
def _dense(writer: Writer, node: Node) -> list[str]:
    x, weight, bias, *transposed = node.inputs
    if len(x.type.dims) == 2:
        left, right = (int(literal(transpose)) for transpose in transposed)
        return writer.add("Gemm", [x, weight, bias], transA=left, transB=right)
    return writer.add("Add", writer.add("MatMul", [x, _transposed(writer, weight, transposed[1])]) + [bias])


@rule("constant product")
def _constant_product(writer: Writer, node: Node) -> list[str]:
    return writer.add("MatMul", node.inputs)


@rule("Softmax")
def _softmax(writer: Writer, node: Node) -> list[str]:
    x, axes = node.inputs
    (axis,) = literal(axes)
    if writer.opset < 13 and axis not in (-1, len(x.type.dims) - 1):
        raise UserError(f"a softmax that is not over the last axis needs ONNX opset 13, not {writer.opset}")
    return writer.add("Softmax", [x], axis=axis)


# -- Normalisation -----------------------------------------------------------------------------------------------------


@rule("BatchNorm")
def _batch_norm(writer: Writer, node: Node) -> list[str]:
    *tensors, is_training, epsilon, _, _ = node.inputs
    if literal(is_training):
        raise UserError("a batch normalisation in training mode cannot be translated into ONNX: call set_train(False)")
    return writer.add("BatchNormalization", tensors, epsilon=literal(epsilon))


@rule("LayerNorm")
def _layer_norm(writer: Writer, node: Node) -> list[str]:
    x, scale, shift, begin, _, epsilon = node.inputs
    rank = len(x.type.dims)
    axis, epsilon = literal(begin) % rank - rank, literal(epsilon)
    if writer.opset >= 17:
        return writer.add("LayerNormalization", [x, scale, shift], axis=axis, epsilon=epsilon)
    axes = list(range(axis, 0))
    centred = writer.add("Sub", [x, *writer.mean(x, axes)])
    variance = writer.mean(writer.add("Pow", centred + [writer.number(2.0, node.type.dtype)])[0], axes)
    deviation = writer.add("Sqrt", writer.add("Add", variance + [writer.number(epsilon, node.type.dtype)]))
    scaled = writer.add("Mul", writer.add("Div", centred + deviation) + [scale])
    return writer.add("Add", scaled + [shift])


@rule("sample norm")
def _group_norm(writer: Writer, node: Node) -> list[str]:
    """The operator from opset 21 on, whose scale and shift are per channel; that of opset 18 had them per group.

    Below, an instance normalisation of (N, 1, C·H·W, 1): of the forms that Ascend's compiler takes, the fastest in
    onnxruntime. PyTorch exports it without the last axis, which MindSpore Lite 2.0.0 converts and cannot run.
    """
    x, scale, shift = node.inputs
    channels, dtype = x.type.dims[1], node.type.dtype
    if writer.opset >= 21:
        ones, zeros = np.ones(channels, dtype), np.zeros(channels, dtype)
        affine = [
            Constant(value.array.reshape(-1), value.name, value.dtype) if isinstance(value, Constant) else default
            for value, default in ((scale, Constant(ones)), (shift, Constant(zeros)))
        ]
        return writer.add("GroupNormalization", [x, *affine], num_groups=1, epsilon=node.attributes["epsilon"])
    flat = writer.add("Reshape", [x, writer.integers([0, 1, -1, 1])])
    identity = [writer.constant(np.full(1, value, dtype)) for value in (1.0, 0.0)]
    normed = writer.add("InstanceNormalization", flat + identity, epsilon=node.attributes["epsilon"])
    static = DYNAMIC not in x.type.dims[1:]
    shape = writer.integers([0, *x.type.dims[1:]]) if static else writer.add("Shape", [x])[0]
    normed = writer.add("Reshape", [*normed, shape])
    if isinstance(scale, Constant):
        normed = writer.add("Mul", [*normed, scale])
    return writer.add("Add", [*normed, shift]) if isinstance(shift, Constant) else normed


# -- Layout -----------------------------------------------------------------------------------------------------------


@rule("ReduceMean")
def _reduce_mean(writer: Writer, node: Node) -> list[str]:
    x, axes, keep_dims = node.inputs
    if literal(axes) == (2, 3) and literal(keep_dims) and len(x.type.dims) == 4:
        return writer.add("GlobalAveragePool", [x])
    return writer.mean(x, list(literal(axes)), keepdims=int(literal(keep_dims)))


@rule("Transpose")
def _transpose(writer: Writer, node: Node) -> list[str]:
    return writer.add("Transpose", node.inputs[:1], perm=literal(node.inputs[1]))


@rule("ExpandDims")
def _expand_dims(writer: Writer, node: Node) -> list[str]:
    return writer.with_axes("Unsqueeze", node.inputs[0], [literal(node.inputs[1])], since=13)


@rule("Squeeze")
def _squeeze(writer: Writer, node: Node) -> list[str]:
    return writer.with_axes("Squeeze", node.inputs[0], list(literal(node.inputs[1])), since=13)


@rule("Concat")
def _concat(writer: Writer, node: Node) -> list[str]:
    return writer.add("Concat", elements(node.inputs[0]), axis=literal(node.inputs[1]))


@rule("Split")
def _split(writer: Writer, node: Node) -> list[str]:
    x, axis, parts = node.inputs[0], literal(node.inputs[1]), literal(node.inputs[2])
    lengths = [output.dims[axis] for output in node.types]
    if writer.opset >= 13:
        return writer.add("Split", [x, writer.integers(lengths)], outputs=parts, axis=axis)
    return writer.add("Split", [x], outputs=parts, axis=axis, split=lengths)


@rule("Reshape")
def _reshape(writer: Writer, node: Node) -> list[str]:
    """With 0 for what stays and -1 for one that follows, so that the shape of the result can be inferred."""
    x, shape = node.inputs
    target, wanted = list(elements(shape)), [scalar(element) for element in elements(shape)]
    given = sizes(x)
    if wanted[0] is None and None not in wanted[1:] and product(tuple(wanted[1:])) == product(given[1:]):
        wanted[0] = given[0]
    dims: list[int | Value] = []
    for axis, (element, size) in enumerate(zip(target, wanted)):
        if isinstance(element, Literal) and element.value != DYNAMIC:
            dims.append(element.value)
        elif axis < len(given) and size == given[axis]:
            dims.append(0)
        else:
            dims.append(DYNAMIC if isinstance(element, Literal) else element)
    computed = [i for i, dim in enumerate(dims) if not isinstance(dim, int)]
    if len(computed) == 1 and DYNAMIC not in dims:
        dims[computed[0]] = DYNAMIC
    numbers = [dim for dim in dims if isinstance(dim, int)]
    if len(numbers) == len(dims):
        return writer.add("Reshape", [x, writer.integers(numbers)])
    parts = [writer.integers([dim]) if isinstance(dim, int) else _integer(writer, dim) for dim in dims]
    return writer.add("Reshape", [x, *writer.add("Concat", parts, axis=0)])


def _integer(writer: Writer, value: Value) -> str:
    """A scalar that the graph computes, as a tensor (1,)."""
    if isinstance(value, Literal):
        return writer.integers([value.value])
    if isinstance(value, Output) and value.node.op == "Shape":
        return writer.dimension(value.node.inputs[0], value.index)
    if isinstance(value, Node) and value.op in ("ScalarMul", "ScalarFloorDiv"):
        op = "Mul" if value.op == "ScalarMul" else "Div"
        return writer.add(op, [_integer(writer, operand) for operand in value.inputs])[0]
    raise UserError(f"a shape that {getattr(value, 'op', 'an input')} computes cannot be translated into ONNX")
