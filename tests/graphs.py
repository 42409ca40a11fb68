"""The tests' own private names: the compiled graphs of a Cell, which MindSpore shows nowhere."""

from collections.abc import Collection

from mindspore import Tensor, nn
from mindspore.common.api import _cell_graph_executor
from mindspore.train import anf_ir_pb2

__all__ = ["anf_ir_pb2", "compiled", "graphs_of", "is_compiled"]


def graphs_of(cell: nn.Cell) -> Collection[str]:
    """Names of the graphs that a Cell was compiled to."""
    return cell.compile_cache


def is_compiled(graph: str) -> bool:
    """Whether MindSpore still has a graph."""
    return _cell_graph_executor.has_compiled(graph)


def compiled(cell: nn.Cell, *inputs: Tensor) -> bytes:
    """The graph of a Cell for such inputs, as MindIR."""
    phase, _ = _cell_graph_executor.compile(cell, *inputs)
    return _cell_graph_executor._get_func_graph_proto(cell, phase, "mind_ir")
