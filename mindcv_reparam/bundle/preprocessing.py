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


def in_words(manifest: Manifest) -> str:
    """What is done to an image file, in sentences for somebody who programs it."""
    config = Config(**manifest.preprocessing)
    read = "turned as its EXIF tag says" if config.exif_orientation else "not turned by its EXIF tag"
    background = ", ".join(map(str, config.image_background))
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    last = {
        "normalized": f"Its channels, red first, are (value - mean) / std of values from 0 to 255, mean {mean}, std "
        f"{std}: float32, (3, H, W).",
        "rgb": "Its bytes are the input, red first, (H, W, 3): the model normalises.",
        "bgr": "Its bytes are the input, blue first, (H, W, 3): the model normalises.",
    }[manifest.input_kind]
    return (
        f"An image is decoded as RGB, {read}, transparent pixels on the colour ({background}). It is "
        f"{manifest.results.transform(config).in_words}. {last}"
    )


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


_PIXELS: dict[InputKind, Callable[[Image.Image], np.ndarray]] = {"rgb": _rgb, "bgr": _bgr}
