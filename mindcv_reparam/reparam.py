"""Structural re-parameterization as a transformation of the Cell tree.

A train-time network is turned into an inference network with the same outputs; nothing is switched by a flag. Every
fusible region is one Cell that can say what replaces it (:meth:`Reparameterizable.fuse`).
"""

import copy
from typing import ClassVar, Literal, get_args

import mindspore as ms
from mindspore import Parameter, Tensor, nn

Level = Literal["branches", "full"]
LEVELS: tuple[str, ...] = get_args(Level)


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
    # A Cell changed after its first call would go on running its old graph (the compile cache keys on identity, not on
    # structure), hence the deep copy.
    net = _fuse(_copy(net), LEVELS.index(level))
    for name, parameter in net.parameters_and_names():
        parameter.name = name
        if parameter.dtype == ms.float64:
            parameter.set_dtype(ms.float32)
    return net.set_train(False)


def fused(cell: nn.Cell) -> nn.Cell:
    """What a Cell fuses to, or the Cell itself: for parents that are replaced at a lower level than their children."""
    return cell.fuse() if isinstance(cell, Reparameterizable) else cell


def replace_children(cell: nn.Cell, **children: nn.Cell) -> nn.Cell:
    """A deep copy of ``cell`` with some of its children exchanged."""
    new = _copy(cell)
    for name, child in children.items():
        setattr(new, name, child)
    return new


def float64_parameter(value, name: str) -> Parameter:
    """A folded weight in the precision of the fold; :func:`reparameterize` rounds it to float32 at the very end."""
    return Parameter(Tensor(value, ms.float64), name=name)


def _copy(cell: nn.Cell) -> nn.Cell:
    """A deep copy that leaves the compiled graphs to the original, which would lose them when the copy is deleted."""
    new = copy.deepcopy(cell)
    for _, child in new.cells_and_names():
        child.compile_cache.clear()
    return new


def _fuse(cell: nn.Cell, level: int) -> nn.Cell:
    for name, child in cell.name_cells().items():
        new = _fuse(child, level)
        if new is not child:
            # SequentialCell and CellList run a list of their own, which only item assignment updates.
            if isinstance(cell, nn.SequentialCell | nn.CellList):
                cell[int(name)] = new
            else:
                setattr(cell, name, new)
    if isinstance(cell, Reparameterizable) and LEVELS.index(cell.level) <= level:
        return cell.fuse()
    return cell
