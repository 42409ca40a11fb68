"""Predictions of an exported model against those of its checkpoint, on labelled images."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import nn
from PIL import Image

from ..data.source import ImageSource, UnreadableImage
from ..errors import UserError
from .images import preprocessor
from .manifest import Manifest
from .report import Agreement
from .runners import Program, cell_program

_BATCH = 16  # where the model takes any


class Comparison:
    """Compares exported files with the network of a checkpoint on a data set."""

    def __init__(self, network: nn.Cell, source: ImageSource) -> None:
        self._checkpoint = cell_program(network)
        self._source = source

    def __call__(self, manifest: Manifest, exported: Program) -> Agreement:
        """Top-1 of both over all images.

        Args:
            manifest: of the exported model.

        Raises:
            UserError: an image cannot be read, or the model gives no classes.
        """
        return _agreement(self._source, manifest, exported, self._checkpoint)


def _agreement(source: ImageSource, manifest: Manifest, exported: Program, checkpoint: Program) -> Agreement:
    if manifest.output_kind == "features":
        raise UserError("verify_data compares classes, and head features gives none")
    sizes = manifest.batch_sizes or (_BATCH,)
    transforms = preprocessor(manifest), preprocessor(dataclasses.replace(manifest, input_kind="normalized"))
    images = correct_checkpoint = correct_exported = same = 0
    for labels, inputs, normalized in _batches(source, transforms, max(sizes)):
        count = len(labels)
        size = min((size for size in sizes if size >= count), default=count) if manifest.batch_sizes else count
        outputs = exported(np.concatenate([inputs, np.repeat(inputs[-1:], size - count, axis=0)]))
        best = outputs[1][:, 0] if manifest.output_kind == "topk" else outputs[0].argmax(axis=1)
        best, expected = best[:count], checkpoint(normalized)[0].argmax(axis=1)
        images += count
        correct_exported += int((best == labels).sum())
        correct_checkpoint += int((expected == labels).sum())
        same += int((best == expected).sum())
    return Agreement(images, correct_checkpoint, correct_exported, same)


def _batches(
    source: ImageSource, transforms: tuple[Callable[[Image.Image], np.ndarray], ...], size: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Labels, and the images by each of the transforms."""

    def load(index: int) -> tuple[np.ndarray, ...]:
        try:
            image = source.load(index)
        except UnreadableImage as error:
            raise UserError(f"verify_data: {error}") from error
        return tuple(transform(image) for transform in transforms)

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(source), size):
            indices = range(start, min(start + size, len(source)))
            pairs = list(pool.map(load, indices))
            yield source.labels[indices.start : indices.stop], *(np.stack(images) for images in zip(*pairs))
