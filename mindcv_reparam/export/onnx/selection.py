"""Rules for what chooses, repeats or joins parts of tensors: the operators of a detector's queries and samples."""

import numpy as np

from mindcv_reparam.errors import UserError
from mindcv_reparam.export.onnx.graph import DYNAMIC, Node, Output, Value, elements, literal
from mindcv_reparam.export.onnx.rules import rule
from mindcv_reparam.export.onnx.writer import Writer

_END = 2**31 - 1  # behind every axis


@rule("TopK")
def _top_k(writer: Writer, node: Node) -> list[str]:
    x, k = node.inputs
    values, indices = writer.add("TopK", [x, writer.integers([literal(k)])], outputs=2, axis=-1, largest=1, sorted=1)
    return [values, *writer.cast(indices, node.types[1].dtype)]


@rule("ReduceMax")
def _reduce_max(writer: Writer, node: Node) -> list[str]:
    x, axes, keep_dims = node.inputs
    over = literal(axes)
    over = list(over) if isinstance(over, (tuple, list)) else [over]
    return writer.with_axes("ReduceMax", x, over, since=18, keepdims=int(literal(keep_dims)))


@rule("FloorDiv")
def _floor_div(writer: Writer, node: Node) -> list[str]:
    """Of the places that TopK gives: ONNX's quotient of integers is cut towards zero, which is the same for these."""
    x, divisor = node.inputs
    if not (isinstance(x, Output) and x.node.op == "TopK" and x.index == 1 and literal(divisor) > 0):
        raise UserError("a quotient rounded down of what may be negative cannot be translated into ONNX")
    return writer.add("Div", [x, writer.constant(np.array(literal(divisor), node.type.dtype))])


@rule("Gather")
def _gather(writer: Writer, node: Node) -> list[str]:
    """Every image's own rows, from the rows of all images, so that there is nothing but a plain Gather.

    GatherND has batch_dims from opset 12 on, which not all compilers read; GatherElements needs an index per number.
    """
    x, indices, axis, *batch_dims = node.inputs
    axis, own = literal(axis), literal(batch_dims[0]) if batch_dims else node.attributes.get("batch_dims", 0)
    dims = x.type.dims
    if own == 0:
        return writer.add("Gather", [x, indices], axis=axis)
    rows = dims[1] if len(dims) == 3 else DYNAMIC
    if (own, axis, len(dims), len(indices.type.dims)) != (1, 1, 3, 2) or rows == DYNAMIC:
        raise UserError(f"a Gather of {own} batch axes along axis {axis} of {dims} cannot be translated into ONNX")
    if dims[0] == 1:
        return writer.add("Gather", [x, *writer.with_axes("Squeeze", indices, [0], since=13)], axis=1)
    dtype = indices.type.dtype
    if dims[0] == DYNAMIC:
        end = writer.add("Mul", [writer.dimension(x, 0), writer.integers([rows])])
        limit = writer.cast(writer.with_axes("Squeeze", end[0], [0], since=13)[0], dtype)
        first = writer.add("Range", [writer.number(0, dtype), *limit, writer.number(rows, dtype)])
        offsets = writer.with_axes("Unsqueeze", first[0], [1], since=13)
    else:
        offsets = [writer.constant((np.arange(dims[0]) * rows).reshape(-1, 1).astype(dtype))]
    every = writer.add("Reshape", [x, writer.integers([-1, dims[2]])])
    return writer.add("Gather", [*every, *writer.add("Add", [indices, *offsets])], axis=0)


@rule("StridedSlice")
def _strided_slice(writer: Writer, node: Node) -> list[str]:
    """Of a tensor that is computed. One place along an axis is a Gather, which takes the axis away with it."""
    x, *arguments = node.inputs
    begin, end, strides, begin_mask, end_mask, ellipsis, new_axis, shrink = map(literal, arguments)
    if ellipsis or new_axis:
        raise UserError("a slice with an ellipsis or a new axis cannot be translated into ONNX")
    parts, places = [], []
    for axis, (start, stop, step) in enumerate(zip(begin, end, strides)):
        if shrink >> axis & 1:
            places.append((axis, start))
        elif step < 1:
            raise UserError("a slice from behind cannot be translated into ONNX")
        else:
            first = 0 if begin_mask >> axis & 1 else start
            last = _END if end_mask >> axis & 1 else stop
            if (first, last, step) != (0, _END, 1):
                parts.append((first, last, axis, step))
    result: Value | str = x
    if parts:
        (result,) = writer.add("Slice", [x, *(writer.integers(column) for column in zip(*parts))])
    for axis, place in reversed(places):
        if place < 0 and x.type.dims[axis] != DYNAMIC:
            place += x.type.dims[axis]
        (result,) = writer.add("Gather", [result, writer.constant(np.array(place, np.int64))], axis=axis)
    return [result] if isinstance(result, str) else writer.add("Identity", [result])


@rule("Stack")
def _stack(writer: Writer, node: Node) -> list[str]:
    axis = node.attributes["axis"] % len(node.type.dims)
    columns = [writer.with_axes("Unsqueeze", item, [axis], since=13)[0] for item in elements(node.inputs[0])]
    return writer.add("Concat", columns, axis=axis)


@rule("ResizeNearestNeighbor")
def _enlarge(writer: Writer, node: Node) -> list[str]:
    """By whole factors, every pixel becoming a rectangle of equal ones."""
    x, _, *corners = node.inputs
    factors = [int(b // a) if a > 0 and b % a == 0 else 0 for a, b in zip(x.type.dims[2:], node.type.dims[2:])]
    if 0 in factors or any(literal(corner) for corner in corners):
        raise UserError(f"resizing {x.type.dims} to {node.type.dims} cannot be translated into ONNX")
    roi = writer.constant(np.zeros(0, np.float32))  # optional from opset 13 on, but MindSpore Lite 2.0.0 looks for it
    scales = writer.constant(np.array([1, 1, *factors], np.float32))
    return writer.add(
        "Resize", [x, roi, scales], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
