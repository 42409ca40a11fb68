"""What detection data sets offer: images with boxes of objects, whatever files these come from."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindcv_reparam.data.decoder import Decoder, UnreadableImage
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.data.splits import Split
from mindcv_reparam.errors import UserError


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: x1 y1 x2 y2 in pixels of the image, float32 (n, 4); within it, with a width and a height.
        labels: class index of each, int32 (n,).
    """

    boxes: np.ndarray
    labels: np.ndarray


class DetectionSource(ImageSource):
    """Images with objects.

    Attributes:
        category_ids: of every class.
        counts: objects of every image, int64 (len,).
    """

    category_ids: tuple[int | None, ...]
    counts: np.ndarray
    counted = "objects"

    def __len__(self) -> int:
        return len(self.counts)

    @abstractmethod
    def target(self, index: int) -> Objects: ...

    @property
    def class_counts(self) -> np.ndarray:
        labels = [self.target(index).labels for index in range(len(self))]
        return np.bincount(np.concatenate([np.zeros(0, dtype=np.int32), *labels]), minlength=len(self.classes))

    @abstractmethod
    def image_id(self, index: int) -> int:
        """What the annotations call the image."""

    @property
    @abstractmethod
    def annotations(self) -> dict[str, Any]:
        """All annotations as a dictionary of COCO's form, for the evaluation."""


@dataclass(frozen=True)
class Listing:
    """Annotations of a data set as its files have them; A annotations of N images.

    Attributes:
        files: paths of the images in their folder, in order.
        image_ids: int64 (N,).
        sizes: width and height of the images, int64 (N, 2).
        rows: position of an annotation's image, int64 (A,).
        labels: class index, int64 (A,).
        boxes: x y width height in pixels, float64 (A, 4).
        areas: that decide whether an object is small or large, float64 (A,).
        crowds: whether a box stands for a crowd, bool (A,).
        names: what messages call an annotation, by its place.
    """

    files: Sequence[str]
    image_ids: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    names: Callable[[int], str]

    def part(self, kept: np.ndarray) -> "Listing":
        """Without the images that are not ``kept``, bool (N,), and their annotations."""
        if kept.all():
            return self
        annotated = np.flatnonzero(kept[self.rows])
        return Listing(
            files=[file for file, there in zip(self.files, kept.tolist()) if there],
            image_ids=self.image_ids[kept],
            sizes=self.sizes[kept],
            rows=(np.cumsum(kept) - 1)[self.rows[annotated]],
            labels=self.labels[annotated],
            boxes=self.boxes[annotated],
            areas=self.areas[annotated],
            crowds=self.crowds[annotated],
            names=lambda place: self.names(int(annotated[place])),
        )


class AnnotatedFiles(DetectionSource):
    """Image files with annotations.

    Crowds and boxes without a width or height inside of their image are no targets, boxes that reach out of it are
    clipped; ``annotations`` has them all as they are. Both are counted and named in ``notes``, and how many images have
    no objects: these are background and stay.

    Args:
        place: what messages call the annotations.
        root: folder of the images.
        listing: the annotations.
        classes: names by index.
        category_ids: of the classes.
        decoder: of the files.
        problems: what was found wrong while listing.
        check_sizes: the sizes are another file's word, which an image has to keep.

    Attributes:
        split: which images are held out for validation, where the run chooses them.
    """

    split: Split | None = None

    def __init__(
        self,
        place: str | Path,
        root: str | Path,
        listing: Listing,
        classes: Sequence[str],
        category_ids: Sequence[int | None],
        decoder: Decoder,
        problems: Sequence[str] = (),
        check_sizes: bool = True,
    ) -> None:
        self.place, self.root = Path(place), Path(root)
        self.classes, self.category_ids = tuple(classes), tuple(category_ids)
        self.files = np.array([file.encode() for file in listing.files])
        self.problems = tuple(problems)
        self._decoder = decoder
        self._check_sizes = check_sizes
        self._listing: Listing | None = listing
        self._image_ids, self._sizes = listing.image_ids, listing.sizes.astype(np.int32)
        kept, boxes = self._usable(listing)
        kept = kept[np.argsort(listing.rows[kept], kind="stable")]
        self.counts = np.bincount(listing.rows[kept], minlength=len(self.files))
        self._ends = np.cumsum(self.counts)
        self._boxes, self._labels = boxes[kept].astype(np.float32), listing.labels[kept].astype(np.int32)
        missing = [name for name, number in zip(self.classes, self.category_ids) if number is None]
        if missing:
            of = f"{len(missing)} such of {len(self.classes)} classes"
            self.notes += (f"{place} has no category {missing[0]!r} ({of}), which is neither trained on nor measured",)
        empty = int((self.counts == 0).sum())
        if empty:
            self.notes += (f"{place}: {empty} of {len(self.files)} images have no objects; they stay as background",)

    def part(self, rows: np.ndarray, split: Split) -> "AnnotatedFiles":
        """These images only, in their order, of a data set that ``split`` divides."""
        kept = np.zeros(len(self.files), dtype=bool)
        kept[rows] = True
        part, objects = copy.copy(self), np.repeat(kept, self.counts)
        assert self._listing is not None, "annotations do not follow into workers"
        part.split, part._listing = split, self._listing.part(kept)
        part.files, part._image_ids, part._sizes = self.files[kept], self._image_ids[kept], self._sizes[kept]
        part.counts, part._boxes, part._labels = self.counts[kept], self._boxes[objects], self._labels[objects]
        part._ends = np.cumsum(part.counts)
        return part

    def write_split(self, run: Path) -> None:
        if self.split is not None:
            self.split.write(run)

    def _usable(self, listing: Listing) -> tuple[np.ndarray, np.ndarray]:
        """Places of the annotations that are targets, boxes x1 y1 x2 y2 of all, clipped to their images."""
        corners = np.concatenate([listing.boxes[:, :2], listing.boxes[:, :2] + listing.boxes[:, 2:]], axis=1)
        limits = np.tile(listing.sizes[listing.rows], 2)
        boxes = np.clip(corners, 0, limits)
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1) | (listing.boxes[:, 2:] <= 0).any(axis=1)
        moved = ~flat & (np.abs(boxes - corners) > 1).any(axis=1)  # less is rounding
        notes = []
        for found, what in (
            (flat & ~listing.crowds, "without a width or height inside of the image: left out"),
            (moved & ~listing.crowds, "reaching out of the image by more than a pixel: clipped to it"),
        ):
            if found.any():
                first = listing.names(int(np.argmax(found)))
                notes.append(f"{self.place}: {int(found.sum())} boxes {what}, the first: {first}")
        self.notes = tuple(notes)
        return np.flatnonzero(~flat & ~listing.crowds), boxes

    def target(self, index: int) -> Objects:
        rows = slice(self._ends[index] - self.counts[index], self._ends[index])
        return Objects(self._boxes[rows].copy(), self._labels[rows].copy())

    @property
    def class_counts(self) -> np.ndarray:
        return np.bincount(self._labels, minlength=len(self.classes))

    def image_id(self, index: int) -> int:
        return int(self._image_ids[index])

    def pixels(self, index: int) -> np.ndarray:
        path = self.name(index)
        try:
            pixels = self._decoder.pixels(path)
        except UnreadableImage as error:
            raise UnreadableImage(f"{path} cannot be read: {error}") from error
        width, height = self._sizes[index].tolist()
        if self._check_sizes and pixels.shape[:2] != (height, width):
            raise UnreadableImage(
                f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, where {self.place} says {width} x {height}"
            )
        return pixels

    def name(self, index: int) -> str:
        return str(self.root / self.files[index].decode())

    @property
    def annotations(self) -> dict[str, Any]:
        listing = self._listing
        assert listing is not None, "annotations do not follow into workers"
        ids = [self.category_ids[label] for label in listing.labels.tolist()]
        columns = zip(
            listing.image_ids[listing.rows].tolist(),
            ids,
            listing.boxes.tolist(),
            listing.areas.tolist(),
            listing.crowds,
        )
        return coco_form(
            [(self.image_id(index), *self._sizes[index].tolist(), file) for index, file in enumerate(listing.files)],
            [
                dict(image_id=image, category_id=category, bbox=box, area=area, iscrowd=int(crowd))
                for image, category, box, area, crowd in columns
            ],
            self.classes,
            self.category_ids,
        )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_listing": None, "split": None}


def coco_form(
    images: Sequence[tuple[int, int, int, str]],
    objects: Sequence[dict[str, Any]],
    classes: Sequence[str],
    category_ids: Sequence[int | None],
) -> dict[str, Any]:
    """A dictionary of COCO's form of images (id, width, height, file) and annotations, numbered from 1: COCO's own
    evaluation takes the number 0 for none."""
    return {
        "info": {},
        "licenses": [],
        "images": [dict(id=id, width=width, height=height, file_name=file) for id, width, height, file in images],
        "annotations": [{"id": number, **one} for number, one in enumerate(objects, 1)],
        "categories": [dict(id=id, name=name) for id, name in zip(category_ids, classes) if id is not None],
    }


def place_among(names: Sequence[str], classes: Sequence[str] | None, place: str | Path) -> np.ndarray:
    """The class index of every category, int64: its place, or that among the classes to impose.

    Args:
        names: of the categories.
        classes: names to impose by index, those of a checkpoint or of the training images.
        place: what messages call the annotations.

    Raises:
        UserError: two categories of one name, or one that is not among the classes.
    """
    doubled = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if doubled is not None:
        raise UserError(f"{place} has two categories called {doubled!r}: give each a name of its own")
    if classes is None:
        return np.arange(len(names))
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(
            f"category {unknown[0]!r} of {place} ({len(unknown)} such) is not among the {len(classes)} classes that "
            "the checkpoint or the training images have: give the data set they are of"
        )
    return np.array([list(classes).index(name) for name in names], dtype=np.int64)
