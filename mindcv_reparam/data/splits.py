"""Holding a part of the images out for validation, and the file of a run that tells which."""

import csv
import io
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mindcv_reparam.config import Config
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.untrusted import read_text

SPLIT = "split.csv"  # of a run: path, split
_PARTS = ("train", "val")
_LIMIT = 2**30  # bytes; ten million lines of a hundred

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Which files of a folder are held out.

    Attributes:
        files: paths in the folder, as bytes.
        held_out: one bool a file.
    """

    files: np.ndarray
    held_out: np.ndarray

    def write(self, folder: Path) -> None:
        """Write SPLIT in the folder of a run. Raises UserError where the file system refuses."""
        with written_whole(folder / SPLIT) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["path", "split"])
            for path, held_out in zip(self.files.tolist(), self.held_out.tolist()):
                rows.writerow([path.decode(), _PARTS[held_out]])


class Division(Protocol):
    """What images are held out for validation; as text, the setting that says so."""

    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Bools (N,) of images of these classes."""


@dataclass(frozen=True)
class Fraction:
    """A part of every class."""

    part: float
    text: str

    def __str__(self) -> str:
        return f"val_split {self.text}"

    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        return hold_out(labels, self.part, seed)


@dataclass(frozen=True)
class Fold:
    """One of ``count`` parts that have no image in common and all images together, of every class equally many.

    Args:
        number: which, from 1.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"fold {self.number}/{self.count}"

    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        folds = np.empty(len(labels), dtype=np.int64)
        dealt = 0  # over all classes, so that not every first fold gets what does not divide
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            order = stream(seed, Purpose.SPLIT, int(label)).permutation(len(rows))
            folds[rows[order]] = (dealt + np.arange(len(rows))) % self.count
            dealt += len(rows)
        return folds == self.number - 1


def division_of(config: Config) -> Division | None:
    """What ``fold`` or ``val_split`` asks to hold out; None where there are folders of validation images.

    Raises:
        UserError: they contradict each other, or are no part.
    """
    fraction = fraction_of(config.val_split, config.data_dir)
    if not config.fold:
        return None if fraction is None else Fraction(fraction, config.val_split)
    if fraction is not None:
        raise UserError(
            f"fold {config.fold} and val_split {config.val_split} both hold images out: leave one of them out"
        )
    number, count = (int(text) for text in config.fold.split("/"))
    return Fold(number, count)


def fraction_of(val_split: str, data_dir: str) -> float | None:
    """The part of the images that ``val_split`` asks to hold out; None where it is the name of a folder.

    Raises:
        UserError: it is a number, but no part.
    """
    if os.path.isdir(os.path.join(data_dir, val_split)):
        return None
    try:
        fraction = float(val_split)
    except ValueError:
        return None
    if not 0 < fraction < 1:
        raise UserError(f"val_split {val_split} is no part of the images: give a number between 0 and 1, such as 0.1")
    return fraction


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Bools (N,): ``fraction`` of every class, at random by ``seed``; at least one image and at most all but one."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, math.floor(len(rows) * fraction + 0.5)), len(rows) - 1)
        order = stream(seed, Purpose.SPLIT, int(label)).permutation(len(rows))
        held_out[rows[order[:count]]] = True
    return held_out


def read_split(file: Path, files: np.ndarray, train: bool) -> tuple[Split, np.ndarray]:
    """The split that a run made before, and the rows of ``files`` in its training or validation part.

    Files that are new since are in neither part, which is logged.

    Raises:
        UserError: the file cannot be read, or a file of that part is gone.
    """
    text = read_text(file, _LIMIT)
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        parts = {path.encode(): _PARTS.index(part) for path, part in rows}
        if header != ["path", "split"]:
            raise ValueError("another header")
    except (ValueError, csv.Error):
        raise UserError(f"{file} is damaged: it has not the lines path,split; remove it to split anew") from None
    present = {path: row for row, path in enumerate(files.tolist())}
    wanted = 0 if train else 1
    gone = [path for path, part in parts.items() if part == wanted and path not in present]
    if gone:
        raise UserError(f"{file} lists {gone[0].decode()} ({len(gone)} such), which is not in the data set: restore it")
    new = [path for path in present if path not in parts]
    if new:
        _log.info("%s does not list %s (%d such): left out", file, new[0].decode(), len(new))
    own = [path for path in files.tolist() if path in parts]
    split = Split(np.array(own), np.array([parts[path] == 1 for path in own], dtype=bool))
    return split, np.array([present[path] for path in own if parts[path] == wanted], dtype=np.int64)
