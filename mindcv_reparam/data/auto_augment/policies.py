"""Policies: (picture, rng, style) → picture."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindcv_reparam.data.auto_augment.levels import SCALES
from mindcv_reparam.data.auto_augment.operations import GEOMETRIC, PHOTOMETRIC, Style
from mindcv_reparam.data.picture import Picture


@dataclass(frozen=True)
class Operation:
    """One operation of a policy: applied with ``probability`` at ``magnitude``, which ``deviation`` makes random.

    ``deviation`` is that of a normal distribution; infinity draws uniformly from 0 to ``magnitude``. The magnitude is
    clipped to [0, ``maximum``] and read on ``scale`` (a key of SCALES).
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
        if operation in GEOMETRIC:
            return GEOMETRIC[operation](picture, argument, style)
        return PHOTOMETRIC[operation](picture, argument)

    def argument(self, rng: np.random.Generator) -> tuple[str, float]:
        """Name of the operation on the image and its argument, drawn once."""
        magnitude = self.magnitude
        if self.deviation == float("inf"):
            magnitude = rng.uniform(0.0, magnitude)
        elif self.deviation > 0.0:
            magnitude = rng.normal(magnitude, self.deviation)
        denominator, operations = SCALES[self.scale]
        operation, level = operations[self.name]
        return operation, level(max(0.0, min(magnitude, self.maximum)) / denominator, rng)


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
