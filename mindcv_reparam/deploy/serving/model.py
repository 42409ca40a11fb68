"""A bundle ready to answer requests."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.transforms import height_and_width
from ...errors import UserError
from ..images import NoImage, decode, preprocessor
from ..manifest import Manifest, TensorSpec, read_manifest
from ..probabilities import most_probable
from ..runners import BACKENDS, Program, backend_for, bundle_program
from .refused import Refused


class Model:
    """A model under the name of its bundle's folder.

    Attributes:
        platform: as the protocol's metadata tell it, "onnxruntime_onnx".
        input, outputs: as clients see them, with any batch: ``run`` fills up to the sizes that the model has.
        largest: the most images that run together; None where any number does.
    """

    def __init__(self, name: str, manifest: Manifest, program: Program, platform: str) -> None:
        self.name = name
        self.manifest = manifest
        self.platform = platform
        self._program = program
        self._sizes = tuple(sorted(manifest.batch_sizes or ()))
        self._preprocess = preprocessor(manifest)
        self.input = _of_any_batch(manifest.input)
        self.outputs = tuple(map(_of_any_batch, manifest.outputs))
        self.largest = self._sizes[-1] if self._sizes else None

    def check(self, shape: Sequence[int]) -> None:
        """Raise Refused for a batch that the model does not take."""
        shape = tuple(shape)
        if not self.input.accepts(shape) or 0 in shape:
            wanted = [-1 if size is None else size for size in self.input.shape]
            raise Refused(400, f"input {self.input.name} has shape {wanted}, the request's is {list(shape)}")
        if self.largest is not None and shape[0] > self.largest:
            raise Refused(400, f"the model runs up to {self.largest} images together, the request has {shape[0]}")

    def run(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs of a batch that ``check`` lets pass, filled with zeros up to the next size the model has."""
        count = len(images)
        size = next((size for size in self._sizes if size >= count), count)
        if size > count:
            images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), images.dtype)])
        return tuple(output[:count] for output in self._program(images))

    def read_image(self, file: bytes) -> np.ndarray:
        """The batch of one that an image file becomes.

        Raises:
            Refused: the bytes are no image, or the model takes none from files.
        """
        try:
            images = self._preprocess(decode(file))[None]
        except NoImage as error:
            raise Refused(400, str(error)) from None
        self.check(images.shape)
        return images

    def classes(self, outputs: Sequence[np.ndarray], count: int) -> list[dict[str, Any]]:
        """The ``count`` most probable classes of the one image that the outputs are of."""
        indices, probabilities = most_probable(outputs, self.manifest.output_kind, count)
        if not np.isfinite(probabilities).all():
            raise Refused(400, "the model's output for this image is not finite")
        labels = self.manifest.labels
        return [
            {"index": index, "label": labels[index] if index < len(labels) else str(index), "probability": probability}
            for index, probability in zip(indices[0].tolist(), probabilities[0].tolist())
        ]

    def warm_up(self) -> None:
        """Run every batch size once, so that no client waits for a graph to be compiled.

        Raises:
            UserError: the model fails, or its outputs are not the manifest's.
        """
        height, width = height_and_width(self.manifest.preprocessing["image_resize"])
        layout = (3, height, width) if self.manifest.input_kind == "normalized" else (height, width, 3)
        image = tuple(own or usual for own, usual in zip(self.input.shape[1:], layout))
        for size in self._sizes or (1, 2):
            try:
                outputs = self._program(np.zeros((size, *image), self.manifest.input.dtype))
            except Exception as error:  # backends have no common class of exceptions
                raise UserError(f"{self.name} does not run: {str(error).splitlines()[0]}") from error
            given = [(output.dtype.name, output.shape[0]) for output in outputs]
            if given != [(spec.dtype, size) for spec in self.manifest.outputs]:
                raise UserError(f"{self.name}: its model does not give the outputs that bundle.json tells of")


def _of_any_batch(spec: TensorSpec) -> TensorSpec:
    return dataclasses.replace(spec, shape=(None, *spec.shape[1:]))


def load_model(folder: str | os.PathLike[str], backend: str | None = None) -> Model:
    """The model of a bundle, run once.

    Raises:
        UserError: the bundle or the backend is not there, or they do not fit.
    """
    folder = Path(folder).resolve()
    manifest, backend = read_manifest(folder), backend_for(folder, backend)
    platform = f"{backend}_{BACKENDS[backend][0].lower()}"
    model = Model(folder.name, manifest, bundle_program(folder, backend), platform)
    model.warm_up()
    return model
