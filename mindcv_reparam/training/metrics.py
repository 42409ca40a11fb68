"""The metrics file of a run (CSV, one row per epoch) and its learning curves."""

import contextlib
import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.fonts import matplotlib_families
from mindcv_reparam.tasks.task import Metric
from mindcv_reparam.untrusted import read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AVERAGED = "ema_"  # before the names of what was measured of the averaged weights
PART = "train_"  # before the names of the terms of a loss
TERMS = "terms of the loss"
_SETS = "", AVERAGED
_ACROSS = 3  # panels
_LARGEST = 2**26  # bytes of a file, for some hundred thousand epochs

Record = Mapping[str, float | None]  # of an epoch, by the names of the columns


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
            writer.writerows(row for row in rows if counted("epoch", row) < first_epoch)

    def append(self, row: Mapping[str, float]) -> None:
        """Append one row and wait until it is on the disk."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())


def counted(name: str, record: Record) -> int:
    """The "epoch" or the "step", which every record has.

    Raises:
        UserError: a row of a file lacks it.
    """
    count = record[name]
    if count is None:
        raise UserError(f"a row of the metrics file lacks the {name}: take the line out")
    return int(count)


def metrics_of(weights: str, record: Record) -> dict[str, float | None]:
    """What a record tells of the "online" or of the "ema" weights, validated under the same names."""
    own = {name: value for name, value in record.items() if not name.startswith(AVERAGED)}
    if weights == "ema":
        own |= {name.removeprefix(AVERAGED): value for name, value in record.items() if name.startswith(AVERAGED)}
    return own


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The complete rows of a metrics file, None for an empty field.

    Raises:
        UserError: it is no such file, or has been changed to be none.
    """
    text = read_text(path, _LARGEST)
    complete = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(complete.splitlines())
    if complete and "epoch" not in (rows.fieldnames or ()):
        raise UserError(f"{path} is no metrics.csv of a run: its first line names no epoch")
    try:
        return [{name: _number(value) if value else None for name, value in row.items()} for row in rows]
    except (ValueError, AttributeError, csv.Error):  # AttributeError: more fields than names
        raise UserError(
            f"{path} is no metrics.csv of a run: line {rows.line_num} has other things than numbers"
        ) from None


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def validated(rows: Sequence[Mapping[str, float | None]], metrics: Sequence[Metric]) -> bool:
    """Whether a run was validated at all."""
    return any(row.get(f"{prefix}{metric.name}") is not None for row in rows for metric in metrics for prefix in _SETS)


def plot_curves(
    runs: Mapping[str, Sequence[Mapping[str, float | None]]], metrics: Sequence[Metric], path: Path, title: str = ""
) -> None:
    """Draw losses, metrics and learning rates over the epochs of one or several runs (name → rows) as a PNG.

    A panel per unit, at most three in a row.
    """
    import matplotlib

    families = matplotlib_families([title, *runs])
    # Which is for all threads: in a training, whose texts need no other font, another one may be drawing.
    with matplotlib.rc_context({"font.family": families}) if families else contextlib.nullcontext():
        figure = _figure(runs, metrics, title)
        with written_whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _figure(
    runs: Mapping[str, Sequence[Mapping[str, float | None]]], metrics: Sequence[Metric], title: str
) -> "Figure":
    from matplotlib.figure import Figure  # not by pyplot, whose figures belong to the main thread
    from matplotlib.ticker import MaxNLocator

    panels = _panels(runs, metrics)
    columns = len(panels) if len(panels) <= _ACROSS else math.ceil(len(panels) / 2)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 4 * lines), layout="constrained")
    figure.suptitle(title)
    places = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in places[len(panels) :]:
        axes.remove()
    for axes, (panel, curves) in zip(places, panels.items()):
        for run, rows in runs.items():
            _draw(axes, run, rows, curves, panel in {metric.panel for metric in metrics})
        axes.set(xlabel="epoch", ylabel=panel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if panel == TERMS:
            axes.set_yscale("log")  # they lie far apart
        if axes.lines:
            axes.legend(**({"fontsize": "xx-small", "ncols": 2} if len(axes.lines) > 8 else {}))
    return figure


def _panels(
    runs: Mapping[str, Sequence[Mapping[str, float | None]]], metrics: Sequence[Metric]
) -> dict[str, list[tuple[str, str]]]:
    """Columns and what to call them, by the panel that they belong to."""
    panels = {"loss": [("train_loss", "train")]}
    parts = dict.fromkeys(name for rows in runs.values() for row in rows for name in row if name.startswith(PART))
    parts.pop("train_loss", None)
    for metric in metrics:
        curves = panels.setdefault(metric.panel, [])
        curves.append((metric.name, metric.legend))
        if metric == next(first for first in metrics if first.panel == metric.panel):
            curves.append((f"{AVERAGED}{metric.name}", f"{metric.legend}, EMA"))
    panels["learning rate"] = [("lr", "learning rate")]
    if parts:
        panels[TERMS] = [(part, part.removeprefix(PART)) for part in parts]
    return panels


def _draw(
    axes: Any,
    run: str,
    rows: Sequence[Mapping[str, float | None]],
    curves: Sequence[tuple[str, str]],
    of_validation: bool,
) -> None:
    """The curves of a run; where a panel has none of its validation, the legend says so."""
    drawn = False
    for column, legend in curves:
        points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
        if points:
            axes.plot(*zip(*points), label=f"{run} {legend}".strip(), marker="." if len(points) < 20 else None)
            drawn = True
    if not drawn and of_validation:
        axes.plot([], [], " ", label=f"{run} without validation".strip())
