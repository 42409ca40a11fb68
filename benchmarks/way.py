"""What ``input_steps.py`` compares."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindcv_reparam.data.transforms import Normalize

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NORMALIZE = Normalize(MEAN, STD)


@dataclass(frozen=True)
class Way:
    """One way to do a step: ``run(index)`` does it for one image and returns what it makes."""

    step: str
    name: str
    run: Callable[[int], np.ndarray | Image.Image]
    compared: bool = True  # whether its pixels should be those of the step's first way
