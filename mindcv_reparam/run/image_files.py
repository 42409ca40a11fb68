"""Image files by name, folder or pattern."""

import glob
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from mindcv_reparam.data.folders import KNOWN, Found, foreign_line, matching, walk
from mindcv_reparam.data.image_kinds import SUFFIXES
from mindcv_reparam.errors import UserError

_log = logging.getLogger(__name__)


def find_images(names: Iterable[str]) -> list[Path]:
    """The files that the names stand for, each once, in the order of the names and sorted within one.

    A name is a file, whatever its suffix; a folder, searched through as data sets are; or a pattern such as
    "photos/**/*.jpg", which stands for the names it matches, as if a shell had. Links to nothing are among the files,
    for whoever reads them to tell; images of formats that are not read are counted in a line.

    Raises:
        UserError: a name stands for nothing, a folder cannot be read, or a name in one is not UTF-8.
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
        found = walk(path)
        if found.foreign:
            _log.warning("%s: %s", name, foreign_line(found.foreign))
        files = sorted(path / file for file in _readable(found))
        if not files:
            raise UserError(f"no images in {name} or below (known: {KNOWN})")
        return files
    if not glob.has_magic(name):
        raise UserError(f"no file or folder {name}")
    files = matching(name)
    if not files:
        raise UserError(f"no files match {name}")
    return files


def _readable(found: Found) -> list[str]:
    """The images, and what has the name of one."""
    lost = (file for file in found.broken + found.special if os.path.splitext(file)[1].lower() in SUFFIXES)
    return [*found.images, *lost]
