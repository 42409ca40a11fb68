"""Image files in one folder per class: the ImageNet layout."""

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from mindcv_reparam.data.decoder import Decoder, UnreadableImage
from mindcv_reparam.data.folders import KNOWN, class_folders, foreign_line, walk
from mindcv_reparam.data.source import LabelledSource
from mindcv_reparam.data.splits import Split
from mindcv_reparam.errors import UserError

_SPLIT_NAMES = frozenset({"train", "val", "validation", "test"})
_PARTS = _SPLIT_NAMES | {"training", "valid", "testing", "dev", "eval"}
_VERSION = re.compile(r"v\d+([._]\d+)*|old|new|copy|backup", re.IGNORECASE)


@dataclass
class Listing:
    """What there is to make a data set of.

    Attributes:
        folders: of the classes, sorted.
        files: images as "class/…/name", bytes (n,), the classes in that order.
        owners: the place of every file's class in ``folders``, (n,).
        foreign: images of formats that are not read.
        problems: one line for everything that is left out.
    """

    folders: list[str]
    files: np.ndarray
    owners: np.ndarray
    foreign: list[str]
    problems: list[str]


class ClassFolders(LabelledSource):
    """Images of one folder per class, wherever the folders are.

    Args:
        root: what messages call the place of the class folders.
        listing: of them.
        classes: class names to impose, in the order of their index (those of a checkpoint). A folder that is not among
            them is a UserError; a class without a folder is allowed. None: the sorted folder names.
        decoder: of the files.

    Attributes:
        root: that place.
        files: as listed. One array of bytes instead of a million strings: small to pickle, and not copied page by page
            when read.
        split: how the files were divided, if they were; it does not follow into workers.
    """

    split: Split | None = None

    def __init__(self, root: Path, listing: Listing, classes: Sequence[str] | None, decoder: Decoder | None) -> None:
        self.root = root
        self._decoder = decoder or Decoder()
        folders = listing.folders
        if not folders:
            raise UserError(f"{root} has no class folders: expected one folder of images per class")
        self.classes = tuple(folders if classes is None else classes)
        unknown = sorted(set(folders) - set(self.classes))
        if unknown:
            raise UserError(
                f"class folder {unknown[0]!r} of {root} ({len(unknown)} such) is not among the {len(self.classes)} "
                f"classes that the checkpoint or the training images have: give the data set they are of"
            )
        problems = listing.problems
        if listing.foreign:
            problems = [*problems, f"{root}: {foreign_line(listing.foreign)}"]
        if not len(listing.files):
            what = f"; {foreign_line(listing.foreign)}" if listing.foreign else ""
            raise UserError(f"no images in the class folders of {root} (known: {KNOWN}){what}")
        self.files = listing.files
        index = self.class_to_idx
        self.labels = np.array([index[folder] for folder in folders], np.int32)[listing.owners]
        self.problems = tuple(problems)

    def part(self, rows: np.ndarray, split: Split) -> Self:
        """The files of these rows only, of a folder that ``split`` divides."""
        part = copy.copy(self)
        part.files, part.labels, part.split = self.files[rows], self.labels[rows], split
        return part

    def pixels(self, index: int) -> np.ndarray:
        try:
            return self._decoder.pixels(self.file(index))
        except UnreadableImage as error:
            raise UnreadableImage(f"{self.name(index)} cannot be read: {error}") from error

    def file(self, index: int) -> bytes | str:
        """A file's path, or what is in it. Raises UnreadableImage."""
        return self.name(index)

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.files[index])))

    def stamp(self, index: int) -> str:
        """By the size and the time of the file, which tell as much as they tell ``make``."""
        name = self.name(index)
        try:
            status = os.stat(name)
        except OSError:
            return name
        return f"{name} {status.st_size} {status.st_mtime_ns}"

    def doubts(self) -> list[str]:
        lines = super().doubts()
        splits = [name for name in self.classes if name.lower() in _PARTS]
        if splits or all(map(_VERSION.fullmatch, self.classes)):
            lines.insert(
                0,
                f"the class folders {', '.join((splits or self.classes)[:4])} of {self.root} look like parts or "
                "versions of a data set rather than classes: data_dir may be a level too high",
            )
        return lines

    def write_split(self, run: Path) -> None:
        if self.split is not None:
            self.split.write(run)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "split"}


class ImageFolder(ClassFolders):
    """One sub-folder of ``root`` per class, searched recursively; what counts there, ``folders`` says."""

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None, decoder: Decoder | None = None) -> None:
        super().__init__(Path(root), _walked(Path(root)), classes, decoder)


def _walked(root: Path) -> Listing:
    folders, broken = class_folders(root)
    files: list[bytes] = []
    owners: list[int] = []
    foreign: list[str] = []
    problems = [f"{root / name} is a link to nothing" for name in broken]
    for number, folder in enumerate(folders):
        found, place = walk(root / folder, within=root), root / folder
        files += [os.fsencode(f"{folder}/{name}") for name in found.images]
        owners += [number] * len(found.images)
        foreign += [f"{folder}/{name}" for name in found.foreign]
        problems += [f"{place / name} is a link to nothing" for name in found.broken]
        problems += [f"{place / name} is no regular file" for name in found.special]
        problems += [f"{place / name} is no image file" for name in found.others]
        if not found.images:
            problems.append(f"class folder {place} has no images")
    return Listing(folders, np.array(files, bytes), np.array(owners, np.int64), foreign, problems)


def find_split(data_dir: str, split: str, other_split: str, usual: str) -> Path:
    """The folder that holds the class folders of ``split``.

    It is ``data_dir/split``; or ``data_dir`` itself when it has no split folders at all and ``split`` is the ``usual``
    name, or that of the other one. Raises UserError when ``split`` is missing otherwise.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"data_dir {data_dir} is no folder: give the folder of the data set with --data_dir")
    if split and (root / split).is_dir():
        return root / split
    check_no_split(data_dir, class_folders(root)[0], split, other_split, usual)
    return root


def check_no_split(data_dir: str, folders: Sequence[str], split: str, other_split: str, usual: str) -> None:
    """Raise UserError where ``data_dir``, which has other folders than that of ``split``, cannot be meant itself."""
    siblings = sorted(name for name in {*_SPLIT_NAMES, other_split} if name and name in folders)
    if split and siblings:
        raise UserError(f"{data_dir} has no folder {split!r} but {siblings[0]!r}: name the split that is there")
    if split not in ("", usual, other_split):
        there = ", ".join(folders[:4]) or "no folders"
        raise UserError(f"{data_dir} has no folder {split!r}, only {there}: name a split that is there")
