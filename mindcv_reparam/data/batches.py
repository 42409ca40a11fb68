"""From an epoch and a step to a finished batch: the one function that worker threads and processes run."""

from dataclasses import dataclass

import numpy as np

from mindcv_reparam.data.mixup import BatchMix, soft_labels
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.data.sampler import EvalSampler, TrainSampler
from mindcv_reparam.data.source import ImageSource, UnreadableImage
from mindcv_reparam.data.transforms import EvalTransform, TrainTransform
from mindcv_reparam.errors import UserError

_REPLACEMENTS = 20  # unreadable samples in a row before a run gives up: chance does not do that to a usable data set


@dataclass(frozen=True)
class Batch:
    """One batch: ``arrays`` as the loader yields them behind the images, and the samples that could not be read."""

    arrays: tuple[np.ndarray, ...]
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class TrainBatches:
    """Augmented and mixed batches with soft labels.

    An unreadable image is replaced by a sample drawn from (seed, epoch, position), so that the batch keeps its shape
    and the run stays reproducible.
    """

    source: ImageSource
    sampler: TrainSampler
    transform: TrainTransform
    mix: BatchMix
    num_classes: int
    smoothing: float

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.sampler.shard.batch_size, 3, *self.transform.crop.size)

    def make(self, epoch: int, step: int, images: np.ndarray) -> Batch:
        """Fill ``images`` (``image_shape``, float32); the rest is (soft labels float32 (B, num_classes),)."""
        seed = self.sampler.seed
        draw = self.sampler.draw(epoch, step)
        labels = np.empty(len(images), dtype=np.int32)
        unreadable: list[tuple[int, str]] = []
        for row, (position, index) in enumerate(zip(draw.positions.tolist(), draw.indices.tolist())):
            pixels, labels[row] = self._load(index, epoch, position, unreadable)
            self.transform(pixels, stream(seed, Purpose.AUGMENT, epoch, position), images[row])
        targets = soft_labels(labels, self.num_classes, self.smoothing)
        self.mix(images, targets, stream(seed, Purpose.MIX, epoch, step, self.sampler.shard.rank))
        return Batch((targets,), tuple(unreadable))

    def _load(self, index: int, epoch: int, position: int, unreadable: list[tuple[int, str]]) -> tuple[np.ndarray, int]:
        replacement = None
        for _ in range(_REPLACEMENTS):
            try:
                return self.source.pixels(index), self.source.labels[index]
            except UnreadableImage as error:
                unreadable.append((index, str(error)))
                replacement = replacement or stream(self.sampler.seed, Purpose.REPLACE, epoch, position)
                index = int(replacement.integers(len(self.source)))
        raise UserError(
            f"{_REPLACEMENTS} unreadable images in a row: the data set is damaged; the last: {unreadable[-1][1]}"
        )


@dataclass(frozen=True)
class EvalBatches:
    """Batches for validation; padding and unreadable images are black and weigh nothing."""

    source: ImageSource
    sampler: EvalSampler
    transform: EvalTransform

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.sampler.shard.batch_size, 3, *self.transform.size)

    def make(self, epoch: int, step: int, images: np.ndarray) -> Batch:
        """Fill ``images``; the rest is (labels int32 (B,), weights float32 (B,) of 1 or 0)."""
        draw = self.sampler.draw(epoch, step)
        weights = draw.valid.astype(np.float32)
        unreadable = []
        for row, index in enumerate(draw.indices.tolist()):
            images[row] = 0.0
            if draw.valid[row]:
                try:
                    images[row] = self.transform(self.source.load(index))
                except UnreadableImage as error:
                    weights[row] = 0.0
                    unreadable.append((index, str(error)))
        return Batch((self.source.labels[draw.indices], weights), tuple(unreadable))


Batches = TrainBatches | EvalBatches
