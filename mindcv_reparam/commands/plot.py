"""Draw the learning curves of one run, or of several to compare them.

python -m mindcv_reparam plot ckpt ckpt.1 -o compared.png
"""

import argparse
from pathlib import Path

from mindcv_reparam.errors import UserError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its metrics.csv")
    parser.add_argument("-o", "--output", default="curves.png", help="PNG to write (default: %(default)s)")
    parser.add_argument("--title", metavar="TEXT", help="above the curves (default: the runs' names)")


def run(args: argparse.Namespace) -> int:
    require("matplotlib")
    from mindcv_reparam.tasks import TASKS
    from mindcv_reparam.training.metrics import plot_curves, read_metrics, validated

    files = [path / "metrics.csv" if path.is_dir() else path for path in map(Path, args.runs)]
    for file in files:
        if not file.is_file():
            raise UserError(f"no metrics at {file}: give the folder of a run")
    runs = {}
    for file in files:
        runs[str(file.parent)] = read_metrics(file)
        if not runs[str(file.parent)]:
            raise UserError(f"{file} has no finished epoch yet")
    found = {column for rows in runs.values() for column in rows[0]}
    metrics = {metric.name: metric for task in TASKS.values() for metric in task.metrics if metric.name in found}
    shown = list(metrics.values())
    title = ", ".join(runs) if args.title is None else args.title
    # A single run is named by the title, its curves need not say it again.
    drawn = runs if len(runs) > 1 else {"": next(iter(runs.values()))}
    plot_curves(drawn, shown, Path(args.output), title)
    notes = {name: "" if validated(rows, shown) else ", without validation" for name, rows in runs.items()}
    print(f"{args.output}: {', '.join(f'{name} ({len(rows)} epochs{notes[name]})' for name, rows in runs.items())}")
    return 0
