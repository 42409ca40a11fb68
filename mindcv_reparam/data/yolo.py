"""Annotations in YOLO's form: data.yaml names the classes and the folders of images, a text file each has the boxes."""

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import yaml

from mindcv_reparam.data.decoder import Decoder, UnreadableImage
from mindcv_reparam.data.folders import walk
from mindcv_reparam.data.objects import AnnotatedFiles, Listing, place_among
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.untrusted import lines, read_text
from mindcv_reparam.yaml_file import compose

_LABELS = 2**24  # bytes of a text file of boxes
_LIST = 2**30  # and of one of images
_FAR = 2.0  # a coordinate further than this from the image's corner is no part of its width or height


class Yolo(AnnotatedFiles):
    """The images of one split that a data.yaml describes.

    Lines of a label file are ``class x y width height``, the box's centre and size as parts of the image's, or
    ``class x1 y1 x2 y2 x3 y3 …``, a polygon, which its box stands for. An image without such a file, or with an empty
    one, has no objects. Images are numbered from 1, categories as the file does, from 0.

    Args:
        path: of data.yaml.
        split: its key: train, val, test.
        classes: names to impose, by index; None: those of the file.
        decoder: of the images.

    Raises:
        UserError: something in one of the files is wrong, or there are no images or no label files.
    """

    def __init__(
        self, path: Path, split: str, classes: Sequence[str] | None = None, decoder: Decoder | None = None
    ) -> None:
        decoder = decoder or Decoder()
        entries = {key.value: value for key, value in compose(path) if isinstance(key, yaml.ScalarNode)}
        names = _names(entries, path)
        places = place_among(names, classes, path)
        root = Path(path).parent
        # Often of the machine that the file was written on, or from a folder that the writing tool was set up with.
        if "path" in entries and (root / _text(entries["path"], path)).is_dir():
            root = root / _text(entries["path"], path)
        if split not in entries:
            raise UserError(f"{path} has no {split!r}: it must name the folder of these images")
        value = entries[split]
        folders = value.value if isinstance(value, yaml.SequenceNode) else [value]
        files, problems = _images([_text(node, path) for node in folders], root, path)
        files, sizes, unreadable = _sizes(files, root, decoder)
        listing = _listing(files, sizes, root, len(names), path)
        listing.labels[:] = places[listing.labels]
        classes = names if classes is None else classes
        by_index = dict(zip(places.tolist(), range(len(names))))
        found = [by_index.get(index) for index in range(len(classes))]
        super().__init__(path, root, listing, classes, found, decoder, [*problems, *unreadable], check_sizes=False)


def _text(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{path}:{node.start_mark.line + 1}: a name or a path is wanted here")
    return node.value


def _names(entries: dict[str, yaml.Node], path: Path) -> list[str]:
    """Class names by index, from a list or from a mapping of every index."""
    node = entries.get("names")
    if isinstance(node, yaml.SequenceNode) and node.value:
        names = [_text(name, path) for name in node.value]
    elif isinstance(node, yaml.MappingNode) and node.value:
        by_index = {_text(key, path): _text(name, path) for key, name in node.value}
        wanted = [str(index) for index in range(len(node.value))]
        if sorted(by_index) != sorted(wanted):
            raise UserError(f"{path}:{node.start_mark.line + 1}: names must have the indices 0 to {len(wanted) - 1}")
        names = [by_index[index] for index in wanted]
    else:
        raise UserError(f"{path} has no names: it must list the names of the classes")
    count = entries.get("nc")
    if count is not None and _text(count, path) != str(len(names)):
        raise UserError(f"{path} has {len(names)} names, where nc is {shortened(_text(count, path))}")
    return names


def _images(places: Sequence[str], root: Path, path: Path) -> tuple[list[str], list[str]]:
    """Images, relative to the root, of folders and of text files that list them, and what is wrong there."""
    files, problems = [], []
    for place in places:
        where = root / place
        # Exports of some tools stand beside their folders, yet name them as if one folder deeper.
        if not where.exists() and place.startswith("../") and (root / place[3:]).exists():
            where = root / place[3:]
        if where.is_dir():
            found = walk(where)
            files += [os.path.relpath(where / name, root) for name in found.images]
            problems += [f"{where / name} is a link to nothing" for name in found.broken]
        elif where.is_file():
            named = [line.strip() for line in lines(read_text(where, _LIST)) if line.strip()]
            there = [name for name in named if (where.parent / name).is_file()]
            files += [os.path.relpath(where.parent / name, root) for name in there]
            if len(there) < len(named):
                first = next(name for name in named if not (where.parent / name).is_file())
                missing = len(named) - len(there)
                problems.append(f"{where} lists {missing} images that are not there, the first {shortened(first)}")
        else:
            raise UserError(f"{path} names {where}, where there is nothing")
    if not files:
        raise UserError(f"{path} names {', '.join(places)}: no images lie there")
    return files, problems


def _sizes(files: Sequence[str], root: Path, decoder: Decoder) -> tuple[list[str], np.ndarray, list[str]]:
    """The files whose header can be read; their widths and heights, int64 (N, 2); lines for the others."""
    kept, sizes, problems = [], [], []
    for file in files:
        try:
            sizes.append(decoder.size(root / file))
            kept.append(file)
        except UnreadableImage as error:
            problems.append(f"{root / file} cannot be read: {error}")
    return kept, np.array(sizes, dtype=np.int64).reshape(-1, 2), problems


def _listing(files: Sequence[str], sizes: np.ndarray, root: Path, classes: int, path: Path) -> Listing:
    rows: list[int] = []
    objects: list[tuple[int, float, float, float, float]] = []
    places: list[str] = []
    found = 0
    for row, file in enumerate(files):
        labels = _label_file(root / file)
        if not labels.is_file():
            continue
        found += 1
        for number, line in enumerate(lines(read_text(labels, _LABELS)), 1):
            if line.strip():
                objects.append(_object(line, classes, f"{labels}:{number}"))
                rows.append(row)
                places.append(f"{labels}:{number}")
    if not found:
        raise UserError(f"{path}: none of {len(files)} images has a label file, such as {_label_file(root / files[0])}")
    table = np.array(objects, dtype=np.float64).reshape(-1, 5)
    of_image = np.array(rows, dtype=np.int64)
    boxes = table[:, 1:] * np.tile(sizes[of_image], 2)
    boxes[:, :2] -= boxes[:, 2:] / 2
    return Listing(
        files=files,
        image_ids=np.arange(1, len(files) + 1),
        sizes=sizes,
        rows=of_image,
        labels=table[:, 0].astype(np.int64),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowds=np.zeros(len(boxes), dtype=bool),
        names=places.__getitem__,
    )


def _label_file(image: Path) -> Path:
    """Where the boxes of an image are: in the folder ``labels`` in place of the last ``images``, or beside it."""
    parts = list(PurePath(image).parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _object(line: str, classes: int, place: str) -> tuple[int, float, float, float, float]:
    """Class index, centre and size of the box that a line describes."""
    fields = line.split()
    try:
        number, *numbers = (float(field) for field in fields)  # tools write 3.0 as well as 3
        label = int(number)
        if label != number:
            raise ValueError
    except (ValueError, OverflowError):  # the latter: infinite
        raise UserError(f"{place}: {shortened(line.strip())!r} is not a class index and numbers") from None
    if not 0 <= label < classes:
        raise UserError(f"{place}: class {label} is none of the {classes} that data.yaml names, from 0")
    if not all(math.isfinite(number) and abs(number) <= _FAR for number in numbers):
        raise UserError(f"{place}: coordinates must be parts of the image's width and height, from 0 to 1")
    if len(numbers) == 4:
        return label, *numbers  # type: ignore[return-value]  # four of them
    if len(numbers) < 6 or len(numbers) % 2:
        raise UserError(f"{place}: {len(numbers)} numbers are neither a box nor the points of a polygon")
    xs, ys = numbers[::2], numbers[1::2]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return label, min(xs) + width / 2, min(ys) + height / 2, width, height
