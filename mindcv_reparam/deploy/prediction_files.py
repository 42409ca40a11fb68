"""Predictions as text: a line for people, CSV and JSON for programs."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..files import written_whole
from .prediction import Prediction, Skipped

Name = Callable[[int], str]  # of a class, by its index


def shown(file: Path) -> str:
    """A file's name as text that can be written anywhere, though Linux allows names of any bytes."""
    return str(file).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def line(prediction: Prediction, name: Name) -> str:
    """``file: label 61.32 %; label 30.15 %``, with semicolons since many labels have commas."""
    ranked = zip(prediction.classes, prediction.probabilities)
    return f"{shown(prediction.file)}: {'; '.join(f'{name(index)} {100 * value:.2f} %' for index, value in ranked)}"


def write_csv(path: Path, predictions: Sequence[Prediction], skipped: Sequence[Skipped], name: Name) -> None:
    """One row per image: file, then index, label and probability of its first class, of its second …

    The skipped ones are left out. Raises UserError where the file system refuses.
    """
    ranks = range(1, 1 + max((len(prediction.classes) for prediction in predictions), default=0))
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", *(f"{field}_{rank}" for rank in ranks for field in ("index", "label", "probability"))])
        for prediction in predictions:
            ranked = zip(prediction.classes, prediction.probabilities)
            cells = [cell for index, value in ranked for cell in (index, name(index), f"{value:.6g}")]
            rows.writerow([shown(prediction.file), *cells])


def write_json(path: Path, predictions: Sequence[Prediction], skipped: Sequence[Skipped], name: Name) -> None:
    """``{"images": [{"file", "classes": [{"index", "label", "probability"}]}], "skipped": [{"file", "reason"}]}``.

    Raises UserError where the file system refuses.
    """
    images = [{"file": shown(prediction.file), "classes": _classes(prediction, name)} for prediction in predictions]
    value = {"images": images, "skipped": [{"file": shown(one.file), "reason": one.reason} for one in skipped]}
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _classes(prediction: Prediction, name: Name) -> list[dict[str, int | str | float]]:
    ranked = zip(prediction.classes, prediction.probabilities)
    return [{"index": index, "label": name(index), "probability": value} for index, value in ranked]


# by the ending of the file's name
WRITERS = {".csv": write_csv, ".json": write_json}
