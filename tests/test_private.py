"""What MindSpore does not promise: every such name does what is wanted of it here, and no other module has one."""

import ast
import copy
import ctypes
import inspect
import re
import subprocess
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from graphs import compiled, graphs_of, is_compiled
from mindspore import Parameter, Tensor, nn

from mindcv_reparam import private

ROOT = Path(__file__).parents[1]
OWNERS = {"mindcv_reparam/private.py", "tests/graphs.py"}
# Attributes that look like public ones and are in no documentation.
HIDDEN = {
    "compile_cache",
    "cell_list",
    "mind_ir_pb2",
    "anf_ir_pb2",
    "add_flags_recursive",
    "c_expression",
    "to_func_graph",
}
OLD = tuple(map(int, ms.__version__.split(".")[:2])) < (2, 9)
BREAKS = f"MindSpore {ms.__version__} lacks what mindcv_reparam/private.py says of "


def _pair() -> tuple[nn.SequentialCell, nn.Cell]:
    twice = nn.ReLU()
    return nn.SequentialCell(twice, nn.Sigmoid(), twice), twice


def test_children_have_all_their_names():
    net, twice = _pair()
    assert [child is twice for child in private.children(net).values()] == [True, False, True], BREAKS + "children"


def test_what_a_container_runs_is_set():
    net, twice = _pair()
    private.set_run(net, [twice])
    given = Tensor(np.array([-1.0, 2.0]), ms.float32)
    np.testing.assert_array_equal(net(given).asnumpy(), [0.0, 2.0], BREAKS + "set_run")


def test_a_copy_forgets_the_graphs():
    net = nn.ReLU()
    net(Tensor(np.ones(3), ms.float32))
    (graph,) = graphs_of(net)
    new = copy.deepcopy(net)
    private.forget_graphs(new)
    del new
    assert is_compiled(graph), BREAKS + "forget_graphs"
    assert compiled(net, Tensor(np.ones(3), ms.float32)), BREAKS + "tests/graphs.py"


def test_float32_stays_when_the_network_is_cast():
    class Kept(private.Float32):
        def construct(self, x):
            return x + 1

    class Cast(nn.Cell):
        def construct(self, x):
            return x + 1

    kept, cast = Kept(), Cast()
    nn.CellList([kept, cast]).to_float(ms.float16)
    given = Tensor(np.full(2, 1e-4), ms.float32)
    assert kept(given).dtype == ms.float32, BREAKS + "Float32"
    assert kept(given).asnumpy()[0] == np.float32(1) + np.float32(1e-4), BREAKS + "Float32"
    assert cast(given).dtype == ms.float16, BREAKS + "Float32: to_float does nothing"


def test_a_compiled_operator_is_its_own_copy():
    operator = private.CompiledOperator("/nowhere.so:f", lambda x: x, lambda x: x, func_type="aot")
    assert copy.deepcopy(operator) is operator, BREAKS + "CompiledOperator"


ADD = """
extern "C" int add(int, void** data, int*, long long**, const char**, void*, void*) {
  *(float*)data[3] = *(float*)data[1] += *(float*)data[0] * *(float*)data[2];
  return 0;
}
"""


class Changes(nn.Cell):
    """Reads a Parameter, changes it by an operator where it lies, and reads it again."""

    def __init__(self, file):
        super().__init__()
        self.count = Parameter(Tensor([1.0]), name="count")
        operator = private.CompiledOperator(f"{file}:add", lambda *x: [1], lambda *x: x[0], func_type="aot")
        self.add = private.changing(operator, 1, 1, 1)

    def construct(self, x):
        before = self.count * 1.0
        self.add(x, self.count, x)
        return before, self.count * 1.0


def test_what_an_operator_changes_is_read_in_the_order_of_the_program(tmp_path):
    (tmp_path / "add.cc").write_text(ADD)
    subprocess.run(["g++", "-shared", "-fPIC", "add.cc", "-o", "add.so"], cwd=tmp_path, check=True)
    network = Changes(tmp_path / "add.so")
    for begin in (1.0, 5.0):
        assert [float(y[0]) for y in network(Tensor([2.0]))] == [begin, begin + 4], BREAKS + "changing"


def test_the_classes_of_a_mindir_file_are_there():
    try:
        found = private.mind_ir()
    except ImportError as error:
        pytest.fail(f"{BREAKS}mind_ir: {error}")
    model = found.ModelProto()
    model.ParseFromString(found.ModelProto(ir_version="3").SerializeToString())
    assert model.ir_version == "3"
    assert {"FLOAT", "FLOAT16", "DOUBLE", "UINT8", "INT32", "INT64", "BOOL"} <= {*found.TensorProto.DataType.keys()}


def test_ranks_are_joined_by_a_store_or_by_a_scheduler():
    """``distributed`` starts one where there is no such function; with one of other parameters it would not work."""
    join = private.init_with_store()
    assert (join is None) == OLD, BREAKS + "init_with_store"
    if join:
        names = ["backend", "timeout", "world_size", "rank", "store"]
        assert list(inspect.signature(join).parameters)[:5] == names, BREAKS + "init_with_store"


def test_values_come_to_the_host_by_its_methods(monkeypatch):
    seen = []
    done = private.values().asnumpy
    monkeypatch.setattr(private.values(), "asnumpy", lambda tensor: (seen.append(1), done(tensor))[1])
    (Tensor(np.ones(2)) + 1).asnumpy()
    assert seen, BREAKS + "values"


def test_onednn_is_the_one_that_the_kernels_are_linked_with():
    """Of version 3; before MindSpore 2.9 it is version 2, and the kernels say why they are not used."""
    path = private.onednn_file()
    assert path.suffix == (".2" if OLD else ".3"), BREAKS + "onednn_file"
    assert ctypes.CDLL(str(path)).dnnl_version, BREAKS + "onednn_file"


def underscored() -> set[str]:
    """Names with an underscore in front that MindSpore's own objects have."""
    owned = (
        nn.SequentialCell([nn.ReLU()]),
        Parameter(Tensor(0.0), name="x"),
        nn.SGD([Parameter(Tensor(0.0), name="x")]),
    )
    names = {name for one in owned for name in [*dir(one), *vars(one)]}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def private_names(source: str, underscored: set[str]) -> set[str]:
    """What a module takes of MindSpore that is private or hidden; a name that it sets itself is its own."""
    nodes, found = list(ast.walk(ast.parse(source))), set()
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    hidden = HIDDEN | underscored - own
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if _is_private(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name for name in names if _is_private(name)}
        elif isinstance(node, ast.Attribute) and (node.attr in hidden or _is_private(ast.unparse(node))):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.FunctionDef) and node.name in HIDDEN:
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"libdnnl|mindspore(?:\.\w+)*\._\w+|mind_ir_pb2|^MindSpore_", node.value))
    return found


def _is_private(name: str) -> bool:
    """Whether a dotted name is MindSpore's and has a part that is private or hidden."""
    first, *parts = name.split(".")
    return first in ("mindspore", "ms") and any(
        part in HIDDEN or (part.startswith("_") and not part.endswith("__")) for part in parts
    )


def test_no_other_module_has_a_private_name():
    names = underscored()
    assert {"_cells", "_params"} <= names
    files = [
        *ROOT.glob("*.py"),
        *(path for room in ("mindcv_reparam", "tests") for path in (ROOT / room).rglob("*.py")),
    ]
    files += (ROOT / "benchmarks").rglob("*.py")
    found = {}
    for path in {*files} - {ROOT / owner for owner in OWNERS} - {Path(__file__)}:
        if taken := private_names(path.read_text(encoding="utf-8"), names):
            found[path.relative_to(ROOT).as_posix()] = taken
    assert found == {}, "mindcv_reparam/private.py is the place"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from mindspore.common.api import _cell_graph_executor", {"mindspore.common.api._cell_graph_executor"}),
        ("from mindspore._c_expression import TensorPy", {"mindspore._c_expression.TensorPy"}),
        ("import mindspore._extends", {"mindspore._extends"}),
        ("import mindspore as ms\nms._c_expression.f()", {"ms._c_expression.f", "ms._c_expression"}),
        ("net.compile_cache.clear()", {"net.compile_cache"}),
        ("cell._cells.items()", {"cell._cells"}),
        ("class A:\n    def f(self):\n        self._cells = {}\n        return self._cells", set()),
        ("class A(nn.Cell):\n    def add_flags_recursive(self): ...", {"add_flags_recursive"}),
        ("importlib.import_module('mindspore._c_expression')", {"mindspore._c_expression"}),
        ("logging.getLogger('MindSpore_0')", {"MindSpore_"}),
        ("from mindspore import nn\nnn.Cell().name_cells()", set()),
    ],
)
def test_a_private_name_is_found(source, found):
    assert private_names(source, underscored()) == found
