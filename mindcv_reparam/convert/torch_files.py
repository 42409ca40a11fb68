"""Files of ``torch.save``: a ZIP archive since PyTorch 1.6, before that five pickles and the storages after them.

https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mindcv_reparam.convert.pickles import Damaged, Machine, Opaque, Storage, Tensor
from mindcv_reparam.errors import UserError

_PICKLE = 1 << 28  # bytes of the pickle in an archive
_EXPANSION = 8  # bytes of arrays per byte of file: float16 doubles, views share storages
_LEGACY = 0x1950A86A20F9469CFC6C
_DEPTH = 50  # modules within modules
# What a part of another kind than expected, and the archive reader itself, may raise.
_MISPLACED = (
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    StopIteration,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


class TorchFile:
    """What ``torch.save`` wrote.

    Attributes:
        content: dictionaries, lists, numbers, texts, `Tensor` and `Opaque`.
    """

    def __init__(self, path: Path) -> None:
        """Read all but the storages.

        Raises:
            UserError: the file is damaged, wants more memory than its size explains, or wants to run a command.
        """
        self._path = path
        self._size = path.stat().st_size
        self._taken = 0
        self._order = "<"
        self._root: str | None = None  # in an archive: the folder that everything lies in
        self._places: dict[str, int] = {}  # without one: where the storages begin, by their keys
        self._last: tuple[str, bytes] = ("", b"")  # the storage read last, which may hold many tensors
        with self._refusals():
            if zipfile.is_zipfile(path):
                self.content = self._open_archive()
            else:
                with open(path, "rb") as file:
                    self.content = self._open_legacy(file)

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """The values of a tensor, bfloat16 as float32.

        Raises:
            UserError: the tensor has no values to take, or the file is damaged.
        """
        if tensor.unfit:
            raise UserError(f"{self._path}: the tensor {name} {tensor.unfit}")
        with self._refusals():
            return self._array(tensor)

    def _array(self, tensor: Tensor) -> np.ndarray:
        shape, strides, storage = tensor.shape, tensor.strides, tensor.storage
        if storage is None:
            raise Damaged("a tensor without a storage")
        numbers = (tensor.offset, storage.count, *shape, *strides)
        if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
            raise Damaged("sizes")
        last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
        if 0 in shape or last >= storage.count:
            raise Damaged("a tensor beyond its storage")
        half = storage.dtype == "bf16"  # the upper half of a float32, which NumPy has no type for
        kind = np.dtype(self._order + ("u2" if half else storage.dtype))
        self._taken += math.prod(shape) * max(kind.itemsize, 4)
        if self._taken > _EXPANSION * self._size:
            raise Damaged("tensors larger than the file")
        data = np.frombuffer(self._bytes(storage, kind.itemsize), kind)[tensor.offset :]
        steps = [stride * kind.itemsize for stride in strides]
        value = np.lib.stride_tricks.as_strided(data, shape, steps, writeable=False)
        if half:
            return (value.astype("<u4") << 16).view("<f4")
        return value.astype(kind.newbyteorder("="), order="C")

    def _bytes(self, storage: Storage, itemsize: int) -> bytes:
        size = storage.count * itemsize
        if storage.key == self._last[0]:
            data = self._last[1]
        elif self._root is not None:
            with zipfile.ZipFile(self._path) as archive:
                data = self._entry(archive, f"data/{storage.key}", size)
        else:
            with open(self._path, "rb") as file:
                file.seek(self._places[storage.key])
                data = file.read(size)
        if len(data) != size:
            raise Damaged("a storage of another length")
        self._last = storage.key, data
        return data

    def _entry(self, archive: zipfile.ZipFile, name: str, most: int) -> bytes:
        entry = archive.getinfo(f"{self._root}{name}")
        if entry.flag_bits & 1 or entry.file_size > most:
            raise Damaged("an encrypted entry or a large one")
        return archive.read(entry)

    def _open_archive(self) -> Any:
        with zipfile.ZipFile(self._path) as archive:
            names = archive.namelist()
            if sum(entry.file_size for entry in archive.infolist()) > self._size:
                raise Damaged("entries larger than the file")  # torch.save compresses nothing
            pickled = next(name for name in names if name == "data.pkl" or name.endswith("/data.pkl"))
            self._root = pickled.removesuffix("data.pkl")
            if f"{self._root}byteorder" in names:
                self._order = {b"little": "<", b"big": ">"}[self._entry(archive, "byteorder", 16)]
            return Machine().run(io.BytesIO(self._entry(archive, "data.pkl", _PICKLE)))

    def _open_legacy(self, file: BinaryIO) -> Any:
        magic, _, system = (Machine().run(file) for _ in range(3))
        if magic != _LEGACY:
            raise Damaged("another kind of pickle")
        little = system.get("little_endian", True)
        self._order = "<" if little else ">"
        machine = Machine()
        content = machine.run(file)
        for key in Machine().run(file):
            storage = machine.storages[key]
            count = int.from_bytes(file.read(8), "little" if little else "big")
            self._places[key] = file.tell()
            if not storage.dtype:
                raise UserError("holds tensors of a type that no network here takes: save its weights in float32")
            itemsize = 2 if storage.dtype == "bf16" else np.dtype(storage.dtype).itemsize
            if count != storage.count or file.seek(count * itemsize, io.SEEK_CUR) > self._size:
                raise Damaged("cut")
        return content

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"{self._path} {error}") from None
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror or error}") from None
        except (Damaged, zipfile.BadZipFile, zlib.error, *_MISPLACED):
            raise UserError(
                f"{self._path} is no whole file of PyTorch weights: it is truncated or damaged; fetch or save it again"
            ) from None


def state_dict(module: Opaque) -> dict[str, Tensor]:
    """The parameters and buffers of a module that was pickled whole; empty where it is none."""
    found: dict[str, Tensor] = {}
    left = [("", module)]
    while left:
        prefix, one = left.pop(0)
        state = one.state if isinstance(one, Opaque) and isinstance(one.state, dict) else {}
        for group in ("_parameters", "_buffers", "_modules"):
            for name, value in state.get(group, {}).items():
                if isinstance(value, Tensor):
                    found[f"{prefix}{name}"] = value
                elif isinstance(value, Opaque) and prefix.count(".") < _DEPTH:
                    left.append((f"{prefix}{name}.", value))
    return found
