"""What a data set offers to the loader."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mindcv_reparam.data.decoder import UnreadableImage as UnreadableImage
from mindcv_reparam.errors import UserError

_FEW = 20  # of a class; fewer are learnt by heart rather than understood
_UNEVEN = 50  # the largest class in parts of the smallest; the rare one is then hardly ever worth naming
_SHOWN = 4  # classes named in a message


class ImageSource(ABC):
    """Images with targets, by index. Sources are pickled into the loader's worker processes: keep them light.

    Attributes:
        classes: class names; their position is the class index.
        category_ids: what the annotations call the classes, by index; None for one that they do not have, and in whole
            where classes have no numbers.
        problems: one line for everything found wrong while listing (a file that is no image, a class without images).
        notes: one line for everything worth knowing that leaves no image out.
        in_memory: the samples are cheap enough for worker processes not to pay.
        counted: what ``class_counts`` counts.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int | None, ...] | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    in_memory: bool = False
    counted: str = "images"

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def target(self, index: int) -> Any:
        """What a network shall say of sample ``index``, as the task's batches take it."""

    @abstractmethod
    def pixels(self, index: int) -> np.ndarray:
        """Sample ``index`` as RGB, uint8 (H, W, 3), a writable array of its own. Raises UnreadableImage."""

    def load(self, index: int) -> Image.Image:
        """Sample ``index`` as an RGB image. Raises UnreadableImage."""
        return Image.fromarray(self.pixels(index))

    @property
    @abstractmethod
    def class_counts(self) -> np.ndarray:
        """What there is of every class, by index, int64 (classes,): images, or what ``counted`` says."""

    def doubts(self) -> list[str]:
        """A line for everything that makes one doubt whether these are the images to train on."""
        return uneven(self.classes, self.class_counts, self.counted)

    def write_split(self, run: Path) -> None:
        """Tell in the folder of a run which images are held out for validation, where the run itself chose them."""
        return

    @abstractmethod
    def name(self, index: int) -> str:
        """What a message calls sample ``index``: its file, or its place in a file."""

    def stamp(self, index: int) -> str:
        """A text that changes where the image of sample ``index`` is replaced by another one."""
        return f"{self.name(index)} {zlib.crc32(self.pixels(index).tobytes()):08x}"


class LabelledSource(ImageSource):
    """Images of one class each.

    Attributes:
        labels: class index per sample, int32 (len,).
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, index: int) -> int:
        return int(self.labels[index])

    @property
    def class_counts(self) -> np.ndarray:
        return np.bincount(self.labels, minlength=len(self.classes))

    def doubts(self) -> list[str]:
        one = f"there is one class only, {self.classes[0]}: nothing can be told apart"
        return ([one] if len(self.classes) == 1 else []) + super().doubts()


def uneven(classes: Sequence[str], counts: np.ndarray, counted: str) -> list[str]:
    """A line each for classes of which there is little, and for one of which there is much more than of another.

    Args:
        classes: names, by index.
        counts: of each, (classes,).
        counted: what they count.
    """
    lines = []
    few = np.flatnonzero(counts < _FEW)
    if len(few):
        shown = ", ".join(f"{classes[index]} ({counts[index]})" for index in few[:_SHOWN].tolist())
        more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
        lines.append(f"{len(few)} of {len(classes)} classes have fewer than {_FEW} {counted}: {shown}{more}")
    there = np.flatnonzero(counts)
    if len(there):
        most, least = int(np.argmax(counts)), int(there[np.argmin(counts[there])])
        if counts[most] >= _UNEVEN * counts[least]:
            shown = f"{classes[most]} has {counts[most]} {counted}, {classes[least]} {counts[least]}"
            lines.append(f"the classes are uneven: {shown}")
    return lines


def with_classes(source: ImageSource, classes: Sequence[str] | None) -> ImageSource:
    """``source`` checked against imposed classes: a data set with fixed classes cannot follow another mapping.

    Raises:
        UserError: they are others.
    """
    if classes is not None and tuple(classes) != source.classes:
        raise UserError(
            f"the checkpoint has {len(classes)} classes ({', '.join(classes[:3])}, …), the data set others "
            f"({', '.join(source.classes[:3])}, …): give the data set that it was trained on"
        )
    return source
