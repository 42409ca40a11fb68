"""What an exported model tells of labelled images, and its checkpoint of the same."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mindcv_reparam.bundle.manifest import Manifest
from mindcv_reparam.bundle.preprocessing import preprocessor
from mindcv_reparam.data.sampler import EvalSampler, Shard
from mindcv_reparam.data.source import ImageSource, UnreadableImage
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.runners import Program, arguments, sizes_of
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tasks.results import Results
from mindcv_reparam.tasks.task import Agreement

_BATCH = 16  # where the model takes any
_THREADS = 2  # that decode; each may hold a large picture


class Comparison:
    """Measures exported models, beside the network of a checkpoint if there is one.

    Args:
        source: labelled images; ``num_samples`` of them, evenly spaced, or all.
        checkpoint: the network in evaluation mode, on normalised images.
    """

    def __init__(self, source: ImageSource, num_samples: int | None = None, checkpoint: Program | None = None) -> None:
        self._source = source
        self._num_samples = num_samples
        self._checkpoint = checkpoint

    @staticmethod
    def check(results: Results[Any], kind: str) -> None:
        """Raise UserError where outputs of this kind do not tell what is measured."""
        if not results.tells(kind):
            raise UserError(f"verify_data compares {results.what}, and head {kind} gives none")

    def __call__(self, manifest: Manifest, exported: Program) -> Agreement:
        """What the task says of both.

        Args:
            manifest: of the exported model, whose outputs tell what the task compares.

        Raises:
            UserError: an image cannot be read.
        """
        transforms = preprocessor(manifest), preprocessor(dataclasses.replace(manifest, input_kind="normalized"))

        def load(index: int) -> tuple[np.ndarray, ...]:
            try:
                image = self._source.load(index)
                return *(transform(image) for transform in transforms), sizes_of([image.size])[0]
            except UnreadableImage as error:
                raise UserError(f"verify_data: {self._source.name(index)}: {error}") from error

        shard = Shard(max(manifest.batch_sizes or (_BATCH,)))
        sampler = EvalSampler(len(self._source), shard, seed=0, num_samples=self._num_samples)
        compared = task_named(manifest.task).comparison(manifest.output_kind, self._source)
        with ThreadPoolExecutor(_THREADS) as pool:
            for step in range(sampler.steps_per_epoch):
                draw = sampler.draw(0, step)
                inputs, normalized, sizes = (np.stack(arrays) for arrays in zip(*pool.map(load, draw.indices)))
                outputs = exported(*arguments(manifest, inputs, sizes))
                expected = None if self._checkpoint is None else self._checkpoint(normalized)
                compared.add(outputs, expected, draw.indices, draw.valid, sizes)
        return compared.result()
