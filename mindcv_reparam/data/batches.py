"""Batches as the loader and its workers take them, whatever the task puts into them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.data.sampler import Draw, EvalSampler, TrainSampler
from mindcv_reparam.data.source import ImageSource, UnreadableImage
from mindcv_reparam.errors import UserError

_REPLACEMENTS = 20  # unreadable samples in a row before a run gives up: chance does not do that to a usable data set


@dataclass(frozen=True)
class Batch:
    """One batch: ``arrays`` as the loader yields them behind the images, and the samples that could not be read."""

    arrays: tuple[np.ndarray, ...]
    unreadable: tuple[tuple[int, str], ...]


class Batches(Protocol):
    """From an epoch and a step to a finished batch of one of few shapes: what worker threads and processes run.

    Attributes:
        source: of the images.
        sampler: which of them make up a batch.
        num_classes: that the targets tell apart.
    """

    @property
    def source(self) -> ImageSource: ...

    @property
    def sampler(self) -> TrainSampler | EvalSampler: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the largest batch."""

    @property
    def image_type(self) -> type[np.generic]:
        """float32, or uint8 where the device normalises."""

    def shape(self, epoch: int, step: int) -> tuple[int, int, int, int]:
        """(B, C, H, W) of one; the same on every rank."""

    def make(self, epoch: int, step: int, images: np.ndarray) -> Batch:
        """Fill ``images`` (``shape(epoch, step)``, of ``image_type``); the rest of the batch is what comes back."""


def class_count(config: Config, source: ImageSource) -> int:
    """How many classes the targets tell apart.

    Raises:
        UserError: the data has more than ``config.num_classes``.
    """
    count = config.num_classes or len(source.classes)
    if count < len(source.classes):
        raise UserError(f"num_classes {count} is less than the {len(source.classes)} classes of the data set")
    return count


def load_each(
    source: ImageSource, draw: Draw, images: np.ndarray, place: Callable[[int, Image.Image], None]
) -> tuple[np.ndarray, tuple[tuple[int, str], ...]]:
    """Hand every image of a batch for validation to ``place(row, image)``, which fills a row of ``images``.

    Padding and unreadable images are black and weigh nothing.

    Returns:
        Weights float32 (B,) of 1 or 0, and the samples that could not be read.
    """
    weights = draw.valid.astype(np.float32)
    unreadable = []
    for row, index in enumerate(draw.indices.tolist()):
        images[row] = 0
        if draw.valid[row]:
            try:
                image = source.load(index)
            except UnreadableImage as error:
                weights[row] = 0.0
                unreadable.append((index, str(error)))
            else:
                place(row, image)
    return weights, tuple(unreadable)


def load_or_replace(
    source: ImageSource, index: int, seed: int, epoch: int, position: int, unreadable: list[tuple[int, str]]
) -> tuple[np.ndarray, Any]:
    """Pixels and target of a training sample.

    An unreadable one is replaced by a sample drawn from (seed, epoch, position), so that the batch keeps its shape and
    the run stays reproducible; what could not be read is appended to ``unreadable``.

    Raises:
        UserError: too many in a row.
    """
    replacement = None
    for _ in range(_REPLACEMENTS):
        try:
            return source.pixels(index), source.target(index)
        except UnreadableImage as error:
            unreadable.append((index, str(error)))
            replacement = replacement or stream(seed, Purpose.REPLACE, epoch, position)
            index = int(replacement.integers(len(source)))
    raise UserError(
        f"{_REPLACEMENTS} unreadable images in a row: the data set is damaged; the last: {unreadable[-1][1]}"
    )
