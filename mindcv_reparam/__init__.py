"""Visformer, RIFormer and FastViT on MindSpore, with structural re-parameterization.

The public names are loaded on first use, so that ``import mindcv_reparam`` (and every ``--help``) stays free of the
MindSpore import.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what an editor shows
    from mindcv_reparam.checkpoint import load_checkpoint
    from mindcv_reparam.registry import list_models, register_family
    from mindcv_reparam.reparam import reparameterize
    from mindcv_reparam.run.python import eval_transform, predict
    from mindcv_reparam.zoo import create_model

__version__ = "0.2.0"

_EXPORTS = {
    "create_model": "zoo",
    "eval_transform": "run.python",
    "list_models": "registry",
    "load_checkpoint": "checkpoint",
    "predict": "run.python",
    "register_family": "registry",
    "reparameterize": "reparam",
}
__all__ = [
    "__version__",
    "create_model",
    "eval_transform",
    "list_models",
    "load_checkpoint",
    "predict",
    "register_family",
    "reparameterize",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
