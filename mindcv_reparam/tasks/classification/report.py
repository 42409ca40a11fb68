"""What was found of every image, as a page to look at and as tables for programs."""

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mindcv_reparam.data.source import UnreadableImage
from mindcv_reparam.files import common_folder, shown
from mindcv_reparam.report.charts import heat_table, picture, unit_square
from mindcv_reparam.report.html import Content, Element, cards, document, element, table
from mindcv_reparam.report.style import STYLE
from mindcv_reparam.tasks.classification.batches import EvalBatches
from mindcv_reparam.tasks.classification.calibration import BINS, Calibration, wilson
from mindcv_reparam.tasks.classification.evaluation import Evaluation
from mindcv_reparam.tasks.classification.examination import MOST, Findings, Told
from mindcv_reparam.tasks.classification.results import ClassificationResults, Found, ranked
from mindcv_reparam.tasks.task import About

SQUARE = 40  # classes, at most, of a confusion matrix that one can read
PAIRS = 40  # of classes that are taken for one another, where there are more
PICTURES = 24  # of mistakes, and of hits


def report_files(findings: Findings, evaluation: Evaluation, batches: EvalBatches, about: About) -> dict[str, str]:
    """``report.html``, ``images.csv`` and ``images.json``, by name."""
    names = [shown(batches.source.name(index)) for index in findings.told.indices.tolist()]
    page = document(
        about.title,
        STYLE,
        _numbers(findings, evaluation, about),
        table((), about.facts, "facts"),
        *_pictures(findings.told, names, batches, about),
        *_confusion(findings.told, about),
        *_classes(findings.told, about),
        *_calibration(findings),
    )
    return {
        "report.html": page,
        "images.csv": _csv(findings.told, names, about),
        "images.json": _json(findings, evaluation, names, about),
    }


def _numbers(findings: Findings, evaluation: Evaluation, about: About) -> Element:
    hits = [("top-1", evaluation.top1, evaluation.correct1), ("top-5", evaluation.top5, evaluation.correct5)]
    rows = [
        (name, f"{value:.2f} %", _interval(correct, evaluation.samples))
        for name, value, correct in hits[: 1 if about.classes <= MOST else 2]  # where all classes are among the first
    ]
    rows.append(("images", f"{evaluation.samples}", f"cross-entropy {evaluation.loss:.4f}"))
    rows.append(("calibration error", f"{findings.calibration.error:.3f}", f"temperature {findings.temperature:.2f}"))
    return cards(rows + about.latency_cards)


def _percent(part: float) -> str:
    """With a space at which no line ends."""
    return f"{100 * part:.1f}\N{NO-BREAK SPACE}%"


def _card(name: str, value: str, note: str) -> Element:
    return element("div", name, element("b", value), element("small", note))


def _interval(hits: int, images: int) -> str:
    low, high = wilson(hits, images)
    return f"{hits}/{images}, 95 %: {100 * low:.2f} to {100 * high:.2f}"


def _pictures(told: Told, names: Sequence[str], batches: EvalBatches, about: About) -> Iterator[Element]:
    first = told.probabilities[:, 0]
    known = told.predicted >= 0
    wrong, right = np.flatnonzero(known & ~told.right), np.flatnonzero(known & told.right)
    folder = common_folder(names)
    below = f" File names are those below {folder}" if folder else ""
    yield element("h2", "The most confident mistakes")
    yield element("p", f"As the network saw them: resized and cropped.{below}", class_="dim")
    yield _gallery(told, wrong[np.argsort(-first[wrong], kind="stable")], folder, names, batches, about)
    yield element("h2", "The least confident hits")
    yield _gallery(told, right[np.argsort(first[right], kind="stable")], folder, names, batches, about)


def _gallery(
    told: Told, rows: np.ndarray, folder: str, names: Sequence[str], batches: EvalBatches, about: About
) -> Element:
    figures = []
    for row in rows[:PICTURES].tolist():
        index, true, predicted = int(told.indices[row]), int(told.labels[row]), int(told.predicted[row])
        share = _percent(told.probabilities[row, 0])
        if predicted == true:
            said: list[Content] = [f"{about.label(true)} {share}"]
        else:
            said = [f"{about.label(true)} → ", element("b", about.label(predicted)), f" {share}"]
            said.append(element("small", f"true class {_percent(told.truth[row])}"))
        file = element("small", names[row].removeprefix(folder), title=names[row])
        figures.append(element("figure", _seen(index, batches), element("figcaption", said, file)))
    return element("div", figures, class_="pictures") if figures else element("p", "There are none.")


def _seen(index: int, batches: EvalBatches) -> Element:
    """The image of an index as it goes into the network, but for the normalisation."""
    as_pixels = dataclasses.replace(batches.views.transform, normalize=np.asarray)  # type: ignore[arg-type]  # called alike
    try:
        return picture(Image.fromarray(as_pixels(batches.source.load(index))), "")
    except UnreadableImage as error:
        return element("p", f"It cannot be read any more: {error}")


def _confusion(told: Told, about: About) -> Iterator[Element]:
    yield element("h2", "Which classes are taken for which")
    lost = int((told.predicted < 0).sum())
    if lost:
        yield element("p", f"{lost} images without finite numbers are mistakes, and are not shown here.")
    pairs = _pairs(told)
    if about.classes <= SQUARE:
        square = np.zeros((about.classes, about.classes), np.int64)
        for pair, count in pairs.items():
            square[pair] = count
        yield element("p", "A row for every true class, a column for every prediction; shaded by row.", class_="dim")
        yield heat_table(square, [about.label(index) for index in range(about.classes)], "true \\ predicted")
        return
    wrong = sorted((-count, *pair) for pair, count in pairs.items() if pair[0] != pair[1])
    images = np.bincount(told.labels, minlength=about.classes)
    yield element("p", f"The first {len(wrong[:PAIRS])} of {len(wrong)} pairs that were met.", class_="dim")
    rows = (
        (about.label(true), about.label(other), str(-count), _percent(-count / images[true]))
        for count, true, other in wrong[:PAIRS]
    )
    yield table(("true", "predicted", "images", "of the true class"), rows)


def _pairs(told: Told) -> Counter[tuple[int, int]]:
    """How often which class (true, predicted) was taken for which, itself too."""
    known = told.predicted >= 0
    return Counter(zip(told.labels[known].tolist(), told.predicted[known].tolist()))


def class_rows(told: Told, classes: int) -> list[dict[str, Any]]:
    """Of every class its index, images, precision and recall, None where there is nothing to divide by, and the class
    that it is taken for most often, with how often."""
    images = np.bincount(told.labels, minlength=classes)
    known = told.predicted >= 0
    named = np.bincount(told.predicted[known], minlength=classes)
    hits = np.bincount(told.labels[told.right], minlength=classes)
    others: dict[int, dict[int | None, int]] = {}
    for (true, predicted), times in _pairs(told).items():
        if true != predicted:
            others.setdefault(true, {})[predicted] = times
    rows = []
    for index, (count, called, hit) in enumerate(zip(images.tolist(), named.tolist(), hits.tolist())):
        row = {"index": index, "images": count, "predicted": called, "hits": hit}
        row["precision"] = hit / called if called else None
        row["recall"] = hit / count if count else None
        taken = min(others.get(index, {None: 0}).items(), key=lambda item: (-item[1], item[0]))
        rows.append(row | dict(zip(("taken_for", "times"), taken)))
    return rows


def _classes(told: Told, about: About) -> Iterator[Element]:
    yield element("h2", "Classes")
    yield element("p", "The lowest recall first; classes without images last.", class_="dim")
    rows = sorted(class_rows(told, about.classes), key=lambda row: (row["recall"] is None, row["recall"]))
    head = ("class", "images", "recall", "precision", "most often taken for")
    yield table(head, (_class_cells(row, about) for row in rows), "figures words")


def _class_cells(row: dict[str, Any], about: About) -> tuple[Content, ...]:
    shares = ("-" if row[name] is None else _percent(row[name]) for name in ("recall", "precision"))
    other = "" if row["taken_for"] is None else f"{about.label(row['taken_for'])} ({row['times']})"
    return about.label(row["index"]), str(row["images"]), *shares, other


def _calibration(findings: Findings) -> Iterator[Element]:
    yield element("h2", "Calibration: how often a stated probability is right")
    before, after = findings.calibration, findings.mended
    said = (
        f"Expected calibration error {before.error:.4f} in {BINS} bins. Logits divided by the temperature "
        f"{findings.temperature:.3f}, which fits these images best, have {after.error:.4f}; of other images it may be "
        "more. Bars below the diagonal: the network is surer than it is right."
    )
    yield element("p", said)
    charts = (("as it is", before), (f"with temperature {findings.temperature:.3f}", after))
    figures = (element("figure", _reliability(one), element("figcaption", name)) for name, one in charts)
    yield element("div", figures, class_="sides")


def _reliability(calibration: Calibration) -> Element:
    bars = []
    for place, (count, right, confidence) in enumerate(zip(*(part.tolist() for part in calibration))):
        if count:
            said = f"{round(count)} images, {100 * right / count:.1f} % right, stated {100 * confidence / count:.1f} %"
            bars.append((place / BINS, (place + 1) / BINS, right / count, said))
    return unit_square(bars, "probability of the prediction", "part that is right")


def _found(told: Told) -> Iterator[Found]:
    for classes, values in zip(told.classes.tolist(), told.probabilities.tolist()):
        kept = [pair for pair in zip(classes, values) if pair[0] >= 0]
        yield Found(tuple(index for index, _ in kept), tuple(value for _, value in kept))


def _csv(told: Told, names: Sequence[str], about: About) -> str:
    """The table of predictions, with the true class, whether it was the first and its probability behind the file."""
    head, *rows = ClassificationResults().table(list(zip(names, _found(told))), about.label)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([head[0], "true_index", "true", "right", "true_probability", *head[1:]])
    for row, true, right, value in zip(rows, told.labels.tolist(), told.right.tolist(), told.truth.tolist()):
        stated = f"{value:.6g}" if np.isfinite(value) else ""
        writer.writerow([row[0], true, about.label(true), int(right), stated, *row[1:]])
    return text.getvalue()


def _json(findings: Findings, evaluation: Evaluation, names: Sequence[str], about: About) -> str:
    told = findings.told
    calibration = {"error": findings.calibration.error, "temperature": findings.temperature}
    calibration["error_with_temperature"] = findings.mended.error
    images = [
        {
            "file": name,
            "true": {"index": true, "label": about.label(true)},
            "right": right,
            "classes": ranked(found, about.label),
        }
        for name, true, right, found in zip(names, told.labels.tolist(), told.right.tolist(), _found(told))
    ]
    value = {
        "about": dict(about.facts),
        **evaluation.record(),
        "top1_interval": [100 * end for end in wilson(evaluation.correct1, evaluation.samples)],
        "top5_interval": [100 * end for end in wilson(evaluation.correct5, evaluation.samples)],
        "calibration": {name: one if np.isfinite(one) else None for name, one in calibration.items()},
        "classes": [row | {"label": about.label(row["index"])} for row in class_rows(told, about.classes)],
        "images": images,
    }
    return json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n"


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN, which a loss may be."""
    return {name: None if isinstance(one, float) and not np.isfinite(one) else one for name, one in value.items()}
