"""What a second rank costs on this machine: start-up, and the training step of two ranks against that of one.

    python benchmarks/ranks.py [--model visformer_tiny] [--image_size 32] [--batch 16] [--steps 20] [--repeats 3]

Both jobs are started by mpirun, which gives every rank one core, and train the same batch per rank, so that two ranks
do twice the work in what would ideally be the same time. They take turns, and figures are medians over all turns: where
other programs run on the machine, compare ratios. "all-reduce" is the mean over the ranks of gradients of the
network's shapes, alone; what the step takes longer besides is waiting for the slower rank and sharing memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LAUNCHER = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
FIGURES = ("import", "join", "build", "first step", "step", "all-reduce")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="visformer_tiny")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="images per rank (default: 16)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each job (default: 3)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run both jobs in turns and print the table."""
    turns = {1: [], 2: []}
    for _ in range(arguments.repeats):
        for ranks, results in turns.items():
            results.append(launch(ranks))
    medians = {
        ranks: {name: statistics.median(result[name] for result in results) for name in FIGURES}
        for ranks, results in turns.items()
    }
    titles = ("ranks", *(f"{name} s" for name in FIGURES[:4]), *(f"{name} ms" for name in FIGURES[4:]), "img/s")
    print("| " + " | ".join(titles) + " |\n" + "|--" * len(titles) + "|")
    for ranks, median in medians.items():
        seconds = (f"{median[name]:.2f}" for name in FIGURES[:4])
        milliseconds = (f"{1000 * median[name]:.1f}" for name in FIGURES[4:])
        rate = f"{ranks * arguments.batch / median['step']:.1f}"
        print("| " + " | ".join((str(ranks), *seconds, *milliseconds, rate)) + " |")
    one, two = medians[1], medians[2]
    ratio = two["step"] / one["step"]
    print(
        f"two ranks against one: {ratio:.2f} of the time per step, {2 / ratio:.2f} of the images per second; ", end=""
    )
    print(f"all-reduce {100 * two['all-reduce'] / two['step']:.1f} % of the step")


def launch(ranks: int) -> dict[str, float]:
    """What rank 0 of a job measured."""
    mpirun = str(Path(sys.executable).with_name("mpirun"))
    command = [mpirun, "-n", str(ranks), sys.executable, __file__, *sys.argv[1:], "--measure"]
    result = subprocess.run(command, env=os.environ | LAUNCHER, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> None:
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
    from mindspore import Tensor, nn

    from mindcv_reparam import create_model
    from mindcv_reparam.training.losses import create_loss
    from mindcv_reparam.training.optimizer import create_optimizer
    from mindcv_reparam.training.step import TrainStep

    size = arguments.image_size
    network = create_model(arguments.model, num_classes=10, img_size=size)
    optimizer = create_optimizer(network, "adamw", weight_decay=0.05)
    step = TrainStep(network, create_loss("CE"), optimizer, size=ranks.size)
    rng = np.random.default_rng(ranks.rank)
    images = Tensor(rng.normal(size=(arguments.batch, 3, size, size)).astype(np.float32))
    labels = Tensor(rng.integers(10, size=arguments.batch).astype(np.int32))
    rate, update = Tensor(1e-4, ms.float32), Tensor(True)
    clock.lap("build")
    step(images, labels, rate, update)[0].asnumpy()
    clock.lap("first step")
    clock.median("step", lambda: step(images, labels, rate, update)[0].asnumpy(), arguments.steps)
    clock.laps["all-reduce"] = 0.0
    if ranks.size > 1:
        reduce = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=ranks.size)
        gradients = ms.mutable(tuple(Tensor(parameter.asnumpy()) for parameter in optimizer.parameters))
        clock.median("all-reduce", lambda: [mean.asnumpy() for mean in reduce(gradients)], arguments.steps)
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

    def median(self, name: str, work, times: int) -> None:
        """Of several calls, after one that is not counted."""
        work()
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        self.laps[name] = statistics.median(seconds)


if __name__ == "__main__":
    main()
