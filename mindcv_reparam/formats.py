"""What a family's file says of checkpoints in other code bases' names: `Formats`.

Renaming rules read in both directions and make tables, one per format of file; what the rules leave open, the shapes of
the converted parameters tell. :mod:`mindcv_reparam.convert` applies them.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mindcv_reparam.errors import UserError

State = Literal["train", "branches"]  # of a file: as trained, or fused by its own authors

Parameters = Mapping[str, np.ndarray]  # of a network, by this project's names

_FIELD = re.compile(r"\{(\d*)([a-z]+)([+-]\d+)?\}")
_NORM_LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_NORM_LEAVES_BACK = {ours: theirs for theirs, ours in _NORM_LEAVES.items()}


@dataclass(frozen=True)
class Rule:
    """``theirs`` ↔ ``ours``, two templates of a whole name.

    A field of one letter is an index and may be linear: ``network.{2i}.{j}.{rest}`` ↔ ``stages.{i}.{j}.{rest}``.
    ``leaf`` is text without a dot, another name any text. Names that do not match stay as they are.
    """

    theirs: str
    ours: str

    def forward(self, name: str) -> str:
        return self._theirs.rewrite(name, self._ours)

    def backward(self, name: str) -> str:
        return self._ours.rewrite(name, self._theirs)

    @cached_property
    def _theirs(self) -> "_Template":
        return _Template(self.theirs)

    @cached_property
    def _ours(self) -> "_Template":
        return _Template(self.ours)


class _Template:
    def __init__(self, text: str):
        self.fields: dict[str, tuple[int, int]] = {}  # name → factor and offset of the index
        pattern, self.format, end = "", "", 0
        for match in _FIELD.finditer(text):
            factor, name, offset = match.groups()
            literal, end = text[end : match.start()], match.end()
            self.fields[name] = (int(factor or 1), int(offset or 0))
            pattern += re.escape(literal) + f"(?P<{name}>{_kind(name)})"
            self.format += f"{literal}{{{name}}}"
        self.pattern = re.compile(pattern + re.escape(text[end:]))
        self.format += text[end:]

    def rewrite(self, name: str, other: "_Template") -> str:
        match = self.pattern.fullmatch(name)
        if match is None:
            return name
        values: dict[str, str | int] = dict(match.groupdict())
        for field, (factor, offset) in self.fields.items():
            if len(field) == 1:
                index, remainder = divmod(int(match[field]) - offset, factor)
                if remainder or index < 0:
                    return name
                other_factor, other_offset = other.fields[field]
                converted = other_factor * index + other_offset
                if converted < 0:
                    return name
                values[field] = converted
        return other.format.format_map(values)


def _kind(field: str) -> str:
    if len(field) == 1:
        return r"\d+"
    return r"[^.]+" if field == "leaf" else ".+"


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory there and here."""

    names: str  # regular expression of this project's names
    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


def trailing_ones(names: str, theirs: int, ours: int) -> Layout:
    """Tensors of ``theirs`` dimensions there and ``ours`` here, the difference being axes of one at the end."""

    def reshape(value: np.ndarray, ndim: int) -> np.ndarray:
        return value.reshape((*value.shape, *[1] * ndim)[:ndim])

    return Layout(names, lambda value: reshape(value, ours), lambda value: reshape(value, theirs))


def tokens(names: str) -> Layout:
    """Position embeddings (1, H·W, C) there, (1, C, H, W) here; square, which the tensor alone does not tell."""

    def to_map(value: np.ndarray) -> np.ndarray:
        _, length, channels = value.shape
        side = math.isqrt(length)
        return value.reshape(1, side, length // side, channels).transpose(0, 3, 1, 2)

    def to_tokens(value: np.ndarray) -> np.ndarray:
        return value.transpose(0, 2, 3, 1).reshape(1, -1, value.shape[1])

    return Layout(names, to_map, to_tokens)


@dataclass(frozen=True)
class Joined:
    """Tensors of one shape there that lie below one another in one here, as the projections of attention do.

    The rules call a part ``NAME.PART``.
    """

    names: str  # regular expression of this project's names
    parts: tuple[str, ...]

    def forward(self, parameters: Parameters) -> dict[str, np.ndarray]:
        """Every parameter, parts put together.

        Raises:
            UserError: a part is missing or has another shape than the others.
        """
        joined: dict[str, np.ndarray] = {}
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, value in parameters.items():
            whole, _, part = name.rpartition(".")
            if part in self.parts and re.fullmatch(self.names, whole):
                parts.setdefault(whole, {})[part] = value
            else:
                joined[name] = value
        for whole, values in parts.items():
            lacking = [part for part in self.parts if part not in values]
            if lacking:
                raise UserError(f"the file holds {whole} without {', '.join(lacking)}: it is not whole")
            if len({value.shape for value in values.values()}) > 1 or () in {value.shape for value in values.values()}:
                shapes = ", ".join(f"{part} {value.shape}" for part, value in values.items())
                raise UserError(f"the parts of {whole} have the shapes {shapes}, where one belongs")
            joined[whole] = np.concatenate([values[part] for part in self.parts])
        return joined

    def backward(self, parameters: Parameters) -> dict[str, np.ndarray]:
        """Every parameter, those of several parts taken apart."""
        taken: dict[str, np.ndarray] = {}
        for name, value in parameters.items():
            if re.fullmatch(self.names, name):
                pieces = np.split(value, len(self.parts))
                taken |= {f"{name}.{part}": piece for part, piece in zip(self.parts, pieces)}
            else:
                taken[name] = value
        return taken


@dataclass(frozen=True)
class Table:
    """One format of checkpoints of one family.

    Attributes:
        source: the code base that writes the format, as ``convert --to`` names it.
        markers: names that a file of the format has and no other has all of, unless it has more of its own.
        rules: applied one after the other; backwards in the reverse order.
        norms: regular expression of the modules (by this project's names) whose leaves PyTorch and MindSpore call
            differently.
        joins: tensors that are several there and one here.
        unused: regular expressions of the source's names that inference does not need, each with the reason.
        constants: regular expressions of the source's names that hold one number throughout, which networks here have
            in them, each with that number.
        roots: what the names of the network begin with; others in the file belong to something else.
        state: "train", or "branches" for the fused release of the original.
        hparams: arguments of create_model that the format implies.
        lacks: regular expression of the models of the family that the table is not for.
        part: of the network, by this project's name, that the file holds alone; empty where it holds the whole.
        variant: what tells the models apart in such a file, in place of the family's; the first that fits is meant.
        written: whether ``convert --to`` writes the format, or only reads it.
        family: of the file that brings the table; filled in by :mod:`mindcv_reparam.convert`.
    """

    source: str
    markers: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    norms: str | None = None
    layouts: tuple[Layout, ...] = ()
    joins: tuple[Joined, ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    roots: tuple[str, ...] = ("",)
    state: State = "train"
    hparams: tuple[tuple[str, object], ...] = ()
    lacks: str | None = None
    part: str = ""
    variant: Callable[[Parameters], dict[str, Any]] | None = None
    written: bool = True
    family: str = ""

    def __post_init__(self) -> None:
        if not self.markers:
            raise UserError(f"the Table of {self.source} lacks markers")

    def to_ours(self, name: str) -> str:
        for rule in self.rules:
            name = rule.forward(name)
        return self._leaf(name, _NORM_LEAVES)

    def to_theirs(self, name: str) -> str:
        name = self._leaf(name, _NORM_LEAVES_BACK)
        for rule in reversed(self.rules):
            name = rule.backward(name)
        return name

    def layout(self, our_name: str) -> Layout | None:
        return next((layout for layout in self.layouts if re.fullmatch(layout.names, our_name)), None)

    def _leaf(self, name: str, leaves: dict[str, str]) -> str:
        module, _, leaf = name.rpartition(".")
        is_norm = self.norms is not None and re.fullmatch(self.norms, module)
        return f"{module}.{leaves[leaf]}" if is_norm and leaf in leaves else name


@dataclass(frozen=True)
class Formats:
    """The formats of a family's checkpoints, and what the shapes of its converted parameters tell.

    A family hands them to :func:`mindcv_reparam.registry.register_variants`; the first three have no default that
    would do.

    Attributes:
        tables: the formats; a file is of that whose markers it has, of several that with the most, and of the first.
        stems: names that the weight of the first convolution (out, in_channels, h, w) has, train-time and fused.
        variant: the hyper-parameters that tell the models of the family apart, as its variants name them. May raise
            KeyError for a parameter that no file lacks that is whole.
        positions: parameters (1, C, H, W) with an entry per pixel of a map, and its stride; finest first.
        further: other arguments of create_model that the parameters tell, whatever the model.
    """

    tables: tuple[Table, ...] = ()
    stems: tuple[str, ...] = ()
    variant: Callable[[Parameters], dict[str, Any]] = None  # type: ignore[assignment]  # refused below
    positions: tuple[tuple[str, int], ...] = ()
    further: Callable[[Parameters], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        lacking = [name for name in ("tables", "stems", "variant") if not getattr(self, name)]
        if lacking:
            raise UserError(f"Formats lacks {', '.join(lacking)}")


def conv_norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """A convolution and its batch norm, ``conv`` and ``bn`` there, 0 and 1 of a ConvNorm here."""
    return Rule(f"{theirs}.conv.{{leaf}}", f"{ours}.0.{{leaf}}"), Rule(f"{theirs}.bn.{{leaf}}", f"{ours}.1.{{leaf}}")


TIMM_HEAD = Rule("head.fc.{leaf}", "head.{leaf}")


def shape_of(parameters: Parameters, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a parameter.

    Raises:
        KeyError: there is none of this name.
        UserError: it has not as many axes as a network's.
    """
    shape = parameters[name].shape
    if len(shape) != axes or 0 in shape:
        raise UserError(f"the file does not hold a network: {name} has the shape {shape}, where {axes} axes belong")
    return shape


def count(parameters: Parameters, pattern: str) -> int:
    """How many different numbers the group of a regular expression takes that matches whole names."""
    return len({match[1] for name in parameters if (match := re.fullmatch(pattern, name))})
