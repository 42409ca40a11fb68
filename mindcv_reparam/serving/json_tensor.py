"""Tensors in JSON, without an object per number: what a body takes in memory is a small multiple of its length.

A body is cut in two before anything is built of it. The data of its tensor are checked for their structure as text and
become numbers piece by piece; what is left of the object is small, or refused, and goes to the schema.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from mindcv_reparam.serving.refused import Refused
from mindcv_reparam.tensors import DATATYPES, TensorSpec

SKELETON_BYTES = 64 * 2**10  # of a request without the data of its tensor: names, shapes, parameters
_PIECE = 64 * 2**10  # characters that become numbers at a time, a millisecond's work in which other threads wait
_SCAN = 2**20  # characters that are looked through at a time
_NUMBER, _SPACE = b"0123456789+-.eE", b" \t\r\n"


class _Tensor(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw()


class _Inputs(msgspec.Struct, array_like=True):
    """The first tensor of a list; the others are skipped, whatever they are."""

    first: _Tensor


class _Request(msgspec.Struct):
    inputs: _Inputs


_TOO_LONG = f"Invalid JSON, or more than {SKELETON_BYTES:,} bytes of it besides the numbers of one tensor"
_REQUEST = msgspec.json.Decoder(_Request)


def cut(text: memoryview) -> tuple[bytes, memoryview | None]:
    """The JSON text of a request with an empty list for the data of its first tensor, and the text of these data;
    None where they are no list.

    Raises:
        Refused: the text without the data is larger than SKELETON_BYTES.
    """
    _check_skeleton(text)
    data, problem = None, ""
    try:
        raw = memoryview(_REQUEST.decode(text).inputs.first.data)
        data = raw if raw[:1] == b"[" else None
    except (msgspec.MsgspecError, RecursionError) as error:  # the schema tells it better, if the text is short enough
        problem = f" ({error})"
    if len(text) - len(data or b"") > SKELETON_BYTES:
        raise Refused(400, _TOO_LONG + problem)
    if data is None:
        return bytes(text), None
    start = _address(data) - _address(text)
    return bytes(text[:start]) + b"[]" + bytes(text[start + len(data) :]), data


def _check_skeleton(text: memoryview) -> None:
    """Refuse text in which too much is no list of numbers, before anything scans it as a whole."""
    left = SKELETON_BYTES
    for start in range(0, len(text), _SCAN):
        left -= len(bytes(text[start : start + _SCAN]).translate(None, _NUMBER + _SPACE + b"[],"))
        if left < 0:
            raise Refused(400, _TOO_LONG)


def parse(text: memoryview, shape: Sequence[int], spec: TensorSpec) -> np.ndarray:
    """A tensor from JSON text that :func:`cut` gave: numbers in lists nested as its shape says, or in a flat one.

    Raises:
        Refused: the lists are not of this shape, or hold something that is no number of the datatype.
    """
    structure = _without(text, _NUMBER + _SPACE)
    if structure.translate(None, b"[],"):
        raise _no_number(spec)
    given, needed = structure.count(b",") + 1 if structure != b"[]" else 0, math.prod(shape)
    if structure.count(b"[") == 1:
        if given != needed:
            raise Refused(400, f"input {spec.name} of shape {list(shape)} is {needed} values, the request has {given}")
    elif given != needed or structure != _nested(shape):
        problem = "its lists are not all of one length, or not of those that its shape says"
        raise Refused(400, f"input {spec.name}: {problem}")
    return _numbers(_without(text, b"[]" + _SPACE), spec).reshape(shape)


def _address(text: memoryview) -> int:
    return np.frombuffer(text, np.uint8).ctypes.data


def _without(text: memoryview, characters: bytes) -> bytes:
    return b"".join(
        bytes(text[start : start + _SCAN]).translate(None, characters) for start in range(0, len(text), _SCAN)
    )


def _nested(shape: Sequence[int]) -> bytes:
    """The brackets and commas of nested lists: those of (2, 3) are ``[[,,],[,,]]``."""
    if not shape:
        return b""
    return b"[" + b",".join([_nested(shape[1:])] * shape[0]) + b"]"


def _numbers(text: bytes, spec: TensorSpec) -> np.ndarray:
    """The numbers of text that has commas between them."""
    dtype = np.dtype(spec.dtype)
    numbers = msgspec.json.Decoder(_list_of(dtype))
    pieces, start = [], 0
    while start < len(text):
        end = text.find(b",", start + _PIECE)
        end = len(text) if end < 0 else end
        try:
            piece = np.array(numbers.decode(b"[%s]" % text[start:end]))
        except msgspec.MsgspecError:
            raise _no_number(spec) from None
        with np.errstate(over="ignore"):
            pieces.append(piece.astype(dtype))
        if not np.isfinite(pieces[-1]).all():
            raise _no_number(spec)
        start = end + 1
    return np.concatenate(pieces)


def _list_of(dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return list[float]
    limits = np.iinfo(dtype)
    return list[Annotated[int, msgspec.Meta(ge=int(limits.min), le=int(limits.max))]]


def _no_number(spec: TensorSpec) -> Refused:
    return Refused(400, f"input {spec.name}: its data are not all {DATATYPES[spec.dtype]} numbers")
