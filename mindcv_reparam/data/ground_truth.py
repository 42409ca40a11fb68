"""The classes of images that stand in no class folders, told beside their archive: ILSVRC2012_img_val.tar's."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindcv_reparam.errors import UserError
from mindcv_reparam.untrusted import lines, open_regular, read_bytes, read_text

_DEVKIT = "ILSVRC2012_devkit_t12"
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_TEXTS = ("{}.txt", "imagenet_2012_validation_synset_labels.txt")  # the second as TensorFlow's models have it
_LIMIT = 2**26  # bytes of one of these files


def classes_of_images(archive: Path, names: Sequence[str]) -> list[str]:
    """The class folder of every image of an archive, whose names are sorted.

    They are told by ImageNet's development kit beside the archive, packed or not; or by a text file of the archive's
    name (val.txt for val.tar) with lines "class" in the order of the names, or "name class".

    Raises:
        UserError: nothing tells them, or not for these images.
    """
    folder = archive.parent
    for text in (folder / pattern.format(archive.stem) for pattern in _TEXTS):
        if text.is_file():
            return _of_text(text, names)
    for kit in (folder / _DEVKIT, folder / f"{_DEVKIT}.tar.gz"):
        if kit.exists():
            return _of_kit(kit, names)
    raise UserError(
        f"the images of {archive} stand in no class folders: put {_DEVKIT}.tar.gz beside it, or {archive.stem}.txt "
        "with a line for every image, its class folder, in the order of their names"
    )


def _of_text(path: Path, names: Sequence[str]) -> list[str]:
    rows = [line.split() for line in lines(read_text(path, _LIMIT, "ground truth")) if line.strip()]
    if rows and all(len(row) == 2 for row in rows):
        told = dict(rows)
        missing = next((name for name in names if name not in told), None)
        if missing is not None:
            raise UserError(f"the ground truth {path} has no line for {missing}")
        return [told[name] for name in names]
    if any(len(row) != 1 for row in rows):
        raise UserError(f"the ground truth {path} has lines that are neither a class folder nor a name and one")
    _check_count(path, len(rows), names)
    return [row[0] for row in rows]


def _of_kit(kit: Path, names: Sequence[str]) -> list[str]:
    """By the kit's own numbers of classes, which are not in the order of the folders."""
    from scipy.io import loadmat  # MindSpore brings it along

    meta, truth = _kit_files(kit)
    try:
        synsets: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        folders = {int(number): str(folder) for number, folder in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
        told = [folders[int(line)] for line in lines(truth.decode())]
    except Exception as error:  # what a file of another kind makes of it is not foreseen
        raise UserError(f"{kit} is not ImageNet's development kit of 2012: {type(error).__name__}") from None
    _check_count(kit, len(told), names)
    return told


def _kit_files(kit: Path) -> tuple[bytes, bytes]:
    if kit.is_dir():
        return read_bytes(kit / _META, _LIMIT, "kit"), read_bytes(kit / _TRUTH, _LIMIT, "kit")
    try:
        with open_regular(kit, "kit") as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
            members = [archive.extractfile(f"{_DEVKIT}/{name}") for name in (_META, _TRUTH)]
            meta, truth = (member.read(_LIMIT) if member else b"" for member in members)
            return meta, truth
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise UserError(f"{kit} is not ImageNet's development kit of 2012: {error}") from None


def _check_count(path: Path, told: int, names: Sequence[str]) -> None:
    if told != len(names):
        raise UserError(f"{path} tells the classes of {told} images, its archive has {len(names)}")
