"""Two models on the same labelled images."""

from typing import NamedTuple

import numpy as np

from mindcv_reparam.bundle.manifest import Manifest
from mindcv_reparam.bundle.preprocessing import preprocessor
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.run.labelled import Seen, View, read
from mindcv_reparam.run.runners import Program, arguments
from mindcv_reparam.tasks.task import Changes

BATCH = 16  # images that are decoded together


class Contender(NamedTuple):
    """A model, and the images decoded as it asks."""

    manifest: Manifest
    program: Program
    source: ImageSource


def compare(first: Contender, second: Contender, changes: Changes, num_samples: int | None = None) -> None:
    """Have ``changes`` account for every image, or ``num_samples`` of them, evenly spaced.

    Raises:
        UserError: an image cannot be read, or a model does not run.
    """
    views = [View(one.source, preprocessor(one.manifest)) for one in (first, second)]
    for draw, seen in read(views, BATCH, num_samples):
        changes.add(_outputs(first, seen[0]), _outputs(second, seen[1]), draw.indices, draw.valid)


def _outputs(model: Contender, seen: Seen) -> list[np.ndarray]:
    """In as many calls as the largest batch that the model takes needs; the last one is filled up."""
    count = len(seen.inputs)
    most = max(model.manifest.batch_sizes or (count,))
    parts = []
    for start in range(0, count, most):
        places = np.minimum(np.arange(start, start + most), count - 1)
        parts.append(model.program(*arguments(model.manifest, seen.inputs[places], seen.sizes[places])))
    return [np.concatenate(outputs)[:count] for outputs in zip(*parts)]
