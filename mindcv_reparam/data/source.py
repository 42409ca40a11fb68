"""What a data set offers to the loader."""

from abc import ABC, abstractmethod

import numpy as np
from PIL import Image


class UnreadableImage(Exception):
    """A sample that cannot be decoded; the message says why."""


class ImageSource(ABC):
    """Labelled images by index. Sources are pickled into the loader's worker processes: keep them light.

    Attributes:
        classes: class names; their position is the class index.
        labels: class index per sample, int32 (len,).
        problems: one line for everything found wrong while listing (a file that is no image, a class without images).
        in_memory: the samples are cheap enough for worker processes not to pay.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    problems: tuple[str, ...] = ()
    in_memory: bool = False

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def pixels(self, index: int) -> np.ndarray:
        """Sample ``index`` as RGB, uint8 (H, W, 3), a writable array of its own. Raises UnreadableImage."""

    def load(self, index: int) -> Image.Image:
        """Sample ``index`` as an RGB image. Raises UnreadableImage."""
        return Image.fromarray(self.pixels(index))

    @abstractmethod
    def name(self, index: int) -> str:
        """What a message calls sample ``index``: its file, or its place in a file."""
