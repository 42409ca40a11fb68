"""The walk that replaces Cells, on a tree that holds Cells in every way, and all that uses it on the same tree."""

import re
from collections import OrderedDict
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from networks import SMALL, arrays, cells, difference, random_images, randomise, small_network

from mindcv_reparam import reparameterize, tree
from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.export.stem import PixelStem, on_pixels
from mindcv_reparam.layers import batch_norm, conv2d, gelu
from mindcv_reparam.models.fastvit import MobileOneConv
from mindcv_reparam.precision import mixed_precision
from mindcv_reparam.private import onednn_file
from mindcv_reparam.stochastic import Stochastic
from mindcv_reparam.training.statistics import synchronize

REPOSITORY = Path(__file__).parents[1]


class Planted(nn.Cell):
    """Cells from ``make`` in every kind of container, nested, at two places of one parent and of two parents."""

    def __init__(self, make):
        super().__init__()
        self.plain = make()
        self.nothing = None
        self.sequence = nn.SequentialCell(make(), nn.ReLU(), make())
        self.named = nn.SequentialCell(OrderedDict(first=make(), second=make()))
        self.list = nn.CellList([make(), nn.SequentialCell([nn.SequentialCell(make()), nn.CellList([make()])[0]])])
        self.dict = nn.CellDict({"one": make(), "two": make()})
        self.again = self.plain
        self.shared = nn.SequentialCell(self.sequence[0])

    def construct(self, x):
        x = self.named(self.sequence(self.again(self.plain(x))))
        for cell in self.list:
            x = cell(x)
        return self.shared(self.dict["two"](self.dict["one"](x)))


PLACES = [
    "plain",
    "sequence.0",
    "sequence.2",
    "named.first",
    "named.second",
    "list.0",
    "list.1.0.0",
    "list.1.1",
    "dict.one",
    "dict.two",
]
RUNS = len(PLACES) + 2  # two of them run twice


class Doubled(nn.Cell):
    def construct(self, x):
        return 2.0 * x


class Shift(nn.Cell):
    def __init__(self, value: float = 0.0):
        super().__init__()
        self.shift = ms.Parameter(Tensor([value], ms.float32), name="shift")

    def construct(self, x):
        return x + self.shift


def doubled(cell: nn.Cell) -> nn.Cell | None:
    return Doubled() if isinstance(cell, nn.Identity) else None


def names(net: nn.Cell) -> list[str]:
    return [parameter.name for parameter in net.get_parameters()]


def test_what_is_replaced_runs_wherever_it_is():
    net = tree.replace(Planted(nn.Identity), doubled)
    assert cells(net, Doubled) == PLACES
    assert not cells(net, nn.Identity)
    assert net(Tensor([1.0], ms.float32)).asnumpy().tolist() == [2.0**RUNS]


def test_a_shared_cell_stays_one():
    net = tree.replace(Planted(nn.Identity), doubled)
    assert net.again is net.plain
    assert net.shared[0] is net.sequence[0]


def test_children_come_first_and_the_root_last():
    seen = []
    root = nn.SequentialCell(OrderedDict(a=nn.SequentialCell(nn.ReLU()), b=nn.Identity()))
    new = tree.replace(root, lambda cell: seen.append(cell) or (nn.Identity() if cell is root else None))
    assert seen == [root[0][0], root[0], root[1], root]
    assert type(new) is nn.Identity


def test_a_cell_that_holds_its_parent_ends_the_walk():
    net = Planted(nn.Identity)
    net.sequence[1].parent = net.sequence
    assert cells(tree.replace(net, doubled), Doubled) == PLACES


def test_the_mode_and_the_precision_are_taken_over():
    net = mixed_precision(nn.SequentialCell(batch_norm(2), nn.Identity()), "O2").set_train()
    net = tree.replace(net, lambda cell: nn.SequentialCell(nn.ReLU()) if len(cell.name_cells()) == 0 else None)
    assert [cell.training for _, cell in net.cells_and_names()] == [True] * 5
    assert [cell.get_flags()["fp16"] for cell in net] == [False, True]


def test_parameters_keep_their_names_and_new_ones_have_that_of_their_place():
    net = Planted(Shift)
    net.named[0].shift.name = "kept"
    kept = names(net)
    assert kept[3:] == ["kept", *(f"{place}.shift" for place in PLACES[4:])]
    tree.replace(net, lambda cell: _shift_behind(cell) if isinstance(cell, Shift) else None)
    first, second = names(net)[::2], names(net)[1::2]
    assert first == kept
    assert second == [f"{place}.1.shift" for place in PLACES]


def _shift_behind(cell: Shift) -> nn.Cell:
    new = nn.SequentialCell(Shift(), Shift(1.0))
    new[0].shift = cell.shift
    return new


def test_a_child_is_replaced_in_any_container_without_renaming():
    net = Planted(Shift)
    before = names(net)
    for parent, name in (
        (net, "plain"),
        (net.sequence, "2"),
        (net.named, "second"),
        (net.list, "0"),
        (net.dict, "one"),
    ):
        tree.replace_child(parent, name, Doubled())
    gone = ("sequence.2", "named.second", "list.0", "dict.one")  # what was `plain` is still there as `again`
    assert sorted(names(net)) == sorted(name for name in before if not name.startswith(gone))
    assert net(Tensor([1.0], ms.float32)).asnumpy().tolist() == [32.0]


# -- What uses it -----------------------------------------------------------------------------------------------------


def planted_norm() -> nn.Cell:
    return randomise(Planted(lambda: batch_norm(3)))


def test_planted_norms_are_synchronised():
    """On one rank MindSpore's SyncBatchNorm computes what BatchNorm2d does."""
    images = random_images((5, 6))
    net, expected = planted_norm(), planted_norm()
    before = names(net)
    net = synchronize(net, "Ascend")
    assert cells(net, nn.SyncBatchNorm) == PLACES
    assert not cells(net, nn.BatchNorm2d)
    assert names(net) == before
    outputs = [network.set_train()(images).asnumpy() for network in (net, expected)]
    np.testing.assert_array_equal(*outputs)
    for name, value in arrays(expected).items():
        np.testing.assert_array_equal(arrays(net)[name], value, err_msg=name)


def test_a_norm_alone_is_synchronised_and_a_frozen_one_stays_frozen():
    norm = batch_norm(3)
    norm.use_batch_statistics = False
    new = synchronize(norm, "Ascend")
    assert type(new) is nn.SyncBatchNorm
    assert new.use_batch_statistics is False
    new.set_train()(random_images((5, 6)))
    assert new.moving_mean.asnumpy().tolist() == [0.0] * 3


@pytest.mark.skipif(onednn_file().suffix == ".2", reason="MindSpore before 2.9 brings oneDNN 2")
def test_planted_cells_run_kernels():
    net = use_kernels(Planted(lambda: gelu("exact")))
    kinds = {type(cell).__module__ for name, cell in net.cells_and_names() if isinstance(cell, nn.GELU)}
    assert kinds == {"mindcv_reparam.cpu.cells"}
    assert len(cells(net, nn.GELU)) == len(PLACES)
    images = random_images((5, 6))
    assert difference(net(images), Planted(lambda: gelu("exact"))(images)) <= 1e-6


def test_planted_cells_are_fused():
    net = randomise(Planted(lambda: MobileOneConv(3, 3, 3))).set_train(False)
    fused, images = reparameterize(net), random_images((5, 6))
    assert cells(fused, nn.Conv2d) == PLACES
    assert not cells(fused, nn.BatchNorm2d)
    assert difference(fused(images), net(images)) <= 1e-6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda conv: nn.SequentialCell(OrderedDict(first=conv, second=nn.ReLU())),
        lambda conv: nn.SequentialCell(nn.SequentialCell([conv]), nn.ReLU()),
        lambda conv: conv,
    ],
)
def test_a_stem_takes_pixels_wherever_it_is(wrap):
    net, pixels = randomise(wrap(conv2d(3, 4, 3, 2))).set_train(False), random_images((8, 8))
    new = on_pixels(net, (0.5, 0.1, 0.2), (2.0, 3.0, 4.0), (8, 8)).set_train(False)
    assert len(cells(new, PixelStem)) == 1
    mean, std = (np.array(values)[:, None, None] for values in ((0.5, 0.1, 0.2), (2.0, 3.0, 4.0)))
    assert difference(new(pixels), net(Tensor((pixels.asnumpy() - mean) / std, ms.float32))) <= 1e-5


# Of the small networks of tests/networks.py.
NORMS = {"visformer": 12, "fastvit": 37, "regnet": 20, "riformer": 0, "poolformer": 0, "gfnet": 0}


def test_the_norms_of_every_family_are_counted():
    assert NORMS.keys() == SMALL.keys()


@pytest.mark.parametrize("family", NORMS)
def test_every_norm_of_a_family_is_synchronised(family):
    net = small_network(family)
    before = arrays(net), names(net)
    norms = cells(net, nn.BatchNorm2d)
    assert len(norms) == NORMS[family]
    net = synchronize(net, "Ascend")
    assert cells(net, nn.SyncBatchNorm) == norms
    assert not cells(net, nn.BatchNorm2d)
    assert names(net) == before[1]
    after = arrays(net)
    assert list(after) == list(before[0])
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[0][name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["fastvit", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in ("visformer", "regnet"))],
)
def test_every_synchronised_norm_normalises_in_training(family, by_operator):
    """One in evaluation mode would keep its statistics, one that is left out would give another output."""
    net, expected, images = synchronize(small_network(family), "Ascend"), small_network(family), random_images()
    before = arrays(net)
    for network in (net, expected):
        for _, cell in network.cells_and_names():
            if isinstance(cell, Stochastic):
                cell.rate = 0.0
    outputs = [network.set_train()(images).asnumpy() for network in (net, expected)]
    np.testing.assert_array_equal(*outputs)
    moved = [name for name, value in arrays(net).items() if not np.array_equal(value, before[name])]
    assert moved == [name for name in before if name.endswith(("moving_mean", "moving_variance"))]
    assert len(moved) == 2 * NORMS[family]


def test_cells_are_replaced_nowhere_else():
    """Whoever lists the children of a Cell is about to write the walk once more."""
    walk = re.compile(r"\bname_cells\(|\bprivate\.(children|set_run)\(|\binsert_child_to_cell\b(?!`)")
    found = [
        path.relative_to(REPOSITORY).as_posix()
        for path in sorted((REPOSITORY / "mindcv_reparam").rglob("*.py"))
        if walk.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["mindcv_reparam/tree.py"]
