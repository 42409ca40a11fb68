"""A MindIR file as a graph of objects: what computes a value stands behind the value."""

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from mindcv_reparam.errors import UserError
from mindcv_reparam.private import mind_ir

DYNAMIC = -1  # a dimension that only a run knows

TensorProto = mind_ir().TensorProto
_DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.BOOL: np.bool_,
}


@dataclass(frozen=True)
class TensorType:
    dtype: np.dtype
    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Input:
    name: str
    type: TensorType


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers that the file holds.

    Args:
        name: of the parameter they are, or are made of; none for numbers written in the code.
        dtype: in which they are computed with, which is wider than the array's own for weights stored in float16.
    """

    array: np.ndarray
    name: str | None = None
    dtype: np.dtype | None = None

    @property
    def type(self) -> TensorType:
        return TensorType(np.dtype(self.dtype or self.array.dtype), self.array.shape)


class _NoTensor:
    @property
    def type(self) -> TensorType:
        raise UserError(f"a {type(self).__name__.lower()} in the place of a tensor cannot be translated into ONNX")


@dataclass(frozen=True, eq=False)
class Literal(_NoTensor):
    """An argument that is no tensor: a number, a tuple of numbers, None."""

    value: Any


@dataclass(frozen=True, eq=False)
class Pack(_NoTensor):
    """A tuple of values."""

    items: tuple["Value", ...]


@dataclass(eq=False)
class Node:
    """An operator; as a value it is its first output.

    Args:
        op: MindSpore's name of the primitive, or a larger operation that :mod:`patterns` recognised.
        types: of the outputs; scalars have none.
        scope: the Cell it stands in, by its place in the tree.
        sizes: a store of :mod:`mindcv_reparam.export.onnx.sizes`.
    """

    op: str
    inputs: list["Value"]
    types: tuple[TensorType, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    scope: str = ""
    sizes: dict[int, tuple] = field(default_factory=dict, repr=False)

    @property
    def type(self) -> TensorType:
        return self.types[0]


@dataclass(frozen=True)
class Output:
    """One of several outputs of a node."""

    node: Node
    index: int

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]


Value = Input | Constant | Literal | Pack | Node | Output


@dataclass
class Graph:
    name: str
    inputs: list[Input]
    outputs: dict[str, Value]


def literal(value: Value) -> Any:
    """The Python value of an argument.

    Raises:
        UserError: it is computed by the graph.
    """
    if isinstance(value, Literal):
        return value.value
    if isinstance(value, Constant):
        return value.array.tolist()
    raise UserError(f"an argument that {getattr(value, 'op', 'the input')} computes cannot be translated into ONNX")


def elements(value: Value) -> tuple[Value, ...]:
    """Of a tuple; those of numbers as literals."""
    return value.items if isinstance(value, Pack) else tuple(Literal(number) for number in literal(value))


def producer(value: Value) -> Node:
    """The operator of whose outputs one is asked for.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, Node):
        return value
    raise UserError(f"an output of a {type(value).__name__.lower()} cannot be translated into ONNX")


def operands(value: Value) -> Iterable[Value]:
    """What a value is made of."""
    if isinstance(value, Node):
        return value.inputs
    if isinstance(value, Output):
        return (value.node,)
    return value.items if isinstance(value, Pack) else ()


def ordered(values: Iterable[Value]) -> list[Value]:
    """All that ``values`` need, with them, each behind its operands."""
    done: dict[Value, None] = {}
    stack = [(value, False) for value in values][::-1]
    while stack:
        value, complete = stack.pop()
        if complete:
            done[value] = None
        elif value not in done:
            stack.append((value, True))
            stack += [(operand, False) for operand in reversed(list(operands(value))) if operand not in done]
    return list(done)


def replace(graph: Graph, rewrite: Callable[[Node], Value]) -> Graph:
    """The graph with every node exchanged for what ``rewrite`` makes of it; its operands are exchanged before it."""
    new: dict[Value, Value] = {}
    for value in ordered(graph.outputs.values()):
        if isinstance(value, Node):
            value.inputs = [new[operand] for operand in value.inputs]
            new[value] = rewrite(value)
        elif isinstance(value, Output):
            new[value] = Output(producer(new[value.node]), value.index)
        elif isinstance(value, Pack):
            new[value] = Pack(tuple(new[item] for item in value.items))
        else:
            new[value] = value
    return Graph(graph.name, graph.inputs, {name: new[value] for name, value in graph.outputs.items()})


def read(path: Path) -> Graph:
    """Read a MindIR file.

    Raises:
        UserError: there is no such file, or it is none.
    """
    proto = mind_ir().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise UserError(f"{path} cannot be read as MindIR: {error}") from error
    if not proto.graph.node:
        raise UserError(f"{path} cannot be read as MindIR: it holds no graph")
    return _Reader(proto).graph()


class _Reader:
    def __init__(self, proto: Any):
        self.proto = proto
        self.primitives = {primitive.name: primitive for primitive in proto.primitives}
        self.values: dict[str, Value] = {}

    def graph(self) -> Graph:
        graph = self.proto.graph
        inputs = []
        for entry in graph.input:
            inputs.append(Input(self._short(entry.name), _tensor_type(entry.tensor[0])))
            self.values[entry.name] = inputs[-1]
        for parameter in graph.parameter:
            self.values[parameter.name] = Constant(_array(parameter), self._short(parameter.name))
        for node in graph.node:
            self.values[node.output[0]] = self._value(node)
        return Graph(graph.name, inputs, self._outputs())

    def _short(self, name: str) -> str:
        return name.removeprefix(f"{self.proto.graph.name}:")

    def _outputs(self) -> dict[str, Value]:
        """By the names of what computes them; by "output" or "output_0" … if these are MindSpore's, which change from
        run to run, or not distinct."""
        producers = {node.output[0]: node for node in self.proto.graph.node}

        def computed(name: str) -> list[str]:
            node = producers.get(name)
            if node and self._op(node) == "Depend":
                return computed(node.input[0])
            if node and self._op(node) == "MakeTuple":
                return [inner for entry in node.input for inner in computed(entry)]
            return [name]

        tensors = [name for entry in self.proto.graph.output for name in computed(entry.name)]
        names = [self._short(name).split(":")[0] for name in tensors]
        taken = {self._short(entry.name) for entry in self.proto.graph.input}
        if len({*names, *taken}) < len(names) + len(taken) or any(re.search(r"^CNode_|\$", name) for name in names):
            names = ["output"] if len(names) == 1 else [f"output_{i}" for i in range(len(names))]
        return {name: self.values[tensor] for name, tensor in zip(names, tensors)}

    def _op(self, node: Any) -> str:
        name = node.op_type.removeprefix("REF::")
        return self.primitives[name].op_type if name in self.primitives else name

    def _value(self, node: Any) -> Value:
        op = self._op(node)
        if op == "Constant":
            value = _decoded(node.attribute[0])
            return Constant(value) if isinstance(value, np.ndarray) else Literal(value)
        inputs = [self.values.get(name, Literal(name)) for name in node.input]
        if op in ("Load", "Depend"):  # they order the execution
            return inputs[0]
        if op == "UpdateState":
            return Literal(None)
        if op == "MakeTuple":
            constants = tuple(item.value for item in inputs if isinstance(item, Literal))
            return Literal(constants) if len(constants) == len(inputs) else Pack(tuple(inputs))
        if op == "TupleGetItem":
            source, index = inputs[0], literal(inputs[1])
            return source.items[index] if isinstance(source, Pack) else Output(producer(source), index)
        primitive = self.primitives.get(node.op_type.removeprefix("REF::"))
        attributes = {entry.name: _decoded(entry) for entry in primitive.attribute} if primitive else {}
        return Node(op, inputs, _types(node), attributes, _scope(node.domain))


def _scope(domain: str) -> str:
    """ "Default/stem-SequentialCell/0-Block/Mul-op4" → "stem.0"."""
    return ".".join(part.split("-")[0] for part in domain.split("/")[1:-1])


def _types(node: Any) -> tuple[TensorType, ...]:
    """Of the outputs of a node."""
    shape = next((entry for entry in node.attribute if entry.name == "shape"), None)
    if shape is None:
        return ()
    tensors = [entry for part in (shape.values or [shape]) if part.type == part.TENSORS for entry in part.tensors]
    return tuple(_tensor_type(tensor) for tensor in tensors)


def _tensor_type(tensor: Any) -> TensorType:
    return TensorType(np.dtype(_dtype(tensor)), tuple(tensor.dims))


def _dtype(tensor: Any) -> type:
    if tensor.data_type not in _DTYPES:
        name = TensorProto.DataType.Name(tensor.data_type)
        raise UserError(f"tensors of {name} cannot be translated into ONNX: {tensor.name}")
    return _DTYPES[tensor.data_type]


def _array(tensor: Any) -> np.ndarray:
    values: np.ndarray = np.frombuffer(tensor.raw_data, _dtype(tensor))
    if values.size != math.prod(tensor.dims):
        raise UserError(f"the numbers of {tensor.name} are not in the MindIR file: export it in one file")
    return values.reshape(tuple(tensor.dims))


def _decoded(entry: Any) -> Any:
    """The Python value of an attribute."""
    if entry.tensors:
        return _array(entry.tensors[0])
    if entry.type in (entry.TUPLE, entry.LIST):
        return tuple(_decoded(value) for value in entry.values)
    scalars = itertools.chain(entry.ints, entry.floats, entry.doubles, entry.strings)  # as elements of a tuple
    value = next(scalars, None)
    if value is None:
        fields = {entry.FLOAT: entry.f, entry.DOUBLE: entry.d, entry.STRING: entry.s}
        value = fields.get(entry.type, entry.i)
    if entry.type == entry.BOOL:
        return bool(value)
    if entry.type in (entry.NONE, entry.UMONAD):
        return None
    return value.decode() if isinstance(value, bytes) else value
