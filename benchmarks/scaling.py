"""How throughput grows with batch size, resolution, ranks and data workers, and what a second rank costs.

    python benchmarks/scaling.py curves [--config FILE] [--steps 24] [--batches 8 16 32 64] [--sizes 32 64 96]
        [--ranks 1 2] [--workers 1 2 4]
    python benchmarks/scaling.py ranks [--model visformer_tiny] [--image_size 32] [--batch 16] [--steps 20]
        [--repeats 3]

curves: training runs are those of ``train.py`` as a user starts it (ranks by mpirun), one short epoch each on the
embedded digits, enlarged to each size; a run's figure is the median of what it logs every four steps after the first
step, which compiles. Ranks keep their batch size, so that perfect scaling is a straight line; where they share the
cores that one rank has alone, it is a flat one. Data workers read generated JPEGs with the Visformer recipe (see
input_pipeline.py).

ranks: where the time of a step goes. Jobs are started by mpirun and train the same batch per rank, so that two ranks do
twice the work in what would ideally be the same time. They take turns; figures are medians over all turns, of rank 0:

- one rank on all cores, and one on a single core, as a rank of two has it;
- two ranks on a core each that reduce nothing: what they lose by sharing caches and memory;
- two ranks as ``train.py`` starts them. "all-reduce" is the mean over the ranks of gradients of the network's shapes,
  alone, and "in one" the same bytes as one tensor: MindSpore's CPU backend sends them over TCP.

"processor" is that of the process: with other load on the machine, compare it instead of the time that passes.
"""

import argparse
import functools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline import layouts, measure, write_images
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, UserError, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
INTERVAL = 4  # steps between log lines
CURVES = ("by", "value", "setting", "images per second", "÷ first")
LAUNCHER = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
SECONDS = ("import", "join", "build", "first step")
MILLISECONDS = ("step", "step, processor", "all-reduce", "all-reduce, processor", "in one")
JOBS = ("job", *(f"{name} (s)" for name in SECONDS), *(f"{name} (ms)" for name in MILLISECONDS), "img/s")


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    curve: str
    value: int
    setting: str
    rate: float  # images per second, all ranks or workers together


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True, metavar="curves | ranks")
    part = parts.add_parser("curves")
    part.set_defaults(run=curves)
    part.add_argument("--config", default="configs/visformer/visformer_tiny_digits_cpu.yaml")
    part.add_argument("--steps", type=int, default=24, help="of a training run")
    part.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64])
    part.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96])
    part.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    part.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    part = parts.add_parser("ranks")
    part.set_defaults(run=ranks)
    part.add_argument("--model", default="visformer_tiny")
    part.add_argument("--image_size", type=int, default=32)
    part.add_argument("--batch", type=int, default=16, help="images per rank (default: 16)")
    part.add_argument("--steps", type=int, default=20)
    part.add_argument("--repeats", type=int, default=3, help="turns of each job (default: 3)")
    part.add_argument("--as_rank", choices=("reducing", "alone"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.run(args)
    return 0


def keep(args: argparse.Namespace, results: dict[str, object], draw: Callable[["Figure"], None]) -> None:
    settings = {name: value for name, value in vars(args).items() if name != "run"}
    save(f"scaling_{args.part}", {"machine": machine("mindspore"), **settings, **results}, draw)


def curves(args: argparse.Namespace) -> None:
    trained = functools.cache(functools.partial(train, args.config, args.steps))  # the curves cross
    middle, small = args.batches[len(args.batches) // 2], args.sizes[0]
    points = [Point("batch size", batch, f"{small}², 1 rank", trained(batch, small, 1)) for batch in args.batches]
    points += [Point("resolution", size, f"batch {middle}, 1 rank", trained(middle, size, 1)) for size in args.sizes]
    points += [
        Point("ranks", ranks, f"batch {middle} each, {small}²", trained(middle, small, ranks)) for ranks in args.ranks
    ]
    points += load(args.workers)
    print(markdown(CURVES, rows(points)))
    keep(args, {"points": [asdict(point) for point in points]}, lambda figure: draw_curves(figure, points))


def train(config: str, steps: int, batch: int, size: int, ranks: int) -> float:
    """Images per second over all ranks of a short training run. Raises UserError when it fails."""
    command = [sys.executable, "train.py", "--config", config, "--epoch_size", "1", "--val_while_train", "False"]
    command += ["--ckpt_save_policy", "latest_k"]
    command += ["--batch_size", str(batch), "--image_resize", str(size), "--log_interval", str(INTERVAL)]
    command += ["--num_samples", str(steps * batch * ranks), "--warmup_epochs", "0", "--decay_epochs", "1"]
    if ranks > 1:
        mpirun = shutil.which("mpirun") or str(Path(sys.executable).with_name("mpirun"))
        command = [mpirun, "-n", str(ranks), *command]
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


def draw_curves(figure: "Figure", points: list[Point]) -> None:
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


@dataclass
class Job:
    """Ranks that train for some steps; ``turns`` are the seconds that rank 0 measured, by figure."""

    name: str
    ranks: int
    binding: str  # mpirun's --bind-to
    reduces: bool = True
    turns: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        mpirun = str(Path(sys.executable).with_name("mpirun"))
        command = [mpirun, "-n", str(self.ranks), "--bind-to", self.binding, sys.executable, __file__, *sys.argv[1:]]
        command += ["--as_rank", "reducing" if self.reduces else "alone"]
        done = subprocess.run(command, env=os.environ | LAUNCHER, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the job {self.name!r} failed: {done.stderr[-500:]}")
        self.turns.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{self.name}: {self.turns[-1]}", file=sys.stderr)

    def does(self, figure: str) -> bool:
        return figure in self.turns[0]

    def median(self, figure: str) -> float:
        return statistics.median(turn[figure] for turn in self.turns)


def ranks(args: argparse.Namespace) -> None:
    if args.as_rank:
        train_as_rank(args, reduces=args.as_rank == "reducing")
        return
    jobs = [
        Job("1 rank, all cores", 1, "none"),
        Job("1 rank, one core", 1, "core"),
        Job("2 ranks, nothing reduced", 2, "core", reduces=False),
        Job("2 ranks", 2, "core"),
    ]
    for _ in range(args.repeats):
        for job in jobs:
            job.run()
    print(markdown(JOBS, [job_row(job, args.batch) for job in jobs]))
    keep(args, {"turns": {job.name: job.turns for job in jobs}}, lambda figure: draw_jobs(figure, jobs))


def job_row(job: Job, batch: int) -> list[str]:
    def shown(name: str, factor: float, digits: int) -> str:
        return f"{factor * job.median(name):.{digits}f}" if job.does(name) else ""

    rate = f"{job.ranks * batch / job.median('step'):.0f}"
    return [job.name, *(shown(name, 1, 1) for name in SECONDS), *(shown(name, 1e3, 0) for name in MILLISECONDS), rate]


def draw_jobs(figure: "Figure", jobs: list[Job]) -> None:
    axis = figure.subplots()
    names = [job.name for job in jobs]
    for name, colour in (("step", "lightgrey"), ("step, processor", "tab:blue")):
        width = 0.8 if name == "step" else 0.4
        axis.bar(names, [1000 * job.median(name) for job in jobs], width, color=colour, label=name)
    reduced = {job.name: 1000 * job.median("all-reduce") for job in jobs if job.does("all-reduce")}
    axis.bar(list(reduced), list(reduced.values()), 0.1, color="tab:red", label="all-reduce alone")
    axis.set_ylabel("milliseconds")
    axis.legend()


def train_as_rank(args: argparse.Namespace, reduces: bool) -> None:
    """Train for some steps as one of the ranks; rank 0 prints the figures in seconds."""
    clock = Clock()
    from mindcv_reparam import distributed, runtime

    runtime.prepare("CPU", seed=0)
    clock.lap("import")
    ranks = distributed.start(None, "CPU")
    ranks.barrier()
    clock.lap("join")

    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn, ops

    from mindcv_reparam.tasks.classification.losses import create_loss
    from mindcv_reparam.tasks.classification.objective import ClassificationObjective
    from mindcv_reparam.training.optimizer import create_optimizer
    from mindcv_reparam.training.step import TrainStep
    from mindcv_reparam.zoo import create_model

    size = args.image_size
    network = create_model(args.model, num_classes=10, img_size=size)
    optimizer = create_optimizer(network, "adamw", weight_decay=0.05)
    step = TrainStep(ClassificationObjective(network, create_loss("CE")), optimizer, size=ranks.size if reduces else 1)
    rng = np.random.default_rng(ranks.rank)
    images = Tensor(rng.normal(size=(args.batch, 3, size, size)).astype(np.float32))
    labels = Tensor(rng.integers(10, size=args.batch).astype(np.int32))
    rate, update = Tensor(1e-4, ms.float32), Tensor(True)
    clock.lap("build")
    step(images, labels, rate, update)[0].asnumpy()
    clock.lap("first step")
    clock.median("step", lambda: step(images, labels, rate, update)[0].asnumpy(), args.steps)
    if ranks.size > 1 and reduces:
        reduce, all_reduce = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=2), ops.AllReduce()
        gradients = ms.mutable(tuple(Tensor(parameter.asnumpy()) for parameter in optimizer.parameters))
        clock.median("all-reduce", lambda: [mean.asnumpy() for mean in reduce(gradients)], args.steps)
        joined = Tensor(np.concatenate([gradient.asnumpy().ravel() for gradient in gradients]))
        clock.median("in one", lambda: all_reduce(joined).asnumpy(), args.steps)
    if ranks.is_main:
        print(json.dumps(clock.laps))
    ranks.close()


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def median(self, name: str, work: Callable[[], object], times: int) -> None:
        """Of several calls, after one that is not counted: time that passes, and processor time of this process."""
        work()
        passed, spent = [], []
        for _ in range(times):
            start, before = time.perf_counter(), time.process_time()
            work()
            passed.append(time.perf_counter() - start)
            spent.append(time.process_time() - before)
        self.laps[name], self.laps[f"{name}, processor"] = statistics.median(passed), statistics.median(spent)


if __name__ == "__main__":
    run_script(main)
