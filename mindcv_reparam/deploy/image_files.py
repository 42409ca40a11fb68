"""Image files by name, folder or pattern."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ..data.image_folder import IMAGE_SUFFIXES
from ..errors import UserError


def find_images(names: Iterable[str]) -> list[Path]:
    """The files that the names stand for, each once, in the order of the names and sorted within one.

    A name is a file, whatever its suffix; a folder, searched through for files with an image's suffix, hidden ones
    apart; or a pattern such as "photos/**/*.jpg", which stands for the names it matches, as if a shell had.

    Raises:
        UserError: a name stands for nothing.
    """
    files: dict[Path, None] = {}
    for name in names:
        files |= dict.fromkeys(_files(name))
    return list(files)


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = _images_below(path)
        if not files:
            raise UserError(f"no images in {name} or below (known: {', '.join(sorted(IMAGE_SUFFIXES))})")
        return files
    if not glob.has_magic(name):
        raise UserError(f"no file or folder {name}")
    matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
    files = [file for match in matches for file in (_images_below(match) if match.is_dir() else [match])]
    if not files:
        raise UserError(f"no files match {name}")
    return files


def _images_below(folder: Path) -> list[Path]:
    files: list[Path] = []
    visited: set[str] = set()  # links can lead in circles
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(directory)
        if place in visited:
            subfolders.clear()
            continue
        visited.add(place)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        images = (name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
        files += [Path(directory, name) for name in images if not name.startswith(".")]
    return sorted(files)
