"""A contact sheet: thumbnails in a grid, with the best label and its probability below each."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import written_whole
from .prediction import THUMBNAIL, Prediction

CAPACITY = 400  # images on a sheet
_MARGIN, _LINE = 8, 20  # pixels
_CELL = (THUMBNAIL + 2 * _MARGIN, THUMBNAIL + 3 * _MARGIN + 2 * _LINE)  # width, height


def write_contact_sheet(path: Path, predictions: Sequence[Prediction], name: Callable[[int], str]) -> None:
    """Draw predictions that have thumbnails, at most CAPACITY of them, as a PNG.

    Raises:
        UserError: the file system refused.
    """
    columns = math.ceil(math.sqrt(len(predictions)))
    rows = math.ceil(len(predictions) / columns)
    sheet = Image.new("RGB", (columns * _CELL[0], rows * _CELL[1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_LINE - 4)
    for number, prediction in enumerate(predictions):
        left, top = number % columns * _CELL[0] + _MARGIN, number // columns * _CELL[1] + _MARGIN
        thumbnail = prediction.thumbnail
        sheet.paste(thumbnail, (left + (THUMBNAIL - thumbnail.width) // 2, top + (THUMBNAIL - thumbnail.height) // 2))
        text = top + THUMBNAIL + _MARGIN
        draw.text((left, text), _fitted(name(prediction.classes[0]), font), "black", font)
        draw.text((left, text + _LINE), f"{100 * prediction.probabilities[0]:.1f} %", "dimgray", font)
    with written_whole(path) as temporary:
        sheet.save(temporary, format="PNG")


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or as much of its beginning as is no wider than a thumbnail."""
    if font.getlength(text) <= THUMBNAIL:
        return text
    longest = max(n for n in range(len(text)) if font.getlength(f"{text[:n]}…") <= THUMBNAIL)
    return f"{text[:longest]}…"
