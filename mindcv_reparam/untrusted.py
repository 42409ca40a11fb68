"""Files that others wrote: opened only where they are files, read only up to a limit, checked before they are used.

Every function raises UserError, which names the file, what is wrong in it and the remedy that the caller gives.
"""

import json
import os
import re
import stat
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pydantic

from mindcv_reparam.errors import UserError

_T = TypeVar("_T")
_MEMBER = re.compile(r"(int|float|bool|str|nullable|none)$|(tuple|constrained|function|literal)[\w-]*\[")
_SHOWN = 60  # characters of a value, or of a name, in a message


def open_regular(path: str | os.PathLike[str], noun: str = "") -> BufferedReader:
    """A file opened for reading.

    Args:
        noun: what messages call it: "labels".

    Raises:
        UserError: nothing can be read there, or what is there is no regular file: opening a pipe or a device could wait
            for ever.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise UserError(f"cannot read {_named(path, noun)}: it is {kind}, not a file")
        # Should another thing have taken its place by now: without waiting for a pipe's other end.
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {_named(path, noun)}: {reason}") from None


def read_bytes(path: str | os.PathLike[str], limit: int, noun: str = "") -> bytes:
    """The content of a file of at most ``limit`` bytes, which messages call by ``noun``.

    Raises:
        UserError: see :func:`open_regular`; or it is larger.
    """
    try:
        with open_regular(path, noun) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {_named(path, noun)}: {error.strerror or error}") from None
    if len(content) > limit:
        raise UserError(f"{_named(path, noun)} is larger than the {limit:,} bytes that such a file may have")
    return content


def read_text(path: str | os.PathLike[str], limit: int, noun: str = "") -> str:
    """The text of a file in UTF-8, without a byte order mark; messages call it by ``noun``.

    Raises:
        UserError: see :func:`read_bytes`; or it is no such text.
    """
    try:
        return read_bytes(path, limit, noun).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{_named(path, noun)} is no text in UTF-8, from byte {error.start} on") from None


def _named(path: str | os.PathLike[str], noun: str) -> str:
    return f"the {noun} {path}" if noun else f"{path}"


def lines(text: str) -> list[str]:
    """Lines as files have them; to ``splitlines`` some characters that a name may hold end one, too."""
    return text.removesuffix("\n").split("\n") if text else []


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of what a file in a folder calls ``name``.

    Raises:
        UserError: it would lie outside of the folder, by its name or by a link.
    """
    folder, relative = Path(folder), PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and ".." not in relative.parts
    if not plain or relative.is_absolute() or not relative.parts:
        raise UserError(f"{folder} names the file {_short(name)}, which is no path inside of it")
    path = folder / relative
    try:
        real, root = os.path.realpath(path), os.path.realpath(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if os.path.commonpath([real, root]) != root:
        raise UserError(f"{path} is a link that leads outside of {folder}: put the file itself there")
    return path


def read_json(path: str | os.PathLike[str], schema: pydantic.TypeAdapter[_T], *, limit: int, remedy: str) -> _T:
    """What a JSON file says, checked against a schema.

    Args:
        limit: bytes of the file.
        remedy: what to do about one that is damaged.

    Raises:
        UserError: see :func:`read_text`; or something in it is wrong, which is named.
    """
    return parse_json(read_text(path, limit), schema, str(path), remedy)


def parse_json(text: str, schema: pydantic.TypeAdapter[_T], name: str, remedy: str) -> _T:
    """The same for a text; ``name`` is what messages call it."""
    try:
        # Read twice: pydantic's reader keeps the last of repeated keys, and JSON has no NaN.
        json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
        return schema.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        reason = explain(error)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # of json, or of the two functions below
        reason = f"it is no valid JSON ({error})"
    raise UserError(f"{name} is damaged: {reason}; {remedy}")


def read_large_json(
    path: str | os.PathLike[str], schema: pydantic.TypeAdapter[_T], *, limit: int, remedy: str, key: str = "id"
) -> _T:
    """What a JSON file of up to gigabytes says, read once and without building what the schema does not ask for.

    The last of repeated keys counts, and NaN is a number, which the caller has to look for.

    Args:
        key: what names a member of a list, for messages.

    Raises:
        UserError: see :func:`read_bytes`; or something in it is wrong, which is named.
    """
    content = read_bytes(path, limit).removeprefix(b"\xef\xbb\xbf")
    try:
        return schema.validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        reason = explain(error)
        places = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][:2]
        if len(places) == 2:
            member = json.loads(content)[places[0]][places[1]]
            named = member.get(key) if isinstance(member, dict) else None
            reason += f" ({key} {_short(named)})" if named is not None else ""
    raise UserError(f"{path} is damaged: {reason}; {remedy}")


def explain(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong: where, what was wanted and what is there."""
    problem = error.errors(include_url=False, include_context=False)[0]
    place = _place(problem["loc"])
    given = "" if problem["type"] in ("missing", "value_error") else f", not {_short(problem['input'])}"
    message = problem["msg"].removeprefix("Value error, ")
    if not place:
        return message
    return f"{place}: {message[0].lower()}{message[1:]}{given}"


def _place(parts: Sequence[str | int]) -> str:
    """``input.shape[1]``; without the names that pydantic gives to the members of a union."""
    keys = [part for part in parts if isinstance(part, int) or (part.isprintable() and not _MEMBER.match(part))]
    return "".join(f"[{key}]" if isinstance(key, int) else f".{_short(key, quoted=False)}" for key in keys).lstrip(".")


def _short(value: Any, quoted: bool = True) -> str:
    """A value in a message, whatever its size."""
    if isinstance(value, dict | list | tuple):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str) and quoted else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{_short(next(key for key in keys if keys.count(key) > 1))} stands there twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
