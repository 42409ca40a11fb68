"""The embedded data set: the 1,797 UCI handwritten digits (assets/README.md has source and licence)."""

from functools import cache
from pathlib import Path

import numpy as np

from mindcv_reparam.data.source import LabelledSource

_FILE = Path(__file__).parent / "assets" / "digits.npz"
_INK_LEVELS = 16  # values 0 … 16 count the ink pixels of a 4×4 block


class Digits(LabelledSource):
    """8×8 images scaled to 0–255 and shown as RGB; 1,437 for training, 360 for validation, stratified."""

    classes = tuple("0123456789")
    in_memory = True

    def __init__(self, train: bool) -> None:
        images, labels = _read()
        held_out = np.zeros(len(labels), dtype=bool)
        # Every fifth one of the images sorted by class: each class gives a fifth, without a random generator whose
        # stream could change between NumPy versions.
        held_out[np.argsort(labels, kind="stable")[::5]] = True
        self._rows = np.flatnonzero(~held_out if train else held_out)
        self._pixels = np.rint(images[self._rows] * (255 / _INK_LEVELS)).astype(np.uint8)
        self.labels = labels[self._rows].astype(np.int32)

    def pixels(self, index: int) -> np.ndarray:
        return np.repeat(self._pixels[index][:, :, None], 3, axis=2)

    def name(self, index: int) -> str:
        return f"digit {self._rows[index]}"


@cache
def _read() -> tuple[np.ndarray, np.ndarray]:
    with np.load(_FILE) as arrays:
        return arrays["images"], arrays["labels"]
