"""Predictions as text: a line for people, CSV and JSON for programs. What they say is the task's."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindcv_reparam.files import shown, written_whole
from mindcv_reparam.run.prediction import Prediction, Predictor, Skipped
from mindcv_reparam.tasks.results import Label, Results


def line(results: Results[Any], prediction: Prediction, label: Label) -> str:
    """``file: `` and what the task says of it."""
    return f"{shown(prediction.file)}: {results.line(prediction.found, label)}"


def write_csv(path: Path, predictor: Predictor, predictions: Sequence[Prediction], skipped: Sequence[Skipped]) -> None:
    """The task's table; the skipped ones are left out. Raises UserError where the file system refuses."""
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(predictor.results.table(_found(predictions), predictor.name))


def write_json(path: Path, predictor: Predictor, predictions: Sequence[Prediction], skipped: Sequence[Skipped]) -> None:
    """The task's document. Raises UserError where the file system refuses."""
    left_out = [(shown(one.file), one.reason) for one in skipped]
    value = predictor.results.document(_found(predictions), left_out, predictor.name, predictor.number)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _found(predictions: Sequence[Prediction]) -> list[tuple[str, Any]]:
    return [(shown(prediction.file), prediction.found) for prediction in predictions]


# by the ending of the file's name
WRITERS = {".csv": write_csv, ".json": write_json}
