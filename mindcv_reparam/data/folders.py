"""The one walk over folders of images, for training, validation, export and infer: what counts, and what is told."""

import fnmatch
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindcv_reparam.data.image_kinds import FOREIGN_SUFFIXES, SUFFIXES
from mindcv_reparam.errors import UserError

# What systems leave beside the files of users; hidden files and folders are passed over as well.
_LITTER = frozenset(
    ("__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information", "lost+found")
    + ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
)
KNOWN = ", ".join(sorted(SUFFIXES))


@dataclass
class Found:
    """Paths below a folder, relative to it: sorted, the files of a folder before those of its sub-folders.

    Attributes:
        images: files with the suffix of a format that is read.
        foreign: images of formats that are not.
        others: files that are no images.
        broken: links that lead to nothing.
        special: pipes, sockets and devices, which are never opened.
    """

    images: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)

    def add(self, path: str, entry: os.DirEntry[str]) -> None:
        suffix = os.path.splitext(entry.name)[1].lower()
        if not _is(entry, "file"):
            (self.broken if entry.is_symlink() and not os.path.exists(entry.path) else self.special).append(path)
        elif suffix in SUFFIXES:
            self.images.append(path)
        else:
            (self.foreign if suffix in FOREIGN_SUFFIXES else self.others).append(path)


def walk(folder: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> Found:
    """Everything in a folder and below. Links are followed, and every folder is entered once however it is reached.

    Args:
        within: a folder that links do not lead to, nor to one above it: that of all classes, for the folder of one.

    Raises:
        UserError: a folder cannot be read, or a name is not UTF-8.
    """
    found = Found()
    entered = set()
    if within is not None:
        inside = Path(within).resolve()
        entered = {_identity(one) for one in (inside, *inside.parents)}
    waiting = [("", os.fspath(folder))]
    while waiting:
        relative, place = waiting.pop()
        identity = _identity(place)
        if identity in entered:
            continue
        entered.add(identity)
        below = []
        for entry in _entries(place):
            path = f"{relative}{entry.name}"
            if _is(entry, "dir"):
                below.append((f"{path}/", entry.path))
            else:
                found.add(path, entry)
        waiting += reversed(below)
    return found


def class_folders(root: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """The folders directly in ``root``, and the links there that lead to nothing. Raises UserError as ``walk`` does."""
    folders, broken = [], []
    for entry in _entries(root):
        if _is(entry, "dir"):
            folders.append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            broken.append(entry.name)
    return folders, broken


def matching(pattern: str) -> list[Path]:
    """The files that a pattern such as "photos/**/*.jpg" names, as a shell's would, and the images in the folders that
    it names; sorted. Raises UserError as ``walk`` does."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base, wanted = Path(*parts[:fixed]), parts[fixed:]
    if not base.is_dir():
        return []
    if "**" in wanted:  # Python's own goes round a circle of links forty times, and two circles for ever
        found = walk(base)
        images = {base / path for path in found.images if _names_folder_of(path.split("/"), wanted)}
        files = found.images + found.foreign + found.others + found.broken + found.special
        return sorted(images | {base / path for path in files if _fits(path.split("/"), wanted)})
    matches: set[Path] = set()
    for name in glob.glob(pattern):
        path = Path(name)
        if any(is_litter(part) and glob.has_magic(own) for part, own in zip(path.parts[fixed:], wanted)):
            continue
        matches |= {path / image for image in walk(path).images} if path.is_dir() else {path}
    return sorted(matches)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name never counts."""
    return name.startswith(".") or name.lower() in _LITTER


def foreign_line(paths: Sequence[str | os.PathLike[str]]) -> str:
    """One line for images of formats that are not read."""
    suffixes = sorted({os.path.splitext(path)[1].lower() for path in paths})
    return (
        f"{len(paths)} images of formats that are not read here ({', '.join(suffixes)}) are left out, the first: "
        f"{os.fspath(paths[0])}; convert them to JPEG or PNG"
    )


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name, without what never counts."""
    try:
        with os.scandir(folder) as entries:
            kept = sorted((entry for entry in entries if not is_litter(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {os.fspath(folder)} cannot be read: {error.strerror}") from None
    for entry in kept:
        if not entry.name.isascii():
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                name = os.fsencode(entry.name)
                raise UserError(f"the name {name!r} in {os.fspath(folder)} is not UTF-8: rename it") from None
    return kept


def _is(entry: os.DirEntry[str], what: Literal["file", "dir"]) -> bool:
    """``entry.is_file()`` or ``is_dir()``, false for a link in a circle or to where nobody may look."""
    try:
        return entry.is_file() if what == "file" else entry.is_dir()
    except OSError:
        return False


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise UserError(f"the folder {os.fspath(folder)} cannot be read: {error.strerror}") from None
    return status.st_dev, status.st_ino


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path are those of a pattern, in which "**" is any number of folders."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or (bool(parts) and _fits(parts[1:], wanted))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _names_folder_of(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    return any(_fits(parts[:length], wanted) for length in range(len(parts)))
