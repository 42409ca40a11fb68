"""Reading and writing the files other code bases keep weights in."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mindcv_reparam.convert.pickles import Opaque, Tensor
from mindcv_reparam.convert.torch_files import TorchFile, state_dict
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.kinds import kind_of, mistaken

# Where the weights lie in the dictionary that a training script saves, best first. Averages precede what they average,
# as timm and RT-DETR load them; mmengine's ``state_dict`` is the average already, and ``ema_state_dict`` is not.
_WRAPPERS = (("ema", "module"), ("state_dict_ema",), ("model_ema",), ("state_dict",), ("model",))
# What a file that is none of those that are read ought to be, by its suffix.
_WANTED = {
    (".safetensors",): "whole safetensors file",
    (".pth", ".pt", ".bin", ".tar"): "whole file of PyTorch weights",
    (".ckpt",): "whole checkpoint",
}
_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},  # BF16: the upper half of an F32
    **{f"{letter}{bits}": f"<{letter.lower()}{bits // 8}" for letter in "IU" for bits in (8, 16, 32, 64)},
}
_LARGEST = 8 << 30  # bytes of a file; the largest network here has 0.33 GiB of weights
_SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Source:
    """The tensors of a file.

    Attributes:
        tensors: floating point in float32, by the names in the file.
        notes: one line about every choice made and everything in the file that is no weight.
    """

    path: Path
    sha256: str
    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read a file of safetensors, of PyTorch (``.pth``, ``.pt``, ``.bin``, ``.pth.tar``, Lightning's ``.ckpt``), or
    MindSpore's ``.ckpt``. The content tells which it is; nothing in a file is run.

    Raises:
        UserError: no such file, one of another kind, damaged, larger than is read, or with tensors of a kind that no
            network here takes.
    """
    path = Path(path)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"no file at {path}")
    kind = kind_of(path)
    if kind not in _READERS:
        raise UserError(_unknown(path))
    size = path.stat().st_size
    if size > _LARGEST:
        raise UserError(f"{path} has {size >> 30} GiB, convert reads up to {_LARGEST >> 30}: save the weights alone")
    tensors, notes = _READERS[kind](path)
    narrow = sorted({str(value.dtype) for value in tensors.values() if value.dtype in (np.float16, np.float64)})
    if narrow:
        notes.append(f"{' and '.join(narrow)} written in float32")
        tensors = {name: _narrowed(path, name, value) for name, value in tensors.items()}
    return Source(path, _sha256(path), tensors, tuple(notes))


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Write a ``.safetensors`` file, whole or not at all.

    Raises:
        UserError: the file system refuses.
    """
    with written_whole(path) as temporary:
        save_file(dict(tensors), temporary, metadata)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unknown(path: Path) -> str:
    """Of a file that is none of those that are read."""
    wanted = next((words for suffixes, words in _WANTED.items() if path.suffix in suffixes), None)
    told = mistaken(path, wanted or "file of weights")
    if wanted is None and not path.is_dir():
        known = ", ".join(suffix for suffixes in _WANTED for suffix in suffixes)
        return f"{path}: convert reads {known}, not {path.suffix or 'this'}" + (f"; {told}" if told else "")
    return told or f"{path} is no {wanted}: it is truncated, damaged or of another kind; fetch it again"


def _narrowed(path: Path, name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    with np.errstate(over="raise"):
        try:
            return value.astype(np.float32)
        except FloatingPointError:
            raise UserError(f"{path}: {name} has numbers beyond the range of float32") from None


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        with safe_open(path, "np"):  # checks the header, and that the data is as long as it says
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
        return {name: _array(f"{path}: the tensor {name}", data, **entry) for name, entry in header.items()}, []
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{path} is no whole safetensors file: {reason}; fetch it again") from None


def _array(label: str, data: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    if dtype not in _DTYPES:
        raise UserError(f"{label} has the type {dtype}, which no network here takes: save it in F32 or F16")
    if 0 in shape:
        raise UserError(f"{label} is empty, {shape}")
    value = data[slice(*data_offsets)].view(_DTYPES[dtype]).reshape(shape)
    return (value.astype("<u4") << 16).view("<f4") if dtype == "BF16" else value


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    file = TorchFile(path)
    content, notes = file.content, []
    wrapper = next((path for path in _WRAPPERS if isinstance(_inside(content, path), dict)), ())
    if wrapper:
        beside = [key for key in content if key != wrapper[0]]
        for depth in range(1, len(wrapper)):
            around = _inside(content, wrapper[:depth])
            beside += [".".join((*wrapper[:depth], str(key))) for key in around if key != wrapper[depth]]
        notes.append(f"weights taken from {'.'.join(wrapper)!r}; not converted: {_listed(beside) or 'nothing'}")
        content = _inside(content, wrapper)
    if isinstance(content, Opaque) and (found := state_dict(content)):
        notes.append(f"weights taken from a module that was saved whole, {content.name}")
        content = found
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors: save the state_dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    beside = [name for name in content if str(name) not in tensors]
    if not tensors:
        instead = f", but {_listed(beside)}" if beside else ""
        raise UserError(f"{path} holds no tensors{instead}: save the state_dict")
    if beside:
        notes.append(f"no tensors, not converted: {_listed(beside)}")
    return {name: file.array(name, value) for name, value in tensors.items()}, notes


def _inside(content: Any, keys: tuple[str, ...]) -> Any:
    """What lies under the keys, one within the other, of a dictionary of dictionaries; None if nothing does."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name)[:80] for name in names[:_SHOWN]) + more


def _read_mindspore(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    from mindcv_reparam.checkpoint import read_checkpoint

    tensors, info = read_checkpoint(path)
    if info is not None:
        raise UserError(f"{path} is a checkpoint of this project already; --to writes it for another one")
    return tensors, []


_READERS = {"safetensors": _read_safetensors, "torch": _read_torch, "checkpoint": _read_mindspore}
