"""Where a training starts from: a checkpoint of the model itself, or one for its backbone."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import nn

from mindcv_reparam.checkpoint import but_for, load_arrays, read_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.errors import UserError
from mindcv_reparam.features import backbone_of, in_backbone, name_in_backbone

log = logging.getLogger(__name__)

_NORMS = name_in_backbone("norms.")


def load_initial(config: Config, network: nn.Cell, classes: Sequence[str]) -> str:
    """Fill the network by ``ckpt_path`` or ``backbone_ckpt``, if there is one; ``classes`` are the data's, by index.

    Returns:
        Where its weights come from, for people.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    if config.ckpt_path:
        arrays, info = read_checkpoint(config.ckpt_path)
        new = load_arrays(network, arrays, config.ckpt_path, info, new_head=True, classes=classes)
        return f"{config.ckpt_path}{but_for(new, info.classes or () if info else (), classes)}"
    if config.backbone_ckpt:
        load_backbone(network, config.backbone_ckpt)
        return f"of the backbone {config.backbone_ckpt}, without what else the file has; the rest at random by the seed"
    return f"at random by the seed {config.seed}"


def load_backbone(network: nn.Cell, path: str) -> None:
    """Fill what a detector calls its ``backbone`` from a train-time checkpoint of a classifier or of a detector.

    A classifier lacks the norms of the backbone's outputs, but for that of its last map if it has one; those stay as
    they are, new ones the identity, which is logged.

    Raises:
        UserError: the file cannot be read or does not fit, or the network has no backbone.
    """
    backbone = backbone_of(network, "backbone_ckpt is", "take ckpt_path")
    arrays, info = read_checkpoint(path)
    if info and info.state != "train":
        raise UserError(f"{path} is fused (reparam {info.state}), which cannot be trained: take what it was made of")
    own = {parameter.name: parameter for parameter in backbone.get_parameters()}
    found = {name: array for name, array in arrays.items() if in_backbone(name)}
    if not found:
        found = _of_classifier(arrays, backbone)
    new = {name: own[name].asnumpy() for name in own if name.startswith(_NORMS) and name not in found}
    if new:
        indices = sorted({int(name.removeprefix(_NORMS).partition(".")[0]) for name in new})
        which = ", ".join(f"norms.{index}" for index in indices)
        log.info("%s lacks %s of the backbone's outputs, which start as the identity", path, which)
    load_arrays(backbone, found | new, path, info)
    log.info("the backbone's weights are those of %s", path)


def _of_classifier(arrays: Mapping[str, np.ndarray], backbone: nn.Cell) -> dict[str, np.ndarray]:
    """A classifier's arrays by the names that a detector has for them, without its head. The norm of the last map is
    what it normalises its last map by."""
    last = f"{_NORMS}{len(backbone.stage_parts) - 1}."
    normalised = any(parameter.name.startswith(last) for parameter in backbone.get_parameters())
    found = {}
    for name, array in arrays.items():
        part, _, leaf = name.partition(".")
        if part == "norm" and part in backbone.head_parts and normalised:
            found[last + leaf] = array
        elif part not in backbone.head_parts:
            found[name_in_backbone(name)] = array
    return found
