"""What images show, by a model: decoding beside running, batches of the sizes it takes, the most probable classes."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from .images import NoImage, decode, preprocessor
from .manifest import Manifest
from .probabilities import most_probable
from .runners import Program

THUMBNAIL = 128  # pixels, the longer side
# Pillow decodes and resizes without Python's lock; what it holds the lock for would make more threads wait.
_THREADS = 4


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, from the first one down."""

    file: Path
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    thumbnail: Image.Image | None = None


@dataclass(frozen=True)
class Skipped:
    """An image without a prediction."""

    file: Path
    reason: str


@dataclass(frozen=True)
class Sample:
    """A decoded image: the model's input without the batch, and perhaps the image made small."""

    file: Path
    input: np.ndarray
    thumbnail: Image.Image | None


class Classifier:
    """A model that tells the classes of images.

    Args:
        manifest: of the model; what a bundle's says, or the same told of a checkpoint.
        program: runs it.
        names: of the classes, in place of the manifest's.

    Raises:
        UserError: the model has no classes, no colour images for input, or not as many classes as there are names.
    """

    def __init__(self, manifest: Manifest, program: Program, names: Sequence[str] | None = None) -> None:
        if manifest.output_kind == "features":
            raise UserError(f"this {manifest.model} was exported for its features and has no classes to tell")
        channels = manifest.input.shape[1 if manifest.input_kind == "normalized" else -1]
        if channels != 3:
            raise UserError(f"this {manifest.model} takes images of {channels} channels, image files give 3")
        # Of a top-k output neither the shape nor anything else but the labels tells how many classes there are.
        count = len(manifest.labels) if manifest.output_kind == "topk" else manifest.outputs[0].shape[-1]
        if names is not None and count and len(names) != count:
            raise UserError(f"there are {len(names)} labels for the {count} classes of this {manifest.model}")
        self._names = manifest.labels if names is None else tuple(names)
        self._manifest = manifest
        self._program = program
        self.preprocess = preprocessor(manifest)

    def name(self, index: int) -> str:
        """The label of a class, or its index as text where it has none."""
        return self._names[index] if index < len(self._names) else str(index)

    def predict(
        self, files: Sequence[Path], batch_size: int, topk: int, thumbnails: int = 0
    ) -> Iterator[Prediction | Skipped]:
        """Every file's prediction in the order of the files, but a skipped one as soon as it is met.

        Args:
            batch_size: the most images that run together.
            topk: classes per image, if the model tells that many.
            thumbnails: the first so many images are kept, made small.

        Raises:
            UserError: the model takes no batch as small as ``batch_size``, or no input as its preprocessing makes it.
        """
        sizes = self._sizes(batch_size)
        most = sizes[-1] if sizes else batch_size
        waiting: list[Sample] = []
        for sample in self.samples(files, 2 * most, thumbnails):
            if isinstance(sample, Skipped):
                yield sample
                continue
            waiting.append(sample)
            if len(waiting) == most:
                yield from self._run(waiting, most, topk)
                waiting = []
        if waiting:
            size = next(size for size in sizes or (len(waiting),) if size >= len(waiting))
            yield from self._run(waiting, size, topk)

    def samples(self, files: Sequence[Path], ahead: int = 1, thumbnails: int = 0) -> Iterator[Sample | Skipped]:
        """The files decoded, in their order, by threads that are up to ``ahead`` files in advance."""
        pool = ThreadPoolExecutor(_THREADS)
        tasks = (pool.submit(self._load, file, number < thumbnails) for number, file in enumerate(files))
        try:
            pending = deque(itertools.islice(tasks, ahead))
            while pending:
                sample = pending.popleft().result()
                pending.extend(itertools.islice(tasks, 1))
                yield sample
        finally:
            pool.shutdown(cancel_futures=True)

    def _sizes(self, batch_size: int) -> tuple[int, ...]:
        """The batches up to ``batch_size`` that the model takes, rising; none where it takes any."""
        listed = self._manifest.batch_sizes or ()
        sizes = tuple(sorted(size for size in listed if size <= batch_size))
        if listed and not sizes:
            raise UserError(f"batch_size {batch_size}: this model runs at least {min(listed)} images together")
        return sizes

    def _load(self, file: Path, with_thumbnail: bool) -> Sample | Skipped:
        try:
            image = decode(file)
            return Sample(file, self.preprocess(image), _thumbnail(image) if with_thumbnail else None)
        except NoImage as error:
            return Skipped(file, str(error))

    def _run(self, samples: Sequence[Sample], size: int, topk: int) -> Iterator[Prediction | Skipped]:
        """The predictions of samples that run together, as a batch of ``size`` with zeros for the missing ones."""
        images = np.zeros((size, *samples[0].input.shape), self._manifest.input.dtype)
        if not self._manifest.input.accepts(images.shape):
            expected = self._manifest.input.shape
            raise UserError(f"the preprocessing makes an input of shape {images.shape}, the model takes {expected}")
        for row, sample in zip(images, samples):
            row[...] = sample.input
        classes, probabilities = most_probable(self._program(images), self._manifest.output_kind, topk)
        for sample, indices, values in zip(samples, classes.tolist(), probabilities.tolist()):
            if np.isfinite(values).all():
                yield Prediction(sample.file, tuple(indices), tuple(values), sample.thumbnail)
            else:
                yield Skipped(sample.file, "the model's output for it is not finite")


def _thumbnail(image: Image.Image) -> Image.Image:
    scale = THUMBNAIL / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
