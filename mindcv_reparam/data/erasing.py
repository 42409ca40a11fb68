"""Random erasing (arXiv 1708.04896), with timm's semantics: what is drawn for an image, and how it is carried out.

Noise is a function of a key and of a place, by whole numbers and a table alone. So what is erased in a graph, see
`tasks/classification/device.py`, has the bits of what is erased here, and a key is all that the graph needs for it.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# Of the finalizer of MurmurHash3, of which a noise takes the first two rounds.
MIX1, MIX2 = 0x85EBCA6B, 0xC2B2AE35
NOISE_BITS = 18  # of a hash choose the value


@dataclass(frozen=True)
class Erased:
    """What is erased of an image (C, H, W).

    Args:
        box: top, bottom, left, right.
        fill: a colour, float32 (C,), or a noise's key, int32 ().
    """

    box: tuple[int, int, int, int]
    fill: np.ndarray

    def apply(self, image: np.ndarray) -> None:
        """Fill the box in ``image`` (C, H, W) in place."""
        top, bottom, left, right = self.box
        part = np.s_[:, top:bottom, left:right]
        image[part] = self.fill[:, None, None] if self.fill.ndim else noise(self.fill, places(image.shape)[part])


@dataclass(frozen=True)
class RandomErasing:
    """Erases one rectangle of a normalised image.

    Args:
        probability: of erasing.
        scale: area of the rectangle as a fraction of the image, uniform.
        ratio: height / width of the rectangle, log-uniform.
        mode: "const" fills with ``value`` (in normalised units, 0 is the mean colour), "rand" with one normal colour,
            "pixel" with normal noise.
        attempts: draws of a rectangle before giving up because none fits.
    """

    probability: float
    scale: tuple[float, float]
    ratio: tuple[float, float]
    mode: str = "const"
    value: float | tuple[float, ...] = 0.0
    attempts: int = 10

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Erase in ``image`` (C, H, W) in place."""
        erased = self.choose(image.shape, rng)
        if erased is not None:
            erased.apply(image)
        return image

    def choose(self, shape: Sequence[int], rng: np.random.Generator) -> Erased | None:
        """What to erase of an image of ``shape`` (C, H, W); None: nothing."""
        box = self.draw(shape[1], shape[2], rng) if rng.random() < self.probability else None
        if box is None:
            return None
        top, left, height, width = box
        return Erased((top, top + height, left, left + width), self._fill(shape[0], rng))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        """Top, left, height, width of the rectangle; None when no draw fitted."""
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(self.attempts):
            area = rng.uniform(*self.scale) * height * width
            aspect = math.exp(rng.uniform(*log_ratio))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if box_height < height and box_width < width:
                top = rng.integers(height - box_height, endpoint=True)
                left = rng.integers(width - box_width, endpoint=True)
                return int(top), int(left), box_height, box_width
        return None

    def arrays(self, erased: Sequence[Erased | None], channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Of N images, as a graph takes them: boxes int32 (N, 4), empty where nothing is erased, and what fills them,
        float32 (N, channels) or, of noise, int32 (N,)."""
        boxes = np.zeros((len(erased), 4), np.int32)
        noisy = self.mode == "pixel"
        fills = np.zeros(len(erased), np.int32) if noisy else np.zeros((len(erased), channels), np.float32)
        for row, of_image in enumerate(erased):
            if of_image is not None:
                boxes[row], fills[row] = of_image.box, of_image.fill
        return boxes, fills

    def _fill(self, channels: int, rng: np.random.Generator) -> np.ndarray:
        if self.mode == "pixel":
            return np.array(rng.integers(-(2**31), 2**31), np.int32)
        if self.mode == "rand":
            return rng.standard_normal(channels, dtype=np.float32)
        return np.full(channels, self.value, np.float32)


def noise(key: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Standard normal values, float32, of ``places``, uint32 of any shape; ``key`` int32 () chooses among 2^32."""
    bits: np.ndarray = places ^ key.astype(np.uint32)
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(MIX1)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(MIX2)
    return quantiles()[bits >> np.uint32(32 - NOISE_BITS)]


@functools.lru_cache(maxsize=4)
def places(shape: tuple[int, ...]) -> np.ndarray:
    """A number for each element of an image, spread over the whole numbers: uint32 of ``shape``."""
    numbers = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(MIX1)
    numbers = (numbers ^ (numbers >> np.uint32(13))) * np.uint32(MIX2)
    return (numbers ^ (numbers >> np.uint32(16))).reshape(shape)


@functools.cache
def quantiles() -> np.ndarray:
    """Of the standard normal distribution, as many as a hash can choose: float32 (2^18,)."""
    count = 2**NOISE_BITS
    lower = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count // 2)]
    return np.array([*lower, *(-value for value in reversed(lower))], np.float32)
