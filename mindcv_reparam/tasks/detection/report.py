"""What a detector found and missed, as a page to look at and as tables for programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindcv_reparam.data.objects import DetectionSource, Objects
from mindcv_reparam.data.source import UnreadableImage
from mindcv_reparam.files import common_folder, shown
from mindcv_reparam.report.charts import picture
from mindcv_reparam.report.html import Element, cards, document, element, table
from mindcv_reparam.report.style import STYLE
from mindcv_reparam.tasks.about import About
from mindcv_reparam.tasks.detection.drawing import marked
from mindcv_reparam.tasks.detection.evaluation import NAMES, Evaluation

SCORE, OVERLAP = 0.5, 0.5  # of a detection that counts, and with an object that it finds
PICTURES = 12
_SIDE = 480  # pixels of a picture, the longer side
_MISSED, _WRONG, _RIGHT = 0, 1, 2  # the classes by whose colours they are drawn
_NUMBERS = "AP: at overlaps of 0.5 to 0.95, AP50 and AP75 at one; AR: recall; s, m, l: by the size of the objects"


@dataclass(frozen=True)
class Matched:
    """The detections of an image that count, best first, beside its objects.

    Attributes:
        found: label, score, x1 y1 x2 y2, a detection a row, (n, 6).
        right: whether a detection has found an object of its class, (n,) bool.
        seen: whether an object was found, bool.
    """

    index: int
    objects: Objects
    found: np.ndarray
    right: np.ndarray
    seen: np.ndarray

    @property
    def wrong(self) -> int:
        return int((~self.right).sum())

    @property
    def missed(self) -> int:
        return int((~self.seen).sum())


def report_files(evaluation: Evaluation, about: About) -> dict[str, str]:
    """``report.html``, ``images.csv`` and ``images.json``, by name."""
    source = evaluation.source
    starts = np.searchsorted(evaluation.found[:, 0], indices := np.unique(evaluation.found[:, 0]).astype(np.int64))
    parts = np.split(evaluation.found[:, 1:], starts[1:]) if len(indices) else []
    images = [matched(index, source.target(index), rows) for index, rows in zip(indices.tolist(), parts)]
    names = {one.index: shown(source.name(one.index)) for one in images}
    page = document(
        about.title,
        STYLE,
        _cards(evaluation, images, about),
        table((), about.facts, "facts"),
        *_worst(images, names, source, about),
        *_classes(evaluation, images, about),
        element("h2", "COCO's numbers"),
        element("p", _NUMBERS, class_="dim"),
        table(NAMES, [[_number(evaluation.numbers[name]) for name in NAMES]], "figures"),
    )
    rows = [
        {"file": names[one.index], "objects": len(one.seen), "found": int(one.seen.sum()), "missed": one.missed}
        | {"wrong": one.wrong}
        for one in images
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file", "objects", "found", "missed", "wrong"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    value = {"about": dict(about.facts), **evaluation.record(), "score": SCORE, "overlap": OVERLAP, "images": rows}
    told = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    return {"report.html": page, "images.csv": text.getvalue(), "images.json": told}


def matched(index: int, objects: Objects, rows: np.ndarray) -> Matched:
    """As COCO matches at one overlap: the best detection first, each with the object of its class that it covers most.

    Args:
        rows: label, score, x1 y1 x2 y2, (n, 6).
    """
    rows = rows[rows[:, 1] >= SCORE]
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    overlaps = overlap(rows[:, 2:], objects.boxes)
    right, seen = np.zeros(len(rows), bool), np.zeros(len(objects.labels), bool)
    for place, label in enumerate(rows[:, 0].tolist()):
        free = np.where((objects.labels == label) & ~seen, overlaps[place], 0.0)
        if free.size and free.max() >= OVERLAP:
            right[place] = seen[int(free.argmax())] = True
    return Matched(index, objects, rows, right, seen)


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes x1 y1 x2 y2: (n, 4) and (m, 4) → (n, m); 0 where neither has an area."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = np.clip(np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner, 0.0, None)
    common = sides.prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _cards(evaluation: Evaluation, images: list[Matched], about: About) -> Element:
    objects, seen = sum(len(one.seen) for one in images), sum(int(one.seen.sum()) for one in images)
    rows = [(name, _number(evaluation.numbers[name]), "") for name in ("AP", "AP50", "AR100")]
    rows.append(("images", str(evaluation.samples), f"{objects} objects"))
    wrong = sum(one.wrong for one in images)
    rows.append(("found", f"{seen}", f"of {objects}, and {wrong} wrong ones, at scores from {SCORE} on"))
    return cards(rows + about.latency_cards)


def _worst(images: list[Matched], names: dict[int, str], source: DetectionSource, about: About) -> Iterator[Element]:
    yield element("h2", "The images with most mistakes")
    said = (
        f"Red: missed; blue: wrong; green: right. A detection counts from a score of {SCORE} on, and finds an object "
    )
    said += f"of its class that it overlaps by {OVERLAP}. Crowds are no objects here."
    folder = common_folder(list(names.values()))
    yield element("p", said + (f" File names are those below {folder}" if folder else ""), class_="dim")
    worst = sorted((-(one.missed + one.wrong), one.index, one) for one in images if one.missed + one.wrong)[:PICTURES]
    figures = []
    for _, _, one in worst:
        file = names[one.index]
        caption = element(
            "figcaption",
            f"{one.missed} missed, {one.wrong} wrong, {int(one.right.sum())} right",
            element("small", file.removeprefix(folder), title=file),
        )
        figures.append(element("figure", _drawn(one, source, about), caption))
    yield element("div", figures, class_="pictures large") if figures else element("p", "There are none.")


def _drawn(one: Matched, source: DetectionSource, about: About) -> Element:
    try:
        image = source.load(one.index)
    except UnreadableImage as error:
        return element("p", f"It cannot be read any more: {error}")
    scale = _SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    missed = dataclasses.replace(one.objects, boxes=one.objects.boxes[~one.seen], labels=one.objects.labels[~one.seen])
    boxes = np.concatenate([missed.boxes, one.found[:, 2:]]) * scale
    kinds = [_MISSED] * len(missed.labels) + [_RIGHT if right else _WRONG for right in one.right.tolist()]
    texts = [about.label(label) for label in missed.labels.tolist()]
    texts += [f"{about.label(int(label))} {score:.2f}" for label, score, *_ in one.found.tolist()]
    return picture(marked(image, boxes, kinds, texts), "")


def _classes(evaluation: Evaluation, images: list[Matched], about: About) -> Iterator[Element]:
    names = evaluation.source.classes
    labels = np.concatenate([np.zeros(0, np.int64), *(one.objects.labels for one in images)])
    hits = np.concatenate([np.zeros(0, np.int64), *(one.objects.labels[one.seen] for one in images)])
    named = np.concatenate([np.zeros(0), *(one.found[:, 0] for one in images)]).astype(np.int64)
    counts, seen, told = (np.bincount(part, minlength=len(names)).tolist() for part in (labels, hits, named))
    yield element("h2", "Classes")
    yield element("p", f"The lowest AP first. Recall and precision are those at a score of {SCORE}.", class_="dim")
    precisions = [evaluation.of_classes[name] for name in names]
    order = sorted(range(len(names)), key=lambda index: (np.isnan(precisions[index]), precisions[index], index))
    rows = (
        (
            *(about.label(index), str(counts[index]), _number(precisions[index])),
            *(_share(seen[index], whole) for whole in (counts[index], told[index])),
        )
        for index in order
    )
    yield table(("class", "objects", "AP", "recall", "precision"), rows, "figures")


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}\N{NO-BREAK SPACE}%" if whole else "-"
