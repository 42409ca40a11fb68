"""Image → network input, with the semantics of timm's ImageNet transforms and the keys of MindCV's recipes.

Plain functions of an image and a random generator. Bilinear and bicubic filters are Pillow's, which antialias when they
shrink, as timm's do (MindSpore's ``Inter.BICUBIC`` does not).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data.auto_augment import Policy, Style, brightness, color, contrast, parse_auto_augment
from mindcv_reparam.data.decoder import check_size
from mindcv_reparam.data.erasing import Erased, RandomErasing
from mindcv_reparam.data.picture import Picture

RESAMPLINGS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_ENHANCERS = (brightness, contrast, color)
_CROP_ATTEMPTS = 10


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """``image_resize`` is one number or [height, width]."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclass(frozen=True)
class Normalize:
    """RGB image → (pixel − mean) / std, float32 (3, H, W); ``mean`` and ``std`` on the scale 0–255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    table: np.ndarray = field(init=False, repr=False, compare=False)  # float32 (3, 256)
    dtype: ClassVar[type[np.generic]] = np.float32

    def __post_init__(self) -> None:
        # A pixel has 256 values: their normalised ones are computed once, in float64.
        levels = (np.arange(256)[None] - np.array(self.mean)[:, None]) / np.array(self.std)[:, None]
        object.__setattr__(self, "table", levels.astype(np.float32))

    def __call__(self, image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image)
        output = np.empty((3, image.height, image.width), dtype=np.float32)
        for channel in range(3):
            np.take(self.table[channel], pixels[:, :, channel], out=output[channel], mode="clip")
        return output

    def fill(self, output: np.ndarray, picture: Picture) -> None:
        """Write ``picture`` to ``output``, float32 (3, H, W)."""
        picture.planes(self.table, output)


@dataclass(frozen=True)
class Bytes:
    """RGB image → its pixels as they are, uint8 (3, H, W): normalised on the device, see `tasks/normalization.py`."""

    dtype: ClassVar[type[np.generic]] = np.uint8

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def fill(self, output: np.ndarray, picture: Picture) -> None:
        """Write ``picture`` to ``output``, uint8 (3, H, W)."""
        picture.planes(_SAME, output)


_SAME = np.tile(np.arange(256, dtype=np.uint8), (3, 1))


def normalization(config: Config) -> Normalize | Bytes:
    """The last step of the transforms of a Config."""
    return Bytes() if config.normalize_on_device else Normalize(tuple(config.mean), tuple(config.std))


@dataclass(frozen=True)
class RandomResizedCrop:
    """A crop of ``scale`` of the area and an aspect in ``ratio`` (log-uniform), for resizing to (height, width).

    After ten crops that do not fit: the largest centred crop within ``ratio``.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    resampling: Image.Resampling

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height, width of the crop in an image of ``height`` × ``width``."""
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_CROP_ATTEMPTS):
            area = rng.uniform(*self.scale) * height * width
            aspect = math.exp(rng.uniform(*log_ratio))
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if crop_width <= width and crop_height <= height:
                top = rng.integers(height - crop_height, endpoint=True)
                left = rng.integers(width - crop_width, endpoint=True)
                return int(top), int(left), crop_height, crop_width
        crop_height, crop_width = height, width
        if width / height < min(self.ratio):
            crop_height = round(width / min(self.ratio))
        elif width / height > max(self.ratio):
            crop_width = round(height * max(self.ratio))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation by factors uniform in [max(0, 1−strength), 1+strength], in random order."""

    strength: float

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        for index in rng.permutation(len(_ENHANCERS)):
            factor = rng.uniform(max(0.0, 1.0 - self.strength), 1.0 + self.strength)
            picture = _ENHANCERS[index](picture, factor)
        return picture


@dataclass(frozen=True)
class TrainTransform:
    """Crop, flips, auto-augment or colour jitter, normalise, erase; where pixels stay bytes, the device does the last
    two."""

    crop: RandomResizedCrop
    hflip: float
    vflip: float
    policy: Policy | None
    style: Style
    jitter: ColorJitter | None
    normalize: Normalize | Bytes
    erasing: RandomErasing | None

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator, output: np.ndarray) -> Erased | None:
        """Fill ``output`` (3, *crop.size), of ``normalize.dtype``, from ``pixels`` uint8 (H, W, 3); returns what is
        left to the device to erase."""
        height, width = pixels.shape[:2]
        box = self.crop.draw(height, width, rng)
        flips = rng.random() < self.hflip, rng.random() < self.vflip
        picture = Picture(pixels).cropped(box, self.crop.size, flips, self.crop.resampling)
        if self.policy is not None:
            picture = self.policy(picture, rng, self.style)
        if self.jitter is not None:
            picture = self.jitter(picture, rng)
        self.normalize.fill(output, picture)
        if self.erasing is None:
            return None
        if isinstance(self.normalize, Bytes):
            return self.erasing.choose(output.shape, rng)
        self.erasing(output, rng)
        return None


@dataclass(frozen=True)
class EvalTransform:
    """Resize so that ``size / crop_pct`` (rounded down) is covered, keep the centre of ``size``, normalise.

    ``transform(image)`` → (3, H, W), of ``normalize.dtype``. It raises UnreadableImage for one so elongated that
    resizing it would exhaust the memory.
    """

    size: tuple[int, int]
    crop_pct: float
    resampling: Image.Resampling
    normalize: Normalize | Bytes

    def __call__(self, image: Image.Image) -> np.ndarray:
        image = self.resize(image)
        return self.normalize(self.crop(image, *self.centre(image)))

    def resize(self, image: Image.Image) -> Image.Image:
        """The image before the crop. Raises UnreadableImage."""
        height, width = self.resized(image.height, image.width)
        check_size(width, height, "resized")
        return image.resize((width, height), self.resampling)

    def centre(self, image: Image.Image) -> tuple[int, int]:
        """Top and left of the central crop of a resized image."""
        return round((image.height - self.size[0]) / 2), round((image.width - self.size[1]) / 2)

    def crop(self, image: Image.Image, top: int, left: int) -> Image.Image:
        """The part of ``size`` of a resized image that begins there."""
        return image.crop((left, top, left + self.size[1], top + self.size[0]))

    @property
    def in_words(self) -> str:
        covered, size = ("{} x {}".format(*sides) for sides in (self.covered, self.size))
        how = f"resized ({self.resampling.name.lower()}, as Pillow does it) with its aspect, "
        return how + f"until it just covers {covered} (height x width), cropped to the {size} in its centre"

    @property
    def covered(self) -> tuple[int, int]:
        """(H, W) that the resized image covers."""
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        return height, width

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size before the crop: the aspect stays, the tighter side meets its target."""
        target_height, target_width = self.covered
        if target_height != target_width:  # timm's ResizeKeepRatio
            ratio = min(height / target_height, width / target_width)
            return round(height / ratio), round(width / ratio)
        if height <= width:  # torchvision's Resize of the shorter side
            return target_height, int(target_height * width / height)
        return int(target_width * height / width), target_width


def train_transform(config: Config) -> TrainTransform:
    """The training transform of a Config.

    Semantics where timm and MindCV differ or leave a choice: colour jitter is off while ``auto_augment`` is on (both
    references), except with the 3-Augment policies, whose paper combines them (timm). ``re_value`` is the constant of
    ``re_mode: const`` in normalised units: 0 is the mean colour.
    """
    resampling = RESAMPLINGS[config.interpolation]
    size = height_and_width(config.image_resize)
    named = config.auto_augment
    policy = parse_auto_augment(named) if named else None
    jittered = config.color_jitter > 0.0 and (not named or "3a" in named)
    erasing = None
    if config.re_prob > 0.0:
        erasing = RandomErasing(
            probability=config.re_prob,
            scale=config.re_scale,
            ratio=config.re_ratio,
            mode=config.re_mode,
            value=config.re_value,
            attempts=config.re_max_attempts,
        )
    return TrainTransform(
        crop=RandomResizedCrop(size, config.scale, config.ratio, resampling),
        hflip=config.hflip,
        vflip=config.vflip,
        policy=policy,
        style=Style(fill=tuple(min(255, round(value)) for value in config.mean), resampling=resampling),
        jitter=ColorJitter(config.color_jitter) if jittered else None,
        normalize=normalization(config),
        erasing=erasing,
    )


def eval_transform(config: Config) -> EvalTransform:
    """The evaluation transform of a Config."""
    return EvalTransform(
        size=height_and_width(config.image_resize),
        crop_pct=config.crop_pct,
        resampling=RESAMPLINGS[config.interpolation],
        normalize=normalization(config),
    )
