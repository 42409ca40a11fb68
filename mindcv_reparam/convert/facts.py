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
    facts: dict[str, Any] = {"in_channels": parameters[_STEMS[family]].shape[1]}
    if family == "visformer":
        stride, position = (4, "pos_embed0") if "pos_embed0" in parameters else (8, "pos_embed1")
        facts["img_size"] = [side * stride for side in parameters[position].shape[2:]]
    if "head.weight" in parameters:
        facts["num_classes"] = parameters["head.weight"].shape[0]
    return facts


_STEMS = {"visformer": "stem.0.weight"}


def _visformer(parameters: Parameters) -> dict[str, Any]:
    return {
        "init_channels": parameters["stem.0.weight"].shape[0],
        "embed_dim": parameters["pos_embed2"].shape[1],
        "depths": tuple(_count(parameters, rf"stage{i}\.(\d+)\..*") for i in range(4)),
    }


_FACTS = {"visformer": _visformer}


def _count(parameters: Parameters, pattern: str) -> int:
    """How many different numbers the pattern's group takes."""
    return len({match[1] for name in parameters if (match := re.fullmatch(pattern, name))})
