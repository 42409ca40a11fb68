"""Images in tar archives, read by offset: ImageNet as it is downloaded, or class folders in one archive or several.

Nothing is unpacked: an epoch opens as many files as there are archives, instead of one for every image.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from mindcv_reparam.data.decoder import Decoder, UnreadableImage
from mindcv_reparam.data.ground_truth import classes_of_images
from mindcv_reparam.data.image_folder import ClassFolders, Listing, check_no_split
from mindcv_reparam.data.splits import Split
from mindcv_reparam.data.tar_index import SUFFIX, TarIndex, order, tar_index
from mindcv_reparam.errors import UserError

_IMAGENET = "ILSVRC2012_img_{}.tar"


class ImageArchive(ClassFolders):
    """Class folders in tar archives, listed in the order of the same folders unpacked.

    In an archive stand folders of images by class, within a folder of the split or any other one; or archives of one
    class each, as in ILSVRC2012_img_train.tar; or images alone, as in ILSVRC2012_img_val.tar, whose classes are told
    beside it (see :mod:`ground_truth`).

    Args:
        paths: of the archives, which together hold the images.
        split: the folder wanted in them, as `find_split` has it; ``other_split`` and ``usual`` too.
        classes: as for `ClassFolders`.
        decoder: of the images.

    Raises:
        UserError: as `tar_index` and `ClassFolders`; or there are no folders and no classes told.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        split: str = "",
        other_split: str = "",
        usual: str = "",
        classes: Sequence[str] | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        indices = [tar_index(path) for path in paths]
        self.archives = tuple((os.fspath(index.path), index.size, index.time) for index in indices)
        self._descriptors: dict[int, int] = {}
        self._members, self._places = _merged(indices)
        root = paths[0] if len(paths) == 1 else paths[0].parent
        members = self._members.tolist()
        if not any(b"/" in member for member in members):
            listing, kept = _told(paths, members)
        else:
            folder = _folder(root, members, split, other_split, usual)
            root = root / folder.decode() if folder else root
            listing, kept = _in_folders(indices, members, folder)
        super().__init__(root, listing, classes, decoder)
        self._members, self._places = self._members[kept], self._places[kept]

    def part(self, rows: np.ndarray, split: Split) -> Self:
        part = super().part(rows, split)
        part._members, part._places = self._members[rows], self._places[rows]
        return part

    def file(self, index: int) -> bytes:
        number, first, size = self._places[index].tolist()
        descriptor = self._descriptors.get(number)
        if descriptor is None:
            descriptor = self._descriptors[number] = self._open(number)
        data = os.pread(descriptor, size, first)
        if len(data) != size:
            raise UnreadableImage("its archive has become shorter")
        return data

    def name(self, index: int) -> str:
        path = self.archives[self._places[index, 0]][0]
        return f"{path}:{os.fsdecode(bytes(self._members[index]))}"

    def stamp(self, index: int) -> str:
        return f"{self.name(index)} {self.archives[self._places[index, 0]][1:]}"

    def _open(self, number: int) -> int:
        path, size, time = self.archives[number]
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (size, time):
            os.close(descriptor)
            raise UnreadableImage("its archive is another one than when it was listed")
        return descriptor

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_descriptors": {}}


def find_archives(data_dir: str, split: str) -> list[Path]:
    """The archives of ``split``, where there are any: ``data_dir`` itself, or in it those that ``split`` names (with *
    as a shell has it), or ``split``.tar, ``split``-*.tar, or ImageNet's by its own name."""
    root = Path(data_dir)
    if root.suffix == SUFFIX and root.is_file():
        return [root]
    if not split or (root / split).is_dir():
        return []
    patterns = (split,) if split.endswith(SUFFIX) else (f"{split}{SUFFIX}", f"{split}[-_]*{SUFFIX}")
    for pattern in (*patterns, _IMAGENET.format(split)):
        if found := sorted(Path(path) for path in glob.glob(os.path.join(glob.escape(data_dir), pattern))):
            return found
    if split.endswith(SUFFIX):
        raise UserError(f"{data_dir} has no archive {split}: name one that is there")
    return []


def _merged(indices: Sequence[TarIndex]) -> tuple[np.ndarray, np.ndarray]:
    """Members, and their archive's number, first byte and size; of two with one name the later, as in unpacking."""
    members = np.concatenate([index.images for index in indices])
    places = np.concatenate([np.insert(index.places, 0, number, axis=1) for number, index in enumerate(indices)])
    if len(indices) > 1:
        keys = np.array([order(member) for member in members.tolist()], bytes)
        rows = np.argsort(keys, kind="stable")
        last = np.append(keys[rows[1:]] != keys[rows[:-1]], True) if len(rows) else np.array([], bool)
        rows = rows[last]
        members, places = members[rows], places[rows]
    return members, places


def _folder(root: Path, members: list[bytes], split: str, other_split: str, usual: str) -> bytes:
    """The folder in the archives that holds the class folders, empty where they stand at the top."""
    folder, below = b"", members
    while True:
        tops = sorted({member.split(b"/", 1)[0].decode() for member in below if b"/" in member})
        if split and split in tops:
            return b"%b%b/" % (folder, split.encode())
        if len(tops) != 1 or any(member.count(b"/") < 2 for member in below):
            check_no_split(os.fspath(root), tops, split, other_split, usual)
            return folder
        folder = b"%b%b/" % (folder, tops[0].encode())
        below = [member.split(b"/", 1)[1] for member in below]


def _in_folders(indices: Sequence[TarIndex], members: list[bytes], folder: bytes) -> tuple[Listing, np.ndarray]:
    """What stands in folders, and which of the members these are."""
    kept = np.array([member.startswith(folder) and b"/" in member[len(folder) :] for member in members], bool)
    files = [member[len(folder) :] for member, keep in zip(members, kept.tolist(), strict=True) if keep]
    folders, owners = np.unique(np.array([file.split(b"/", 1)[0] for file in files], bytes), return_inverse=True)
    foreign: list[str] = []
    problems: list[str] = []
    for index in indices:
        for kind, what in (("others", "no image file"), ("special", "no regular file")):
            names = (name for name in getattr(index, kind).tolist() if name.startswith(folder))
            problems += [f"{index.path}:{name.decode()} is {what}" for name in names]
        names = (name for name in index.foreign.tolist() if name.startswith(folder))
        foreign += [name[len(folder) :].decode() for name in names]
    return Listing(
        [name.decode() for name in folders.tolist()], np.array(files, bytes), owners, foreign, problems
    ), kept


def _told(paths: Sequence[Path], members: list[bytes]) -> tuple[Listing, np.ndarray]:
    """Images without folders, whose classes are told beside their archive."""
    told = classes_of_images(paths[0], [member.decode() for member in members])
    files = [b"%b/%b" % (folder.encode(), member) for folder, member in zip(told, members, strict=True)]
    rows = np.array(sorted(range(len(files)), key=lambda row: order(files[row])), np.int64)
    folders, owners = np.unique(np.array(told)[rows], return_inverse=True)
    return Listing(folders.tolist(), np.array(files, bytes)[rows], owners, [], []), rows
