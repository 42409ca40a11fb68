"""What images show, by a model: decoding beside running, in batches of the sizes that it takes."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mindcv_reparam.bundle.manifest import Manifest
from mindcv_reparam.bundle.preprocessing import decoder, preprocessor
from mindcv_reparam.data.decoder import Source, UnreadableImage
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.runners import Program, arguments, sizes_of

THUMBNAIL = 128  # pixels, the longer side
# Pillow decodes and resizes without Python's lock; what it holds the lock for would make more threads wait.
_THREADS = 4


@dataclass(frozen=True)
class Prediction:
    """What was found in an image, as the model's task tells it; the thumbnail is what the model saw of it."""

    file: Any  # as it was given: a path, or an image in memory
    found: Any
    thumbnail: Image.Image | None = None


@dataclass(frozen=True)
class Skipped:
    """An image without a prediction."""

    file: Any
    reason: str


@dataclass(frozen=True)
class Sample:
    """A decoded image: the model's input without the batch, (width, height), and perhaps what the model sees, made
    small."""

    file: Any
    input: np.ndarray
    size: tuple[int, int]
    thumbnail: Image.Image | None


class Predictor:
    """A model that tells what images show.

    Attributes:
        results: what its outputs mean.

    Args:
        manifest: of the model; what a bundle's says, or the same told of a checkpoint.
        program: runs it.
        names: of the classes, in place of the manifest's.

    Raises:
        UserError: the model tells nothing, has no colour images for input, or not as many classes as there are names.
    """

    def __init__(self, manifest: Manifest, program: Program, names: Sequence[str] | None = None) -> None:
        self.results = manifest.results
        kind = manifest.output_kind
        if not self.results.tells(kind):
            raise UserError(f"this {manifest.model} was exported for its {kind} and has no {self.results.what} to tell")
        channels = manifest.input.shape[1 if manifest.input_kind == "normalized" else -1]
        if channels != 3:
            raise UserError(f"this {manifest.model} takes images of {channels} channels, image files give 3")
        # Where the shapes of the outputs do not tell how many classes there are, nothing but the labels does.
        count = self.results.classes(kind, manifest.outputs) or len(manifest.labels)
        if names is not None and count and len(names) != count:
            raise UserError(f"there are {len(names)} labels for the {count} classes of this {manifest.model}")
        self._names = manifest.labels if names is None else tuple(names)
        self._manifest = manifest
        self._program = program
        self._decoder = decoder(manifest)
        self.preprocess = preprocessor(manifest)
        self._pixels = preprocessor(dataclasses.replace(manifest, input_kind="rgb"))

    def name(self, index: int) -> str:
        """The label of a class, or its index as text where it has none."""
        return self._names[index] if 0 <= index < len(self._names) else str(index)

    def number(self, index: int) -> int:
        """What the annotations of the training images call a class: see ``Description.number``."""
        return self._manifest.number(index)

    def drawn(self, prediction: Prediction) -> Image.Image:
        """The image of a prediction, read again, with what was found marked in it. Raises UnreadableImage."""
        with self._decoder.image(prediction.file) as image:
            return self.results.drawn(image, prediction.found, self.name)

    def predict(
        self,
        files: Sequence[Source],
        batch_size: int,
        topk: int | None = None,
        thumbnails: int = 0,
        least: float | None = None,
    ) -> Iterator[Prediction | Skipped]:
        """Every file's prediction in the order of the files, but a skipped one as soon as it is met.

        Args:
            batch_size: the most images that run together.
            topk: classes or objects per image, if the model tells that many; the task's number by default.
            thumbnails: what the model sees of the first so many images is kept, made small.
            least: probability of what is told; the task's by default.

        Raises:
            UserError: the model takes no batch as small as ``batch_size``, or no input as its preprocessing makes it.
        """
        asked = self.results.most if topk is None else topk, self.results.least if least is None else least
        sizes = self._sizes(batch_size)
        most = sizes[-1] if sizes else batch_size
        waiting: list[Sample] = []
        for sample in self.samples(files, 2 * most, thumbnails):
            if isinstance(sample, Skipped):
                yield sample
                continue
            waiting.append(sample)
            if len(waiting) == most:
                yield from self._run(waiting, most, *asked)
                waiting = []
        if waiting:
            size = next(size for size in sizes or (len(waiting),) if size >= len(waiting))
            yield from self._run(waiting, size, *asked)

    def samples(self, files: Sequence[Source], ahead: int = 1, thumbnails: int = 0) -> Iterator[Sample | Skipped]:
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

    def _load(self, file: Source, with_thumbnail: bool) -> Sample | Skipped:
        try:
            with self._decoder.image(file) as image:
                thumbnail = self._thumbnail(image) if with_thumbnail else None
                return Sample(file, self.preprocess(image), image.size, thumbnail)
        except UnreadableImage as error:
            return Skipped(file, str(error))

    def _thumbnail(self, image: Image.Image) -> Image.Image:
        """What the model sees of an image, made small; the whole of one in which what is found has a place."""
        if not self.results.marks:
            image = Image.fromarray(self._pixels(image))
        scale = THUMBNAIL / max(image.size)
        return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)

    def _run(self, samples: Sequence[Sample], size: int, most: int, least: float) -> Iterator[Prediction | Skipped]:
        """The predictions of samples that run together, as a batch of ``size`` with zeros for the missing ones."""
        images = np.zeros((size, *samples[0].input.shape), self._manifest.input.dtype)
        if not self._manifest.input.accepts(images.shape):
            expected = self._manifest.input.shape
            raise UserError(f"the preprocessing makes an input of shape {images.shape}, the model takes {expected}")
        for row, sample in zip(images, samples):
            row[...] = sample.input
        sizes = sizes_of([sample.size for sample in samples] + [(1, 1)] * (size - len(samples)))
        outputs = self._program(*arguments(self._manifest, images, sizes))
        found = self.results.find(self._manifest.output_kind, outputs, sizes, most, least)
        for sample, one in zip(samples, found):
            if one is None:
                yield Skipped(sample.file, "the model's output for it is not finite")
            else:
                yield Prediction(sample.file, one, sample.thumbnail)
