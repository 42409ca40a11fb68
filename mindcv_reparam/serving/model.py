"""A bundle ready to answer requests."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindcv_reparam.bundle.manifest import Manifest, read_manifest
from mindcv_reparam.bundle.preprocessing import decoder, preprocessor
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.run.runners import BACKENDS, Program, arguments, backend_for, bundle_program, sizes_of
from mindcv_reparam.serving.refused import Refused
from mindcv_reparam.tensors import TensorSpec


class Model:
    """A model under its name.

    Attributes:
        platform: as the protocol's metadata tell it, "onnxruntime_onnx".
        inputs, outputs: as clients see them, with any batch: ``run`` fills up to the sizes that the model has.
        results: what the outputs mean.
        steps: from an image file to the first input, without the batch.
        largest: the most images that run together; None where any number does.
    """

    def __init__(self, name: str, manifest: Manifest, program: Program, platform: str) -> None:
        self.name = name
        self.manifest = manifest
        self.platform = platform
        self._program = program
        self._sizes = tuple(sorted(manifest.batch_sizes or ()))
        self.results = manifest.results
        self.steps = decoder(manifest), preprocessor(manifest)
        self.inputs = tuple(map(_of_any_batch, manifest.inputs))
        self.outputs = tuple(map(_of_any_batch, manifest.outputs))
        self.largest = self._sizes[-1] if self._sizes else None

    def check(self, *shapes: Sequence[int]) -> None:
        """Raise Refused for a batch that the model does not take: the shape of every input."""
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not spec.accepts(tuple(shape)) or 0 in shape:
                wanted = [-1 if size is None else size for size in spec.shape]
                raise Refused(400, f"input {spec.name} has shape {wanted}, the request's is {list(shape)}")
        shape = shapes[0]
        if any(other[0] != shape[0] for other in shapes):
            raise Refused(400, f"the inputs are of {' and '.join(str(other[0]) for other in shapes)} images")
        if self.largest is not None and shape[0] > self.largest:
            raise Refused(400, f"the model runs up to {self.largest} images together, the request has {shape[0]}")

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs of a batch that ``check`` lets pass, filled with zeros up to the next size the model has."""
        count = len(inputs[0])
        size = next((size for size in self._sizes if size >= count), count)
        if size > count:
            inputs = tuple(np.concatenate([one, np.zeros((size - count, *one.shape[1:]), one.dtype)]) for one in inputs)
        return tuple(output[:count] for output in self._program(*inputs))

    def inputs_of(self, tensor: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """The model's inputs for one image, from what preprocessing makes of it and its (width, height)."""
        return arguments(self.manifest, tensor[None], sizes_of([size]))

    def tell(
        self, outputs: Sequence[np.ndarray], size: tuple[int, int], most: int, least: float = 0.0
    ) -> dict[str, Any]:
        """What the one image shows that the outputs are of, and that has ``size``; see ``Results.find``."""
        (found,) = self.results.find(self.manifest.output_kind, outputs, sizes_of([size]), most, least)
        if found is None:
            raise Refused(400, "the model's output for this image is not finite")
        return self.results.record(found, self._label, self.manifest.known_number)

    def _label(self, index: int) -> str:
        labels = self.manifest.labels
        return labels[index] if 0 <= index < len(labels) else str(index)

    def warm_up(self) -> None:
        """Run every batch size once, so that no client waits for a graph to be compiled.

        Raises:
            UserError: the model fails, or its outputs are not the manifest's.
        """
        height, width = height_and_width(self.manifest.preprocessing["image_resize"])
        layout = (3, height, width) if self.manifest.input_kind == "normalized" else (height, width, 3)
        image = tuple(own or usual for own, usual in zip(self.manifest.input.shape[1:], layout))
        for size in self._sizes or (1, 2):
            images = np.zeros((size, *image), self.manifest.input.dtype)
            self._program(*arguments(self.manifest, images, sizes_of([(width, height)] * size)))


def _of_any_batch(spec: TensorSpec) -> TensorSpec:
    return dataclasses.replace(spec, shape=(None, *spec.shape[1:]))


def load_model(
    folder: str | os.PathLike[str], backend: str | None = None, name: str | None = None, threads: int | None = None
) -> Model:
    """The model of a bundle, run once; without a name it has that of the folder, without threads one per processor.

    Raises:
        UserError: the bundle or the backend is not there, or they do not fit.
    """
    folder = Path(folder).resolve()
    manifest, backend = read_manifest(folder), backend_for(folder, backend)
    platform = f"{backend}_{BACKENDS[backend][0].lower()}"
    model = Model(name or folder.name, manifest, bundle_program(folder, backend, threads), platform)
    model.warm_up()
    return model
