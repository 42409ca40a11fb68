"""Whether two programs of one network compute the same."""

from collections.abc import Callable, Mapping
from typing import Any

import mindspore as ms
import numpy as np

# max|Δ| / max|output| in float32 up to which two programs of one network are taken for equal.
TOLERANCE = 2e-5


def relative_difference(expected: Callable, actual: Callable, shape: tuple[int, ...]) -> float:
    """max|Δ| / max|expected| of two programs on the same random images of ``shape``; NaN if one of them gives NaN."""
    images = ms.Tensor(np.random.default_rng(0).standard_normal(shape), ms.float32)
    reference, output = expected(images).asnumpy(), actual(images).asnumpy()
    return float(np.abs(output - reference).max() / np.abs(reference).max())


def input_shape(hparams: Mapping[str, Any], batch: int | None) -> tuple[int | None, int, int, int]:
    """(batch, channels, height, width) of a network's input from the arguments of create_model."""
    size = hparams["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return batch, hparams["in_channels"], height, width
