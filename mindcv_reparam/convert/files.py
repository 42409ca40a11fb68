"""Reading and writing the files other code bases keep weights in."""

import argparse
import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from ..errors import UserError
from ..files import written_whole

# Where the weights lie in the dictionary that a training script saves, best first. Averages precede the weights they
# average, as timm loads them; mmengine's ``state_dict`` is the average already, and ``ema_state_dict`` the raw weights.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PICKLES = (".pth", ".pt", ".bin", ".tar")


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
    """Read ``.safetensors``, PyTorch's ``.pth``, ``.pt``, ``.bin``, ``.pth.tar``, or MindSpore's ``.ckpt``.

    Pickles are read by PyTorch, which must be installed for them, and with weights only: they execute nothing.

    Raises:
        UserError: no such file, another suffix, damaged, no PyTorch, or a pickle of more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}")
    if path.suffix == ".safetensors":
        tensors, notes = _read_safetensors(path), []
    elif path.suffix in _PICKLES:
        tensors, notes = _unwrap(_read_pickle(path), path)
    elif path.suffix == ".ckpt":
        tensors, notes = _read_mindspore(path), []
    else:
        known = ", ".join((".safetensors", *_PICKLES, ".ckpt"))
        raise UserError(f"{path}: convert reads {known}, not {path.suffix or 'files without a suffix'}")
    narrow = sorted({str(value.dtype) for value in tensors.values() if value.dtype in (np.float16, np.float64)})
    if narrow:
        notes.append(f"{' and '.join(narrow)} written in float32")
        tensors = {
            name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in tensors.items()
        }
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


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return {name: _array(entry) for name, entry in deserialize(path.read_bytes())}
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file: {error}") from error


def _array(entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] == "BF16":  # the upper half of a float32, which NumPy has no type for
        return (np.frombuffer(entry["data"], "<u2").astype("<u4") << 16).view("<f4").reshape(entry["shape"])
    kinds = {"F": "f", "I": "i", "U": "u"}
    kind = "?" if entry["dtype"] == "BOOL" else f"<{kinds[entry['dtype'][0]]}{int(entry['dtype'][1:]) // 8}"
    return np.frombuffer(entry["data"], kind).reshape(entry["shape"])


def _read_pickle(path: Path) -> Any:
    try:
        import torch
        from torch.serialization import safe_globals
    except ImportError:
        raise UserError(f"{path} is a pickle, which PyTorch 2.5 or later must read: pip install torch") from None
    try:
        # Training scripts keep their command line in the file, in a class that only holds attributes.
        with safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe is None:
            raise UserError(f"{path} is no file of PyTorch weights, or is damaged") from None
        raise UserError(
            f"{path} is refused: reading it would run {unsafe[1]}; save the state_dict alone where it comes from"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError):
        raise UserError(f"{path} is no file of PyTorch weights, or is damaged") from None


def _unwrap(content: Any, path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights in what a training script saved, and what else there is."""
    notes = []
    wrapper = next((key for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    if wrapper is not None:
        beside = [key for key in content if key != wrapper]
        notes.append(f"weights taken from {wrapper!r}; not converted: {', '.join(map(repr, beside)) or 'nothing'}")
        content = content[wrapper]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    tensors = {name: value for name, value in content.items() if hasattr(value, "detach")}
    beside = [name for name in content if name not in tensors]
    if beside:
        notes.append(f"no tensors, not converted: {', '.join(map(repr, beside))}")
    return {name: _from_torch(value) for name, value in tensors.items()}, notes


def _from_torch(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _read_mindspore(path: Path) -> dict[str, np.ndarray]:
    from ..checkpoint import read_checkpoint

    tensors, info = read_checkpoint(path)
    if info is not None:
        raise UserError(f"{path} is a checkpoint of this project already; --to writes it for another one")
    return tensors
