"""Image files in one folder per class: the ImageNet layout."""

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from mindcv_reparam.data.source import ImageSource, UnreadableImage
from mindcv_reparam.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_DECODED_ALIKE = frozenset({"YCbCr", "Gray", "RGB"})  # colour spaces of JPEG files
_SPLIT_NAMES = frozenset({"train", "val", "validation", "test"})


class ImageFolder(ImageSource):
    """One sub-folder of ``root`` per class, searched recursively; hidden files are ignored.

    Args:
        root: folder of the class folders.
        classes: class names to impose, in the order of their index (those of a checkpoint). A folder that is not among
            them is a UserError; a class without a folder is allowed. None: the sorted folder names.
    """

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None) -> None:
        self._root = Path(root)
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise UserError(f"{root} has no class folders: expected one folder of images per class")
        self.classes = tuple(folders if classes is None else classes)
        unknown = sorted(set(folders) - set(self.classes))
        if unknown:
            raise UserError(
                f"class folder {unknown[0]!r} of {root} ({len(unknown)} such) is not among the {len(self.classes)} "
                f"classes of the checkpoint: give the data set that it was trained on"
            )
        files, labels, problems = [], [], []
        for folder in folders:
            images, others = _list_images(self._root, folder)
            files += images
            labels += [self.class_to_idx[folder]] * len(images)
            problems += [f"{self._root / other} is no image file: ignored" for other in others]
            if not images:
                problems.append(f"class folder {self._root / folder} has no images")
        if not files:
            raise UserError(f"no images in the class folders of {root} (known: {', '.join(sorted(IMAGE_SUFFIXES))})")
        # One array of bytes instead of a million strings: small to pickle, and not copied page by page when read.
        self._files = np.array([os.fsencode(file) for file in files])
        self.labels = np.array(labels, dtype=np.int32)
        self.problems = tuple(problems)

    def pixels(self, index: int) -> np.ndarray:
        path = self.name(index)
        try:
            with open(path, "rb") as file:
                return decode(file.read())
        except Exception as error:  # Pillow's decoders raise almost any exception on a damaged file
            raise UnreadableImage(f"{path} cannot be read: {error}") from error

    def name(self, index: int) -> str:
        return os.path.join(self._root, os.fsdecode(bytes(self._files[index])))


def decode(data: bytes) -> np.ndarray:
    """An image file's bytes as RGB, uint8 (H, W, 3). Raises whatever Pillow raises.

    JPEGs are decoded to the pixels of Pillow, by the same library but without its copies. Those of printers (CMYK) and
    those that the library warns of are left to Pillow.
    """
    with suppress(ValueError):  # no JPEG, or a damaged one
        if simplejpeg.decode_jpeg_header(data)[2] in _DECODED_ALIKE:
            return simplejpeg.decode_jpeg(data, "RGB")
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def find_split(data_dir: str, split: str, other_split: str) -> Path:
    """The folder that holds the class folders of ``split``.

    It is ``data_dir/split``; or ``data_dir`` itself when it has no split folders at all (a single split that serves
    for training and validation alike). Raises UserError when ``split`` is missing beside another split.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"data_dir {data_dir} is no folder: give the folder of the data set with --data_dir")
    if split and (root / split).is_dir():
        return root / split
    siblings = sorted(name for name in {*_SPLIT_NAMES, other_split} if name and (root / name).is_dir())
    if split and siblings:
        raise UserError(f"{data_dir} has no folder {split!r} but {siblings[0]!r}: name the split that is there")
    return root


def _list_images(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Image files and other files below ``root/folder``, relative to ``root``, sorted."""
    images, others = [], []
    for directory, subfolders, names in os.walk(root / folder, followlinks=True):
        subfolders.sort()
        relative = Path(directory).relative_to(root)
        for name in sorted(names):
            if not name.startswith("."):
                suffix = os.path.splitext(name)[1].lower()
                (images if suffix in IMAGE_SUFFIXES else others).append(str(relative / name))
    return images, others
