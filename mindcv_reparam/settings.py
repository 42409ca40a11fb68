"""Typed settings read from text: how YAML or a flag becomes the value of a configuration field.

YAML scalars and command line tokens are read by the same rules, those of the field's type, so that ``lr: 1e-3`` (a
string in YAML 1.1) is a number and ``--distribute False`` is false.
"""

import argparse
import dataclasses
import math
import operator
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from mindcv_reparam.errors import shortened
from mindcv_reparam.suggestions import suggestion

Text = str | list[str] | None  # a scalar, a sequence of scalars, YAML's null

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NULLS = {"none": None, "null": None, "~": None}
_LARGEST = 2**31 - 1  # of whole numbers: what MindSpore's integers hold
_LIMITS = {
    "at_least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "at_most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def setting(
    group: str,
    scripts: str,
    default: Any,
    help: str,
    *,
    older_flag: str | None = None,
    inherited: Literal["model", "checkpoint"] | None = None,
    **limits: float,
) -> Any:
    """A dataclass field together with what the command line needs to know.

    Args:
        group: heading of the help that lists the flag.
        scripts: initials of the commands that have the flag (``"TVEP"``: train, validate, export, probe).
        default: value when neither YAML nor a flag sets it.
        help: a phrase; the parser adds the default.
        older_flag: another name on the command line, which the help does not show.
        inherited: what stands in for a default unless the user gives a value: "model" is the model's own in training
            and the checkpoint's afterwards, "checkpoint" the checkpoint's in validation and export.
        limits: ``at_least``, ``above``, ``at_most``, ``below``; they hold for every element of a tuple.
    """
    unknown = limits.keys() - _LIMITS.keys()
    if unknown:
        raise TypeError(f"unknown limits {sorted(unknown)}")
    metadata = {
        "group": group,
        "scripts": scripts,
        "help": help,
        "older_flag": older_flag,
        "inherited": inherited,
        "limits": limits,
    }
    return dataclasses.field(default=default, metadata=metadata)


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def elements(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type, a tuple replaced by its elements' type."""
    return tuple(typing.get_args(one)[0] if typing.get_origin(one) is tuple else one for one in members(hint))


def choices(hint: Any) -> tuple[Any, ...]:
    """Everything that the literals of a type list."""
    return tuple(
        choice for one in elements(hint) if typing.get_origin(one) is Literal for choice in typing.get_args(one)
    )


def takes_several(hint: Any) -> bool:
    """Whether a value may be a tuple."""
    return any(typing.get_origin(one) is tuple for one in members(hint))


def describe(hint: Any) -> str:
    """What a user may write for a type, as words: "a whole number or None"."""
    return " or ".join(_describe(member) for member in members(hint))


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        words = ", ".join(str(choice) for choice in typing.get_args(hint))
        return f"one of {words}" if len(typing.get_args(hint)) > 1 else words
    if typing.get_origin(hint) is tuple:
        element, *rest = typing.get_args(hint)
        if choices(element):
            return f"{_describe(element)} (several with commas between)"
        noun = {int: "whole numbers", str: "words"}.get(element, "numbers")
        return f"{noun} with commas between" if rest == [Ellipsis] else f"{1 + len(rest)} {noun}"
    nouns = {bool: "True or False", int: "a whole number", float: "a number", str: "text", types.NoneType: "None"}
    return nouns[hint]


def read(name: str, hint: Any, limits: dict[str, float], text: Text) -> Any:
    """The value that ``text`` stands for.

    Raises:
        ValueError: one line that names the setting, what it wants, what it got and the choice that was near.
    """
    # None first: to a plain str every text is welcome.
    for member in sorted(members(hint), key=lambda member: member is not types.NoneType):
        try:
            value = _read(member, text)
        except (ValueError, KeyError):
            continue
        except OverflowError:
            raise ValueError(f"{name} must be at most {_LARGEST} in size, got {shortened(str(text))}") from None
        check_limits(name, limits, value)
        return value
    got = "nothing" if text is None else repr(shortened(text if isinstance(text, str) else ", ".join(text[:80])))
    meant = suggestion(text, [str(choice) for choice in choices(hint)]) if isinstance(text, str) else ""
    raise ValueError(f"{name} must be {describe(hint)}, got {got}{meant}")


def whole_number(least: int = 1, most: int = _LARGEST) -> Callable[[str], int]:
    """A type for ``add_argument``: a whole number within bounds.

    Raises:
        argparse.ArgumentTypeError: by the function returned, naming the bounds.
    """

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
            bounds = f"of at least {least}" if most == _LARGEST else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {shortened(text)!r}")
        return int(text)

    return parse


def _read(hint: Any, text: Text) -> Any:
    if typing.get_origin(hint) is tuple:
        return _read_tuple(typing.get_args(hint), text)
    if hint is types.NoneType and text is None:
        return None
    if not isinstance(text, str):
        raise ValueError("a single value is wanted")
    if typing.get_origin(hint) is Literal:
        return {str(choice): choice for choice in typing.get_args(hint)}[text]
    if hint is types.NoneType:
        return _NULLS[text.lower()]
    if hint is bool:
        return _BOOLEANS[text.lower()]
    if hint is str and "\0" in text:
        raise ValueError("no path and no name has it")
    value = hint(text)
    if hint is float and not math.isfinite(value):
        raise ValueError("a finite number is wanted")
    if hint is int and abs(value) > _LARGEST:
        raise OverflowError
    return value


def _read_tuple(elements: tuple[Any, ...], text: Text) -> tuple[Any, ...]:
    if isinstance(text, str):
        text = [part for part in re.split(r"[\s,]+", text.strip().strip("[]()")) if part]
    if not text:
        raise ValueError("at least one value is wanted")
    if elements[-1] is Ellipsis:
        elements = elements[:1] * len(text)
    if len(elements) != len(text):
        raise ValueError("another number of values is wanted")
    return tuple(_read(element, part) for element, part in zip(elements, text))


def check_limits(name: str, limits: dict[str, float], value: Any) -> None:
    """Raise ValueError, in one line, for a number (or one of several) that is outside of a setting's limits."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (int, float)) and not all(
            _LIMITS[key][1](number, bound) for key, bound in limits.items()
        ):
            wanted = " and ".join(f"{_LIMITS[key][0]} {_number(bound)}" for key, bound in limits.items())
            raise ValueError(f"{name} must be {wanted}, got {_number(number)}")


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
