"""Data sets, augmentation and the loader. Nothing here imports mindspore."""

from mindcv_reparam.data.auto_augment import parse_auto_augment
from mindcv_reparam.data.datasets import EMBEDDED, create_dataset, run_to_resume
from mindcv_reparam.data.loader import Loader, create_loader
from mindcv_reparam.data.source import ImageSource

__all__ = [
    "EMBEDDED",
    "ImageSource",
    "Loader",
    "create_dataset",
    "create_loader",
    "parse_auto_augment",
    "run_to_resume",
]
