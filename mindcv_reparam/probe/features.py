"""Features of images by a frozen network, in a file that tells what they are of."""

import hashlib
import logging
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from tqdm import tqdm

from mindcv_reparam.archives import DamagedArrays, open_arrays
from mindcv_reparam.data import Loader
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.files import written_whole
from mindcv_reparam.tasks.evaluate import announce_compilation

_LIMIT = 2**36  # bytes of a file; ten million images of a thousand features take half of it
_log = logging.getLogger(__name__)
_compiled: "weakref.WeakSet[nn.Cell]" = weakref.WeakSet()


@dataclass(frozen=True)
class Features:
    """Of labelled images.

    Attributes:
        values: float32 (N, channels).
        labels: int32 (N,).
    """

    values: np.ndarray
    labels: np.ndarray


def weights_key(network: nn.Cell, described: Mapping[str, Any]) -> str:
    """SHA-256 of a network's parameters, and of what else says what it computes."""
    digest = hashlib.sha256(repr(sorted(described.items())).encode())
    for parameter in sorted(network.get_parameters(), key=lambda one: one.name):
        array = np.ascontiguousarray(parameter.asnumpy())
        digest.update(f"{parameter.name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def images_key(source: ImageSource, indices: np.ndarray) -> str:
    """SHA-256 of what a source's images are, and their labels."""
    digest = hashlib.sha256()
    for index in indices.tolist():
        digest.update(f"{source.stamp(index)} {source.target(index)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def cached_features(path: Path, network: nn.Cell, loader: Loader, keys: Mapping[str, str]) -> Features:
    """The features of a file, if they are of the same weights, images and preprocessing; or else they are computed, and
    written there.

    Args:
        network: images (B, 3, H, W) → features (B, channels), in evaluation mode.
        loader: of the images, as for validation.
        keys: by what they are of; another value of one means other features.

    Raises:
        UserError: an image cannot be read, or the file system refuses.
    """
    found = _read(path, keys)
    if found is not None:
        _log.info("the features of %d images are those of %s", len(found.labels), path)
        return found
    start = time.perf_counter()
    features = _computed(network, loader)
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {name: np.array(value) for name, value in keys.items()}
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, values=features.values, labels=features.labels, **texts)
    _log.info("features of %d images in %.1f s: %s", len(features.labels), time.perf_counter() - start, path)
    return features


def _read(path: Path, keys: Mapping[str, str]) -> Features | None:
    """What a file holds; None, with a line that says why, where it cannot be used."""
    if not path.is_file():
        return None
    try:
        with open_arrays(path, _LIMIT) as arrays:
            other = [name for name, value in keys.items() if str(arrays.read(name)) != value]
            if other:
                _log.info("%s has the features of other %s: they are computed anew", path, ", ".join(other))
                return None
            return Features(arrays.read("values"), arrays.read("labels"))
    except DamagedArrays as error:
        _log.warning("%s is damaged (%s): the features are computed anew", path, error)
        return None


def _computed(network: nn.Cell, loader: Loader) -> Features:
    if network not in _compiled:
        announce_compilation("network for the features", network)
    _compiled.add(network)
    values, labels = [], []
    batches = tqdm(loader.epoch(0), total=loader.steps_per_epoch, unit="batch", disable=None, leave=False)
    for images, targets, weights in batches:
        there = weights > 0
        values.append(network(ms.Tensor(images)).asnumpy()[there])
        labels.append(targets[there])
    return Features(np.concatenate(values), np.concatenate(labels))
