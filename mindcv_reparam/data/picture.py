"""An image on its way through the augmentation."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from PIL import Image

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


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
    """

    stored: np.ndarray
    tables: np.ndarray | None = None

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
        """Fill ``output`` float32 (3, H, W) with the values' entries in ``tables``, float32 (3, 256)."""
        _kernels().look_up_planes(self.stored, self._composed(tables), output)

    def through(self, tables: np.ndarray) -> "Picture":
        """Each channel's values replaced by their entries in ``tables``, (256,) or (3, 256), clipped to uint8."""
        tables = np.broadcast_to(np.clip(tables, 0, 255).astype(np.uint8), (3, 256))
        return Picture(self.stored, self._composed(tables))

    def cropped(
        self,
        box: tuple[int, int, int, int],
        size: tuple[int, int],
        flips: tuple[bool, bool],
        resampling: Image.Resampling,
    ) -> "Picture":
        """The crop (top, left, height, width) resized to ``size``, then flipped horizontally and vertically."""
        if resampling in (BILINEAR, BICUBIC):
            kind = _kernels().BICUBIC if resampling == BICUBIC else _kernels().BILINEAR
            return Picture(_kernels().resize_crop(self.pixels(), box, size, flips, kind))
        top, left, height, width = box
        pixels = Image.fromarray(self.pixels()[top : top + height, left : left + width])
        pixels = np.asarray(pixels.resize((size[1], size[0]), resampling))
        return Picture(pixels[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1].copy())

    def moved(self, matrix: tuple[float, ...], fill: tuple[int, int, int], resampling: Image.Resampling) -> "Picture":
        """``Image.transform`` by the affine ``matrix`` from output to input."""
        if resampling == BICUBIC:
            return Picture(_kernels().affine(self.pixels(), tuple(map(float, matrix)), fill))
        image = self.image()
        return Picture.of(
            image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=fill)
        )

    def saturated(self, factor: float) -> "Picture":
        """``ImageEnhance.Color``."""
        return Picture(_kernels().saturate(self.pixels(), factor))

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
