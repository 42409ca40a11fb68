"""Interrupt training in every way at random points, resume it, and compare with the run that nothing interrupted.

    python tests/fault_injection.py --runs 20 --ranks 1 2

Every run is a job of its own through train.py, with a small network that has all kinds of state: batch normalisation,
stochastic depth, dropout, AdamW, an average of the weights, two batches per update. After every fault it checks the
exit status, that every checkpoint on the disk loads, and that ``--resume auto`` leads to the uninterrupted run's
weights, bit for bit, and to its metrics. The last line tells how many of the runs passed.
"""

import argparse
import contextlib
import csv
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from processes import ENVIRONMENT, MODEL, mpirun_command

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mindcv_reparam import runtime  # noqa: E402
from mindcv_reparam.files import written_whole  # noqa: E402

JOB = ROOT / "tests" / "fault_job.py"
EPOCHS, STEPS, BATCH = 2, 6, 4
ACCUMULATED = 2  # batches per update
TIMINGS = {"img_per_s", "data_wait"}  # columns that no two runs share
DAMAGED = "class1/001.png"
FULL = 50_000  # bytes that a file may have once the disk is full


@dataclass(frozen=True)
class Job:
    """A training run on some ranks, whose files are in ``folder``."""

    folder: Path
    data: Path
    ranks: int

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        options = {
            "mode": 0,
            "device_target": "CPU",
            "dataset": "imagenet",
            "data_dir": self.data,
            "num_parallel_workers": 1,
            "model": MODEL,
            "image_resize": 32,
            "batch_size": BATCH,
            "drop_rate": 0.1,
            "drop_path_rate": 0.3,
            "mixup": 0.8,
            "epoch_size": EPOCHS,
            "decay_epochs": EPOCHS,
            "warmup_epochs": 0,
            "val_while_train": True,
            "log_interval": 1,
            "opt": "adamw",
            "ema": True,
            "ema_decay": 0.9,
            "ema_warmup": 0,
            "gradient_accumulation_steps": ACCUMULATED,
            "loss_scale": 16,  # a dynamic one would skip the update of a NaN
            "ckpt_save_dir": self.folder,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        command = [str(JOB), *words, *arguments]
        return subprocess.Popen(
            mpirun_command(self.ranks, *command) if self.ranks > 1 else [sys.executable, *command],
            env=os.environ | ENVIRONMENT | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def rank_processes(self) -> list[int]:
        """The processes that train into the folder, the launcher apart."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_text().split("\0")
                if str(self.folder) in words and words[1] == str(JOB):
                    found.append(int(directory.name))
        return sorted(found)

    def weights(self) -> str:
        """SHA-256 of the final weights, online and averaged."""
        from mindcv_reparam.checkpoint import read_checkpoint

        digest = hashlib.sha256()
        for kind in ("final", "final_online"):
            arrays, _ = read_checkpoint(self.folder / f"{MODEL}_{kind}.ckpt")
            for name in sorted(arrays):
                digest.update(name.encode() + arrays[name].tobytes())
        return digest.hexdigest()

    def metrics(self) -> list[dict[str, str]]:
        """The rows of the metrics file without the timings."""
        with open(self.folder / "metrics.csv", newline="", encoding="utf-8") as file:
            return [{key: row[key] for key in row if key not in TIMINGS} for row in csv.DictReader(file)]


@dataclass(frozen=True)
class Fault:
    """What happens to a job: ``strike`` gets the job and its process; ``status`` is what it exits with."""

    name: str
    strike: Callable[[Job, subprocess.Popen], None]
    status: int
    or_status: int | None = None  # MindSpore turns SIGINT into SIGTERM while a graph runs
    of_ranks: int | None = None  # where the launcher gives another status
    damaged_data: bool = False
    nan: str = ""  # what of a batch becomes NaN
    only_ranks: bool = False  # needs more than one


def send(number: signal.Signals, whom: str) -> Callable[[Job, subprocess.Popen], None]:
    """A strike: a signal to one rank, to the launcher or to everybody."""

    def strike(job: Job, process: subprocess.Popen) -> None:
        ranks = job.rank_processes()
        chosen = {"one": [random.choice(ranks)], "launcher": [process.pid], "all": [process.pid, *ranks]}[whom]
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    return strike


def fill_disk(job: Job, process: subprocess.Popen) -> None:
    for pid in job.rank_processes():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL, FULL))


def nothing(job: Job, process: subprocess.Popen) -> None:
    pass


FAULTS = (
    Fault("SIGTERM to a rank", send(signal.SIGTERM, "one"), 143),
    Fault("SIGKILL of all", send(signal.SIGKILL, "all"), -9),
    Fault("disk full", fill_disk, 2),
    Fault("NaN loss", nothing, 2, nan="labels"),
    Fault("NaN images", nothing, 2, nan="images"),  # which ReLU hides from the loss on CPU
    Fault("unreadable image, SIGTERM", send(signal.SIGTERM, "one"), 143, damaged_data=True),
    Fault("SIGINT to a rank", send(signal.SIGINT, "one"), 130, or_status=143),
    Fault("SIGKILL of one rank", send(signal.SIGKILL, "one"), -9, of_ranks=137, only_ranks=True),
    Fault("SIGUSR1 to mpirun", send(signal.SIGUSR1, "launcher"), 138, only_ranks=True),
    Fault("SIGTERM to mpirun", send(signal.SIGTERM, "launcher"), 143, of_ranks=1, only_ranks=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="faults, spread over the numbers of ranks (default: 20)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks (default: 1 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the points where the faults strike (default: 0)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the faults whose name contains this")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    os.environ.update(ENVIRONMENT)  # this process reads the jobs' checkpoints, and has to know their model
    runtime.prepare("CPU")
    print("| ranks | fault | after step | status | files that load | weights | metrics |\n|--|--|--|--|--|--|--|")
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.runs):
            ranks = arguments.ranks[number % len(arguments.ranks)]
            possible = [fault for fault in FAULTS if ranks > 1 or not fault.only_ranks]
            faults = [fault for fault in possible if arguments.only in fault.name]
            passed += interrupt(Path(folder), number, ranks, faults[number // len(arguments.ranks) % len(faults)])
    print(f"{passed} of {arguments.runs} interrupted runs ended as the uninterrupted ones")
    return passed < arguments.runs


def interrupt(folder: Path, number: int, ranks: int, fault: Fault) -> bool:
    """One fault, and what became of the run; prints its row."""
    expected = reference(folder, ranks, fault.damaged_data)
    job = Job(folder / f"run{number}", expected.data, ranks)
    target = random.randrange(1, EPOCHS * STEPS - 1)
    status, log = run_until(job, fault, target)
    wanted = fault.status if ranks == 1 or fault.of_ranks is None else fault.of_ranks
    loaded, files = load_all(job.folder)
    resumed = job.start("--resume", "auto")
    errors = resumed.communicate(timeout=600)[1]
    checks = {
        "status": status in (wanted, fault.or_status),
        "files": loaded == files,
        "named": not fault.nan or names_batch(log, target),
        "resumed": resumed.returncode == 0,
    }
    same = same_metrics = False
    if checks["resumed"]:
        whole, parts = expected.metrics(), job.metrics()
        same, same_metrics = job.weights() == expected.weights(), parts == whole
        if not same_metrics:
            print(f"metrics of the uninterrupted run: {whole}\nof the interrupted one: {parts}", file=sys.stderr)
    if not all(checks.values()):
        print(log[-2000:], errors[-2000:], file=sys.stderr)
    row = (ranks, fault.name, target, status, f"{loaded}/{files}", same, same_metrics)
    print("| " + " | ".join(map(str, row)) + " |", flush=True)
    shutil.rmtree(job.folder)
    return all(checks.values()) and same and same_metrics


def reference(folder: Path, ranks: int, damaged: bool) -> Job:
    """The run that nothing interrupts; done once."""
    data = folder / ("damaged" if damaged else "images")
    if not data.exists():
        make_images(data, damaged)
    job = Job(folder / f"reference{ranks}{data.name}", data / str(ranks), ranks)
    if not job.folder.exists():
        process = job.start()
        errors = process.communicate(timeout=600)[1]
        if process.returncode:
            raise RuntimeError(f"the uninterrupted run failed:\n{errors}")
        if damaged and ("unreadable images replaced" not in errors or errors.count(DAMAGED) != 1):
            raise RuntimeError(f"the log does not name the unreadable image once:\n{errors}")
    return job


def run_until(job: Job, fault: Fault, target: int) -> tuple[int, str]:
    """Start the job, let the fault strike somewhere in the step after ``target``; exit status and log."""
    process = job.start(**({"FAULT_NAN": f"{fault.nan} {target}"} if fault.nan else {}))
    lines, steps = [], 0
    for line in process.stderr:
        lines.append(line)
        steps += " loss " in line and " lr " in line
        if steps == target:
            steps += 1  # once
            time.sleep(random.uniform(0.0, 0.2))
            fault.strike(job, process)
    process.wait(timeout=600)
    deadline = time.monotonic() + 30
    while job.rank_processes() and time.monotonic() < deadline:  # ranks whose launcher was killed end by themselves
        time.sleep(0.1)
    return process.returncode, "".join(lines)


def names_batch(log: str, spoiled: int) -> bool:
    """Whether the error names the update of the spoiled batch (from 0), images and the last good state."""
    epoch, step = divmod(spoiled, STEPS)
    update = step + 1 + (-(spoiled + 1) % ACCUMULATED)  # the loss tells at the batch, a gradient at the update
    error = rf"error: .* at epoch {epoch + 1}, step ({step + 1}|{update}) of {STEPS}, .*images .*\.png.* state is "
    return re.search(error, log) is not None


def load_all(folder: Path) -> tuple[int, int]:
    """How many of the checkpoints and resumable states load, and how many there are."""
    from mindcv_reparam.checkpoint import read_checkpoint
    from mindcv_reparam.errors import UserError

    loaded, files = 0, [*folder.glob("*.ckpt"), *folder.glob("*.npz")]
    for file in files:
        with contextlib.suppress(UserError, OSError, ValueError):
            if file.suffix == ".npz":
                with np.load(file, allow_pickle=False) as entries:
                    loaded += all(entries[name] is not None for name in entries.files)
            else:
                loaded += len(read_checkpoint(file)[0]) > 0
    return loaded, len(files)


def make_images(folder: Path, damaged: bool) -> None:
    """A folder of noise per number of ranks, so that all have as many steps; ``damaged`` truncates one image."""
    rng = np.random.default_rng(0)
    for ranks in (1, 2, 4):
        for split, count in (("train", STEPS * BATCH * ranks), ("val", 10)):
            for index in range(count):
                path = folder / str(ranks) / split / f"class{index % 4}" / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        if damaged:
            path = folder / str(ranks) / "train" / DAMAGED
            content = path.read_bytes()
            with written_whole(path) as temporary:
                temporary.write_bytes(content[: len(content) // 2])


if __name__ == "__main__":
    sys.exit(main())
