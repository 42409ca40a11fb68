"""How throughput grows: training by batch size, resolution and ranks, the input pipeline by data workers.

    python benchmarks/scaling.py [--config FILE] [--steps 24] [--batches 8 16 32 64] [--sizes 32 64 96] [--ranks 1 2]
        [--workers 1 2 4]

Training runs are those of ``train.py`` as a user starts it (ranks by mpirun), one short epoch each on the embedded
digits, enlarged to each size; a run's figure is the median of what it logs every four steps after the first step, which
compiles. Ranks keep their batch size, so that perfect scaling is a straight line; where they share the cores that one
rank has alone, it is a flat one (see ranks.py). Data workers read generated JPEGs with the Visformer recipe (see
input_layout.py).
"""

import argparse
import functools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_layout import layouts
from input_pipeline import measure, write_images
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, UserError, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
INTERVAL = 4  # steps between log lines
HEADER = ("by", "value", "setting", "images per second", "÷ first")


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    curve: str
    value: int
    setting: str
    rate: float  # images per second, all ranks or workers together


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/visformer/visformer_tiny_digits_cpu.yaml")
    parser.add_argument("--steps", type=int, default=24, help="of a training run")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()

    trained = functools.cache(functools.partial(train, args.config, args.steps))  # the curves cross
    middle, small = args.batches[len(args.batches) // 2], args.sizes[0]
    points = [Point("batch size", batch, f"{small}², 1 rank", trained(batch, small, 1)) for batch in args.batches]
    points += [Point("resolution", size, f"batch {middle}, 1 rank", trained(middle, size, 1)) for size in args.sizes]
    points += [
        Point("ranks", ranks, f"batch {middle} each, {small}²", trained(middle, small, ranks)) for ranks in args.ranks
    ]
    points += load(args.workers)
    print(markdown(HEADER, rows(points)))
    results = {"machine": machine("mindspore"), **vars(args), "points": [asdict(point) for point in points]}
    save("scaling", results, lambda figure: draw(figure, points))
    return 0


def train(config: str, steps: int, batch: int, size: int, ranks: int) -> float:
    """Images per second over all ranks of a short training run. Raises UserError when it fails."""
    command = [sys.executable, "train.py", "--config", config, "--epoch_size", "1", "--val_while_train", "False"]
    command += ["--ckpt_save_policy", "latest_k"]
    command += ["--batch_size", str(batch), "--image_resize", str(size), "--log_interval", str(INTERVAL)]
    command += ["--num_samples", str(steps * batch * ranks), "--warmup_epochs", "0", "--decay_epochs", "1"]
    if ranks > 1:
        command = [shutil.which("mpirun") or Path(sys.executable).with_name("mpirun"), "-n", str(ranks), *command]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--ckpt_save_dir", folder],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        )
    rates = [float(rate) for rate in re.findall(r"([\d.]+) img/s", done.stdout)]
    if done.returncode or not rates:
        raise UserError(f"training with batch {batch}, size {size}, {ranks} ranks failed: {done.stdout[-500:]}")
    print(f"batch {batch}, {size}², {ranks} ranks: {rates}", file=sys.stderr)
    return statistics.median(rates)


def load(workers: list[int]) -> list[Point]:
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 1024)
        epochs = measure(layouts(folder, workers), rounds=3)
    points = []
    for name, (_, *measured) in epochs.items():
        kind, count = name.split()
        rate = statistics.median(epoch.rate for epoch in measured)
        points.append(Point("data workers", int(count), f"{kind}, Visformer recipe", rate))
    return points


def rows(points: list[Point]) -> list[list[str]]:
    firsts: dict[tuple[str, str], float] = {}
    found = []
    for point in points:
        first = firsts.setdefault((point.curve, point.setting), point.rate)
        found.append([point.curve, str(point.value), point.setting, f"{point.rate:.1f}", f"{point.rate / first:.2f}"])
    return found


def draw(figure: "Figure", points: list[Point]) -> None:
    curves = list(dict.fromkeys(point.curve for point in points))
    for axis, curve in zip(figure.subplots(1, len(curves)), curves):
        for setting in dict.fromkeys(point.setting for point in points if point.curve == curve):
            own = [point for point in points if (point.curve, point.setting) == (curve, setting)]
            axis.plot([point.value for point in own], [point.rate for point in own], "o-", label=setting)
        axis.set_xlabel(curve)
        axis.set_ylim(bottom=0)
        axis.set_xticks([point.value for point in points if point.curve == curve])
        axis.legend(fontsize=7)
        if curve == curves[0]:
            axis.set_ylabel("images per second")


if __name__ == "__main__":
    run_script(main)
