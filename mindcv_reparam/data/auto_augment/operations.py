"""Operations on a picture: picture and argument (see levels.py) → picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from mindcv_reparam.data.picture import Picture

_VALUES = np.arange(256)


@dataclass(frozen=True)
class Style:
    """How geometric operations look: the colour of uncovered pixels and the filter."""

    fill: tuple[int, ...] = (128, 128, 128)
    resampling: Image.Resampling = Image.Resampling.BICUBIC


def _rotate(picture: Picture, degrees: float, style: Style) -> Picture:
    """About the centre, counter-clockwise, with the rounding of Image.rotate."""
    height, width = picture.stored.shape[:2]
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    matrix = (cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y)
    return picture.moved(matrix, style.fill, style.resampling)


def _move(picture: Picture, matrix: tuple[float, ...], style: Style) -> Picture:
    return picture.moved(matrix, style.fill, style.resampling)


def _equalize(picture: Picture) -> Picture:
    """ImageOps.equalize: a channel's values become their rank, in steps of 1/255 of the pixels below the brightest."""
    counts = picture.histograms()
    occupied = counts > 0
    brightest = 255 - np.argmax(occupied[:, ::-1], axis=1)
    step = (counts.sum(axis=1) - counts[np.arange(3), brightest])[:, None] // 255
    ranks = (step // 2 + np.cumsum(counts, axis=1) - counts) // np.maximum(step, 1)
    return picture.through(np.where((step > 0) & (occupied.sum(axis=1, keepdims=True) > 1), ranks, _VALUES))


def _autocontrast(picture: Picture) -> Picture:
    """ImageOps.autocontrast: each channel's darkest and brightest values become 0 and 255."""
    occupied = picture.histograms() > 0
    low, high = np.argmax(occupied, axis=1)[:, None], 255 - np.argmax(occupied[:, ::-1], axis=1)[:, None]
    scale = 255.0 / np.maximum(high - low, 1)
    return picture.through(np.where(high > low, np.trunc(_VALUES * scale + -low * scale), _VALUES))


def _invert(picture: Picture) -> Picture:
    return picture.through(255 - _VALUES)


def _solarize_above(picture: Picture, threshold: int) -> Picture:
    return picture.through(np.where(threshold <= _VALUES, 255 - _VALUES, _VALUES))


def _solarize_add(picture: Picture, add: int) -> Picture:
    return picture.through(np.where(_VALUES >= 128, _VALUES, _VALUES + add))


def _posterize(picture: Picture, bits: int) -> Picture:
    """Keep ``bits`` of 8; none leaves a black image, which newer versions of ImageOps.posterize refuse to make."""
    return picture.through(_VALUES & (256 - (1 << (8 - bits))))


def brightness(picture: Picture, factor: float) -> Picture:
    """ImageEnhance.Brightness."""
    return picture.through(_away_from(0, factor))


def contrast(picture: Picture, factor: float) -> Picture:
    """ImageEnhance.Contrast."""
    return picture.through(_away_from(int(picture.mean_luminance() + 0.5), factor))


def color(picture: Picture, factor: float) -> Picture:
    """ImageEnhance.Color."""
    return picture.saturated(factor)


def _away_from(centre: int, factor: float) -> np.ndarray:
    """Values ``factor`` times as far from ``centre``, in single precision as in Image.blend."""
    return np.trunc(np.float32(centre) + np.float32(factor) * (_VALUES - centre).astype(np.float32))


def _sharpness(picture: Picture, factor: float) -> Picture:
    return Picture.of(ImageEnhance.Sharpness(picture.image()).enhance(factor))


def _blur(picture: Picture, radius: float) -> Picture:
    return Picture.of(picture.image().filter(ImageFilter.GaussianBlur(radius=radius)))


GEOMETRIC: dict[str, Callable[[Picture, float, Style], Picture]] = {
    "Rotate": _rotate,
    "ShearX": lambda picture, v, style: _move(picture, (1, v, 0, 0, 1, 0), style),
    "ShearY": lambda picture, v, style: _move(picture, (1, 0, 0, v, 1, 0), style),
    "TranslateXRel": lambda picture, v, style: _move(picture, (1, 0, v * picture.stored.shape[1], 0, 1, 0), style),
    "TranslateYRel": lambda picture, v, style: _move(picture, (1, 0, 0, 0, 1, v * picture.stored.shape[0]), style),
}
# The second argument is a whole number where bits or values of pixels are counted.
PHOTOMETRIC: dict[str, Callable[[Picture, Any], Picture]] = {
    "AutoContrast": lambda picture, _: _autocontrast(picture),
    "Equalize": lambda picture, _: _equalize(picture),
    "Invert": lambda picture, _: _invert(picture),
    "Posterize": _posterize,
    "Solarize": _solarize_above,
    "SolarizeAdd": _solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": _sharpness,
    "GaussianBlur": _blur,
}
