"""Visformer, RIFormer and FastViT on MindSpore, with structural re-parameterization.

The public names are loaded on first use, so that ``import mindcv_reparam`` (and every ``--help``) stays free of the
MindSpore import.
"""

import importlib

__version__ = "0.2.0"

_EXPORTS = {
    "create_model": "zoo",
    "list_models": "registry",
    "reparameterize": "reparam",
    "load_checkpoint": "checkpoint",
    "register_family": "registry",
}
__all__ = ["__version__", "create_model", "list_models", "load_checkpoint", "register_family", "reparameterize"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
