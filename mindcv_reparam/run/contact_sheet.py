"""A contact sheet: thumbnails in a grid, with what the task marks in each and says below it, and the files' names."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mindcv_reparam.files import common_folder, shown, written_whole
from mindcv_reparam.fonts import Font, font_for
from mindcv_reparam.run.prediction import THUMBNAIL, Prediction
from mindcv_reparam.tasks.results import Label, Results

CAPACITY = 400  # images on a sheet
_MARGIN, _LINE = 8, 20  # pixels
_CELL = (THUMBNAIL + 2 * _MARGIN, THUMBNAIL + 3 * _MARGIN + 3 * _LINE)  # width, height


def write_contact_sheet(path: Path, results: Results[Any], predictions: Sequence[Prediction], label: Label) -> None:
    """Draw predictions that have thumbnails, at most CAPACITY of them, as a PNG.

    Raises:
        UserError: the file system refused.
    """
    columns = math.ceil(math.sqrt(len(predictions)))
    rows = math.ceil(len(predictions) / columns)
    sheet = Image.new("RGB", (columns * _CELL[0], rows * _CELL[1]), "white")
    draw = ImageDraw.Draw(sheet)
    captions = [results.caption(prediction.found, label) for prediction in predictions]
    files = [shown(prediction.file) for prediction in predictions]
    folder = common_folder(files)
    files = [file.removeprefix(folder) for file in files]
    font = font_for((line for lines in (*captions, files) for line in lines), _LINE - 4)
    for number, (prediction, (first, second), file) in enumerate(zip(predictions, captions, files)):
        left, top = number % columns * _CELL[0] + _MARGIN, number // columns * _CELL[1] + _MARGIN
        if prediction.thumbnail is None:
            continue
        thumbnail = results.drawn(prediction.thumbnail, prediction.found, label)
        sheet.paste(thumbnail, (left + (THUMBNAIL - thumbnail.width) // 2, top + (THUMBNAIL - thumbnail.height) // 2))
        text = top + THUMBNAIL + _MARGIN
        draw.text((left, text), _fitted(first, font), "black", font)
        draw.text((left, text + _LINE), _fitted(second, font), "dimgray", font)
        # The end of a path tells the most of it.
        draw.text((left, text + 2 * _LINE), _fitted(file[::-1], font)[::-1], "gray", font)
    with written_whole(path) as temporary:
        sheet.save(temporary, format="PNG")


def _fitted(text: str, font: Font) -> str:
    """The text, or as much of its beginning as is no wider than a thumbnail."""
    if font.getlength(text) <= THUMBNAIL:
        return text
    longest = max(n for n in range(len(text)) if font.getlength(f"{text[:n]}…") <= THUMBNAIL)
    return f"{text[:longest]}…"
