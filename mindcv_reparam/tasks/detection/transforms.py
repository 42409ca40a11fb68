"""Image and boxes → network input, with the semantics of torchvision's transforms (v2) in RT-DETR's order.

Every draw is a function of a random generator; boxes are x1 y1 x2 y2. Zooming out, cropping, flipping and resizing are
one resampling of the picture: what comes in between would only be thrown away.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data.auto_augment import brightness, color, contrast
from mindcv_reparam.data.objects import Objects
from mindcv_reparam.data.picture import Picture
from mindcv_reparam.data.transforms import RESAMPLINGS, Bytes, Normalize, height_and_width, normalization

_SMALLEST = 1.0  # pixels of a box's width or height, below which it is no object any more


class View(NamedTuple):
    """A part of the plane of an image, which may reach out of it."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class PhotometricDistortion:
    """``RandomPhotometricDistort``: brightness, contrast before or after saturation and hue, the channels' order.

    Args:
        probability: of each of them.
    """

    probability: float
    brightness: tuple[float, float] = (0.875, 1.125)
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.05, 0.05)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        light, span, saturation, hue = (self._factor(rng, *bounds) for bounds in ranges)
        first = rng.random() < 0.5
        if light is not None:
            picture = brightness(picture, light)
        if span is not None and first:
            picture = contrast(picture, span)
        if saturation is not None:
            picture = color(picture, saturation)
        if hue is not None:
            picture = picture.turned(int(hue * 255))
        if span is not None and not first:
            picture = contrast(picture, span)
        if rng.random() < self.probability:
            picture = picture.permuted(rng.permutation(3).tolist())
        return picture

    def _factor(self, rng: np.random.Generator, low: float, high: float) -> float | None:
        return float(rng.uniform(low, high)) if rng.random() < self.probability else None


@dataclass(frozen=True)
class ZoomOut:
    """``RandomZoomOut``: the image somewhere on a black canvas, whose sides are ``sides`` times its own."""

    probability: float
    sides: tuple[float, float] = (1.0, 4.0)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> View:
        """The canvas, as the image sees it."""
        if rng.random() >= self.probability:
            return View(0, 0, height, width)
        factor = rng.uniform(*self.sides)
        canvas_height, canvas_width = int(height * factor), int(width * factor)
        left, top = int((canvas_width - width) * rng.random()), int((canvas_height - height) * rng.random())
        return View(-top, -left, canvas_height, canvas_width)


@dataclass(frozen=True)
class IouCrop:
    """``RandomIoUCrop`` (SSD, arXiv 1512.02325): a crop that has enough of one of the objects whose centre it has.

    Args:
        probability: of trying.
        scale: of the crop's sides, as parts of the image's.
        aspect: of the crop, width / height.
        overlaps: least IoU of one box with the crop, one of which is drawn; from 1 on the image stays whole.
        trials: crops tried before another overlap is drawn.
    """

    probability: float
    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)
    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    trials: int = 40

    def draw(self, boxes: np.ndarray, height: int, width: int, rng: np.random.Generator) -> View | None:
        """A crop of an image with boxes (n, 4); None for all of it, without objects always."""
        if rng.random() >= self.probability or not len(boxes):
            return None
        while True:
            overlap = self.overlaps[int(rng.integers(len(self.overlaps)))]
            if overlap >= 1.0:
                return None
            for _ in range(self.trials):
                crop = self._crop(height, width, rng)
                if crop is not None and self._suits(crop, boxes, overlap):
                    return crop

    def _crop(self, height: int, width: int, rng: np.random.Generator) -> View | None:
        part = rng.uniform(*self.scale, size=2)
        crop_width, crop_height = int(width * part[0]), int(height * part[1])
        if not crop_width or not crop_height or not self.aspect[0] <= crop_width / crop_height <= self.aspect[1]:
            return None
        place = rng.random(2)
        return View(
            int((height - crop_height) * place[1]), int((width - crop_width) * place[0]), crop_height, crop_width
        )

    def _suits(self, crop: View, boxes: np.ndarray, overlap: float) -> bool:
        inside = centres_within(boxes, crop)
        return bool(inside.any()) and bool(overlaps_with(boxes[inside], crop).max() >= overlap)


def centres_within(boxes: np.ndarray, view: View) -> np.ndarray:
    """Which boxes (n, 4) have their centre in the view, bool (n,)."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (view.left < x) & (x < view.left + view.width) & (view.top < y) & (y < view.top + view.height)


def overlaps_with(boxes: np.ndarray, view: View) -> np.ndarray:
    """IoU of boxes (n, 4) with the view, (n,)."""
    common = clipped(boxes, view)
    intersection = np.prod(np.maximum(common[:, 2:] - common[:, :2], 0), axis=1)
    union = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + view.height * view.width - intersection
    return intersection / union


def clipped(boxes: np.ndarray, view: View) -> np.ndarray:
    """Boxes (n, 4), as much of them as lies in the view."""
    right, bottom = view.left + view.width, view.top + view.height
    return np.clip(boxes, [view.left, view.top] * 2, [right, bottom] * 2)


def large_enough(boxes: np.ndarray) -> np.ndarray:
    """Which boxes (n, 4) are objects still, bool (n,): ``SanitizeBoundingBoxes``."""
    return (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST).all(axis=1)


@dataclass(frozen=True)
class TrainTransform:
    """Distortion, zooming out and IoU crop, which are left out where ``strong`` is false; flips; resizing without
    regard to the aspect; normalisation."""

    distortion: PhotometricDistortion
    zoom_out: ZoomOut
    iou_crop: IouCrop
    hflip: float
    vflip: float
    size: tuple[int, int]
    resampling: Image.Resampling
    normalize: Normalize | Bytes

    def __call__(
        self, pixels: np.ndarray, objects: Objects, rng: np.random.Generator, output: np.ndarray, strong: bool = True
    ) -> Objects:
        """Fill ``output`` (3, *size), of ``normalize.dtype``, from ``pixels`` uint8 (H, W, 3); the objects that are
        left, in pixels."""
        picture, view = Picture(pixels), View(0, 0, *pixels.shape[:2])
        boxes, labels = objects.boxes.astype(np.float64), objects.labels
        if strong:
            picture = self.distortion(picture, rng)
            view, kept = self.view(view, boxes, rng)
            boxes, labels = boxes[kept], labels[kept]
        flips = rng.random() < self.hflip, rng.random() < self.vflip
        picture = picture.cropped(view, self.size, flips, self.resampling)
        self.normalize.fill(output, picture)
        boxes = clipped(picture.boxes(boxes), View(0, 0, *self.size))
        kept = large_enough(boxes)
        return Objects(boxes[kept].astype(np.float32), labels[kept])

    def view(self, view: View, boxes: np.ndarray, rng: np.random.Generator) -> tuple[View, np.ndarray]:
        """What is shown of an image, and which of its boxes (n, 4) are objects there, bool (n,)."""
        view = self.zoom_out.draw(view.height, view.width, rng)
        kept = np.ones(len(boxes), dtype=bool)
        moved = boxes - [view.left, view.top] * 2
        crop = self.iou_crop.draw(moved, view.height, view.width, rng)
        if crop is not None:
            kept = centres_within(moved, crop)
            view = View(view.top + crop.top, view.left + crop.left, crop.height, crop.width)
        return view, kept & large_enough(clipped(boxes, view))


@dataclass(frozen=True)
class EvalTransform:
    """Resize without regard to the aspect, normalise: ``transform(image)`` → (3, *size), of ``normalize.dtype``."""

    size: tuple[int, int]
    resampling: Image.Resampling
    normalize: Normalize | Bytes

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self.normalize(image.resize(self.size[::-1], self.resampling))

    @property
    def in_words(self) -> str:
        size, how = "{} x {}".format(*self.size), self.resampling.name.lower()
        return f"resized ({how}, as Pillow does it) to {size} (height x width) without regard to its aspect"


def train_transform(config: Config) -> TrainTransform:
    """The training transform of a Config."""
    return TrainTransform(
        distortion=PhotometricDistortion(config.photometric),
        zoom_out=ZoomOut(config.zoom_out),
        iou_crop=IouCrop(config.iou_crop),
        hflip=config.hflip,
        vflip=config.vflip,
        size=height_and_width(config.image_resize),
        resampling=RESAMPLINGS[config.interpolation],
        normalize=normalization(config),
    )


def eval_transform(config: Config) -> EvalTransform:
    """The evaluation transform of a Config."""
    return EvalTransform(
        size=height_and_width(config.image_resize),
        resampling=RESAMPLINGS[config.interpolation],
        normalize=normalization(config),
    )
