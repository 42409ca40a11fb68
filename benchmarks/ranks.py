"""What a second rank costs on this machine, and where the time of its step goes.

    python benchmarks/ranks.py [--model visformer_tiny] [--image_size 32] [--batch 16] [--steps 20] [--repeats 3]

Jobs are started by mpirun and train the same batch per rank, so that two ranks do twice the work in what would ideally
be the same time. They take turns; figures are medians over all turns, of rank 0:

- one rank on all cores, and one on a single core, as a rank of two has it;
- two ranks on a core each that reduce nothing: what they lose by sharing caches and memory;
- two ranks as ``train.py`` starts them. "all-reduce" is the mean over the ranks of gradients of the network's shapes,
  alone, and "in one" the same bytes as one tensor: MindSpore's CPU backend sends them over TCP.

"processor" is that of the process: with other load on the machine, compare it instead of the time that passes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import machine, markdown, save

from mindcv_reparam.errors import Parser, UserError, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAUNCHER = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
SECONDS = ("import", "join", "build", "first step")
MILLISECONDS = ("step", "step, processor", "all-reduce", "all-reduce, processor", "in one")
HEADER = ("job", *(f"{name} (s)" for name in SECONDS), *(f"{name} (ms)" for name in MILLISECONDS), "img/s")


@dataclass
class Job:
    """Ranks that train for some steps; ``turns`` are the seconds that rank 0 measured, by figure."""

    name: str
    ranks: int
    binding: str  # mpirun's --bind-to
    reduces: bool = True
    turns: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [mpirun, "-n", str(self.ranks), "--bind-to", self.binding, sys.executable, __file__, *sys.argv[1:]]
        command += ["--measure", "reducing" if self.reduces else "alone"]
        done = subprocess.run(command, env=os.environ | LAUNCHER, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the job {self.name!r} failed: {done.stderr[-500:]}")
        self.turns.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{self.name}: {self.turns[-1]}", file=sys.stderr)

    def median(self, figure: str) -> float | None:
        """None for what this job does not do."""
        return statistics.median(turn[figure] for turn in self.turns) if figure in self.turns[0] else None


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="visformer_tiny")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="images per rank (default: 16)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each job (default: 3)")
    parser.add_argument("--measure", choices=("reducing", "alone"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args, reduces=args.measure == "reducing")
        return 0
    jobs = [
        Job("1 rank, all cores", 1, "none"),
        Job("1 rank, one core", 1, "core"),
        Job("2 ranks, nothing reduced", 2, "core", reduces=False),
        Job("2 ranks", 2, "core"),
    ]
    for _ in range(args.repeats):
        for job in jobs:
            job.run()
    print(markdown(HEADER, [row(job, args.batch) for job in jobs]))
    turns = {job.name: job.turns for job in jobs}
    save("ranks", {"machine": machine("mindspore"), **vars(args), "turns": turns}, lambda figure: draw(figure, jobs))
    return 0


def row(job: Job, batch: int) -> list[str]:
    def shown(name: str, factor: float, digits: int) -> str:
        value = job.median(name)
        return "" if value is None else f"{factor * value:.{digits}f}"

    rate = f"{job.ranks * batch / job.median('step'):.0f}"
    return [job.name, *(shown(name, 1, 1) for name in SECONDS), *(shown(name, 1e3, 0) for name in MILLISECONDS), rate]


def draw(figure: "Figure", jobs: list[Job]) -> None:
    axis = figure.subplots()
    names = [job.name for job in jobs]
    for name, colour in (("step", "lightgrey"), ("step, processor", "tab:blue")):
        width = 0.8 if name == "step" else 0.4
        axis.bar(names, [1000 * job.median(name) for job in jobs], width, color=colour, label=name)
    reduced = [(job.name, 1000 * job.median("all-reduce")) for job in jobs if job.median("all-reduce") is not None]
    axis.bar(*zip(*reduced), 0.1, color="tab:red", label="all-reduce alone")
    axis.set_ylabel("milliseconds")
    axis.legend()


def measure(args: argparse.Namespace, reduces: bool) -> None:
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

    from mindcv_reparam import create_model
    from mindcv_reparam.training.losses import create_loss
    from mindcv_reparam.training.optimizer import create_optimizer
    from mindcv_reparam.training.step import TrainStep

    size = args.image_size
    network = create_model(args.model, num_classes=10, img_size=size)
    optimizer = create_optimizer(network, "adamw", weight_decay=0.05)
    step = TrainStep(network, create_loss("CE"), optimizer, size=ranks.size if reduces else 1)
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
