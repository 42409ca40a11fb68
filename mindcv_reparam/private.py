"""What the project takes of MindSpore that MindSpore's documentation does not promise, all of it.

Everything has its reason and the public way, where there is one. ``tests/test_private.py`` tries each on the MindSpore
that is installed and says what is gone, and holds every other module to documented names.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops import signature


def children(cell: nn.Cell) -> Mapping[str, nn.Cell | None]:
    """The children of a Cell by name, each as often as it has names.

    Public: ``name_cells``, which names a Cell at several places once.
    """
    return cell._cells


def set_run(container: nn.SequentialCell, cells: Sequence[nn.Cell]) -> None:
    """What a SequentialCell runs, which ``insert_child_to_cell`` does not change.

    Public: ``container[index] = cell``, which renames the parameters of the Cell.
    """
    container.cell_list = list(cells)


def forget_graphs(cell: nn.Cell) -> None:
    """Leave the compiled graphs of a Cell to the Cell it was copied from.

    A copy takes the names of the graphs along, and deletes the graphs when it is deleted itself. Public: none.
    """
    cell.compile_cache.clear()


class Float32(nn.Cell):
    """A Cell that computes in float32 in any mixed precision: ``to_float`` of the network leaves it out.

    Casting in ``construct`` would not do, since the flags that ``to_float`` sets reach every operator in there.
    The method is documented; that ``to_float`` calls it, and with which flags, is not. Public: ``to_float`` of each of
    these Cells again after that of the network, which every caller would have to remember.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.to_float(ms.float32)

    def add_flags_recursive(self, **flags: bool) -> nn.Cell:
        if "fp16" in flags:
            flags |= {"fp16": False, "bf16": False, "fp32": True}
        return super().add_flags_recursive(**flags)


class CompiledOperator(ops.Custom):
    """An operator of a shared library of ours, whose copy is itself, since it has no state.

    A copy of a custom operator is made without the arguments that its constructor wants, and fails. Public: none.
    """

    def __deepcopy__(self, memo: dict) -> "CompiledOperator":
        return self


def changing(operator: ops.Custom, before: int, changed: int, behind: int) -> ops.Custom:
    """Tell MindSpore that an operator writes into some of its inputs, Parameters, where they lie; returns it.

    What reads them keeps its place in the order of the program, as with MindSpore's own `Assign`. Public: the outputs
    of an operator, each assigned to its Parameter, which is one more copy and one more operator for each.

    Args:
        before: inputs that it only reads, then
        changed: those that it writes into, then
        behind: others that it only reads.
    """
    rights = [signature.sig_rw.RW_READ] * before + [signature.sig_rw.RW_WRITE] * changed
    rights += [signature.sig_rw.RW_READ] * behind
    operator.set_signatures([signature.make_sig(f"x{i}", right) for i, right in enumerate(rights)])
    return operator.add_prim_attr("side_effect_mem", True)


def mind_ir() -> ModuleType:
    """The classes of a MindIR file's protocol buffers, as ``ms.export(custom_func=…)`` hands them out too.

    Public: none; the format itself is described in MindSpore's sources alone.
    """
    from mindspore.train import mind_ir_pb2

    return mind_ir_pb2


def init_with_store() -> Callable | None:
    """What joins ranks on a CPU by a ``TCPStore``, without a scheduler process; None before MindSpore 2.9.

    Public: ``mint.distributed.init_process_group``, which calls it and lets only Ascend through.
    """
    from mindspore.communication import management

    return getattr(management, "_init_with_store", None)


def values() -> type:
    """The class by whose methods every value comes from the device to the host, to be counted.

    Public: the methods of ``Tensor``, which what a graph returns passes by.
    """
    from mindspore._c_expression import TensorPy

    return TensorPy


def onednn_file() -> Path:
    """MindSpore's own oneDNN, whose convolutions the CPU kernels call: version 3 since 2.9, before that 2.

    Public: none.

    Raises:
        FileNotFoundError: it has none.
    """
    spec = importlib.util.find_spec("mindspore")
    folder = Path(*((spec.submodule_search_locations if spec else None) or ("mindspore",)), "lib")
    for path in sorted(folder.glob("libdnnl.so.?")):
        return path
    raise FileNotFoundError(f"{folder} has no oneDNN (libdnnl.so)")
