"""An image on its way through the augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from PIL import Image

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
# (a, b, c, d, e, f): a point (x, y) of the original goes to (ax + by + c, dx + ey + f), both in pixels from the corner.
Affine = tuple[float, float, float, float, float, float]
_IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _kernels() -> ModuleType:
    """Numba is slow to import, and only training needs it."""
    from mindcv_reparam.data import kernels

    return kernels


@dataclass(frozen=True)
class Picture:
    """Pixels, and what has become of their values since they were last moved.

    Operations that map values to values (equalize, solarize …) follow one another as tables of 256 entries; the pixels
    meet the last of them, which is the normalisation.

    Args:
        stored: uint8 (H, W, 3).
        tables: what each channel's stored values stand for, uint8 (3, 256); None: themselves.
        geometry: where the points of the original picture are now, so that boxes and masks can follow.
    """

    stored: np.ndarray
    tables: np.ndarray | None = None
    geometry: Affine = _IDENTITY

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """An RGB image."""
        return cls(np.array(image))

    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels())

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self.stored if self.tables is None else _kernels().look_up(self.stored, self.tables)

    def planes(self, tables: np.ndarray, output: np.ndarray) -> None:
        """Fill ``output`` (3, H, W) with the values' entries in ``tables``, (3, 256) of its type."""
        _kernels().look_up_planes(self.stored, self._composed(tables), output)

    def through(self, tables: np.ndarray) -> "Picture":
        """Each channel's values replaced by their entries in ``tables``, (256,) or (3, 256), clipped to uint8."""
        tables = np.broadcast_to(np.clip(tables, 0, 255).astype(np.uint8), (3, 256))
        return Picture(self.stored, self._composed(tables), self.geometry)

    def boxes(self, original: np.ndarray) -> np.ndarray:
        """Boxes x1 y1 x2 y2 (N, 4) of the original picture, in pixels: the upright boxes around where they are now.

        They are not clipped: what was cropped away lies outside.
        """
        a, b, c, d, e, f = self.geometry
        xs, ys = original[:, [0, 2, 0, 2]], original[:, [1, 1, 3, 3]]
        x, y = a * xs + b * ys + c, d * xs + e * ys + f
        return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)

    def cropped(
        self,
        box: tuple[int, int, int, int],
        size: tuple[int, int],
        flips: tuple[bool, bool],
        resampling: Image.Resampling,
    ) -> "Picture":
        """The crop (top, left, height, width) resized to ``size``, then flipped horizontally and vertically.

        Where it reaches out of the picture, there is black.
        """
        geometry = _after(_crop_geometry(box, size, flips), self.geometry)
        if resampling in (BILINEAR, BICUBIC):
            kind = _kernels().BICUBIC if resampling == BICUBIC else _kernels().BILINEAR
            return Picture(_kernels().resize_crop(self.pixels(), box, size, flips, kind), geometry=geometry)
        top, left, height, width = box
        image = self.image().crop((left, top, left + width, top + height))
        pixels = np.asarray(image.resize((size[1], size[0]), resampling))
        return Picture(pixels[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1].copy(), geometry=geometry)

    def moved(self, matrix: tuple[float, ...], fill: tuple[int, ...], resampling: Image.Resampling) -> "Picture":
        """``Image.transform`` by the affine ``matrix`` from output to input."""
        geometry = _after(_inverse(matrix), self.geometry)
        if resampling == BICUBIC:
            return Picture(_kernels().affine(self.pixels(), tuple(map(float, matrix)), fill), geometry=geometry)
        image = self.image()
        moved = image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=fill)
        return Picture(np.array(moved), geometry=geometry)

    def saturated(self, factor: float) -> "Picture":
        """``ImageEnhance.Color``."""
        return Picture(_kernels().saturate(self.pixels(), factor), geometry=self.geometry)

    def turned(self, shift: int) -> "Picture":
        """The hue plus ``shift`` of 256 steps, as torchvision's ``adjust_hue`` of a Pillow image."""
        return Picture(_kernels().turn_hue(self.pixels(), shift), geometry=self.geometry)

    def permuted(self, order: Sequence[int]) -> "Picture":
        """Channels in another order: channel i is the one that was ``order[i]``."""
        tables = None if self.tables is None else self.tables[list(order)]
        return Picture(np.ascontiguousarray(self.stored[:, :, list(order)]), tables, self.geometry)

    def histograms(self) -> np.ndarray:
        """How often each channel has each value, int64 (3, 256)."""
        counts = _kernels().histograms(self.stored)
        if self.tables is None:
            return counts
        moved = [np.bincount(table, row, minlength=256) for table, row in zip(self.tables, counts)]
        return np.stack(moved).astype(np.int64)

    def mean_luminance(self) -> float:
        return _kernels().mean_luminance(self.pixels())

    def _composed(self, tables: np.ndarray) -> np.ndarray:
        if self.tables is None:
            return np.ascontiguousarray(tables)
        return np.stack([table[values] for table, values in zip(tables, self.tables)])


def _crop_geometry(box: tuple[int, int, int, int], size: tuple[int, int], flips: tuple[bool, bool]) -> Affine:
    top, left, height, width = box
    x_scale, y_scale = size[1] / width, size[0] / height
    a, c = (-x_scale, size[1] + left * x_scale) if flips[0] else (x_scale, -left * x_scale)
    e, f = (-y_scale, size[0] + top * y_scale) if flips[1] else (y_scale, -top * y_scale)
    return a, 0.0, c, 0.0, e, f


def _after(second: Affine, first: Affine) -> Affine:
    """The map that does ``first``, then ``second``."""
    a, b, c, d, e, f = second
    p, q, r, s, t, u = first
    return a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f


def _inverse(matrix: tuple[float, ...]) -> Affine:
    a, b, c, d, e, f = matrix
    determinant = a * e - b * d
    a, b, d, e = e / determinant, -b / determinant, -d / determinant, a / determinant
    return a, b, -(a * c + b * f), d, e, -(d * c + e * f)
