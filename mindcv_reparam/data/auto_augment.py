"""AutoAugment, RandAugment, AugMix and TrivialAugment, named by the strings of timm and MindCV.

Papers: AutoAugment arXiv 1805.09501, RandAugment 1909.13719, AugMix 1912.02781, TrivialAugment 2103.10158,
3-Augment 2204.07118. Operations, policies, probabilities and magnitudes are those of timm's ``auto_augment.py``.

A string is a policy and options, joined by dashes (``rand-m9-mstd0.5-inc1``):

===================  ============================================================  ==================================
policy               what                                                          options
===================  ============================================================  ==================================
rand                 timm's RandAugment                                            m n p mstd mmax inc t (set or
                                                                                   "weights": tweights, t3a, t3aw)
randaug              MindCV's: no SolarizeAdd, mstd 0.5 unless given               m n p mstd mmax inc w (w0: weights)
original, originalr  AutoAugment's policy of the paper / increasing posterize      mstd
autoaug, autoaugr    MindCV's names for them, mstd 0.5 unless given                mstd
v0, v0r              the policy of EfficientNet on TPU                             mstd
3a                   one of solarize, grey, blur                                   mstd
augmix               AugMix                                                        m w d a mstd
trivialaugwide       TrivialAugment, wide ranges (MindCV's name)                   m
===================  ============================================================  ==================================

``m`` magnitude, ``n`` operations per image, ``p`` probability of each, ``mstd`` deviation of the magnitude (above 100:
uniform from 0), ``mmax`` its upper bound (10), ``inc1`` severity grows with the magnitude (``inc0``, unlike
in timm, is off).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from mindcv_reparam.data.picture import Picture
from mindcv_reparam.errors import UserError

_VALUES = np.arange(256)


@dataclass(frozen=True)
class Style:
    """How geometric operations look: the colour of uncovered pixels and the filter."""

    fill: tuple[int, int, int] = (128, 128, 128)
    resampling: Image.Resampling = Image.Resampling.BICUBIC


# ---------------------------------------------------------------------------------------------------------------------
# Operations: picture and argument (see the levels below) → picture


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


_GEOMETRIC: dict[str, Callable[[Picture, float, Style], Picture]] = {
    "Rotate": _rotate,
    "ShearX": lambda picture, v, style: _move(picture, (1, v, 0, 0, 1, 0), style),
    "ShearY": lambda picture, v, style: _move(picture, (1, 0, 0, v, 1, 0), style),
    "TranslateXRel": lambda picture, v, style: _move(picture, (1, 0, v * picture.stored.shape[1], 0, 1, 0), style),
    "TranslateYRel": lambda picture, v, style: _move(picture, (1, 0, 0, 0, 1, v * picture.stored.shape[0]), style),
}
_PHOTOMETRIC: dict[str, Callable[[Picture, float], Picture]] = {
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

# ---------------------------------------------------------------------------------------------------------------------
# Levels: magnitude as a fraction of the scale (0 … 1, more with mmax) and a generator → argument of the operation

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

_SCALES = {"standard": (10.0, _OPERATIONS), "augmix": (10.0, _AUGMIX_OPERATIONS), "wide": (31.0, _WIDE_OPERATIONS)}


@dataclass(frozen=True)
class Operation:
    """One operation of a policy: applied with ``probability`` at ``magnitude``, which ``deviation`` makes random.

    ``deviation`` is that of a normal distribution; infinity draws uniformly from 0 to ``magnitude``. The magnitude is
    clipped to [0, ``maximum``] and read on ``scale`` (a key of _SCALES).
    """

    name: str
    probability: float
    magnitude: float
    deviation: float = 0.0
    maximum: float = 10.0
    scale: str = "standard"

    def __call__(self, picture: Picture, rng: np.random.Generator, style: Style) -> Picture:
        if self.probability < 1.0 and rng.random() > self.probability:
            return picture
        operation, argument = self.argument(rng)
        if operation in _GEOMETRIC:
            return _GEOMETRIC[operation](picture, argument, style)
        return _PHOTOMETRIC[operation](picture, argument)

    def argument(self, rng: np.random.Generator) -> tuple[str, float]:
        """Name of the operation on the image and its argument, drawn once."""
        magnitude = self.magnitude
        if self.deviation == float("inf"):
            magnitude = rng.uniform(0.0, magnitude)
        elif self.deviation > 0.0:
            magnitude = rng.normal(magnitude, self.deviation)
        denominator, operations = _SCALES[self.scale]
        operation, level = operations[self.name]
        return operation, level(max(0.0, min(magnitude, self.maximum)) / denominator, rng)


# ---------------------------------------------------------------------------------------------------------------------
# Policies: (picture, rng, style) → picture


@dataclass(frozen=True)
class AutoAugment:
    """One sub-policy, drawn uniformly, whose operations follow one another."""

    subpolicies: tuple[tuple[Operation, ...], ...]

    def __call__(self, picture: Picture, rng: np.random.Generator, style: Style) -> Picture:
        for operation in self.subpolicies[rng.integers(len(self.subpolicies))]:
            picture = operation(picture, rng, style)
        return picture


@dataclass(frozen=True)
class RandAugment:
    """``layers`` operations drawn uniformly with replacement, or by ``weights`` without."""

    operations: tuple[Operation, ...]
    layers: int = 2
    weights: tuple[float, ...] | None = None

    def __call__(self, picture: Picture, rng: np.random.Generator, style: Style) -> Picture:
        if self.weights is None:
            indices = rng.integers(len(self.operations), size=self.layers)
        else:
            indices = rng.choice(len(self.operations), self.layers, replace=False, p=self.weights)
        for index in indices:
            picture = self.operations[index](picture, rng, style)
        return picture


@dataclass(frozen=True)
class AugMix:
    """``width`` chains of ``depth`` operations (−1: one to three) mixed with each other and with the image."""

    operations: tuple[Operation, ...]
    alpha: float = 1.0
    width: int = 3
    depth: int = -1

    def __call__(self, picture: Picture, rng: np.random.Generator, style: Style) -> Picture:
        weights = rng.dirichlet([self.alpha] * self.width)
        share = rng.beta(self.alpha, self.alpha)
        mixed = np.zeros(picture.stored.shape, dtype=np.float32)
        for weight in weights:
            chain = picture
            depth = self.depth if self.depth > 0 else rng.integers(1, 4)
            for index in rng.integers(len(self.operations), size=depth):
                chain = self.operations[index](chain, rng, style)
            mixed += np.float32(weight) * chain.pixels().astype(np.float32)
        mixture = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
        return Picture.of(Image.blend(picture.image(), mixture, share))


Policy = AutoAugment | RandAugment | AugMix

# ---------------------------------------------------------------------------------------------------------------------
# Tables

_POSTERIZE = "Posterize*"  # stands for the policy's kind of posterize

_V0 = """
Equalize 0.8 1, ShearY 0.8 4; Color 0.4 9, Equalize 0.6 3; Color 0.4 1, Rotate 0.6 8; Solarize 0.8 3, Equalize 0.4 7;
Solarize 0.4 2, Solarize 0.6 2; Color 0.2 0, Equalize 0.8 8; Equalize 0.4 8, SolarizeAdd 0.8 3;
ShearX 0.2 9, Rotate 0.6 8; Color 0.6 1, Equalize 1.0 2; Invert 0.4 9, Rotate 0.6 0; Equalize 1.0 9, ShearY 0.6 3;
Color 0.4 7, Equalize 0.6 0; Posterize* 0.4 6, AutoContrast 0.4 7; Solarize 0.6 8, Color 0.6 9;
Solarize 0.2 4, Rotate 0.8 9; Rotate 1.0 7, TranslateYRel 0.8 9; ShearX 0.0 0, Solarize 0.8 4;
ShearY 0.8 0, Color 0.6 4; Color 1.0 0, Rotate 0.6 2; Equalize 0.8 4, Equalize 0.0 8;
Equalize 1.0 4, AutoContrast 0.6 2; ShearY 0.4 7, SolarizeAdd 0.6 7; Posterize* 0.8 2, Solarize 0.6 10;
Solarize 0.6 8, Equalize 0.6 1; Color 0.8 6, Rotate 0.4 5
"""

_ORIGINAL = """
Posterize* 0.4 8, Rotate 0.6 9; Solarize 0.6 5, AutoContrast 0.6 5; Equalize 0.8 8, Equalize 0.6 3;
Posterize* 0.6 7, Posterize* 0.6 6; Equalize 0.4 7, Solarize 0.2 4; Equalize 0.4 4, Rotate 0.8 8;
Solarize 0.6 3, Equalize 0.6 7; Posterize* 0.8 5, Equalize 1.0 2; Rotate 0.2 3, Solarize 0.6 8;
Equalize 0.6 8, Posterize* 0.4 6; Rotate 0.8 8, Color 0.4 0; Rotate 0.4 9, Equalize 0.6 2;
Equalize 0.0 7, Equalize 0.8 8; Invert 0.6 4, Equalize 1.0 8; Color 0.6 4, Contrast 1.0 8; Rotate 0.8 8, Color 1.0 2;
Color 0.8 8, Solarize 0.8 7; Sharpness 0.4 7, Invert 0.6 8; ShearX 0.6 5, Equalize 1.0 9; Color 0.4 0, Equalize 0.6 3;
Equalize 0.4 7, Solarize 0.2 4; Solarize 0.6 5, AutoContrast 0.6 5; Invert 0.6 4, Equalize 1.0 8;
Color 0.6 4, Contrast 1.0 8; Equalize 0.8 8, Equalize 0.6 3
"""

_THREE_AUGMENT = "Solarize 1.0 5; Desaturate 1.0 10; GaussianBlurRand 1.0 10"

# Policy → sub-policies, kind of posterize, deviation of the magnitude unless the string gives one
_AUTO_POLICIES = {
    "v0": (_V0, "Posterize", 0.0),
    "v0r": (_V0, "PosterizeIncreasing", 0.0),
    "original": (_ORIGINAL, "PosterizeOriginal", 0.0),
    "originalr": (_ORIGINAL, "PosterizeIncreasing", 0.0),
    "autoaug": (_ORIGINAL, "PosterizeOriginal", 0.5),
    "autoaugr": (_ORIGINAL, "PosterizeIncreasing", 0.5),
    "3a": (_THREE_AUGMENT, "Posterize", 0.0),
}

_PLAIN = ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
          "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")  # fmt: skip
_GROWING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
_MINDCV_PLAIN = tuple(name for name in _PLAIN if name != "SolarizeAdd")
_AUGMIX = ("AutoContrast", "Color", "Contrast", "Brightness", "Sharpness", "Equalize", "Rotate", "Posterize",
           "Solarize", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")  # fmt: skip

_TIMM_WEIGHTS = {
    "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateXRel": 1.0, "TranslateYRel": 1.0, "ColorIncreasing": 0.25,
    "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
    "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
    "Invert": 0.05,
}  # fmt: skip
_TIMM_3A_WEIGHTS = {
    "SolarizeIncreasing": 6.0, "Desaturate": 6.0, "GaussianBlur": 6.0, "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0,
    "PosterizeIncreasing": 1.0, "AutoContrast": 1.0, "ColorIncreasing": 1.0, "SharpnessIncreasing": 1.0,
    "ContrastIncreasing": 1.0, "BrightnessIncreasing": 1.0, "Equalize": 1.0, "Invert": 1.0,
}  # fmt: skip
_MINDCV_WEIGHTS = {
    "Rotate": 0.3, "ShearX": 0.2, "ShearY": 0.2, "TranslateXRel": 0.1, "TranslateYRel": 0.1, "Color": 0.025,
    "Sharpness": 0.025, "AutoContrast": 0.025, "Solarize": 0.005, "Contrast": 0.005, "Brightness": 0.005,
    "Equalize": 0.005, "Posterize": 0.005, "Invert": 0.0,
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Strings

_OPTIONS = {
    "rand": ("m", "n", "p", "mstd", "mmax", "inc", "t"),
    "randaug": ("m", "n", "p", "mstd", "mmax", "inc", "w"),
    "augmix": ("m", "w", "d", "a", "mstd"),
    "trivialaugwide": ("m",),
    **dict.fromkeys(_AUTO_POLICIES, ("mstd",)),
}
_WHOLE_NUMBERS = frozenset({"n", "inc", "w", "d"})


def parse_auto_augment(text: str) -> Policy:
    """The policy that a string names. Raises UserError, naming the nearest valid policy or the policy's options."""
    name, *sections = text.split("-")
    if name not in _OPTIONS:
        near = get_close_matches(name, _OPTIONS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"auto_augment {text!r}: unknown policy {name!r}, nearest is {near!r} (of {', '.join(_OPTIONS)})"
        )
    options = _parse_options(text, name, _rejoin_signs(sections))
    if name in _AUTO_POLICIES:
        return _auto_augment(name, options)
    if name == "augmix":
        return _augmix(options)
    if name == "trivialaugwide":
        return _trivial_augment(options)
    return _rand_augment(text, name, options)


def _rejoin_signs(sections: list[str]) -> list[str]:
    """``d-1`` was split at its sign."""
    joined: list[str] = []
    for section in sections:
        if joined and joined[-1].isalpha() and section[:1].isdigit():
            joined[-1] += f"-{section}"
        else:
            joined.append(section)
    return joined


def _parse_options(text: str, name: str, sections: list[str]) -> dict[str, float | str]:
    options: dict[str, float | str] = {}
    for section in sections:
        if name == "rand" and section.startswith("t"):
            options["t"] = section[1:]
            continue
        match = re.fullmatch(r"([a-z]+?)(-?\d+(?:\.\d*)?|inf)", section)
        if match is None or match[1] not in _OPTIONS[name]:
            raise UserError(
                f"auto_augment {text!r}: {section!r} is no option of {name!r}, which takes {', '.join(_OPTIONS[name])} "
                f"followed by a number"
            )
        value = float(match[2])
        if match[1] in _WHOLE_NUMBERS and not value.is_integer():
            raise UserError(f"auto_augment {text!r}: {match[1]} takes a whole number, not {match[2]}")
        if value < 0 and match[1] != "d":
            raise UserError(f"auto_augment {text!r}: {match[1]} must not be negative")
        options[match[1]] = value
    return options


def _auto_augment(name: str, options: dict[str, float | str]) -> AutoAugment:
    table, posterize, deviation = _AUTO_POLICIES[name]
    deviation = options.get("mstd", deviation)
    subpolicies = []
    for line in table.replace(_POSTERIZE, posterize).replace("\n", " ").split(";"):
        steps = (step.split() for step in line.split(","))
        subpolicies.append(tuple(Operation(op, float(prob), float(size), deviation) for op, prob, size in steps))
    return AutoAugment(tuple(subpolicies))


def _rand_augment(text: str, name: str, options: dict[str, float | str]) -> RandAugment:
    increasing = bool(options.get("inc", 0))
    plain, default_deviation = (_MINDCV_PLAIN, 0.5) if name == "randaug" else (_PLAIN, 0.0)
    weighted: dict[str, float] | None = None
    names = _increasing(plain) if increasing else plain
    if "t" in options:
        sets = {"weights": _TIMM_WEIGHTS, "3aw": _TIMM_3A_WEIGHTS, "3a": None}
        if options["t"] not in sets:
            raise UserError(f"auto_augment {text!r}: unknown set t{options['t']}, known are tweights, t3a and t3aw")
        weighted = sets[options["t"]]
        names = tuple(weighted) if weighted else ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
    elif "w" in options:
        if options["w"] != 0:
            raise UserError(f"auto_augment {text!r}: there is one set of weights, w0")
        weighted = {kind: _MINDCV_WEIGHTS[base] for kind, base in zip(names, plain)}
    weights = None
    if weighted:
        total = sum(weighted.values())
        weights = tuple(weight / total for weight in weighted.values())
    layers = int(options.get("n", 2))
    if weights and layers > sum(weight > 0 for weight in weights):
        raise UserError(
            f"auto_augment {text!r}: n{layers} is more than there are operations to draw without repetition"
        )
    deviation = options.get("mstd", default_deviation)
    operation = partial(
        Operation,
        probability=options.get("p", 0.5),
        magnitude=options.get("m", 10.0),
        deviation=float("inf") if deviation > 100 else deviation,
        maximum=options.get("mmax", 10.0),
    )
    return RandAugment(tuple(operation(kind) for kind in names), layers, weights)


def _augmix(options: dict[str, float | str]) -> AugMix:
    operation = partial(
        Operation,
        probability=1.0,
        magnitude=options.get("m", 3.0),
        deviation=options.get("mstd", float("inf")),
        scale="augmix",
    )
    return AugMix(
        tuple(operation(name) for name in _increasing(_AUGMIX)),
        alpha=options.get("a", 1.0),
        width=int(options.get("w", 3)),
        depth=int(options.get("d", -1)),
    )


def _trivial_augment(options: dict[str, float | str]) -> RandAugment:
    magnitude = options.get("m", 31.0)
    operations = (Operation(name, 1.0, magnitude, float("inf"), magnitude, "wide") for name in _MINDCV_PLAIN)
    return RandAugment(tuple(operations), layers=1)


def _increasing(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}Increasing" if name in _GROWING else name for name in names)
