"""Labelled images as one or several models take them, in batches."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from mindcv_reparam.data.sampler import Draw, EvalSampler, Shard
from mindcv_reparam.data.source import ImageSource, UnreadableImage
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.runners import sizes_of

_THREADS = 2  # that decode; each may hold a large picture


class View(NamedTuple):
    """How a model sees the images of a source: several views of one source decode every image once."""

    source: ImageSource
    transform: Callable[[Image.Image], np.ndarray]


class Seen(NamedTuple):
    """A batch of one view: inputs (N, …), and width and height of the images as decoded, (N, 2) int32."""

    inputs: np.ndarray
    sizes: np.ndarray


def read(views: Sequence[View], batch: int, num_samples: int | None = None) -> Iterator[tuple[Draw, list[Seen]]]:
    """Every image once, or ``num_samples`` of them, evenly spaced; batches are full, what fills the last is not valid.

    Raises:
        UserError: an image cannot be read.
    """

    def load(index: int) -> list[tuple[np.ndarray, tuple[int, int]]]:
        images: dict[int, Image.Image] = {}
        found = []
        for source, transform in views:
            try:
                if id(source) not in images:
                    images[id(source)] = source.load(index)
                image = images[id(source)]
                found.append((transform(image), image.size))
            except UnreadableImage as error:
                raise UserError(f"{source.name(index)}: {error}; mend or remove the file") from error
        return found

    sampler = EvalSampler(len(views[0].source), Shard(batch), seed=0, num_samples=num_samples)
    with ThreadPoolExecutor(_THREADS) as pool:
        for step in range(sampler.steps_per_epoch):
            draw = sampler.draw(0, step)
            columns = zip(*pool.map(load, draw.indices.tolist()))
            pairs = ([list(parts) for parts in zip(*rows)] for rows in columns)
            yield draw, [Seen(np.stack(inputs), sizes_of(sizes)) for inputs, sizes in pairs]
