"""Checkpoints of timm, Apple, mmpretrain, MindCV and GFNet in this project's names, and back.

Format and model are recognised from names and shapes. Names and arrays only: files are read by :mod:`.files`.
"""

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError
from ..registry import model_info
from .facts import input_facts, variant_facts
from .rules import Table
from .tables import TABLES

# Where wrappers and averages put the network, best first: averaged weights are the ones their owners publish.
_PREFIXES = ("ema.", "", "module.", "model.", "network.", "student.")
# What else a training script leaves in the same file.
_BESIDE = re.compile(
    r"(.*\.)?teacher\..*|(global_step|learning_rate|current_iterator_step|last_overflow_iterator_step"
    r"|scale_sense|scale_value|loss_scale|updates|beta[12]_power|momentum|epoch_num|step_num)"
)


@dataclass(frozen=True)
class Conversion:
    """A network of this project, by its names.

    Attributes:
        state: "train", or "branches" when the source was fused by its own authors.
        hparams: arguments of create_model; without num_classes the source had no classifier.
        unused: tensors of the source that are not part of the network → why.
    """

    model: str
    table: Table
    hparams: dict[str, Any]
    parameters: dict[str, np.ndarray]
    unused: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return self.table.state


def detect(names: Iterable[str]) -> tuple[Table, str, tuple[str, ...]]:
    """The format of a checkpoint, the prefix under which the network lies in it, and those of other copies of it.

    Raises:
        UserError: no known format, or several networks that could be meant.
    """
    names = set(names)
    for table in TABLES:
        first = table.markers[0]
        prefixes = [name.removesuffix(first) for name in names if name == first or name.endswith(f".{first}")]
        prefixes = sorted(prefix for prefix in prefixes if all(prefix + marker in names for marker in table.markers))
        known = [prefix for prefix in _PREFIXES if prefix in prefixes]
        if not known and len(prefixes) > 1:
            raise UserError(f"the file holds several networks, {', '.join(prefixes)}: extract one of them")
        if prefixes:
            chosen = (known or prefixes)[0]
            return table, chosen, tuple(prefix for prefix in prefixes if prefix != chosen)
    shown = ", ".join(sorted(names)[:3])
    formats = sorted({f"{table.source} {table.family}" for table in TABLES})
    raise UserError(f"tensors named {shown}, … are no known format; known are {', '.join(formats)}")


def convert(state: Mapping[str, np.ndarray], model: str | None = None) -> Conversion:
    """A checkpoint of another code base in this project's names and layouts.

    Args:
        state: the source's tensors by its own names.
        model: the model to take it for; recognised when None.

    Raises:
        UserError: the format is unknown, the model is none of the zoo or not ``model``.
    """
    table, prefix, others = detect(state)
    others = tuple(other for other in others if other.startswith(prefix))
    parameters, unused = {}, {}
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix) or not inner.startswith(table.roots) or _BESIDE.fullmatch(name):
            unused[name] = "not part of the network"
        elif name.startswith(others):
            unused[name] = f"another copy of the network; the one under {prefix or 'no prefix'!r} is taken"
        elif inner.endswith("num_batches_tracked"):
            unused[name] = "PyTorch's counter of batches, not used in inference"
        elif table.unused is not None and re.fullmatch(table.unused, inner):
            unused[name] = "normalises an output of a backbone, not of the classifier"
        else:
            ours = table.to_ours(inner)
            layout = table.layout(ours)
            parameters[ours] = layout.forward(value) if layout else value
    name = _model(table.family, parameters, model)
    hparams = {**input_facts(table.family, parameters), **dict(table.hparams)}
    return Conversion(name, table, hparams, parameters, unused)


def revert(parameters: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """The inverse of :func:`convert`: the source's names and layouts, batch counters of PyTorch's norms at 0."""
    state: dict[str, np.ndarray] = {}
    for ours, value in parameters.items():
        layout = table.layout(ours)
        name = table.to_theirs(ours)
        state[name] = np.ascontiguousarray(layout.backward(value) if layout else value)
        if name.endswith(".running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state


def table_for(model: str, source: str, state: str) -> Table:
    """The table to write a model for another code base with.

    Raises:
        UserError: that code base has no such model, or not in this state.
    """
    family = model_info(model).family
    tables = [table for table in TABLES if table.family == family and model not in table.lacks]
    if source not in {table.source for table in tables}:
        raise UserError(f"{source} has no {model}")
    for table in tables:
        if (table.source, table.state) == (source, state):
            return table
    raise UserError(f"{source} has no names for the parameters of a {state} checkpoint: take the train-time one")


def _model(family: str, parameters: Mapping[str, np.ndarray], wanted: str | None) -> str:
    variants = importlib.import_module(f"..models.{family}", __package__).VARIANTS
    try:
        facts = variant_facts(family, parameters)
    except KeyError as error:
        raise UserError(f"the file holds a {family} without {error}: it is not whole") from None
    fitting = [name for name, hparams in variants.items() if facts.items() <= hparams.items()]
    described = ", ".join(f"{key} {value}" for key, value in facts.items())
    if wanted is not None and wanted not in fitting:
        model_info(wanted)
        raise UserError(f"the file does not fit {wanted}: it holds a {family} of {described}{_named(fitting)}")
    if not fitting:
        raise UserError(f"the file holds a {family} of {described}, which is no model of the zoo")
    if wanted is None and len(fitting) > 1:
        raise UserError(f"the file fits {' and '.join(fitting)}: choose by --model")
    return wanted or fitting[0]


def _named(fitting: list[str]) -> str:
    return f", that is {' or '.join(fitting)}" if fitting else ""
