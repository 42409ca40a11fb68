"""Draw the learning curves of one run, or of several to compare them.

python -m mindcv_reparam plot ckpt ckpt.1 -o compared.png
"""

import argparse
from pathlib import Path

from mindcv_reparam.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its metrics.csv")
    parser.add_argument("-o", "--output", default="curves.png", help="PNG to write (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from mindcv_reparam.training.metrics import plot_curves, read_metrics

    files = [path / "metrics.csv" if path.is_dir() else path for path in map(Path, args.runs)]
    for file in files:
        if not file.is_file():
            raise UserError(f"no metrics at {file}: give the folder of a run")
    runs = {str(file.parent): read_metrics(file) for file in files}
    for name, rows in runs.items():
        if not rows:
            raise UserError(f"{name} has no finished epoch yet")
    plot_curves(runs, Path(args.output))
    print(f"{args.output}: {', '.join(f'{name} ({len(rows)} epochs)' for name, rows in runs.items())}")
    return 0
