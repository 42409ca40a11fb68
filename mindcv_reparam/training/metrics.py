"""The metrics file of a run (CSV, one row per epoch) and its learning curves."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.tasks.task import Metric

AVERAGED = "ema_"  # before the names of what was measured of the averaged weights
PART = "train_"  # before the names of the terms of a loss
TERMS = "terms of the loss"


def columns(metrics: Sequence[Metric], averaged: bool = False, parts: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of a run's file.

    Args:
        metrics: of its task.
        averaged: there are averaged weights, which are validated too.
        parts: names of the terms of its loss, where there are several.
    """
    validated = tuple(metric.name for metric in metrics)
    return (
        *("epoch", "step", "train_loss"),
        *(f"{PART}{part}" for part in parts),
        *("lr", *validated, "img_per_s", "data_wait", "skipped_updates"),
        *(f"{AVERAGED}{name}" for name in validated if averaged),
    )


class MetricsFile:
    """Appends rows; a value that a row lacks is an empty field.

    An existing file is continued: rows from `first_epoch` on, and a half-written last line, are dropped first, so a
    resumed run leaves the file of an uninterrupted one.

    Raises:
        UserError: the existing file has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], first_epoch: int = 1) -> None:
        self.path = path
        self.columns = list(columns)
        rows = read_metrics(path) if path.exists() else []
        if rows and list(rows[0]) != self.columns:
            raise UserError(f"{path} has other columns than this run writes; move it away or choose another directory")
        with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row in rows if row["epoch"] < first_epoch)

    def append(self, row: Mapping[str, float]) -> None:
        """Append one row and wait until it is on the disk."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())


def metrics_of(weights: str, record: Mapping[str, float | None]) -> dict[str, float | None]:
    """What a record tells of the "online" or of the "ema" weights, validated under the same names."""
    own = {name: value for name, value in record.items() if not name.startswith(AVERAGED)}
    if weights == "ema":
        own |= {name.removeprefix(AVERAGED): value for name, value in record.items() if name.startswith(AVERAGED)}
    return own


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The complete rows of a metrics file, None for an empty field."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [
        {name: _number(value) if value else None for name, value in row.items()}
        for row in csv.DictReader(complete.splitlines())
    ]


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def plot_curves(
    runs: Mapping[str, Sequence[Mapping[str, float | None]]], metrics: Sequence[Metric], path: Path
) -> None:
    """Draw losses and metrics over the epochs of one or several runs (name → rows) as a PNG, a panel per unit."""
    from matplotlib.figure import Figure  # not by pyplot, whose figures belong to the main thread

    panels = {"loss": [("train_loss", "train")]}
    parts = dict.fromkeys(name for rows in runs.values() for row in rows for name in row if name.startswith(PART))
    parts.pop("train_loss", None)
    for metric in metrics:
        curves = panels.setdefault(metric.panel, [])
        curves.append((metric.name, metric.legend))
        if metric == next(first for first in metrics if first.panel == metric.panel):
            curves.append((f"{AVERAGED}{metric.name}", f"{metric.legend}, EMA"))
    if parts:
        panels[TERMS] = [(part, part.removeprefix(PART)) for part in parts]
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, curves) in zip(all_axes[0], panels.items()):
        for run, rows in runs.items():
            for column, legend in curves:
                points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
                if points:
                    axes.plot(*zip(*points), label=f"{run} {legend}".strip(), marker="." if len(points) < 20 else None)
        axes.set(xlabel="epoch", ylabel=title)
        axes.grid(alpha=0.3)
        if title == TERMS:
            axes.set_yscale("log")  # they lie far apart
        if axes.lines:
            axes.legend(**({"fontsize": "xx-small", "ncols": 2} if len(axes.lines) > 8 else {}))
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
