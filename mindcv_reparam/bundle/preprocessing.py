"""Images as an exported model takes them: the preprocessing of validation, up to where the model's own begins."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mindcv_reparam.bundle.manifest import InputKind, Manifest
from mindcv_reparam.config import Config
from mindcv_reparam.data.decoder import Decoder


def decoder(manifest: Manifest) -> Decoder:
    """Reads image files as the data sets did that the model was validated on."""
    return Decoder.of(Config(**manifest.preprocessing))


def preprocessor(manifest: Manifest) -> Callable[[Image.Image], np.ndarray]:
    """The function from an RGB image to one input of the model, without the batch: float32 (3, H, W) or uint8
    (H, W, 3), as the manifest's ``input_kind`` says. It raises UnreadableImage for one so elongated that resizing it
    would exhaust the memory."""
    transform: Any = manifest.results.transform(Config(**manifest.preprocessing))
    return dataclasses.replace(transform, normalize=_PIXELS.get(manifest.input_kind, transform.normalize))


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


_PIXELS: dict[InputKind, Callable[[Image.Image], np.ndarray]] = {"rgb": _rgb, "bgr": _bgr}
