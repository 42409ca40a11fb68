"""Structural re-parameterization as a transformation of the Cell tree.

A train-time network is turned into an inference network with the same outputs; nothing is switched by a flag. Every
fusible region is one Cell that can say what replaces it (:meth:`Reparameterizable.fuse`).
"""

from typing import ClassVar, Literal, get_args

import mindspore as ms
from mindspore import Parameter, Tensor, nn

from mindcv_reparam import tree

Level = Literal["branches", "full"]
LEVELS: tuple[Level, ...] = get_args(Level)


class Reparameterizable:
    """Mixin of Cells that have a simpler equal in evaluation mode.

    ``level`` is the lowest level of :func:`reparameterize` at which the Cell is replaced: "branches" is what the papers
    publish, "full" is every exact fold.
    """

    level: ClassVar[Level] = "full"

    def fuse(self) -> nn.Cell:
        """A new Cell equal to this one in evaluation mode, built from its children as they are; self stays untouched.

        New weights are float64 (:func:`float64_parameter`), so that folds which build on one another round once.
        """
        raise NotImplementedError


def reparameterize(net: nn.Cell, level: Level = "full") -> nn.Cell:
    """The inference network of a train-time network, in evaluation mode; ``net`` is not touched.

    Children are fused before their parents, the root last. Fusing a fused network changes nothing. The structure of the
    result follows from the hyper-parameters and the level alone, so that a fused checkpoint can be loaded strictly into
    ``reparameterize(create_model(...), level)``. Parameters are float32 and named by their place in the new tree.

    Raises:
        ValueError: the level is none of LEVELS.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")

    def fuse(cell: nn.Cell) -> nn.Cell | None:
        replaced = isinstance(cell, Reparameterizable) and LEVELS.index(cell.level) <= LEVELS.index(level)
        return cell.fuse() if replaced else None

    # A Cell changed after its first call would go on running its old graph (the compile cache keys on identity, not on
    # structure), hence the deep copy.
    return finished(tree.replace(tree.copy_of(net), fuse)).set_train(False)


def finished(net: nn.Cell) -> nn.Cell:
    """Round folded weights to float32 and name every parameter by its place, in place; returns the network."""
    for name, parameter in net.parameters_and_names():
        parameter.name = name
        if parameter.dtype == ms.float64:
            parameter.set_dtype(ms.float32)
    return net


def fused(cell: nn.Cell) -> nn.Cell:
    """What a Cell fuses to, or the Cell itself: for parents that are replaced at a lower level than their children."""
    return cell.fuse() if isinstance(cell, Reparameterizable) else cell


def replace_children(cell: nn.Cell, **children: nn.Cell) -> nn.Cell:
    """A deep copy of ``cell`` with some of its children exchanged."""
    new = tree.copy_of(cell)
    for name, child in children.items():
        tree.replace_child(new, name, child)
    return new


def float64_parameter(value, name: str) -> Parameter:
    """A folded weight in the precision of the fold; :func:`finished` rounds it to float32 at the very end."""
    return Parameter(Tensor(value, ms.float64), name=name)
