"""What an exported model tells of labelled images, and its checkpoint of the same."""

import dataclasses
from typing import Any

from mindcv_reparam.bundle.manifest import Manifest
from mindcv_reparam.bundle.preprocessing import preprocessor
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.labelled import View, read
from mindcv_reparam.run.runners import Program, arguments
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tasks.results import Results
from mindcv_reparam.tasks.task import Agreement

_BATCH = 16  # where the model takes any


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
        views = [View(self._source, transform) for transform in transforms]
        compared = task_named(manifest.task).comparison(manifest.output_kind, self._source)
        for draw, (own, normalized) in read(views, max(manifest.batch_sizes or (_BATCH,)), self._num_samples):
            outputs = exported(*arguments(manifest, *own))
            expected = None if self._checkpoint is None else self._checkpoint(normalized.inputs)
            compared.add(outputs, expected, draw.indices, draw.valid, own.sizes)
        return compared.result()
