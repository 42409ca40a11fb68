"""Batches of images and labels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data.batches import Batch, class_count, load_each, load_or_replace
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.data.sampler import Balance, EvalSampler, Shard, TrainSampler, eval_sampler, train_sampler
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.data.transforms import TrainTransform, eval_transform, train_transform
from mindcv_reparam.tasks.classification.mixup import BatchMix, soft_labels
from mindcv_reparam.tasks.classification.views import Views


@dataclass(frozen=True)
class TrainBatches:
    """Augmented and mixed batches with soft labels.

    Args:
        class_weights: of the classes, float32 (num_classes,), by which labels are multiplied, since cross-entropy is
            linear in them; None: all 1.
    """

    source: ImageSource
    sampler: TrainSampler
    transform: TrainTransform
    mix: BatchMix
    num_classes: int
    smoothing: float
    class_weights: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.sampler.shard.batch_size, 3, *self.transform.crop.size)

    @property
    def image_type(self) -> type[np.generic]:
        return self.transform.normalize.dtype

    def shape(self, epoch: int, step: int) -> tuple[int, int, int, int]:
        return self.image_shape

    def make(self, epoch: int, step: int, images: np.ndarray) -> Batch:
        """Fill ``images`` (``image_shape``, of ``image_type``); the rest is (soft labels float32 (B, num_classes),)."""
        seed = self.sampler.seed
        draw = self.sampler.draw(epoch, step)
        labels = np.empty(len(images), dtype=np.int32)
        unreadable: list[tuple[int, str]] = []
        for row, (position, index) in enumerate(zip(draw.positions.tolist(), draw.indices.tolist())):
            pixels, labels[row] = load_or_replace(self.source, index, seed, epoch, position, unreadable)
            self.transform(pixels, stream(seed, Purpose.AUGMENT, epoch, position), images[row])
        targets = soft_labels(labels, self.num_classes, self.smoothing)
        self.mix(images, targets, stream(seed, Purpose.MIX, epoch, step, self.sampler.shard.rank))
        if self.class_weights is not None:
            targets *= self.class_weights
        return Batch((targets,), tuple(unreadable))


@dataclass(frozen=True)
class EvalBatches:
    """Batches for validation; padding and unreadable images are black and weigh nothing.

    The views of an image lie behind one another: a batch has ``views.count`` images for every label.
    """

    source: ImageSource
    sampler: EvalSampler
    views: Views
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.sampler.shard.batch_size * self.views.count, 3, *self.views.transform.size)

    @property
    def image_type(self) -> type[np.generic]:
        return self.views.transform.normalize.dtype

    def shape(self, epoch: int, step: int) -> tuple[int, int, int, int]:
        return self.image_shape

    def make(self, epoch: int, step: int, images: np.ndarray) -> Batch:
        """Fill ``images``; the rest is (labels int32 (B,), weights float32 (B,) of 1 or 0)."""
        draw = self.sampler.draw(epoch, step)
        of_each = images.reshape(-1, self.views.count, *images.shape[1:])

        def place(row: int, image: Image.Image) -> None:
            of_each[row] = self.views(image)

        weights, unreadable = load_each(self.source, draw, of_each, place)
        labels = np.array([self.source.target(index) for index in draw.indices.tolist()], dtype=np.int32)
        return Batch((labels, weights), unreadable)


def balanced_weights(counts: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights float32 (num_classes,) under which all classes that have images weigh the same in the loss, and an image
    1 on average; ``counts``: images of the first classes, the others have none and the weight 1."""
    weights = np.ones(num_classes, dtype=np.float32)
    there = np.flatnonzero(counts)
    weights[there] = counts.sum() / (len(there) * counts[there])
    return weights


def create_batches(config: Config, source: ImageSource, train: bool, shard: Shard) -> TrainBatches | EvalBatches:
    """The batches of one rank, for training with augmentation, mixing and label smoothing, for validation without.

    Raises:
        UserError: more classes than ``config.num_classes``, an empty epoch, a setting out of range.
    """
    num_classes = class_count(config, source)
    if not train:
        views = Views(eval_transform(config), config.tta)
        return EvalBatches(source, eval_sampler(config, len(source), shard), views, num_classes)
    balance = None
    if config.balanced_sampling:
        balance = Balance(np.array([source.target(index) for index in range(len(source))], dtype=np.int32))
    return TrainBatches(
        source=source,
        sampler=train_sampler(config, len(source), shard, balance),
        transform=train_transform(config),
        mix=BatchMix(config.mixup, config.cutmix, config.cutmix_prob, config.switch_prob),
        num_classes=num_classes,
        smoothing=config.label_smoothing,
        class_weights=balanced_weights(source.class_counts, num_classes) if config.class_weights else None,
    )
