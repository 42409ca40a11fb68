"""NumPy's files from others: what their headers say is checked, also against the file's size, before data are read."""

import contextlib
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, BinaryIO

import numpy as np

from mindcv_reparam.errors import UserError
from mindcv_reparam.untrusted import open_regular

_DIRECTORY = 4 * 2**20  # bytes, of a zip file's directory
_HEADER = 4096  # characters, of an array's header
_AXES = 32
_KINDS = "biufcSU"  # of dtypes: numbers and texts, no objects

# NumPy's stubs do not know ``max_header_size``.
_read_array: Callable[..., np.ndarray] = np.lib.format.read_array
_READERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class DamagedArrays(Exception):
    """A file of arrays that is not whole, or not of the kind that NumPy writes; the message says why."""


@dataclass(frozen=True)
class ArrayHeader:
    """What a file says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


class Archive:
    """An open .npz file whose headers have been checked: no data is read until :meth:`read` is called.

    Attributes:
        headers: of the arrays, by name.
    """

    def __init__(self, archive: zipfile.ZipFile, headers: Mapping[str, ArrayHeader]) -> None:
        self.headers = headers
        self._archive = archive

    def read(self, name: str) -> np.ndarray:
        """An array, whose checksum is checked.

        Raises:
            DamagedArrays: the data are not what was written.
        """
        with _explained(), self._archive.open(f"{name}.npy") as file:
            return _read_array(file, allow_pickle=False, max_header_size=_HEADER)


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike[str], limit: int | None = None) -> Iterator[Archive]:
    """An .npz file as ``np.savez`` writes it: not compressed, every array of plain numbers or text.

    Args:
        limit: bytes of all arrays together.

    Raises:
        DamagedArrays: the file is not whole, or asks for more than it holds or than the limit.
        UserError: there is no file that can be opened.
    """
    with contextlib.ExitStack() as stack:
        with _explained():
            file = stack.enter_context(open_regular(path))
            pieces = _InPieces(file)
            archive = stack.enter_context(zipfile.ZipFile(pieces))
            headers = _headers(archive, os.fstat(file.fileno()).st_size, limit)
            pieces.largest = None  # the data are read as large as their headers were found to be
        yield Archive(archive, headers)


def read_array(path: str | os.PathLike[str], limit: int) -> np.ndarray:
    """The array of an .npy file, at most ``limit`` bytes large; raises as :func:`open_arrays` does."""
    with _explained(), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(_header(_InPieces(file), size), size - file.tell(), limit)
        file.seek(0)
        return _read_array(file, allow_pickle=False, max_header_size=_HEADER)


def _headers(archive: zipfile.ZipFile, size: int, limit: int | None) -> dict[str, ArrayHeader]:
    entries = archive.infolist()
    headers: dict[str, ArrayHeader] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise DamagedArrays("it is compressed or encrypted")
        if name == entry.filename or name in headers:
            raise DamagedArrays("it holds other things than arrays, or two of one name")
        with archive.open(entry) as file:
            headers[name] = _header(file, entry.file_size)
            _check_size(headers[name], entry.file_size - file.tell(), limit)
    if sum(entry.file_size for entry in entries) > size:
        raise DamagedArrays("its entries are larger than the file")
    total = sum(header.size for header in headers.values())
    if limit is not None and total > limit:
        raise DamagedArrays(f"its arrays take {total:,} bytes, more than {limit:,}")
    return headers


def _header(file: "IO[bytes] | _InPieces", size: int) -> ArrayHeader:
    """The header at the beginning of a file of ``size`` bytes, which is read up to the data."""
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise DamagedArrays(f"an array is of version {version} of NumPy's format")
    shape, _, dtype = _READERS[version](file, max_header_size=_HEADER)
    if dtype.hasobject or dtype.kind not in _KINDS or dtype.subdtype is not None:
        raise DamagedArrays(f"an array is of the type {str(dtype)[:40]}")
    if len(shape) > _AXES or any(type(axis) is not int or not 0 <= axis <= size for axis in shape):
        raise DamagedArrays("an array has an impossible shape")
    return ArrayHeader(shape, dtype)


def _check_size(header: ArrayHeader, there: int, limit: int | None) -> None:
    if header.size != there:
        raise DamagedArrays(f"an array {header.shape} of {header.dtype} does not take the {there:,} bytes that it has")
    if limit is not None and header.size > limit:
        raise DamagedArrays(f"an array takes {header.size:,} bytes, more than {limit:,}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """NumPy and zipfile raise almost any exception on damaged files: of tokens, types, numbers, memory, structure."""
    try:
        yield
    except (DamagedArrays, UserError):
        raise
    except Exception as error:
        reason = str(error).splitlines()
        raise DamagedArrays(reason[0][:120] if reason else type(error).__name__) from error


class _InPieces:
    """A file that refuses to give larger pieces than ``largest``: directories and headers say themselves how long they
    are, and are read at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.largest: int | None = _DIRECTORY
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if self.largest is None:
            return self._file.read(size)
        piece = self._file.read(self.largest + 1 if size < 0 else min(size, self.largest + 1))
        if len(piece) > self.largest:
            raise DamagedArrays("its directory or a header is larger than any that NumPy writes")
        return piece
