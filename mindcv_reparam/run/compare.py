"""Whether two programs of one network compute the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mindcv_reparam.run.runners import Program
from mindcv_reparam.tensors import relative_difference

Measure = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float]  # of expected and actual outputs


def largest_difference(
    expected: Program, actual: Program, trials: Sequence[np.ndarray], measure: Measure = relative_difference
) -> float:
    """The largest difference of two programs on some inputs."""
    return float(np.max([measure(expected(images), actual(images)) for images in trials]))


def random_input(hparams: Mapping[str, Any], batch: int) -> np.ndarray:
    """Random normalised images for a network, from the arguments of create_model."""
    size = hparams["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(0).standard_normal((batch, hparams["in_channels"], height, width), np.float32)
