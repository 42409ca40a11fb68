"""Images as an exported model takes them: the preprocessing of validation, up to where the model's own begins."""

import dataclasses
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import Config
from ..data.transforms import eval_transform
from .manifest import InputKind, Manifest


class NoImage(Exception):
    """Bytes that cannot be decoded as an image, or not safely; the message says why."""


def decode(source: str | Path | bytes) -> Image.Image:
    """An image file, or its bytes, as an RGB image, decoded as the data sets do.

    Raises:
        NoImage: it is no image, truncated, or so large that decoding it would exhaust the memory.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return image.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise NoImage(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's decoders raise almost any exception on a damaged file
        raise NoImage("not an image, or a damaged one") from error


def preprocessor(manifest: Manifest) -> Callable[[Image.Image], np.ndarray]:
    """The function from an RGB image to one input of the model, without the batch: float32 (3, H, W) or uint8
    (H, W, 3), as the manifest's ``input_kind`` says."""
    transform = eval_transform(Config(**manifest.preprocessing))
    return dataclasses.replace(transform, normalize=_PIXELS.get(manifest.input_kind, transform.normalize))


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


_PIXELS: dict[InputKind, Callable[[Image.Image], np.ndarray]] = {"rgb": _rgb, "bgr": _bgr}
