"""Predictions of an exported model against those of its checkpoint, on labelled images."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import nn

from ..data.sampler import EvalSampler, Shard
from ..data.source import ImageSource, UnreadableImage
from ..errors import UserError
from .images import NoImage, preprocessor
from .manifest import Manifest
from .report import Agreement
from .runners import Program, cell_program

_BATCH = 16  # where the model takes any


class Comparison:
    """Compares exported models with the network of a checkpoint.

    Args:
        network: in evaluation mode, on normalised images.
        source: labelled images; ``num_samples`` of them, evenly spaced, or all.
    """

    def __init__(self, network: nn.Cell, source: ImageSource, num_samples: int | None = None) -> None:
        self._checkpoint = cell_program(network)
        self._source = source
        self._num_samples = num_samples

    def __call__(self, manifest: Manifest, exported: Program) -> Agreement:
        """Top-1 of both.

        Args:
            manifest: of the exported model, which gives classes.

        Raises:
            UserError: an image cannot be read.
        """
        transforms = preprocessor(manifest), preprocessor(dataclasses.replace(manifest, input_kind="normalized"))

        def load(index: int) -> tuple[np.ndarray, ...]:
            try:
                image = self._source.load(index)
                return tuple(transform(image) for transform in transforms)
            except (UnreadableImage, NoImage) as error:
                raise UserError(f"verify_data: {self._source.name(index)}: {error}") from error

        shard = Shard(max(manifest.batch_sizes or (_BATCH,)))
        sampler = EvalSampler(len(self._source), shard, seed=0, num_samples=self._num_samples)
        hits = np.zeros(3, np.int64)
        with ThreadPoolExecutor() as pool:
            for step in range(sampler.steps_per_epoch):
                draw = sampler.draw(0, step)
                inputs, normalized = (np.stack(images) for images in zip(*pool.map(load, draw.indices)))
                outputs = exported(inputs)
                best = outputs[1][:, 0] if manifest.output_kind == "topk" else outputs[0].argmax(axis=1)
                expected = self._checkpoint(normalized)[0].argmax(axis=1)
                labels = self._source.labels[draw.indices]
                equal = (expected == labels, best == labels, best == expected)
                hits += [int((one & draw.valid).sum()) for one in equal]
        return Agreement(sampler.epoch_length, *hits.tolist())
