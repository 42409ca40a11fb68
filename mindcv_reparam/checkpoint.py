"""Checkpoints that say what they are, are written whole, and load strictly.

The files are MindSpore's ``.ckpt`` with checksums; what they hold is told by one more entry, a JSON text. Files of
other origin (MindCV's) have no such entry: their weights load by name, and everything else comes from the
configuration.
"""

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import nn

from mindcv_reparam.checkpoint_info import ENTRY, CheckpointInfo, read_described, write_info
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.network import describe, with_rows
from mindcv_reparam.plain_paths import plain_output
from mindcv_reparam.reparam import LEVELS

logger = logging.getLogger(__name__)

_SHOWN = 4  # names per list in a message
_KINDS: dict[str, str] = {"train": "train-time", **{level: f"fused (reparam {level})" for level in LEVELS}}
# Hyper-parameters that a network may have otherwise than the file: its shapes tell, its maps are interpolated, and
# dropout is for training only.
_FREE = ("num_classes", "in_channels", "img_size", "drop_rate", "drop_path_rate")


def save_checkpoint(path: str | os.PathLike[str], weights: nn.Cell | Mapping[str, np.ndarray], info: CheckpointInfo):
    """Write a checkpoint, whole or not at all.

    Raises:
        UserError: the file system refuses.
    """
    if isinstance(weights, nn.Cell):
        weights = {p.name: p for p in weights.get_parameters()}
    # The description comes first, so that a file whose end is missing is known to be one of this project.
    entries = {ENTRY: write_info(info), **weights}
    with written_whole(path) as temporary, plain_output(temporary, ".ckpt") as plain:
        ms.save_checkpoint(entries, str(plain), crc_check=True)
        plain.chmod(0o644)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], CheckpointInfo | None]:
    """The arrays of a checkpoint by name, and what it is; None for a file that another program wrote.

    Raises:
        UserError: no such file, or it is truncated, damaged, no checkpoint, or of a later version of this project.
    """
    contents, info = read_described(path)
    return contents.arrays, info


def load_checkpoint(
    net: nn.Cell, path: str | os.PathLike[str], new_head: bool = False, classes: Sequence[str] = ()
) -> CheckpointInfo | None:
    """Load a checkpoint into a network, strictly: every parameter of the one has its equal in the other.

    Only what the network's ``resized`` names, of another image size, is interpolated, which is logged.

    Args:
        new_head: leave the classifier as it is when the checkpoint has another number of classes, and warn of it.
        classes: their names here, by index. A new head takes the rows of those that the file names, too.

    Returns:
        What the file says of itself; a network of the zoo knows of its images and classes what is in there.

    Raises:
        UserError: the file cannot be read, or does not fit; then the network is not touched.
    """
    arrays, info = read_checkpoint(path)
    new = load_arrays(net, arrays, path, info, new_head, classes)
    if info is not None:
        describe(net, info)
    if new:
        warn_of_new(path, new, (info and info.classes) or (), classes, stacklevel=3)
    return info


def warn_of_new(
    path: str | os.PathLike[str], new: Sequence[str], theirs: Sequence[str], ours: Sequence[str], stacklevel: int
) -> None:
    """Say in Python, where nobody may see a log, what of a network is not a file's."""
    warnings.warn(f"the weights are those of {path}{but_for(new, theirs, ours)}", stacklevel=stacklevel)


def but_for(new: Sequence[str], theirs: Sequence[str], ours: Sequence[str]) -> str:
    """What of a file was not used, as a part of a sentence.

    Args:
        new: names of the parameters that are not the file's.
        theirs: names of the classes in the file.
        ours: those of the network.
    """
    if not new:
        return ", all of it"
    more = f" and {len(new) - 2} more" if len(new) > 2 else ""
    kept = len(set(theirs) & set(ours))
    return f", but for {', '.join(new[:2])}{more}, of other classes: new but for the rows of {kept} classes"


def load_arrays(
    net: nn.Cell,
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    info: CheckpointInfo | None = None,
    new_head: bool = False,
    classes: Sequence[str] = (),
) -> list[str]:
    """What :func:`load_checkpoint` does, from the arrays of a file read before; ``path`` is for the messages.

    Returns:
        The names of the parameters that are not the file's, or only in the rows of classes that both name.
    """
    if info:
        _check_hparams(net, info, path)
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    arrays, new = dict(arrays), []
    if new_head:
        kept = _shared(path, (info and info.classes) or (), classes)
        for name, parameter in parameters.items():
            if name.startswith(classifier_prefixes(net)) and name in arrays and arrays[name].shape != parameter.shape:
                logger.info("%s: new %s, %s in the file, %s here", path, name, arrays[name].shape, parameter.shape)
                arrays[name] = with_rows(parameter.asnumpy(), arrays[name], kept)
                new.append(name)
    for name, parameter in parameters.items():
        resize = next((resize for part, resize in resized_of(net).items() if part in name), None)
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
    return new


def _shared(path: str | os.PathLike[str], theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Index here → index in the file of the classes that both name, which are logged."""
    known = {name: index for index, name in enumerate(theirs)}
    shared = {index: known[name] for index, name in enumerate(ours) if name in known}
    if shared:
        logger.info("%s knows %d of %d classes, %s", path, len(shared), len(ours), _some([ours[i] for i in shared]))
    return shared


def classifier_prefixes(net: nn.Cell) -> tuple[str, ...]:
    """What the names of the parameters that have an entry per class begin with."""
    parts = (net.classifier,) if isinstance(net.classifier, str) else net.classifier
    return tuple(f"{part}." for part in parts)


def resized_of(net: nn.Cell) -> Mapping[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]]:
    """The parameters of a network that have an entry per pixel of a map, by part of their names, and how their values
    become those for another shape. A network that has any takes one image size."""
    return getattr(net, "resized", {})


def _check_hparams(net: nn.Cell, info: CheckpointInfo, path: str | os.PathLike[str]) -> None:
    """Refuse a network that computes something else with the weights than the file says, which no shape would tell."""
    own = getattr(net, "hparams", {})
    for name, value in info.hparams.items():
        if name not in _FREE and info.contradicts(name, own.get(name)):
            raise UserError(f"{path} is of a {info.model} with {name} {value}, the network has {name} {own[name]}")


def _listed(title: str, names: list[str]) -> str:
    return f"{title} {_some(names)}" if names else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
