"""Annotations in COCO's form: one JSON file of images, objects and categories, beside a folder of images."""

import os
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NotRequired

import numpy as np
import pydantic
from typing_extensions import TypedDict

from mindcv_reparam.data.decoder import Decoder
from mindcv_reparam.data.folders import walk
from mindcv_reparam.data.objects import AnnotatedFiles, Listing, place_among
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.untrusted import read_large_json

_LIMIT = 8 * 2**30  # bytes; Objects365's file of the training images has 5.6 GB, COCO's 0.45
_REMEDY = "mend it, or write it anew where it comes from"
_TOLD = 10  # categories that a line names
_ABOVE = 2  # folders that file names may begin with: images/train2017/1.jpg
_Id = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]
_Side = Annotated[int, pydantic.Field(ge=1, lt=2**31)]


class _Image(TypedDict):
    id: _Id
    file_name: str
    width: _Side
    height: _Side


class _Annotation(TypedDict):
    id: NotRequired[_Id]
    image_id: _Id
    category_id: _Id
    bbox: Annotated[list[float], pydantic.Field(min_length=4, max_length=4)]
    area: NotRequired[float]
    iscrowd: NotRequired[Literal[0, 1] | bool]


class _Category(TypedDict):
    id: _Id
    name: str


class _File(TypedDict):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


_SCHEMA = pydantic.TypeAdapter(_File)


class Coco(AnnotatedFiles):
    """The images that a file in COCO's form lists. Ids may have gaps and any order.

    Categories without an annotation are classes, too, and named in ``notes``; those are left out whose name another
    category has, or ``classes`` have not.

    Args:
        path: of the JSON file.
        root: folder in which the images' file names lie, or which all of them begin with.
        classes: names to impose, by index; None: the categories by their ids.
        decoder: of the images.

    Raises:
        UserError: the file is not of that form, an annotation names an image or a category that is not there, or no
            image lies in the folder.
    """

    def __init__(
        self, path: Path, root: Path, classes: Sequence[str] | None = None, decoder: Decoder | None = None
    ) -> None:
        content = read_large_json(path, _SCHEMA, limit=_LIMIT, remedy=_REMEDY)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        if not categories:
            raise UserError(f"{path} has no categories: {_REMEDY}")
        _check_once([category["id"] for category in categories], "category", path)
        kept, note = _meant(categories, {one["category_id"] for one in content["annotations"]}, classes)
        ids, names = [category["id"] for category in kept], [category["name"] for category in kept]
        places = place_among(names, classes, path)
        images = sorted(content["images"], key=lambda image: image["id"])
        _check_once([image["id"] for image in images], "image", path)
        _check_names(images, path, root)
        root = _home([image["file_name"] for image in images], root)
        there, problems = _in_folder(images, path, root)
        listing = _listing(content["annotations"], images, dict(zip(ids, places.tolist())), path)
        listing = listing.part(there)
        by_index = dict(zip(places.tolist(), ids))
        classes = names if classes is None else classes
        found = [by_index.get(index) for index in range(len(classes))]
        super().__init__(path, root, listing, classes, found, decoder or Decoder(), problems)
        self.notes += (f"{path}: {note}",) if note else ()


def _check_once(ids: Sequence[int], what: str, path: Path) -> None:
    if len(set(ids)) < len(ids):
        doubled = next(one for one, after in pairwise(ids) if one == after)  # they are sorted
        raise UserError(f"{path} has two of {what} id {doubled}: {_REMEDY}")


def _meant(
    categories: Sequence[_Category], used: Collection[int], classes: Sequence[str] | None
) -> tuple[Sequence[_Category], str]:
    """The categories that are classes, and which have no annotation, in words.

    Exporters list a category above all others that no annotation has, often under the name of one of these.
    """
    idle = [one for one in categories if one["id"] not in used]
    ids = {one["name"]: one["id"] for one in sorted(categories, key=lambda one: one["id"] in used)}
    left = [
        one for one in idle if ids[one["name"]] != one["id"] or (classes is not None and one["name"] not in classes)
    ]
    if not idle or len(left) == len(categories):
        return categories, ""
    told = [f"{shortened(one['name'])!r} (id {one['id']}{', left out' * (one in left)})" for one in idle[:_TOLD]]
    note = ", ".join(told + ["…"] * (len(idle) > _TOLD))
    kept = [one for one in categories if one not in left]
    return kept, f"{len(idle)} of {len(categories)} categories have no annotation: {note}"


def _check_names(images: Sequence[_Image], path: Path, root: Path) -> None:
    """Make the file names plain relative paths, those of Windows too."""
    for image in images:
        name = PurePosixPath(image["file_name"].replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or not image["file_name"].isprintable():
            shown = shortened(image["file_name"])
            raise UserError(f"{path}: image {image['id']} has the file name {shown!r}, which is no path in {root}")
        image["file_name"] = str(name)


def _home(names: Sequence[str], root: Path) -> Path:
    """Where file names lead from: ``root``, or above it where all of them begin with its name (``train/1.jpg``)."""
    for depth in range(1, min(_ABOVE, len(root.absolute().parts) - 1) + 1):
        within = "/".join(root.absolute().parts[-depth:])
        if names and not (root / within).is_dir() and all(name.startswith(f"{within}/") for name in names):
            return Path(os.path.normpath(root / "/".join([".."] * depth)))
    return root


def _in_folder(images: Sequence[_Image], path: Path, root: Path) -> tuple[np.ndarray, list[str]]:
    """Which images lie in the folder, bool (N,), and a line for those that do not."""
    if not root.is_dir():
        raise UserError(f"{root}, the folder of the images of {path}, is no folder")
    present = set(walk(root).images)
    there = np.array([image["file_name"] in present for image in images], dtype=bool)
    if there.all() and len(images):
        return there, []
    if not there.any():
        which = f", the first {images[0]['file_name']}" if images else ""
        raise UserError(f"{path} lists {len(images)} images{which}: none of them lies in {root}")
    first = images[int(np.argmin(there))]
    missing = int((~there).sum())
    return there, [f"{path} lists {missing} images that {root} lacks, the first {first['file_name']}"]


def _listing(
    annotations: Sequence[_Annotation], images: Sequence[_Image], places: dict[int, int], path: Path
) -> Listing:
    """Annotations as arrays; ``places``: class index by category id."""
    numbers = np.array([one.get("id", -1) for one in annotations], dtype=np.int64)

    def name(place: int) -> str:
        return f"annotation {numbers[place]}" if "id" in annotations[place] else f"annotations[{place}]"

    rows_of = {image["id"]: row for row, image in enumerate(images)}
    rows = np.array([rows_of.get(one["image_id"], -1) for one in annotations], dtype=np.int64)
    labels = np.array([places.get(one["category_id"], -1) for one in annotations], dtype=np.int64)
    boxes = np.array([one["bbox"] for one in annotations], dtype=np.float64).reshape(-1, 4)
    areas = np.array([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in annotations], dtype=np.float64)
    for wrong, what in (
        (rows < 0, "is of image {image_id}, which the file does not list"),
        (labels < 0, "is of category {category_id}, which the file does not list"),
        (~np.isfinite(boxes).all(axis=1), "has the bbox {bbox}"),
        (~np.isfinite(areas), "has the area {area}"),
    ):
        if wrong.any():
            place = int(np.argmax(wrong))
            raise UserError(f"{path}: {name(place)} {what.format(**annotations[place])}: {_REMEDY}")
    return Listing(
        files=[image["file_name"] for image in images],
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        sizes=np.array([(image["width"], image["height"]) for image in images], dtype=np.int64).reshape(-1, 2),
        rows=rows,
        labels=labels,
        boxes=boxes,
        areas=areas,
        crowds=np.array([one.get("iscrowd", 0) for one in annotations], dtype=bool),
        names=name,
    )
