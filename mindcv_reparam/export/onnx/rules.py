"""What each operation of a simplified graph is in ONNX: a function per operation, by its name in ``RULES``."""

from collections.abc import Callable

from mindcv_reparam.export.onnx.graph import Node
from mindcv_reparam.export.onnx.writer import Writer

Rule = Callable[[Writer, Node], list[str]]  # gives the names of what it wrote, one per output
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function for operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register
