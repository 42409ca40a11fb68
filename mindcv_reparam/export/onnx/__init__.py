"""ONNX: an exported MindIR graph in the operators of onnxruntime and of Ascend's offline compiler (ATC).

MindSpore's own exporters stop at one primitive or another of these networks (Erf, BiasAdd, BatchNorm), so the MindIR
file, which is protobuf, is read (:mod:`graph`), simplified (:mod:`patterns`) and written node by node
(:mod:`operators`, :mod:`selection`). Opset 17, the default, is that of ONNX 1.12, which CANN documents for ATC, and the
first with an operator for layer normalisation; from 20 on GELU is one operator, from 21 on group normalisation (which
MindSpore Lite 2.0.0 refuses). Below 11 and above 21
operators have other forms, and nobody here would run them.
"""

from pathlib import Path

import onnx
from onnx import helper

from mindcv_reparam.errors import UserError
from mindcv_reparam.export.onnx import operators, selection  # noqa: F401 (they fill RULES)
from mindcv_reparam.export.onnx.graph import Graph, Node, ordered, read
from mindcv_reparam.export.onnx.patterns import simplify
from mindcv_reparam.export.onnx.rules import RULES
from mindcv_reparam.export.onnx.writer import Writer, value_info
from mindcv_reparam.files import written_whole

OPSETS = range(11, 22)


def export_onnx(mindir: Path, path: Path, *, opset: int = 17) -> None:
    """Translate a MindIR file into an ONNX file, which is kept only if ONNX's checker accepts it.

    Raises:
        UserError: see :func:`translate`; or the file cannot be written.
    """
    model = translate(mindir, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    with written_whole(path) as temporary:
        onnx.save(model, temporary)


def translate(mindir: Path, *, opset: int = 17) -> onnx.ModelProto:
    """The ONNX model of a MindIR file.

    Inputs and outputs have the names they have there; outputs without one are "output", or "output_0", "output_1" …
    Parameters keep their names. Of an input, a dynamic first axis is called "batch", further ones "height" and "width".

    Raises:
        UserError: the file cannot be read, an operator has no rule, or the opset is none of OPSETS.
    """
    if opset not in OPSETS:
        raise UserError(f"ONNX opset {opset} is not supported: choose {OPSETS[0]} to {OPSETS[-1]}")
    graph = simplify(read(mindir))
    writer = Writer(opset)
    writer.reserve([*graph.outputs, *(entry.name for entry in graph.inputs)])
    writer.names |= {entry: entry.name for entry in graph.inputs}
    for value in ordered(graph.outputs.values()):
        if isinstance(value, Node) and value.op not in _SHAPES:
            if value.op not in RULES:
                raise UserError(f"{value.op} (in {value.scope or 'the network'}) has no rule for ONNX")
            writer.scope = value.scope
            writer.bind(value, RULES[value.op](writer, value))
    return _model(graph, writer)


# Written where a shape is needed that only they give.
_SHAPES = {"Shape", "ScalarMul", "ScalarFloorDiv"}


def _model(graph: Graph, writer: Writer) -> onnx.ModelProto:
    for name, value in graph.outputs.items():
        writer.call(name, value)
    inputs = [value_info(entry.name, entry.type, ("height", "width")) for entry in graph.inputs]
    outputs = [value_info(name, value.type) for name, value in graph.outputs.items()]
    proto = helper.make_graph(writer.nodes, "mindcv_reparam", inputs, outputs, writer.initializers)
    opsets = [helper.make_opsetid("", writer.opset)]
    model = helper.make_model(proto, opset_imports=opsets, producer_name="mindcv_reparam")
    model.ir_version = helper.find_min_ir_version_for(opsets)
    return model
