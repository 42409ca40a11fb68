"""Batches of images and labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data.batches import Batch, class_count, load_each, load_or_replace
from mindcv_reparam.data.erasing import Erased
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.data.sampler import Balance, EvalSampler, Shard, TrainSampler, eval_sampler, train_sampler
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.data.transforms import TrainTransform, eval_transform, train_transform
from mindcv_reparam.tasks.classification.mixup import BatchMix, Mix, soft_labels
from mindcv_reparam.tasks.classification.views import Views


@dataclass(frozen=True)
class TrainBatches:
    """Augmented and mixed batches with soft labels.

    Args:
        in_graph: whether `device.Augmentation` erases and mixes the images, as `augments_in_graph` tells.
        class_weights: of the classes, float32 (num_classes,), by which labels are multiplied, since cross-entropy is
            linear in them; None: all 1.
    """

    source: ImageSource
    sampler: TrainSampler
    transform: TrainTransform
    mix: BatchMix
    num_classes: int
    smoothing: float
    in_graph: bool = False
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
        """Fill ``images`` (``image_shape``, of ``image_type``); the rest is (soft labels float32 (B, num_classes),) and
        what `device.Augmentation` takes behind them."""
        seed = self.sampler.seed
        draw = self.sampler.draw(epoch, step)
        labels = np.empty(len(images), dtype=np.int32)
        erased: list[Erased | None] = []
        unreadable: list[tuple[int, str]] = []
        for row, (position, index) in enumerate(zip(draw.positions.tolist(), draw.indices.tolist())):
            pixels, labels[row] = load_or_replace(self.source, index, seed, epoch, position, unreadable)
            erased.append(self.transform(pixels, stream(seed, Purpose.AUGMENT, epoch, position), images[row]))
        targets = soft_labels(labels, self.num_classes, self.smoothing)
        rng = stream(seed, Purpose.MIX, epoch, step, self.sampler.shard.rank)
        left: tuple[np.ndarray, ...] = ()
        if self.in_graph:
            mix = self.mix.choose(images.shape[2], images.shape[3], rng)
            mix.apply_to_labels(targets)
            left = tuple(self._left(erased, mix))
        else:
            self.mix(images, targets, rng)
        if self.class_weights is not None:
            targets *= self.class_weights
        return Batch((targets, *left), tuple(unreadable))

    def _left(self, erased: list[Erased | None], mix: Mix) -> Iterator[np.ndarray]:
        """What is left to the graph, as far as the configuration has it."""
        if self.transform.erasing is not None:
            yield from self.transform.erasing.arrays(erased, self.image_shape[1])
        if self.mix.active:
            yield mix.array()


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


def augments_in_graph(config: Config) -> bool:
    """Whether the graph erases and mixes images, in this order, since bytes cannot; cutmix alone swaps bytes."""
    return config.normalize_on_device and (config.re_prob > 0.0 or config.mixup > 0.0)


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
        in_graph=augments_in_graph(config),
        class_weights=balanced_weights(source.class_counts, num_classes) if config.class_weights else None,
    )
