"""Checkpoints of timm, Apple, mmpretrain, MindCV, GFNet, RT-DETR and transformers in this project's names, and back.

Format and model are recognised from names and shapes. Names and arrays only: files are read by :mod:`files`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mindcv_reparam.convert.facts import input_facts
from mindcv_reparam.errors import UserError
from mindcv_reparam.formats import State, Table
from mindcv_reparam.registry import FORMATS, families, model_info
from mindcv_reparam.zoo import family_classifier, family_variants, import_family

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
    def state(self) -> State:
        return self.table.state


def tables() -> tuple[Table, ...]:
    """The formats of every family that says some, family after family.

    Raises:
        UserError: the file of a family from outside the package cannot be run, or is incomplete.
    """
    for family in families():
        import_family(family)
    return tuple(
        replace(table, family=family) for family in families() if family in FORMATS for table in FORMATS[family].tables
    )


def detect(names: Iterable[str]) -> tuple[Table, str, tuple[str, ...]]:
    """The format of a checkpoint, the prefix under which the network lies in it, and those of other copies of it.

    Raises:
        UserError: no known format, or several networks that could be meant.
    """
    names = set(names)
    known_tables = tables()
    found = [(table, prefixes) for table in known_tables if (prefixes := _prefixes(names, table))]
    if not found:
        shown = ", ".join(sorted(names)[:3])
        formats = sorted({f"{table.source} {table.family}" for table in known_tables})
        raise UserError(f"tensors named {shown}, … are no known format; known are {', '.join(formats)}")
    # A detector's file has the markers of its backbone, too.
    table, prefixes = max(found, key=lambda each: len(each[0].markers))
    known = [prefix for prefix in _PREFIXES if prefix in prefixes]
    if not known and len(prefixes) > 1:
        raise UserError(f"the file holds several networks, {', '.join(prefixes)}: extract one of them")
    chosen = (known or prefixes)[0]
    return table, chosen, tuple(prefix for prefix in prefixes if prefix != chosen)


def _prefixes(names: set[str], table: Table) -> list[str]:
    """Under which prefixes the names have the markers of a table."""
    first = table.markers[0]
    prefixes = [name.removesuffix(first) for name in names if name == first or name.endswith(f".{first}")]
    return sorted(prefix for prefix in prefixes if all(prefix + marker in names for marker in table.markers))


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
    parameters: dict[str, np.ndarray] = {}
    unused: dict[str, str] = {}
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix) or not inner.startswith(table.roots) or _BESIDE.fullmatch(name):
            unused[name] = "not part of the network"
        elif name.startswith(others):
            unused[name] = f"another copy of the network; the one under {prefix or 'no prefix'!r} is taken"
        elif reason := _needless(table, inner, value):
            unused[name] = reason
        else:
            ours, converted = _converted(table, name, inner, value)
            if ours not in parameters:
                parameters[ours] = converted
            elif np.array_equal(parameters[ours], converted):
                unused[name] = "the same as another tensor, which is used"
            else:
                raise UserError(f"the file holds {ours} twice, and {name} differs from the other one")
    for join in table.joins:
        parameters = join.forward(parameters)
    name = _model(table, parameters, model)
    formats = FORMATS[table.family]
    try:
        told = input_facts(formats, family_classifier(table.family), parameters)
    except StopIteration:
        raise UserError(f"the file holds a {table.family} without a stem: it is not whole") from None
    further = formats.further(parameters) if formats.further else {}
    return Conversion(name, table, {**told, **further, **dict(table.hparams)}, parameters, unused)


def _needless(table: Table, inner: str, value: np.ndarray) -> str | None:
    """Why a tensor of the network, by the source's name, is not needed; None if it is.

    Raises:
        UserError: it is a constant of networks here, with another number.
    """
    if inner.endswith("num_batches_tracked"):
        return "PyTorch's counter of batches, not used in inference"
    for pattern, number in table.constants:
        if re.fullmatch(pattern, inner):
            if not np.all(value == number):
                raise UserError(f"{inner} is not {number} throughout, as every {table.family} here has it")
            return f"{number} throughout, as every {table.family} here has it"
    return next((reason for pattern, reason in table.unused if re.fullmatch(pattern, inner)), None)


def _converted(table: Table, name: str, inner: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """This project's name and layout of a tensor."""
    ours = table.to_ours(inner)
    layout = table.layout(ours)
    try:
        return ours, layout.forward(value) if layout else value
    except ValueError:
        raise UserError(f"{name} has the shape {value.shape}, which no {table.family} has") from None


def revert(parameters: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """The inverse of :func:`convert`: the source's names and layouts, batch counters of PyTorch's norms at 0."""
    state: dict[str, np.ndarray] = {}
    for join in table.joins:
        parameters = join.backward(parameters)
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
    own = [table for table in tables() if table.family == family and table.written]
    own = [table for table in own if table.lacks is None or not re.fullmatch(table.lacks, model)]
    sources = {table.source for table in own}
    if source not in sources:
        raise UserError(f"{source} has no {model}" + (f"; {', '.join(sorted(sources))} has" if sources else ""))
    for table in own:
        if (table.source, table.state) == (source, state):
            return table
    raise UserError(f"{source} has no names for the parameters of a {state} checkpoint: take the train-time one")


def _model(table: Table, parameters: Mapping[str, np.ndarray], wanted: str | None) -> str:
    family = table.family
    variants = family_variants(family)
    try:
        facts = (table.variant or FORMATS[family].variant)(parameters)
    except KeyError as error:
        raise UserError(f"the file holds a {family} without {error}: it is not whole") from None
    fitting = [name for name, hparams in variants.items() if facts.items() <= hparams.items()]
    described = ", ".join(f"{key} {value}" for key, value in facts.items())
    if wanted is not None and wanted not in fitting:
        model_info(wanted)
        raise UserError(f"the file does not fit {wanted}: it holds a {family} of {described}{_named(fitting)}")
    if not fitting:
        raise UserError(f"the file holds a {family} of {described}, which is no model of the zoo")
    if wanted is None and len(fitting) > 1 and not table.part:
        raise UserError(f"the file fits {' and '.join(fitting)}: choose by --model")
    return wanted or fitting[0]


def _named(fitting: list[str]) -> str:
    return f", that is {' or '.join(fitting)}" if fitting else ""
