"""Levels: magnitude as a fraction of the scale (0 … 1, more with mmax) and a generator → argument of the operation."""

from collections.abc import Callable
from functools import partial

import numpy as np

_Level = Callable[[float, np.random.Generator], float]


def _none(fraction: float, rng: np.random.Generator) -> float:
    return 0.0


def _linear(fraction: float, rng: np.random.Generator, low: float, high: float) -> float:
    return low + fraction * (high - low)


def _clamped(fraction: float, rng: np.random.Generator, low: float, high: float) -> float:
    return max(low, min(high, low + fraction * (high - low)))


def _either_sign(fraction: float, rng: np.random.Generator, scale: float) -> float:
    return -fraction * scale if rng.random() > 0.5 else fraction * scale


def _away_from_one(fraction: float, rng: np.random.Generator) -> float:
    return max(0.1, 1.0 + _either_sign(fraction, rng, 0.9))


def _count(fraction: float, rng: np.random.Generator, scale: int, low: int = 0) -> int:
    return int(fraction * scale) + low


def _count_down(fraction: float, rng: np.random.Generator, scale: int) -> int:
    return scale - int(fraction * scale)


def _solarize(fraction: float, rng: np.random.Generator) -> int:
    return min(256, int(fraction * 256))


def _solarize_down(fraction: float, rng: np.random.Generator) -> int:
    return 256 - _solarize(fraction, rng)


def _add(fraction: float, rng: np.random.Generator) -> int:
    return min(128, int(fraction * 110))


def _grey(fraction: float, rng: np.random.Generator) -> float:
    return 1.0 - _clamped(fraction, rng, 0.5, 1.0)


def _random_radius(fraction: float, rng: np.random.Generator) -> float:
    return rng.uniform(0.1, 2.0 * _clamped(fraction, rng, 0.0, 1.0))


# Name in a policy → operation, level
_OPERATIONS: dict[str, tuple[str, _Level]] = {
    "AutoContrast": ("AutoContrast", _none),
    "Equalize": ("Equalize", _none),
    "Invert": ("Invert", _none),
    "Rotate": ("Rotate", partial(_either_sign, scale=30.0)),
    "Posterize": ("Posterize", partial(_count, scale=4)),
    "PosterizeIncreasing": ("Posterize", partial(_count_down, scale=4)),
    "PosterizeOriginal": ("Posterize", partial(_count, scale=4, low=4)),
    "Solarize": ("Solarize", _solarize),
    "SolarizeIncreasing": ("Solarize", _solarize_down),
    "SolarizeAdd": ("SolarizeAdd", _add),
    "ShearX": ("ShearX", partial(_either_sign, scale=0.3)),
    "ShearY": ("ShearY", partial(_either_sign, scale=0.3)),
    "TranslateXRel": ("TranslateXRel", partial(_either_sign, scale=0.45)),
    "TranslateYRel": ("TranslateYRel", partial(_either_sign, scale=0.45)),
    "Desaturate": ("Color", _grey),
    "GaussianBlur": ("GaussianBlur", partial(_clamped, low=0.1, high=2.0)),
    "GaussianBlurRand": ("GaussianBlur", _random_radius),
}
for _name in ("Color", "Contrast", "Brightness", "Sharpness"):
    _OPERATIONS[_name] = (_name, partial(_linear, low=0.1, high=1.9))
    _OPERATIONS[f"{_name}Increasing"] = (_name, _away_from_one)

# AugMix moves less far
_AUGMIX_OPERATIONS = _OPERATIONS | {
    name: (name, partial(_either_sign, scale=0.3)) for name in ("TranslateXRel", "TranslateYRel")
}

_WIDE_OPERATIONS = _OPERATIONS | {
    "Rotate": ("Rotate", partial(_either_sign, scale=135.0)),
    "Posterize": ("Posterize", partial(_count, scale=6, low=2)),
    "Solarize": ("Solarize", partial(_count, scale=255)),
    "ShearX": ("ShearX", partial(_either_sign, scale=0.99)),
    "ShearY": ("ShearY", partial(_either_sign, scale=0.99)),
    "TranslateXRel": ("TranslateXRel", partial(_either_sign, scale=32 / 224)),
    "TranslateYRel": ("TranslateYRel", partial(_either_sign, scale=32 / 224)),
    **{name: (name, partial(_linear, low=0.01, high=2.0)) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
}

SCALES = {"standard": (10.0, _OPERATIONS), "augmix": (10.0, _AUGMIX_OPERATIONS), "wide": (31.0, _WIDE_OPERATIONS)}
