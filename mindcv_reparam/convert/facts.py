"""What the shapes of a family's parameters tell about the model: the arguments of its network."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Parameters = Mapping[str, np.ndarray]


def variant_facts(family: str, parameters: Parameters) -> dict[str, Any]:
    """The hyper-parameters, as the family's VARIANTS name them, that tell its models apart."""
    return _FACTS[family](parameters)


def input_facts(family: str, parameters: Parameters) -> dict[str, Any]:
    """Arguments of create_model that do not tell models apart: in_channels, and img_size and num_classes if known."""
    facts: dict[str, Any] = {
        "in_channels": next(parameters[name].shape[1] for name in _STEMS[family] if name in parameters)
    }
    for position, stride in _POSITIONS.get(family, {}).items():
        if position in parameters:
            facts["img_size"] = [side * stride for side in parameters[position].shape[2:]]
            break
    if "head.weight" in parameters:
        facts["num_classes"] = parameters["head.weight"].shape[0]
    return facts


# The first convolution, train-time and fused.
_STEMS = {
    "visformer": ("stem.0.weight",),
    "fastvit": ("stem.0.conv.kxk.0.weight", "stem.0.conv.weight"),
    "riformer": ("stages.0.patch_embed.weight",),
    "poolformer": ("stages.0.patch_embed.weight",),
    "regnet": ("stem.0.weight",),
    "gfnet": ("stages.0.patch_embed.weight",),
}
# Position embeddings, finest first, and their strides.
_POSITIONS = {
    "visformer": {"pos_embed0": 4, "pos_embed1": 8},
    "gfnet": {"pos_embed": 4},
}


def _visformer(parameters: Parameters) -> dict[str, Any]:
    return {
        "init_channels": parameters["stem.0.weight"].shape[0],
        "embed_dim": parameters["pos_embed2"].shape[1],
        "depths": tuple(_count(parameters, rf"stage{i}\.(\d+)\..*") for i in range(4)),
    }


def _fastvit(parameters: Parameters) -> dict[str, Any]:
    mlps = [parameters[f"stages.{i}.blocks.0.mlp.fc1.weight"] for i in range(4)]
    attention = [f"stages.{i}.blocks.0.token_mixer.qkv.weight" in parameters for i in range(4)]
    return {
        "depths": _blocks(parameters),
        "dims": tuple(fc1.shape[1] for fc1 in mlps),
        "mlp_ratio": mlps[0].shape[0] // mlps[0].shape[1],
        "token_mixers": tuple("attention" if has else "repmixer" for has in attention),
    }


def _metaformer(parameters: Parameters) -> dict[str, Any]:
    dims = tuple(parameters[f"stages.{i}.patch_embed.weight"].shape[0] for i in range(4))
    return {"depths": _blocks(parameters), "embed_dims": dims}


def _regnet(parameters: Parameters) -> dict[str, Any]:
    return {
        "depths": tuple(_count(parameters, rf"stages\.{i}\.(\d+)\..*") for i in range(4)),
        "dims": tuple(parameters[f"stages.{i}.0.conv1.0.weight"].shape[0] for i in range(4)),
    }


_FACTS = {
    "visformer": _visformer,
    "fastvit": _fastvit,
    "riformer": _metaformer,
    "poolformer": _metaformer,
    "regnet": _regnet,
    "gfnet": _metaformer,
}


def _blocks(parameters: Parameters) -> tuple[int, ...]:
    return tuple(_count(parameters, rf"stages\.{i}\.blocks\.(\d+)\..*") for i in range(4))


def _count(parameters: Parameters, pattern: str) -> int:
    """How many different numbers the pattern's group takes."""
    return len({match[1] for name in parameters if (match := re.fullmatch(pattern, name))})
