"""Batches of images and objects."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data.batches import Batch, class_count, load_each, load_or_replace
from mindcv_reparam.data.objects import DetectionSource, Objects
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.data.sampler import EvalSampler, Shard, TrainSampler, eval_sampler, train_sampler
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import model_info
from mindcv_reparam.tasks.detection.denoising import Noise, denoise
from mindcv_reparam.tasks.detection.transforms import EvalTransform, TrainTransform, eval_transform, train_transform

_log = logging.getLogger(__name__)

_FEW_STEPS = 2000  # below, users of RT-DETR report that nothing is found


@dataclass(frozen=True)
class TrainBatches:
    """Augmented images with padded objects and denoising queries, all of fixed shapes but for the images' sides.

    Args:
        sides: of square images, one drawn for every step of the epochs with strong augmentation; none: all images have
            the transform's size.
        num_queries: Q, of the network.
        max_boxes: M, objects of an image; of more, the largest.
        strong_epochs: epochs, from the first, with strong augmentation.
        denoising_queries: D.
        label_noise: see `denoising.denoise`, as is ``box_noise``.
    """

    source: DetectionSource
    sampler: TrainSampler
    transform: TrainTransform
    num_classes: int
    num_queries: int
    max_boxes: int
    strong_epochs: int
    denoising_queries: int
    label_noise: float
    box_noise: float
    sides: tuple[int, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        sizes = self.transform.size, *((side, side) for side in self.sides)
        return (self.sampler.shard.batch_size, 3, *max(sizes, key=math.prod))

    @property
    def image_type(self) -> type[np.generic]:
        return self.transform.normalize.dtype

    def shape(self, epoch: int, step: int) -> tuple[int, int, int, int]:
        size = self.transform.size
        if self.sides and epoch < self.strong_epochs:
            rng = stream(self.sampler.seed, Purpose.SCALE, epoch, step)
            size = (self.sides[rng.integers(len(self.sides))],) * 2
        return (self.sampler.shard.batch_size, 3, *size)

    def make(self, epoch: int, step: int, images: np.ndarray) -> Batch:
        """Fill ``images`` (``shape(epoch, step)``, of ``image_type``); the rest is what `DetectionObjective` takes:
        labels int32 (B, M), boxes float32 (B, M, 4) normalised cx cy w h, valid bool (B, M), then the arrays of a
        `Denoising`."""
        seed = self.sampler.seed
        draw = self.sampler.draw(epoch, step)
        unreadable: list[tuple[int, str]] = []
        found: list[Objects] = []
        noises: list[Noise] = []
        height, width = images.shape[2:]
        transform = dataclasses.replace(self.transform, size=(height, width))
        for row, (position, index) in enumerate(zip(draw.positions.tolist(), draw.indices.tolist())):
            pixels, objects = load_or_replace(self.source, index, seed, epoch, position, unreadable)
            rng = stream(seed, Purpose.AUGMENT, epoch, position)
            found.append(transform(pixels, objects, rng, images[row], strong=epoch < self.strong_epochs))
            # Drawn image by image, so that it does not depend on the number of ranks.
            rng = stream(seed, Purpose.DENOISE, epoch, position)
            noises.append(Noise.draw(rng, 1, self.denoising_queries, self.num_classes))
        labels, boxes, valid = padded(found, self.max_boxes, transform.size)
        denoising = denoise(
            labels,
            boxes,
            valid,
            joined(noises),
            num_classes=self.num_classes,
            num_queries=self.num_queries,
            label_noise_ratio=self.label_noise,
            box_noise_scale=self.box_noise,
        )
        return Batch((labels, boxes, valid, *denoising.arrays()), tuple(unreadable))


@dataclass(frozen=True)
class EvalBatches:
    """Batches for validation; padding and unreadable images are black and weigh nothing."""

    source: DetectionSource
    sampler: EvalSampler
    transform: EvalTransform
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.sampler.shard.batch_size, 3, *self.transform.size)

    @property
    def image_type(self) -> type[np.generic]:
        return self.transform.normalize.dtype

    def shape(self, epoch: int, step: int) -> tuple[int, int, int, int]:
        return self.image_shape

    def make(self, epoch: int, step: int, images: np.ndarray) -> Batch:
        """Fill ``images``; the rest is (indices in the source int32 (B,), widths and heights of the original images
        int32 (B, 2), weights float32 (B,) of 1 or 0)."""
        draw = self.sampler.draw(epoch, step)
        sizes = np.ones((len(images), 2), dtype=np.int32)

        def place(row: int, image: Image.Image) -> None:
            images[row], sizes[row] = self.transform(image), image.size

        weights, unreadable = load_each(self.source, draw, images, place)
        return Batch((draw.indices.astype(np.int32), sizes, weights), unreadable)


def padded(objects: Sequence[Objects], most: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects of N images of ``size`` (height, width), each image's ``most`` largest: labels int32 (N, most), boxes
    float32 (N, most, 4) normalised cx cy w h, valid bool (N, most), the objects in front of the padding."""
    labels = np.zeros((len(objects), most), dtype=np.int32)
    boxes = np.zeros((len(objects), most, 4), dtype=np.float32)
    valid = np.zeros((len(objects), most), dtype=bool)
    for row, one in enumerate(objects):
        corners, sides = one.boxes[:, :2], one.boxes[:, 2:] - one.boxes[:, :2]
        largest = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[:most])
        count = len(largest)
        labels[row, :count], valid[row, :count] = one.labels[largest], True
        centred = np.concatenate([corners + sides / 2, sides], axis=1)
        boxes[row, :count] = centred[largest] / np.array([size[1], size[0]] * 2, dtype=np.float32)
    return labels, boxes, valid


def joined(noises: Sequence[Noise]) -> Noise:
    """The noise of several images together."""
    return Noise(
        np.concatenate([noise.flips for noise in noises]),
        np.concatenate([noise.labels for noise in noises]),
        np.concatenate([noise.signs for noise in noises]),
        np.concatenate([noise.distances for noise in noises]),
    )


def create_batches(config: Config, source: ImageSource, train: bool, shard: Shard) -> TrainBatches | EvalBatches:
    """The batches of one rank, for training with augmentation and denoising queries, for validation without.

    Raises:
        UserError: images without boxes, more classes than ``config.num_classes``, an empty epoch, a setting out of
            range.
    """
    if not isinstance(source, DetectionSource):
        raise UserError(f"dataset {config.dataset} has no boxes of objects")
    num_classes = class_count(config, source)
    if not train:
        return EvalBatches(source, eval_sampler(config, len(source), shard), eval_transform(config), num_classes)
    crowded = np.flatnonzero(source.counts > config.max_boxes)
    if len(crowded) and shard.rank == 0:
        fullest = int(np.argmax(source.counts))
        _log.warning(
            "%d images have more than max_boxes %d objects, the most %s with %d: the smallest beyond that are not "
            "trained on",
            *(len(crowded), config.max_boxes, source.name(fullest), source.counts[fullest]),
        )
    sampler = train_sampler(config, len(source), shard)
    steps = config.epoch_size * sampler.steps_per_epoch
    if steps < _FEW_STEPS and shard.rank == 0:
        _log.warning(
            "%d steps in all, %d epochs of %d: of fewer than some %d a detector learns little; take more epochs or a "
            "smaller batch, or begin with a trained detector by ckpt_path",
            *(steps, config.epoch_size, sampler.steps_per_epoch, _FEW_STEPS),
        )
    return TrainBatches(
        source=source,
        sampler=sampler,
        transform=train_transform(config),
        num_classes=num_classes,
        num_queries=model_info(config.required_model()).queries,
        max_boxes=config.max_boxes,
        strong_epochs=config.epoch_size - config.plain_epochs,
        denoising_queries=config.denoising_queries,
        label_noise=config.label_noise,
        box_noise=config.box_noise,
        sides=config.multi_scale,
    )
