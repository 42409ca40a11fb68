"""Files as ``torch.save`` lays them out, put together instruction by instruction: no PyTorch, and any content."""

import struct
import zipfile
from pathlib import Path

import numpy as np

_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage", "f8": "DoubleStorage"}


class Global:
    """A name to import."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """A call of a name, with the state that is set afterwards."""

    def __init__(self, called: Global, *arguments: object, state: object = None) -> None:
        self.called, self.arguments, self.state = called, arguments, state


class Persistent:
    """Something that lies outside the pickle."""

    def __init__(self, *identity: object) -> None:
        self.identity = identity


def instructions(value: object) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return f"L{value}L\n".encode()
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case dict():
            return b"(" + b"".join(instructions(k) + instructions(v) for k, v in value.items()) + b"d"
        case tuple():
            return b"(" + b"".join(map(instructions, value)) + b"t"
        case list():
            return b"(" + b"".join(map(instructions, value)) + b"l"
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Persistent():
            return instructions(value.identity) + b"Q"
        case Call():
            state = b"" if value.state is None else instructions(value.state) + b"b"
            return instructions(value.called) + instructions(value.arguments) + b"R" + state
    raise TypeError(type(value))


def storage(key: str, count: int, kind: str = "f4") -> Persistent:
    return Persistent("storage", Global("torch", _STORAGES.get(kind, kind)), key, "cpu", count)


def view(stored: Persistent, shape: tuple, strides: tuple, offset: int = 0) -> Call:
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), stored, offset, shape, strides, False, hooks)


def write(path: Path, content: object, storages: dict[str, np.ndarray] | None = None, pickle: bytes = b"") -> Path:
    """An archive; arrays in ``content`` become tensors with storages of their own."""
    storages = dict(storages or {})
    content = _stored(content, storages)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle or b"\x80\x02" + instructions(content) + b".")
        archive.writestr("net/byteorder", "little")
        for key, value in storages.items():
            archive.writestr(f"net/data/{key}", value.tobytes())
        archive.writestr("net/version", "3\n")
    return path


def _stored(value: object, storages: dict[str, np.ndarray]) -> object:
    if isinstance(value, dict):
        return {key: _stored(one, storages) for key, one in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    key = str(len(storages))
    storages[key] = np.ascontiguousarray(value)
    # NumPy's copy of a single number has an axis.
    strides = tuple(step // value.itemsize for step in storages[key].strides[: value.ndim])
    return view(storage(key, value.size, value.dtype.str[1:]), value.shape, strides)
