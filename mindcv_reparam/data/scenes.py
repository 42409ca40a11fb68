"""The embedded detection data set: coloured scenes with some of the UCI digits, composed whenever they are asked for.

The same bits on every machine and in every version: numbers are the raw output of a bit generator, which NumPy keeps
(the streams of its distributions it does not), and only + − × ÷, rounding and comparisons touch the pixels.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.objects import DetectionSource, Objects, coco_form

SIZE = 128  # pixels of a scene's side
COUNTS = {True: 2048, False: 512}  # training and validation scenes
_SMALLEST, _LARGEST = 14, 56  # pixels of a digit's height, with its margin
_MOST = 6  # digits in a scene
_EMPTY = 16  # every so many-th scene has none
_OVERLAP = 0.1  # of the smaller box, at most
_TRIES = 20  # for a place
_INKED = 0.3  # part of the ink from which on a pixel counts for the box
_CONTRAST = 90  # that one channel of a digit has to what is behind it, at least
_LAYOUT, _PAINT = 0, 1  # streams of a scene


class _Uniform:
    """Numbers in [0, 1), a stream for each key of integers ≥ 0."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def array(self, *shape: int) -> np.ndarray:
        words = np.asarray(self._bits.random_raw(int(np.prod(shape))), dtype=np.uint64)
        return ((words >> np.uint64(11)) / 2.0**53).reshape(shape)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.array(1)[0])

    def whole(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return min(high, int(self.between(low, high + 1)))


@dataclass(frozen=True)
class _Placed:
    """A digit of a scene: how much ink it has where, (height, width) from 0 to 1; where; its ink's box x y w h."""

    ink: np.ndarray
    left: int
    top: int
    box: tuple[int, int, int, int]
    label: int


class Scenes(DetectionSource):
    """2,048 scenes of the digits for training, 512 of those for validation; 128 × 128, up to six digits each.

    Classes are the ten digits, their category ids 1 to 10, as COCO's begin at 1.
    """

    classes = tuple("0123456789")
    category_ids = tuple(range(1, 11))

    def __init__(self, train: bool) -> None:
        self._train = train
        self._objects = _all_objects(train)
        self._painted: dict[int, np.ndarray] = {}  # 100 MB when all are; painting takes as long as a small network
        self.counts = np.array([len(objects.labels) for objects in self._objects], dtype=np.int64)

    def pixels(self, index: int) -> np.ndarray:
        if index not in self._painted:
            self._painted[index] = self._paint(index)
        return self._painted[index].copy()

    def target(self, index: int) -> Objects:
        objects = self._objects[index]
        return Objects(objects.boxes.copy(), objects.labels.copy())

    def image_id(self, index: int) -> int:
        return index + 1

    def name(self, index: int) -> str:
        return f"{'training' if self._train else 'validation'} scene {index}"

    @property
    def annotations(self) -> dict[str, Any]:
        images = [(self.image_id(index), SIZE, SIZE, f"scene_{index:05d}.png") for index in range(len(self))]
        objects = [
            dict(image_id=self.image_id(index), category_id=self.category_ids[label], bbox=box, area=box[2] * box[3])
            for index, found in enumerate(self._objects)
            for box, label in zip(_corner_and_size(found.boxes), found.labels.tolist())
        ]
        return coco_form(images, [one | {"iscrowd": 0} for one in objects], self.classes, self.category_ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_painted": {}}

    def _paint(self, index: int) -> np.ndarray:
        stream = _Uniform(_PAINT, self._train, index)
        canvas = _background(stream)
        for placed in _layout(self._train, index):
            height, width = placed.ink.shape
            behind = canvas[placed.top : placed.top + height, placed.left : placed.left + width]
            mean = behind.mean(axis=(0, 1))
            colour = stream.array(3) * 255.0
            if np.abs(colour - mean).max() < _CONTRAST:
                colour = np.where(mean > 127, 20.0, 235.0)
            behind += (colour - behind) * placed.ink[:, :, None]
        return np.floor(canvas + 0.5).astype(np.uint8)


@cache
def _digits(train: bool) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 8, 8) and their labels, int32 (n,)."""
    source = Digits(train)
    return np.stack([source.pixels(index)[:, :, 0] for index in range(len(source))]), source.labels


@cache
def _all_objects(train: bool) -> tuple[Objects, ...]:
    return tuple(_objects(_layout(train, index)) for index in range(COUNTS[train]))


def _layout(train: bool, index: int) -> list[_Placed]:
    """The digits of a scene; they come in the order in which they are painted."""
    digits, labels = _digits(train)
    stream = _Uniform(_LAYOUT, train, index)
    placed: list[_Placed] = []
    for _ in range(0 if index % _EMPTY == _EMPTY - 1 else stream.whole(1, _MOST)):
        pick = stream.whole(0, len(digits) - 1)
        height = _SMALLEST + (_LARGEST - _SMALLEST) * stream.between(0, 1) * stream.between(0, 1)  # more small ones
        width = max(8, round(height * stream.between(0.75, 1.15)))
        ink = _enlarged(digits[pick] / 255.0, round(height), width)
        ink = np.clip(1.5 * ink, 0.0, 1.0)
        rows, columns = np.flatnonzero(ink.max(axis=1) >= _INKED), np.flatnonzero(ink.max(axis=0) >= _INKED)
        for _ in range(_TRIES):
            left, top = stream.whole(0, SIZE - width), stream.whole(0, SIZE - len(ink))
            box = (
                left + int(columns[0]),
                top + int(rows[0]),
                int(columns[-1] - columns[0]) + 1,
                int(rows[-1] - rows[0]) + 1,
            )
            if all(_overlap(box, other.box) <= _OVERLAP for other in placed):
                placed.append(_Placed(ink, left, top, box, int(labels[pick])))
                break
    return placed


def _objects(layout: list[_Placed]) -> Objects:
    boxes = np.array([placed.box for placed in layout], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Objects(boxes, np.array([placed.label for placed in layout], dtype=np.int32))


def _corner_and_size(boxes: np.ndarray) -> list[list[float]]:
    """x1 y1 x2 y2 (n, 4) → x y width height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64).tolist()


def _background(stream: _Uniform) -> np.ndarray:
    """A coloured gradient, two layers of noise, triangular stripes and grain: float64 (SIZE, SIZE, 3) of 0 to 255."""
    gradient = np.stack([_enlarged(stream.array(3, 3), SIZE, SIZE) for _ in range(3)], axis=-1) - 0.5
    coarse = _enlarged(stream.array(8, 8), SIZE, SIZE)[:, :, None] - 0.5
    fine = _enlarged(stream.array(32, 32), SIZE, SIZE)[:, :, None] - 0.5
    rows, columns = np.mgrid[:SIZE, :SIZE]
    slope = stream.between(-0.12, 0.12), stream.between(-0.12, 0.12)
    phase = (columns * slope[0] + rows * slope[1] + stream.between(0, 1)) % 1.0
    stripes = np.abs(phase - 0.5)[:, :, None] - 0.25
    canvas = stream.between(0.25, 0.75) + gradient * stream.between(0.15, 0.5)
    canvas += coarse * stream.between(0.05, 0.3) + fine * stream.between(0.02, 0.15) + stripes * stream.between(0, 0.5)
    canvas += (stream.array(SIZE, SIZE, 3) - 0.5) * stream.between(0, 0.08)
    return np.clip(canvas, 0.0, 1.0) * 255.0


def _enlarged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) → (height, width), bilinear between the centres of pixels."""
    low, high, part = _neighbours(len(image), height)
    rows = image[low] + (image[high] - image[low]) * part[:, None]
    low, high, part = _neighbours(image.shape[1], width)
    return rows[:, low] + (rows[:, high] - rows[:, low]) * part


def _neighbours(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pixel wanted: the pixels before and behind it, and how far it lies between them."""
    places = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0.0, length - 1.0)
    low = places.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), places - low


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Common area of two boxes x y w h, as a part of the smaller one's."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0) / min(one[2] * one[3], other[2] * other[3])
