"""Images that a CSV file lists, with the class of each and, if it says so, the part of the data it is in."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindcv_reparam.data.decoder import Decoder
from mindcv_reparam.data.image_folder import ClassFolders, Listing
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.untrusted import read_text

_LIMIT = 2**30  # bytes; ten million lines of a hundred
_HEADERS = (["path", "label"], ["path", "label", "split"])


class ImageList(ClassFolders):
    """The images of one part of a list with the columns path, label and, if there are parts, split.

    Args:
        path: of the list. Paths in it are relative to its folder, or absolute.
        part: what stands in the column split; all of them where there is no such column.
        classes: as `ClassFolders` takes them; by default all labels of the list, sorted.
        decoder: of the files.

    Attributes:
        divided: whether the list has parts.

    Raises:
        UserError: it cannot be read, has other columns, an image twice, or nothing of that part.
    """

    def __init__(
        self, path: Path, part: str, classes: Sequence[str] | None = None, decoder: Decoder | None = None
    ) -> None:
        rows = _read(path)
        self.divided = len(rows[0]) == 3
        labels = sorted({row[1] for row in rows})
        if self.divided:
            parts = sorted({row[2] for row in rows})
            rows = [row for row in rows if row[2] == part]
            if not rows:
                shown = ", ".join(shortened(one) for one in parts[:4])
                raise UserError(f"{path} has no images of the split {part!r}, only {shown}: name one that is there")
        there = [row for row in rows if os.path.isfile(path.parent / row[0])]
        present = {row[0] for row in there}
        gone = [row[0] for row in rows if row[0] not in present]
        problems = [f"{path.parent / name}, which {path} lists, is not there" for name in gone]
        index = {label: place for place, label in enumerate(labels)}
        files = np.array([os.fsencode(row[0]) for row in there], bytes)
        owners = np.array([index[row[1]] for row in there], np.int64)
        super().__init__(path, Listing(labels, files, owners, [], problems), classes, decoder)

    def name(self, index: int) -> str:
        return os.path.join(self.root.parent, os.fsdecode(bytes(self.files[index])))


def is_list(data_dir: str) -> bool:
    """Whether that is a list rather than a folder."""
    return data_dir.lower().endswith(".csv") and os.path.isfile(data_dir)


def _read(path: Path) -> list[list[str]]:
    try:
        header, *rows = csv.reader(io.StringIO(read_text(path, _LIMIT), newline=""))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is no list of images: {error or 'it is empty'}") from None
    columns = [column.strip().lower() for column in header]
    rows = [row for row in rows if row]
    if columns not in _HEADERS or not rows:
        needed = "the columns path,label or path,label,split and a line for every image"
        raise UserError(f"{path} is no list of images: it needs {needed}")
    seen: set[str] = set()
    for line, row in enumerate(rows, 2):
        if len(row) != len(columns) or not row[0] or not row[1]:
            raise UserError(f"{path}: image {line - 1} has not {len(columns)} columns with a path and a label: mend it")
        if row[0] in seen:
            raise UserError(f"{path} lists {shortened(row[0])} twice: an image has one label and is in one part")
        seen.add(row[0])
    return rows
