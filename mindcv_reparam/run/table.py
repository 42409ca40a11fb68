"""A small table, as a notebook shows one; pandas is not needed for it."""

import csv
import html
import importlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.packages import is_installed, missing

_SHOWN = 60  # rows; of more, the first and the last ones
_WIDE = ("W", "F")  # characters of two columns


class Table:
    """Rows under named columns.

    ``table["label"]`` is a column, ``table[0]`` a row by names; iterating gives the rows by names, too.

    Args:
        columns: their names.
        rows: tuples, a value for every column.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.columns = tuple(columns)
        self.rows = [tuple(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            if key not in self.columns:
                raise KeyError(f"no column {key}, only {', '.join(self.columns)}")
            return [row[self.columns.index(key)] for row in self.rows]
        return dict(zip(self.columns, self.rows[key], strict=True))

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``. Raises UserError where pandas is not installed."""
        if not is_installed("pandas"):
            raise UserError(f"{missing('pandas')}, or take to_csv")
        return importlib.import_module("pandas").DataFrame(self.rows, columns=list(self.columns))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write it in UTF-8, numbers with all their digits. Raises UserError where the file system refuses."""
        with written_whole(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])

    def __str__(self) -> str:
        """Aligned columns, numbers to the right; of many rows the first and the last."""
        texts = [list(self.columns), *([_shown(value) for value in row] for row in self._some())]
        widths = [max(map(_width, column)) for column in zip(*texts)]
        numbers = [self._is_number(place) for place in range(len(self.columns))]
        lines = []
        for row in texts:
            padded = [" " * (width - _width(text)) for text, width in zip(row, widths, strict=True)]
            cells = [pad + text if number else text + pad for text, pad, number in zip(row, padded, numbers)]
            lines.append("  ".join(cells).rstrip())
        if self._left_out():
            lines.insert(1 + _SHOWN // 2, f"… {self._left_out()} rows …")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        align = [' style="text-align: right"' * self._is_number(place) for place in range(len(self.columns))]
        rows = [
            "".join(f"<td{style}>{html.escape(_shown(value))}</td>" for value, style in zip(row, align, strict=True))
            for row in self._some()
        ]
        if self._left_out():
            rows.insert(_SHOWN // 2, f'<td colspan="{len(self.columns)}">… {self._left_out()} rows …</td>')
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _left_out(self) -> int:
        return max(0, len(self.rows) - _SHOWN)

    def _some(self) -> list[tuple[Any, ...]]:
        return self.rows[: _SHOWN // 2] + self.rows[-_SHOWN // 2 :] if self._left_out() else self.rows

    def _is_number(self, place: int) -> bool:
        return bool(self.rows) and all(isinstance(row[place], int | float) for row in self.rows)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _width(text: str) -> int:
    """Columns of a terminal."""
    return sum(1 + (unicodedata.east_asian_width(character) in _WIDE) for character in text)
