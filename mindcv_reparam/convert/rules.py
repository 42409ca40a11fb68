"""Renaming rules that read in both directions, and the tables that are made of them."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

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
                values[field] = other_factor * index + other_offset
                if values[field] < 0:
                    return name
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
class Table:
    """One format of checkpoints of one family.

    Attributes:
        source: the code base that writes the format.
        markers: names that a file of the format has and no other has all of.
        rules: applied one after the other; backwards in the reverse order.
        norms: regular expression of the modules (by this project's names) whose leaves PyTorch and MindSpore call
            differently.
        unused: regular expression of the source's names that inference does not need.
        roots: what the names of the network begin with; others in the file belong to something else.
        state: "train", or "branches" for the fused release of the original.
        hparams: arguments of create_model that the format implies.
        lacks: models of the family that the code base does not have.
    """

    source: str
    family: str
    markers: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    norms: str | None = None
    layouts: tuple[Layout, ...] = ()
    unused: str | None = None
    roots: tuple[str, ...] = ("",)
    state: str = "train"
    hparams: tuple[tuple[str, str], ...] = ()
    lacks: tuple[str, ...] = ()

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
