"""MindSpore's .ckpt format, read without MindSpore's reader, which believes what a file says of its own sizes.

A file is a protobuf message of entries, one per tensor or several where it is large, and may end with a checksum:

    Checkpoint  {repeated Entry entry = 1}
    Entry       {string name = 1; Tensor tensor = 2}
    Tensor      {repeated int64 dims = 1; string type = 2; bytes content = 3}

Everything is checked against the file's size before an array takes memory: what is read is as large as the file.
"""

import itertools
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader

import numpy as np

from mindcv_reparam.untrusted import open_regular

_TYPES = {
    "Bool": "?",
    **{f"Int{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UInt{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"Float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BFloat16": "<u2",  # the upper half of a float32, which NumPy has no type for
    "str": "<u4",  # characters
}
_MARK = b"crc_num"
_TRAILER = len(_MARK) + 10  # and the CRC-32 of all before it, big-endian
_BLOCK = 1 << 20
# Far above what any network has; an entry of six bytes must not become an object of hundreds.
_ENTRIES, _AXES, _NAME, _TEXT = 100_000, 16, 1024, 16 << 20
_SIZE = 16 << 30  # bytes of a file


class DamagedCheckpoint(Exception):
    """A file that is not whole, or no checkpoint; the message says why."""


@dataclass
class Contents:
    """What a file holds, by name."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    has_checksum: bool = False


@dataclass(frozen=True)
class _Piece:
    """An entry: a tensor, or a part of it."""

    name: str
    type: str
    dims: tuple[int, ...]
    start: int
    end: int


def read_contents(path: str | os.PathLike[str], texts_only: bool = False) -> Contents:
    """The tensors and texts of a checkpoint; of the texts alone, the checksum is not computed.

    Raises:
        DamagedCheckpoint: the file is not whole, or none.
        UserError: there is no file that can be opened.
    """
    with open_regular(path) as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size, texts_only)
        except OSError as error:
            raise DamagedCheckpoint(f"it cannot be read ({error.strerror})") from error


def _read(file: BufferedReader, size: int, texts_only: bool) -> Contents:
    contents, end = Contents(), size
    if size > _SIZE:
        raise DamagedCheckpoint(f"it takes {size:,} bytes, more than {_SIZE:,}")
    file.seek(max(size - _TRAILER, 0))
    trailer = file.read(_TRAILER)
    if trailer.startswith(_MARK):
        contents.has_checksum, end = True, size - _TRAILER
    file.seek(0)
    pieces = list(_pieces(file, end))
    if not pieces:
        raise DamagedCheckpoint("it is empty")
    if contents.has_checksum and not texts_only and _crc(file, end) != int.from_bytes(trailer[len(_MARK) :], "big"):
        raise DamagedCheckpoint("its checksum is not that of its content")
    seen: set[str] = set()
    for name, group in itertools.groupby(pieces, key=lambda piece: piece.name):
        if name in seen:
            raise DamagedCheckpoint(f"it holds {name} twice")
        seen.add(name)
        parts = list(group)
        if parts[0].type == "str":
            contents.texts[name] = _text(file, parts)
        elif not texts_only:
            contents.arrays[name] = _array(file, parts)
    return contents


def _pieces(file: BufferedReader, end: int) -> Iterator[_Piece]:
    for count, (number, wire, value) in enumerate(_fields(file, end)):
        if (number, wire) != (1, 2) or count == _ENTRIES:
            raise DamagedCheckpoint("it has other things than entries, or too many of them")
        yield _piece(file, value)


def _piece(file: BufferedReader, end: int) -> _Piece:
    """The entry that ends at ``end``."""
    name = kind = content = None
    dims: list[int] = []
    for number, wire, value in _fields(file, end):
        if (number, wire) == (1, 2) and name is None:
            name = _word(file, value)
        elif (number, wire) == (2, 2) and content is None:
            for inner, inner_wire, inner_value in _fields(file, value):
                if (inner, inner_wire) == (1, 0) and len(dims) < _AXES:
                    dims.append(inner_value)
                elif (inner, inner_wire) == (2, 2) and kind is None:
                    kind = _word(file, inner_value)
                elif (inner, inner_wire) == (3, 2) and content is None:
                    content = file.tell(), inner_value
                else:
                    raise DamagedCheckpoint("a tensor has parts that none has")
        else:
            raise DamagedCheckpoint("an entry has other parts than a name and a tensor")
    if not name or kind is None or content is None:
        raise DamagedCheckpoint("an entry is not whole")
    if kind not in _TYPES:
        raise DamagedCheckpoint(f"{name} is of the type {kind[:20]!r}, which is none of {', '.join(_TYPES)}")
    return _Piece(name, kind, tuple(dims), *content)


def _fields(file: BufferedReader, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, wire type and value of the fields up to ``end``; the value of one with a length is where it ends, and
    the file stands at its beginning."""
    while file.tell() < end:
        key, value = _varint(file), _varint(file)
        if key & 7 == 2:
            value += file.tell()
        elif key & 7:
            raise DamagedCheckpoint("it is damaged, or of another format")
        if key & 7 and value > end:
            raise DamagedCheckpoint("it is truncated, damaged or of another format")
        yield key >> 3, key & 7, value
        if key & 7:
            file.seek(value)
    if file.tell() != end:
        raise DamagedCheckpoint("it is truncated, damaged or of another format")


def _varint(file: BufferedReader) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise DamagedCheckpoint("it is truncated")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise DamagedCheckpoint("it is damaged, or of another format")


def _word(file: BufferedReader, end: int) -> str:
    length = end - file.tell()
    try:
        word = file.read(length).decode() if length <= _NAME else ""
    except UnicodeDecodeError:
        word = ""
    if not word.isprintable() or not word:
        raise DamagedCheckpoint("a name in it is no text")
    return word


def _crc(file: BufferedReader, end: int) -> int:
    file.seek(0)
    crc = 0
    while block := file.read(min(_BLOCK, end - file.tell())):
        crc = zlib.crc32(block, crc)
    return crc


def _array(file: BufferedReader, parts: Sequence[_Piece]) -> np.ndarray:
    first, dtype = parts[0], np.dtype(_TYPES[parts[0].type])
    length = sum(part.end - part.start for part in parts)
    if any((part.type, part.dims) != (first.type, first.dims) for part in parts):
        raise DamagedCheckpoint(f"the parts of {first.name} differ in type or shape")
    dims = () if first.dims == (0,) and length == dtype.itemsize else first.dims  # how some write a number
    if math.prod(dims) * dtype.itemsize != length or max(dims, default=0) > length:
        raise DamagedCheckpoint(f"{first.name} of shape {dims} does not take the {length:,} bytes that it has")
    data = _bytes(file, parts, length)
    if first.type == "Bool":
        return (np.frombuffer(data, np.uint8) != 0).reshape(dims)
    values = np.frombuffer(data, dtype).reshape(dims)
    return (values.astype("<u4") << 16).view("<f4") if first.type == "BFloat16" else values


def _text(file: BufferedReader, parts: Sequence[_Piece]) -> str:
    length = sum(part.end - part.start for part in parts)
    if length > _TEXT:
        raise DamagedCheckpoint(f"the text {parts[0].name} takes {length:,} bytes, more than {_TEXT:,}")
    try:
        return _bytes(file, parts, length).decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError:
        raise DamagedCheckpoint(f"{parts[0].name} is no text") from None


def _bytes(file: BufferedReader, parts: Sequence[_Piece], length: int) -> bytearray:
    data = bytearray(length)
    view, start = memoryview(data), 0
    for part in parts:
        file.seek(part.start)
        stop = start + part.end - part.start
        while start < stop:
            read = file.readinto(view[start:stop])
            if not read:
                raise DamagedCheckpoint("it is truncated")
            start += read
    return data
