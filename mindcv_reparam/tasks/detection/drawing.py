"""Boxes with names in a picture, legible on small and large ones."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mindcv_reparam.fonts import Font, font_for

Colour = tuple[int, int, int]

_TURN = 0.6180339887  # of the circle of hues, by which neighbouring classes are far apart
_SMALLEST, _LARGEST = 10, 64  # pixels of a font
_MARGIN = 2  # pixels around a text
_PART = 1 / 36  # of the picture's shorter side that a font is high


def colour_of(index: int) -> Colour:
    """Of a class: always the same, and far from those of the next ones."""
    hue = (0.97 + index * _TURN) % 1.0
    lightness = (0.5, 0.38, 0.64)[index // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def marked(image: Image.Image, boxes: np.ndarray, classes: Sequence[int], texts: Sequence[str]) -> Image.Image:
    """A copy with a box and a text for every object; of those that overlap, the first is on top.

    Args:
        boxes: x1 y1 x2 y2 in pixels of ``image``, (n, 4).
        classes: by which colours are chosen.
    """
    copy = image.convert("RGB")
    copy = copy.copy() if copy is image else copy
    side = min(copy.size)
    font = font_for(texts, min(_LARGEST, max(_SMALLEST, round(side * _PART))))
    width = max(1, round(side / 240))
    draw = ImageDraw.Draw(copy)
    rows = list(zip(boxes.tolist(), classes, texts, strict=True))
    for box, index, _ in reversed(rows):
        _outline(draw, box, colour_of(index), width)
    plates: list[_Plate] = []
    for box, index, text in rows:
        plates.append(_Plate.beside(box, text, colour_of(index), draw.textbbox((0, 0), text, font), copy.size, plates))
    for plate in reversed(plates):  # which no box of another object crosses
        plate.write(draw, font)
    return copy


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, width: int) -> None:
    """Within a dark line, where there is room for one, so that it stands out from what has its colour."""
    x1, y1, x2, y2 = (round(value) for value in box)
    x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
    if width > 1:
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=width + 2)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=width)


@dataclass(frozen=True)
class _Plate:
    """A text on its colour, ``origin`` its place in the rectangle."""

    rectangle: tuple[int, int, int, int]
    origin: tuple[int, int]
    text: str
    colour: Colour

    @classmethod
    def beside(
        cls,
        box: Sequence[float],
        text: str,
        colour: Colour,
        extent: tuple[float, float, float, float],
        size: tuple[int, int],
        others: Sequence["_Plate"],
    ) -> "_Plate":
        """Above the box, below it or in it, where there is room in the picture and no other plate; or else above."""
        left, top, right, bottom = map(round, extent)
        wide, high = right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
        x = max(0, min(round(box[0]), size[0] - wide))
        plates = []
        for y in (round(box[1]) - high, round(box[3]), round(box[1])):
            y = max(0, min(y, size[1] - high))
            rectangle = (x, y, x + wide - 1, y + high - 1)
            plates.append(cls(rectangle, (x + _MARGIN - left, y + _MARGIN - top), text, colour))
        return next((plate for plate in plates if not any(map(plate.covers, others))), plates[0])

    def covers(self, other: "_Plate") -> bool:
        (x1, y1, x2, y2), (x3, y3, x4, y4) = self.rectangle, other.rectangle
        return x1 <= x4 and x3 <= x2 and y1 <= y4 and y3 <= y2

    def write(self, draw: ImageDraw.ImageDraw, font: Font) -> None:
        red, green, blue = self.colour
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        draw.rectangle(self.rectangle, fill=self.colour)
        draw.text(self.origin, self.text, "black" if bright else "white", font)
