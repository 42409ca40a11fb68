"""Images as an exported model takes them: the preprocessing of validation, up to where the model's own begins."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import Config
from ..data.transforms import eval_transform
from .manifest import InputKind, Manifest

_TOO_LARGE = f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, as it is or resized"


class NoImage(Exception):
    """Bytes that cannot be decoded as an image, or not safely; the message says why."""


def decode(source: str | Path | bytes) -> Image.Image:
    """An image file, or its bytes, as an RGB image, decoded as the data sets do.

    Raises:
        NoImage: it is no image, truncated, or so large that decoding it would exhaust the memory.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file) as image:
            # Pillow itself only warns up to twice the limit. Warnings are no way to tell: their filters are the whole
            # process's, and images are decoded in several threads.
            _check_pixels(image.width, image.height)
            return image.convert("RGB")
    except NoImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise NoImage(_TOO_LARGE) from None
    except Exception as error:  # Pillow's decoders raise almost any exception on a damaged file
        unreachable = isinstance(error, OSError) and error.strerror
        raise NoImage(error.strerror if unreachable else "not an image, or a damaged one") from error


def preprocessor(manifest: Manifest) -> Callable[[Image.Image], np.ndarray]:
    """The function from an RGB image to one input of the model, without the batch: float32 (3, H, W) or uint8
    (H, W, 3), as the manifest's ``input_kind`` says. It raises NoImage for one so elongated that resizing it would
    exhaust the memory."""
    transform = eval_transform(Config(**manifest.preprocessing))
    transform = dataclasses.replace(transform, normalize=_PIXELS.get(manifest.input_kind, transform.normalize))

    def preprocess(image: Image.Image) -> np.ndarray:
        _check_pixels(*transform.resized(image.height, image.width))
        return transform(image)

    return preprocess


def _check_pixels(width: int, height: int) -> None:
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise NoImage(_TOO_LARGE)


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


_PIXELS: dict[InputKind, Callable[[Image.Image], np.ndarray]] = {"rgb": _rgb, "bgr": _bgr}
