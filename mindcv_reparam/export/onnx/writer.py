"""Writes an ONNX graph node by node."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mindcv_reparam.export.onnx.graph import DYNAMIC, Constant, Node, Output, TensorType, Value


class Writer:
    """An ONNX graph that grows.

    A tensor is given as a value of the MindIR graph that has been written, as a constant, or by its ONNX name.

    Args:
        opset: version of the operators.
    """

    def __init__(self, opset: int):
        self.opset = opset
        self.scope = ""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names: dict[Value, str] = {}
        self._written: dict[tuple, str] = {}  # names of the nameless constants by their content
        self._taken: set[str] = set()
        self._renamable: set[str] = set()  # tensors that nodes compute, but outputs of the graph

    def add(self, op: str, inputs: Sequence[Value | str], outputs: int = 1, **attributes) -> list[str]:
        """A node; returns the names of its outputs."""
        names = [self.name(value) for value in inputs]
        name = self.unique(f"{self.scope}.{op}" if self.scope else op)
        results = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, results, name=name, **attributes))
        self._renamable |= set(results)
        return results

    def name(self, value: Value | str) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, Constant) and value not in self.names:
            self.names[value] = self._constant(value)
        return self.names[value]

    def bind(self, node: Node, results: list[str]) -> None:
        """Say under which names the outputs of a node of the MindIR graph were written."""
        self.names[node] = results[0]
        self.names |= {Output(node, i): name for i, name in enumerate(results)}

    def call(self, name: str, value: Value) -> None:
        """Give a tensor the name of an output of the graph."""
        old = self.name(value)
        if old not in self._renamable:
            self.nodes.append(helper.make_node("Identity", [old], [name], name=name))
            return
        self._renamable.remove(old)
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [name if entry == old else entry for entry in names]
        self.names[value] = name

    def reserve(self, names: Sequence[str]) -> None:
        """Keep names for the inputs and outputs of the graph."""
        self._taken |= set(names)

    def unique(self, name: str) -> str:
        """The name, with a number behind it if there is one already."""
        count = 0
        candidate = name
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        """A tensor of the file, under the name of its parameter; nameless ones that are equal are written once."""
        key = (array.dtype, array.shape, array.tobytes()) if name is None else None
        if key is not None and key in self._written:
            return self._written[key]
        tensor = numpy_helper.from_array(array, self.unique(name or "constant"))
        self.initializers.append(tensor)
        if key is not None:
            self._written[key] = tensor.name
        return tensor.name

    def _constant(self, value: Constant) -> str:
        stored = self.constant(value.array, value.name)
        return stored if value.type.dtype == value.array.dtype else self.cast(stored, value.type.dtype)[0]

    def number(self, value: float, dtype: np.dtype) -> str:
        return self.constant(np.array(value, dtype))

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def cast(self, x: Value | str, dtype: np.dtype) -> list[str]:
        return self.add("Cast", [x], to=helper.np_dtype_to_tensor_dtype(dtype))

    def with_axes(self, op: str, x: Value | str, axes: list[int], since: int, **attributes) -> list[str]:
        """A node whose axes are an input since an opset, and an attribute before."""
        if self.opset >= since:
            return self.add(op, [x, self.integers(axes)], **attributes)
        return self.add(op, [x], axes=axes, **attributes)

    def mean(self, x: Value | str, axes: list[int], keepdims: int = 1) -> list[str]:
        return self.with_axes("ReduceMean", x, axes, since=18, keepdims=keepdims)

    def dimension(self, x: Value | str, axis: int) -> str:
        """The size of an axis, as a tensor (1,).

        By Shape and Slice for every opset: MindSpore Lite 2.0.0 overlooks the start and end that Shape has from 15 on.
        """
        ends = [self.integers([axis]), self.integers([axis + 1])]
        return self.add("Slice", [*self.add("Shape", [x]), *ends])[0]


def value_info(name: str, tensor: TensorType, dynamic: Sequence[str] = ()) -> onnx.ValueInfoProto:
    """An input or output of a graph.

    Args:
        dynamic: names of its dynamic axes behind the first, which is "batch".
    """
    names = iter(dynamic)
    first, *rest = tensor.dims
    dims = ["batch" if first == DYNAMIC else first] + [next(names, None) if dim == DYNAMIC else dim for dim in rest]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.dtype), dims)
