"""The metrics file of a run (CSV, one row per epoch) and its learning curves."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole

VALIDATED = ("val_loss", "top1", "top5")
COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "lr",
    *VALIDATED,
    "img_per_s",
    "data_wait",
    "skipped_updates",
)
EMA_COLUMNS = tuple(f"ema_{name}" for name in VALIDATED)


class MetricsFile:
    """Appends rows; a value that a row lacks is an empty field.

    An existing file is continued: rows from `first_epoch` on, and a half-written last line, are dropped first, so a
    resumed run leaves the file of an uninterrupted one.

    Raises:
        UserError: the existing file has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS, first_epoch: int = 1) -> None:
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
    own = {name: value for name, value in record.items() if not name.startswith("ema_")}
    if weights == "ema":
        own |= {name.removeprefix("ema_"): record[name] for name in EMA_COLUMNS if name in record}
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


def plot_curves(runs: Mapping[str, Sequence[Mapping[str, float | None]]], path: Path) -> None:
    """Draw loss and accuracy over the epochs of one or several runs (name → rows) as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    curves = (
        (losses, "train_loss", "train"),
        (losses, "val_loss", "validation"),
        (losses, "ema_val_loss", "validation, EMA"),
        (accuracies, "top1", "top-1"),
        (accuracies, "top5", "top-5"),
        (accuracies, "ema_top1", "top-1, EMA"),
    )
    for run, rows in runs.items():
        for axes, column, label in curves:
            points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
            if points:
                axes.plot(*zip(*points), label=f"{run} {label}".strip(), marker="." if len(points) < 20 else None)
    for axes, title in ((losses, "loss"), (accuracies, "accuracy (%)")):
        axes.set(xlabel="epoch", ylabel=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
