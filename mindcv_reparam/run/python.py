"""What Python's users do with a network, a checkpoint or a bundle: ``predict`` and ``eval_transform``.

Without a network or a checkpoint, nothing here imports MindSpore.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.bundle.preprocessing import decoder, preprocessor
from mindcv_reparam.checkpoint_info import read_info
from mindcv_reparam.config import Config
from mindcv_reparam.data.decoder import Decoder, Source, UnreadableImage
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.image_files import find_images
from mindcv_reparam.run.prediction import Prediction, Predictor
from mindcv_reparam.run.prediction_files import shown
from mindcv_reparam.run.runners import backend_for, bundle_program
from mindcv_reparam.run.table import Table
from mindcv_reparam.runtime import allocator, check_allocator, prepare
from mindcv_reparam.tasks import task_of

if TYPE_CHECKING:
    from mindcv_reparam.network import Network

    Model = Network | str | os.PathLike[str]

_BATCHES = (1, 8, 32)  # of a network in graph mode, which compiles each once


@dataclass(frozen=True)
class ImageTransform:
    """``transform(image)``: an image as a network takes it, by the steps of validation, to the bit.

    An image is a path, the bytes of a file, a Pillow image or an array uint8 (H, W, 3), (H, W) or (H, W, 4).

    Attributes:
        decoder: reads files, and how transparent and turned ones.
        steps: from an RGB image to the array.
    """

    decoder: Decoder
    steps: Callable[[Image.Image], np.ndarray]

    def __call__(self, image: Source) -> np.ndarray:
        """float32 (3, H, W); of a bundle that takes bytes, uint8 (H, W, 3). Raises UserError for no image."""
        try:
            with self.decoder.image(image) as decoded:
                return self.steps(decoded)
        except UnreadableImage as error:
            raise UserError(f"{_named(image) or 'the image'} cannot be read: {error}") from None


def eval_transform(model: Model) -> ImageTransform:
    """The preprocessing of a network of :func:`mindcv_reparam.create_model`, a checkpoint or a bundle.

    Raises:
        UserError: the file does not say what it is of, or is no checkpoint; the folder is no bundle.
    """
    if not isinstance(model, str | os.PathLike):
        said, name = _network(model).preprocessing, model.model_name
    elif os.path.isdir(model):
        manifest = read_manifest(model)
        return ImageTransform(decoder(manifest), preprocessor(manifest))
    else:
        info = read_info(model)
        if info is None:
            raise UserError(f"{model} does not say which model it is: give create_model(NAME, checkpoint=…) instead")
        said, name = {**info.preprocessing, "image_resize": info.hparams["img_size"]}, info.model
    config = Config(**said)
    return ImageTransform(Decoder.of(config), task_of(name).results.transform(config))


def predict(
    model: Model,
    images: Source | Iterable[Source],
    top_k: int | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    labels: Sequence[str] | None = None,
) -> Table:
    """What images show, as ``infer`` tells it.

    A network runs as it is, in evaluation mode; a checkpoint is fused first. In graph mode a network is compiled once
    for 1, 8 and 32 images each, as far as they are needed.

    Args:
        model: of :func:`mindcv_reparam.create_model`, or the path of a checkpoint or a bundle.
        images: one or several: files, folders, patterns, Pillow images, arrays uint8 (H, W, 3).
        top_k: classes or objects of an image; of classes 5 by default.
        threshold: least probability or score; of objects 0.5 by default.
        batch_size: images together, at most.
        labels: names of the classes, by index, in place of the model's.

    Returns:
        For classes the columns image, rank, label, probability, index; for objects image, label, score, x1, y1, x2, y2
        in pixels, index. An image that cannot be read has no rows, of which Python warns.

    Raises:
        UserError: model or images cannot be used, or MindSpore runs on a CPU with another allocator than the C
            library's.
    """
    given = _given(images)
    predictor = _predictor(model, min(batch_size, len(given)), labels)
    places: dict[int, deque[int]] = defaultdict(deque)
    for place, (_, source) in enumerate(given):
        places[id(source)].append(place)
    found: dict[int, Any] = {}
    skipped: list[str] = []
    results = predictor.predict([source for _, source in given], batch_size, top_k, least=threshold)
    for result in results:
        place = places[id(result.file)].popleft()
        if isinstance(result, Prediction):
            found[place] = result.found
        else:
            skipped.append(f"{given[place][0]}: {result.reason}")
    _tell(skipped, len(given))
    rows = [
        (given[place][0], *row)
        for place in sorted(found)
        for row in predictor.results.rows(found[place], predictor.name)
    ]
    return Table(("image", *predictor.results.columns), rows)


def _predictor(model: Model, count: int, labels: Sequence[str] | None) -> Predictor:
    if not isinstance(model, str | os.PathLike):
        network = _network(model)
        _prepare()
        from mindcv_reparam.run.fused import network_model

        return Predictor(*network_model(network, _batch_sizes()), labels)
    if os.path.isdir(model):
        manifest, backend = read_manifest(model), backend_for(model)
        if backend == "mindspore":
            _prepare()
        return Predictor(manifest, bundle_program(model, backend), labels)
    _prepare()
    from mindcv_reparam.run.fused import fused_model

    return Predictor(*fused_model(model, count), labels)


def _network(model: Network) -> Network:
    if not hasattr(model, "preprocessing") or not hasattr(model, "model_name"):
        raise UserError(
            f"a {type(model).__name__} is no network of create_model, and no path of a checkpoint or a bundle"
        )
    return model


def _prepare() -> None:
    """As the commands do; where the user's own program has set MindSpore up, only see whether its numbers are right."""
    if "mindspore" not in sys.modules:
        prepare(None)
        return
    import mindspore as ms

    if ms.get_context("device_target") == "CPU":
        check_allocator(allocator())


def _batch_sizes() -> tuple[int, ...] | None:
    import mindspore as ms

    return _BATCHES if ms.get_context("mode") == ms.GRAPH_MODE else None


def _given(images: Source | Iterable[Source]) -> list[tuple[str, Source]]:
    """Every image, with a name for it."""
    one = isinstance(images, str | os.PathLike | bytes | Image.Image)
    several: Any = [images] if one or (isinstance(images, np.ndarray) and images.ndim < 4) else images
    given: list[tuple[str, Source]] = []
    for image in several:
        if isinstance(image, str | os.PathLike):
            given += [(shown(path), path) for path in find_images([os.fspath(image)])]
        else:
            given.append((_named(image) or f"image {len(given)}", image))
    if not given:
        raise UserError("there are no images to look at")
    return given


def _named(image: Source) -> str:
    """The file of an image, as far as it is known."""
    if isinstance(image, str | Path):
        return shown(Path(image))
    return str(getattr(image, "filename", ""))


def _tell(skipped: Sequence[str], images: int) -> None:
    if len(skipped) == images:
        raise UserError(f"no image can be read: {skipped[0]}")
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        warnings.warn(f"left out: {skipped[0]}{more}", stacklevel=3)
