"""The geometry of a picture follows its pixels: a mark is found where the geometry says that it went."""

import numpy as np
import pytest
from PIL import Image

from mindcv_reparam.data.auto_augment import brightness, color
from mindcv_reparam.data.picture import Picture

MARK = np.array([[20.0, 8.0, 28.0, 14.0]])  # x1 y1 x2 y2


def marked() -> Picture:
    pixels = np.zeros((48, 64, 3), np.uint8)
    x1, y1, x2, y2 = MARK[0].astype(int)
    pixels[y1:y2, x1:x2] = 255
    return Picture(pixels)


def found(picture: Picture) -> list[float]:
    """The box of what is bright."""
    rows, columns = np.nonzero(picture.pixels()[:, :, 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("resampling", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_a_crop_takes_its_boxes_along(flips, resampling):
    picture = marked().cropped((4, 10, 24, 32), (48, 96), flips, resampling)
    np.testing.assert_allclose(picture.boxes(MARK)[0], found(picture), atol=1.0)


@pytest.mark.parametrize("resampling", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
def test_an_affine_movement_takes_its_boxes_along(resampling):
    shear = (1.0, 0.5, -16.0, 0.25, 1.0, -12.0)  # from output to input
    picture = marked().moved(shear, (0, 0, 0), resampling)
    np.testing.assert_allclose(picture.boxes(MARK)[0], found(picture), atol=1.0)


def test_what_follows_what_and_colours_move_nothing():
    picture = marked().cropped((0, 0, 48, 64), (96, 128), (True, False), Image.Resampling.BICUBIC)
    picture = color(brightness(picture, 1.2), 0.9)
    picture = picture.moved((1.0, 0.0, 10.0, 0.0, 1.0, -5.0), (0, 0, 0), Image.Resampling.NEAREST)
    picture = picture.cropped((10, 20, 60, 80), (60, 80), (False, True), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(picture.boxes(MARK)[0], found(picture), atol=1.0)
    assert picture.geometry[0] == -2.0
