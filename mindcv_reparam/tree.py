"""The one walk that replaces Cells in a tree.

Assigning a Cell by hand goes wrong in ways that nobody sees: a SequentialCell runs a list of its own, a Cell at two
places is replaced at one, a new Cell is in evaluation mode, parameters change their names, a copy takes the compiled
graphs of the original along.
"""

import copy
from collections.abc import Callable

from mindspore import nn

from mindcv_reparam import private

Rule = Callable[[nn.Cell], nn.Cell | None]


def replace(net: nn.Cell, rule: Rule) -> nn.Cell:
    """Replace, in place and before its first call, every Cell of a tree for which ``rule`` gives another one.

    The rule sees each Cell once, children before parents, the root last; None or the Cell itself leaves it where it is.
    What it gives is not looked into. A Cell at several places stays one Cell. A new Cell takes over the mode (training
    or evaluation) and the precision of the one it replaces. Parameters keep their names; new ones are named by their
    place.

    Returns:
        The root, or what replaces it.
    """
    names = [(parameter, parameter.name) for parameter in net.get_parameters()]
    net = _replaced(net, rule, {})
    for name, parameter in net.parameters_and_names():
        parameter.name = name
    for parameter, name in names:
        parameter.name = name
    return net


def replace_child(parent: nn.Cell, name: str, child: nn.Cell) -> None:
    """Exchange one child of a plain Cell or of any container; the names of parameters stay as they are."""
    parent.insert_child_to_cell(name, child)
    if isinstance(parent, nn.SequentialCell):
        private.set_run(parent, list(children(parent).values()))


def children(cell: nn.Cell) -> dict[str, nn.Cell]:
    """The children by name, also those that are at several places: ``name_cells`` names them once."""
    return {name: child for name, child in private.children(cell).items() if child is not None}


def copy_of(cell: nn.Cell) -> nn.Cell:
    """A deep copy that leaves the compiled graphs to the original, which would lose them when the copy is deleted."""
    new = copy.deepcopy(cell)
    for _, child in new.cells_and_names():
        private.forget_graphs(child)
    return new


def _replaced(cell: nn.Cell, rule: Rule, done: dict[nn.Cell, nn.Cell]) -> nn.Cell:
    """``done``: what has become of the Cells that the walk has met."""
    if cell in done:
        return done[cell]
    done[cell] = cell  # a Cell that holds one of its parents ends here
    for name, child in children(cell).items():
        new = _replaced(child, rule, done)
        if new is not child:
            replace_child(cell, name, new)
    new = rule(cell)
    if new is not None and new is not cell:
        new.add_flags(**cell.get_flags())
        done[cell] = new.set_train(cell.training)
    return done[cell]
