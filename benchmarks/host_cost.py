"""What the training loop costs the host, while a device computes.

    python benchmarks/host_cost.py [--model visformer_small] [--batch 128] [--image_size 224] [--step_ms 218]
        [--steps 20] [--ranks 1 2] [--normalize_on_device] [--mindcv]

The loop, its states, checkpoints and averages are those of ``train.py``; batches lie in memory, and the step stands in
as a device's would be: its call returns at once, the work is done a fixed time after the work before, and whoever wants
a value waits until then. It computes nothing, so that the host's part shows. Ranks are started by mpirun.
``--mindcv`` adds a row of MindCV's own loop, in an environment of its own.

- main thread: its processor time per step between two log lines, and the time that passes, waits left out;
- bytes: handed to the device per step;
- values: how often a value comes from the device, per step between two log lines and per log line;
- ahead: by how many steps the host is ahead of the device at most: 0 if it waits at every one;
- stalls: seconds that the main thread spends on a state and the checkpoints at the end of an epoch, and on putting the
  averaged weights in place for a validation and back.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from environments import environment
from report import machine, markdown

from mindcv_reparam import distributed, runtime
from mindcv_reparam.errors import Parser, UserError, run_script

LAUNCHER = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
COLUMNS = (
    *("ranks", "main thread, processor (ms)", "main thread (ms)", "MB per step", "values per step"),
    *("values per log line", "ahead (steps)", "state and checkpoints (s)", "averages in and out (s)"),
)
LOG_INTERVAL = 10
OPTIONS = ("model", "batch", "image_size", "step_ms", "steps")
CLASSES = 1000


class Device:
    """Work that is queued, and what comes back from it: counted, and waited for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.finished = 0.0  # when the work queued so far is done
        self.values = 0
        self.sent = 0
        self.waited = 0.0
        self.ahead = 0.0

    def work(self) -> None:
        now = time.perf_counter()
        self.finished = max(now, self.finished) + self.seconds
        self.ahead = max(self.ahead, (self.finished - now) / self.seconds - 1.0)

    def wait(self) -> None:
        self.values += 1
        if (left := self.finished - time.perf_counter()) > 0.0:
            self.waited += left
            time.sleep(left)

    def count(self) -> tuple[float, ...]:
        """Of this thread: processor time, time passed without waits; bytes sent, values come."""
        return time.thread_time(), time.perf_counter() - self.waited, self.sent, self.values

    def install(self) -> None:
        """Into what brings values from a device, and what takes arrays there, in this process."""
        import mindspore as ms

        from mindcv_reparam.private import values

        def waiting(function):
            def call(*arguments, **options):
                if threading.current_thread() is threading.main_thread():  # what others ask for lies on the host
                    self.wait()
                return function(*arguments, **options)

            return call

        for name in ("asnumpy", "_item", "get_bytes", "__getstate__", "_flush_from_cache"):
            setattr(values(), name, waiting(getattr(values(), name)))
        from_numpy = ms.from_numpy

        def sent(array):
            self.sent += array.nbytes
            return from_numpy(array)

        ms.from_numpy = sent


class StandIn:
    """The step of a network that is built and never run."""

    def __init__(self, step, device: Device) -> None:
        import mindspore as ms

        self._step = step
        self._device = device
        self._told = ms.Tensor([1.0, 1.0], ms.float32)  # a loss, and that gradients are finite

    def __getattr__(self, name: str):
        return getattr(self._step, name)

    def compile_graphs(self, inputs, targets, lr, update) -> None:
        pass

    def __call__(self, inputs, targets, lr, update):
        self._device.work()
        return self._told, self._told + 0.0


class Source:
    """What records say of a data set."""

    category_ids, counted = None, "images"

    def __init__(self, classes: list[str]) -> None:
        self.classes, self.class_counts = classes, [1] * len(classes)

    def __len__(self) -> int:
        return len(self.classes)

    def write_split(self, folder: Path) -> None:
        """There is none."""


class Batches:
    """Batches that lie in memory, and what had been counted when each was asked for."""

    skipped = 0

    def __init__(self, args, device: Device) -> None:
        self.bad_files: dict[int, str] = {}
        self.steps_per_epoch = args.steps
        self.device = device
        shape = (args.batch, 3, args.image_size, args.image_size)
        kind = np.uint8 if args.normalize_on_device else np.float32
        self.pool = [(np.full(shape, i, kind), np.zeros((args.batch, CLASSES), np.float32)) for i in range(2)]
        self.counts: list[tuple[float, ...]] = []

    def epoch(self, epoch: int, start_step: int = 0):
        for step in range(start_step, self.steps_per_epoch):
            self.counts.append(self.device.count())
            yield self.pool[step % 2]

    def names(self, epoch: int, step: int, rank: int) -> list[str]:
        return []


def timed(function, seconds: list[float]):
    def call(*arguments):
        start = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - start)
        return result

    return call


def measure(args) -> dict[str, float]:
    """Two epochs on this rank; the figures are of the second."""
    runtime.prepare("CPU", seed=0)
    ranks = distributed.start(None, "CPU")
    device = Device(args.step_ms / 1e3)
    with tempfile.TemporaryDirectory() as folder:
        figures = loop(args, ranks, device, Path(ranks_folder(ranks, folder)))
        ranks.close()
    return figures


def ranks_folder(ranks, folder: str) -> str:
    """Rank 0's is everybody's."""
    packed = folder.encode().ljust(256, b"\0")
    return ranks.gather(np.frombuffer(packed, np.int32))[0].tobytes().rstrip(b"\0").decode()


def loop(args, ranks, device: Device, folder: Path) -> dict[str, float]:
    from mindcv_reparam.config import Config
    from mindcv_reparam.tasks import TASKS
    from mindcv_reparam.training import assembly
    from mindcv_reparam.training.records import Records
    from mindcv_reparam.training.resume import Progress, TrainingState
    from mindcv_reparam.training.writer import Writer

    settings = dict(model=args.model, image_resize=args.image_size, num_classes=CLASSES, batch_size=args.batch)
    settings |= dict(epoch_size=2, warmup_epochs=0, log_interval=LOG_INTERVAL, opt="adamw", ema=True)
    settings |= dict(normalize_on_device=args.normalize_on_device)
    config = Config(**settings, ckpt_save_dir=str(folder))
    task, batches = TASKS["classification"], Batches(args, device)
    classes = [str(i) for i in range(CLASSES)]
    source = Source(classes)
    data: Any = SimpleNamespace(train=batches, val=None, classes=classes, source=source)
    step = assembly.build_step(config, task, assembly.build_network(config, "CPU", ranks), "CPU", ranks, data)
    parameters = {parameter.name: parameter for parameter in step.get_parameters()}
    state = TrainingState(folder / "state.npz", parameters, ranks, config, args.steps)
    records, writer = None, Writer()
    if ranks.is_main:
        records = Records(config, task, step, data, assembly.hyper_parameters(config), Progress(), None, writer)
    stand_in: Any = StandIn(step, device)
    trainer = assembly.build_trainer(config, task, stand_in, ranks, data, state, records, writer)
    saved: list[float] = []
    swapped: list[float] = []

    def validate() -> dict[str, float]:
        if step.average is not None:
            with step.average.applied():
                pass
        return {"top1": 1.0}

    trainer.validate = timed(validate, swapped)
    trainer.on_epoch_end = [timed(hook, saved) for hook in trainer.on_epoch_end]
    state.prepared = timed(state.prepared, saved)  # type: ignore[method-assign]  # timed in its place
    device.install()
    trainer.run()
    logged = np.arange(1, args.steps) % LOG_INTERVAL == 0
    return of_steps(batches.counts, args.steps, logged, device) | {
        "state and checkpoints (s)": sum(saved[len(saved) // 2 :]),  # of the second epoch, with warm memory
        "averages in and out (s)": swapped[-1],
    }


def of_steps(counts: list[tuple[float, ...]], steps: int, logged: np.ndarray, device: Device) -> dict[str, float]:
    """Figures of the steps of the second epoch.

    Args:
        counts: of the device, at the begin of every step of two epochs.
        logged: which of the second epoch's steps but the last end with a log line.
    """
    processor, passed, sent, values = np.diff(np.array(counts), axis=0)[steps:].T
    return {
        "main thread, processor (ms)": 1e3 * statistics.median(processor[~logged]),
        "main thread (ms)": 1e3 * statistics.median(passed[~logged]),
        "MB per step": float(np.median(sent)) / 1e6,
        "values per step": float(values[~logged].mean()),
        "values per log line": float(values[logged].mean()),
        "ahead (steps)": float(int(device.ahead + 0.5)),
    }


def row(ranks: int | str, figures: dict[str, float]) -> list[str]:
    return [str(ranks), *(f"{figures[name]:.3g}" if figures[name] >= 0 else "" for name in COLUMNS[1:])]


def of_job(args, ranks: int) -> dict[str, float]:
    """Rank 0's figures."""
    options = (f"--{name}={getattr(args, name)}" for name in OPTIONS)
    command = [sys.executable, __file__, "--inside", *options]
    command += ["--normalize_on_device"] if args.normalize_on_device else []
    if ranks > 1:
        command = [str(Path(sys.executable).with_name("mpirun")), "-n", str(ranks), "--bind-to", "none", *command]
    return figures_of(command, f"a job of {ranks} ranks")


def of_mindcv(args) -> dict[str, float]:
    """MindCV's, on one rank."""
    python = environment("mindcv", ["mindcv==0.3.0"], beside_project=True)
    script = Path(__file__).parent / "contenders" / "mindcv_loop.py"
    options = json.dumps({name: getattr(args, name) for name in OPTIONS})
    return figures_of([str(python), str(script), options], "MindCV's job")


def figures_of(command: list[str], name: str) -> dict[str, float]:
    job = subprocess.run(command, env=os.environ | LAUNCHER, stdout=subprocess.PIPE, text=True)
    lines = [line for line in job.stdout.splitlines() if line.startswith("{")]
    if job.returncode or len(lines) != 1:
        raise UserError(f"{name} ended with status {job.returncode}")
    return json.loads(lines[0])


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="visformer_small")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--step_ms", type=float, default=218.0, help="what a step takes on the device")
    parser.add_argument("--steps", type=int, default=20, help="of each of two epochs")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--normalize_on_device", action="store_true", help="batches of bytes")
    parser.add_argument("--mindcv", action="store_true", help="MindCV's own loop beside it")
    parser.add_argument("--inside", action="store_true", help="be one of the ranks")
    args = parser.parse_args()
    if args.inside:
        distributed.set_environment()
        figures = measure(args)
        if distributed.launched().rank == 0:
            print(json.dumps(figures), flush=True)
        return
    print(json.dumps(machine("mindspore")))
    rows = [row(ranks, of_job(args, ranks)) for ranks in args.ranks]
    rows += [row("1, MindCV", of_mindcv(args))] if args.mindcv else []
    print(markdown(COLUMNS, rows))


if __name__ == "__main__":
    run_script(main)
