"""Every model of the zoo by name: what is published about it, and how to build it.

The table is plain data, so that names can be listed and checked without importing MindSpore; the networks are imported
by :func:`create_model`, one family at a time. A fourth family is one file in ``models/`` and its rows here.
"""

import fnmatch
import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import UserError, nearest

if TYPE_CHECKING:
    from mindspore import nn


@dataclass(frozen=True)
class Published:
    """An accuracy on ImageNet-1k that others published; none was measured by this project."""

    input_size: int
    top1: float  # per cent
    top5: float | None
    source: str


@dataclass(frozen=True)
class ModelInfo:
    """What a model expects of its input, and what is published about it."""

    name: str
    family: str  # the module in models/
    input_size: int  # pixels, square
    crop_pct: float  # centre crop: the shorter side is resized to input_size / crop_pct first
    published: tuple[Published, ...]
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std: tuple[float, float, float] = (0.229 * 255, 0.224 * 255, 0.225 * 255)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The input it is published with, in the configuration's terms."""
        return {
            "image_resize": self.input_size,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
        }


_MINDCV = "MindCV, D910x8-G"
_APPLE = "Apple, FastViT paper"
_APPLE_DISTILLED = "Apple, FastViT paper, distilled"
_MMPRETRAIN = "mmpretrain, RIFormer paper"
_TIMM = "timm, results-imagenet.csv"
_GFNET = "GFNet's authors"
_TIMM_DEIT = "timm, regnety_160.deit_in1k"


def _visformer(name: str, top1: float, top5: float) -> ModelInfo:
    return ModelInfo(name, "visformer", 224, 0.875, (Published(224, top1, top5, _MINDCV),))


def _fastvit(name: str, crop_pct: float, top1: float, distilled: float) -> ModelInfo:
    published = (Published(256, top1, None, _APPLE), Published(256, distilled, None, _APPLE_DISTILLED))
    return ModelInfo(name, "fastvit", 256, crop_pct, published)


def _riformer(name: str, crop_pct: float, at224: tuple[float, float], at384: tuple[float, float]) -> ModelInfo:
    published = (Published(224, *at224, _MMPRETRAIN), Published(384, *at384, _MMPRETRAIN))
    return ModelInfo(name, "riformer", 224, crop_pct, published)


def _poolformer(name: str, crop_pct: float, top1: float, top5: float) -> ModelInfo:
    return ModelInfo(name, "poolformer", 224, crop_pct, (Published(224, top1, top5, _TIMM),))


def _gfnet(name: str, top1: float, top5: float) -> ModelInfo:
    return ModelInfo(name, "gfnet", 224, 0.9, (Published(224, top1, top5, _GFNET),))


MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        _visformer("visformer_tiny", 78.28, 94.15),
        _visformer("visformer_tiny_v2", 78.82, 94.41),
        _visformer("visformer_small", 81.73, 95.88),
        _visformer("visformer_small_v2", 82.17, 95.90),
        _riformer("riformer_s12", 0.9, (76.90, 93.06), (78.29, 93.93)),
        _riformer("riformer_s24", 0.9, (80.28, 94.80), (81.36, 95.40)),
        _riformer("riformer_s36", 0.9, (81.29, 95.41), (82.22, 95.95)),
        _riformer("riformer_m36", 0.95, (82.57, 95.99), (83.39, 96.40)),
        _riformer("riformer_m48", 0.95, (82.75, 96.11), (83.70, 96.60)),
        _fastvit("fastvit_t8", 0.9, 76.2, 77.2),
        _fastvit("fastvit_t12", 0.9, 79.3, 80.3),
        _fastvit("fastvit_s12", 0.9, 79.9, 81.1),
        _fastvit("fastvit_sa12", 0.95, 80.9, 81.9),
        _fastvit("fastvit_sa24", 0.95, 82.7, 83.4),
        _fastvit("fastvit_sa36", 0.95, 83.6, 84.2),
        _fastvit("fastvit_ma36", 0.95, 83.9, 84.6),
        _poolformer("poolformer_s12", 0.9, 77.24, 93.54),
        _poolformer("poolformer_s24", 0.9, 80.29, 95.06),
        _poolformer("poolformer_s36", 0.9, 81.43, 95.44),
        _poolformer("poolformer_m36", 0.95, 82.10, 95.70),
        _poolformer("poolformer_m48", 0.95, 82.46, 95.97),
        _gfnet("gfnet_h_ti", 80.1, 95.1),
        _gfnet("gfnet_h_s", 81.5, 95.6),
        _gfnet("gfnet_h_b", 82.9, 96.2),
        ModelInfo("regnety_160", "regnet", 224, 0.95, (Published(224, 83.00, 96.50, _TIMM_DEIT),)),
    )
}

_ALL_FEATURES = {"out_indices": None, "norm_outputs": False, "frozen_stages": -1, "index_mode": "stages"}
_METAFORMERS = ("riformer", "poolformer")  # the families whose outputs mmpretrain numbers in its own way

# name → network class and the variant's hyper-parameters
_VARIANTS: dict[str, tuple[Callable[..., "nn.Cell"], dict[str, Any]]] = {}


def register_variants(network: Callable[..., "nn.Cell"], variants: dict[str, dict[str, Any]]) -> None:
    """Make ``create_model(name, ...)`` build ``network(**hyper_parameters, ...)`` for every name of ``variants``."""
    for name, hyper_parameters in variants.items():
        if name not in MODELS:
            raise KeyError(f"{name} has no row in registry.MODELS")
        _VARIANTS[name] = network, hyper_parameters


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, in the order of the table."""
    return [name for name in MODELS if fnmatch.fnmatchcase(name, pattern)]


def matching_models(pattern: str) -> list[str]:
    """:func:`list_models`, for a pattern that a user gave.

    Raises:
        UserError: no model matches; the nearest is named.
    """
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}; the nearest is {nearest(pattern.strip('*'), MODELS)!r}")
    return names


def model_info(name: str) -> ModelInfo:
    """The row of a model.

    Raises:
        UserError: no model has this name; the nearest is named.
    """
    if name not in MODELS:
        raise UserError(f"no model is called {name!r}; the nearest is {nearest(name, MODELS)!r}")
    return MODELS[name]


def create_model(
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    img_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    gelu: str | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    norm_outputs: bool = False,
    frozen_stages: int = -1,
    index_mode: str = "stages",
    checkpoint: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> "nn.Cell":
    """Build a model, with the same arguments for every family.

    Args:
        name: one of :func:`list_models`.
        img_size: pixels, a side or (height, width); the model's published input size by default.
        drop_rate: dropout.
        drop_path_rate: stochastic depth of the last block; the variant's own by default.
        gelu: "exact" or "tanh"; the family's own by default.
        features_only: return the maps of the stages, for dense prediction, instead of the logits. The four arguments
            after it choose which, see :func:`mindcv_reparam.features.feature_network`.
        checkpoint: weights to load, train-time or fused; then the network is as fused as they are. A classifier for
            another class count stays new, which is logged.
        kwargs: further hyper-parameters of the network.

    Raises:
        UserError: no model has this name, the family has no such hyper-parameter, the checkpoint does not fit, or the
            arguments for features_only do not.
    """
    info = model_info(name)
    selection = {
        "out_indices": out_indices,
        "norm_outputs": norm_outputs,
        "frozen_stages": frozen_stages,
        "index_mode": index_mode,
    }
    _check_selection(info, features_only, selection)
    importlib.import_module(f"{__package__}.models.{info.family}")
    network, hyper_parameters = _VARIANTS[name]
    size = img_size or info.input_size
    optional = {"drop_path_rate": drop_path_rate, "gelu": gelu, **kwargs}
    arguments = {
        **hyper_parameters,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "img_size": (size, size) if isinstance(size, int) else tuple(size),
        "drop_rate": drop_rate,
        **{key: value for key, value in optional.items() if value is not None},
    }
    accepted = inspect.signature(network).parameters
    for key in arguments:
        if key not in accepted:
            raise UserError(f"{info.family} has no hyper-parameter {key}; the nearest is {nearest(key, accepted)}")
    net = network(**arguments)
    if checkpoint is not None:
        net = importlib.import_module(f"{__package__}.checkpoint").initialized(net, checkpoint)
    if not features_only:
        return net
    return importlib.import_module(f"{__package__}.features").feature_network(net, **selection)


def _check_selection(info: ModelInfo, features_only: bool, selection: dict[str, Any]) -> None:
    if not features_only and selection != _ALL_FEATURES:
        raise UserError(f"{', '.join(selection)} choose feature maps: give features_only=True with them")
    modes = ("stages", "mmpretrain") if info.family in _METAFORMERS else ("stages",)
    if selection["index_mode"] not in modes:
        raise UserError(f"index_mode {selection['index_mode']!r}: {info.name} has {', '.join(modes)}")
