"""Checkpoints that say what they are, are written whole, and load strictly.

The files are MindSpore's ``.ckpt`` with checksums; what they hold is told by one more entry, a JSON text. Files of
other origin (MindCV's) have no such entry: their weights load by name, and everything else comes from the
configuration.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from PIL import Image

from .errors import UserError
from .files import check_checkpoint, written_whole
from .registry import create_model, model_info
from .reparam import LEVELS, reparameterize

logger = logging.getLogger(__name__)

_INFO = "mindcv_reparam"
_SHOWN = 4  # names per list in a message
_KINDS = {"train": "train-time", **{level: f"fused (reparam {level})" for level in LEVELS}}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is."""

    model: str
    hparams: dict[str, Any]  # the other arguments of create_model
    classes: list[str] | None = None  # name of every class, by index
    preprocessing: dict[str, Any] = field(default_factory=dict)  # image_resize, crop_pct, interpolation, mean, std
    state: str = "train"  # "train", or the level of reparameterize: "branches", "full"
    epoch: int = 0  # epochs done
    step: int = 0  # updates done
    weights: str = "online"  # or "ema", the moving average of the online ones
    metrics: dict[str, float] = field(default_factory=dict)  # of these weights
    source: str = ""  # where converted weights come from


def save_checkpoint(path: str | os.PathLike[str], weights: nn.Cell | Mapping[str, np.ndarray], info: CheckpointInfo):
    """Write a checkpoint, whole or not at all.

    Raises:
        UserError: the file system refuses.
    """
    if isinstance(weights, nn.Cell):
        entries = [{"name": p.name, "data": p} for p in weights.get_parameters()]
    else:
        entries = [{"name": name, "data": ms.Tensor(value)} for name, value in weights.items()]
    with written_whole(path) as temporary:
        text = json.dumps(dataclasses.asdict(info))
        ms.save_checkpoint(entries, str(temporary), append_dict={_INFO: text}, crc_check=True)
        temporary.chmod(0o644)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], CheckpointInfo | None]:
    """The arrays of a checkpoint by name, and what it is; None for a file that another program wrote.

    Raises:
        UserError: no such file, or it is truncated, damaged, no checkpoint, or of a later version of this project.
    """
    check_checkpoint(path)
    mindspore_log = logging.getLogger(f"ME.mindspore.log.{os.getpid()}")
    disabled, mindspore_log.disabled = mindspore_log.disabled, True  # it prints what is raised below a second time
    try:
        entries = ms.load_checkpoint(str(path), crc_check=True)
    except (ValueError, TypeError, RuntimeError, OSError):
        raise UserError(f"{path} is no whole checkpoint: it is truncated, damaged or of another format") from None
    finally:
        mindspore_log.disabled = disabled
    text = entries.pop(_INFO, None)
    arrays = {name: value.asnumpy() for name, value in entries.items() if isinstance(value, ms.Parameter)}
    if text is None:
        return arrays, None
    try:
        return arrays, CheckpointInfo(**json.loads(text))
    except TypeError:
        raise UserError(f"{path} was written by another version of this project, which said more about it") from None


def load_checkpoint(net: nn.Cell, path: str | os.PathLike[str], new_head: bool = False) -> CheckpointInfo | None:
    """Load a checkpoint into a network, strictly: every parameter of the one has its equal in the other.

    Only position embeddings and global filters of another image size are interpolated, which is logged.

    Args:
        new_head: leave the classifier as it is when the checkpoint has another number of classes, and log it.

    Raises:
        UserError: the file cannot be read, or does not fit; then the network is not touched.
    """
    arrays, info = read_checkpoint(path)
    load_arrays(net, arrays, path, info, new_head)
    return info


def initialized(net: nn.Cell, path: str | os.PathLike[str]) -> nn.Cell:
    """A train-time network with the weights of a checkpoint, fused as they are; see create_model.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    arrays, info = read_checkpoint(path)
    return _filled(net, arrays, path, info, new_head=True)


def _filled(
    net: nn.Cell,
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    info: CheckpointInfo | None,
    new_head: bool = False,
) -> nn.Cell:
    """``net``, or what it fuses to at the level of the file, with the file's arrays."""
    if info and info.state in LEVELS:
        net = reparameterize(net, info.state)
    load_arrays(net, arrays, path, info, new_head)
    return net


def load_arrays(
    net: nn.Cell,
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    info: CheckpointInfo | None = None,
    new_head: bool = False,
) -> None:
    """What :func:`load_checkpoint` does, from the arrays of a file read before; ``path`` is for the messages."""
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    arrays = dict(arrays)
    if new_head:
        for name, parameter in parameters.items():
            if name.startswith(f"{net.classifier}.") and name in arrays and arrays[name].shape != parameter.shape:
                logger.info("%s: new %s, %s in the file, %s here", path, name, arrays[name].shape, parameter.shape)
                arrays[name] = parameter.asnumpy()
    for name, parameter in parameters.items():
        resize = next((resize for part, resize in RESIZED.items() if part in name), None)
        if resize is not None and name in arrays and arrays[name].shape != parameter.shape:
            logger.info("%s: %s interpolated from %s to %s", path, name, arrays[name].shape, parameter.shape)
            arrays[name] = resize(arrays[name], parameter.shape)

    missing = [name for name in parameters if name not in arrays]
    unexpected = [name for name in arrays if name not in parameters]
    shapes = [
        f"{name} {arrays[name].shape} in the file, {parameter.shape} in the network"
        for name, parameter in parameters.items()
        if name in arrays and arrays[name].shape != parameter.shape
    ]
    if missing or unexpected or shapes:
        complaints = (
            _listed("the file lacks", missing),
            _listed("the network lacks", unexpected),
            _listed("other shapes:", shapes),
        )
        what = f", a {_KINDS[info.state]} checkpoint of {info.model}," if info else ""
        raise UserError(f"{path}{what} does not fit the network: {'; '.join(filter(None, complaints))}")
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(arrays[name], parameter.dtype))


def model_from_checkpoint(
    path: str | os.PathLike[str], model: str | None = None, **hparams: Any
) -> tuple[nn.Cell, CheckpointInfo]:
    """The network a checkpoint holds, train-time or fused as it was saved, in evaluation mode.

    Args:
        model: name of the model, for a file that does not tell it; where it does, it must be the same.
        hparams: arguments of create_model, which go before those of the file.

    Raises:
        UserError: the file cannot be read, does not fit, or is of another model than ``model``.
    """
    arrays, info = read_checkpoint(path)
    if info is None:
        if model is None:
            raise UserError(f"{path} does not say which model it is: give --model NAME")
        published = model_info(model)
        defaults = {"num_classes": 1000, "in_channels": 3, "img_size": published.input_size}
        info = CheckpointInfo(model, defaults, preprocessing=published.preprocessing)
    elif model is not None and model != info.model:
        raise UserError(f"{path} is a checkpoint of {info.model}, not of {model}")
    info = dataclasses.replace(info, hparams={**info.hparams, **hparams})
    net = _filled(create_model(info.model, **info.hparams), arrays, path, info)
    return net.set_train(False), info


def resize_position_embedding(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Position embeddings (1, C, h, w) for another grid, by antialiased bicubic interpolation as timm does it."""
    if value.ndim != 4 or value.shape[:2] != shape[:2]:
        return value
    height, width = shape[2:]
    channels = [Image.fromarray(channel, mode="F") for channel in value[0].astype(np.float32)]
    return np.stack([np.asarray(c.resize((width, height), Image.Resampling.BICUBIC)) for c in channels])[None]


def resize_filter(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Global filters (h, w // 2 + 1, C, 2) for another map, by bicubic interpolation from corner to corner as GFNet's
    authors do it."""
    if value.ndim != 4 or value.shape[2:] != shape[2:]:
        return value
    rows, columns = (_cubic_interpolation(value.shape[axis], shape[axis]) for axis in (0, 1))
    return np.einsum("ih,jw,hwcp->ijcp", rows, columns, value, optimize=True).astype(np.float32)


def _cubic_interpolation(source: int, target: int) -> np.ndarray:
    """The matrix (target, source) of cubic convolution with PyTorch's coefficient -0.75; the ends stay the ends."""
    a, matrix = -0.75, np.zeros((target, source))
    for row, position in zip(matrix, np.linspace(0.0, source - 1.0, target)):
        for neighbour in range(int(position) - 1, int(position) + 3):
            t = abs(position - neighbour)
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
            row[min(max(neighbour, 0), source - 1)] += near if t <= 1 else far if t < 2 else 0.0
    return matrix


# Parameters with an entry per pixel of a map, by part of their name: a network that has them takes one image size.
RESIZED = {"pos_embed": resize_position_embedding, "complex_weight": resize_filter}


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{title} {', '.join(names[:_SHOWN])}{more}"
