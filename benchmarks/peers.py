"""This project, MindCV and PyTorch with timm as contenders: processes that make one call when told, taking turns."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from environments import environment
from processor import processor_seconds

from mindcv_reparam.errors import UserError

CONTENDERS = Path(__file__).parent / "contenders"
TORCH = ("torch==2.13.0", "torchvision==0.28.0", "timm==1.0.24", "onnx==1.17.0", "onnxruntime==1.31.1", "numpy==1.26.4")
# timm's network of the same computation (mmpretrain's RIFormer is a PoolFormer with an operator in place of pooling).
TIMM = {"riformer_s12": "poolformer_s12"}
MINDCV = ("visformer_tiny", "poolformer_s12")
# timm's Visformer has the exact GELU.
HPARAMS = {"visformer_tiny": {"gelu": "exact"}}


def input_size(model: str) -> int:
    return 256 if model.startswith("fastvit") else 224


def torch_python() -> Path:
    return environment("peers", TORCH)


def mindcv_python(checkout: str) -> Path:
    return Path(sys.executable) if checkout else environment("mindcv", ["mindcv==0.3.0"], beside_project=True)


@dataclass
class Contender:
    """A process that makes calls; its first one, with all that is made then, is the warm-up."""

    name: str
    python: str | Path
    script: str
    settings: Mapping[str, object]
    environ: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0  # seconds from the start of the process to the end of its first call
    first: float = 0.0  # seconds of the first call
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds of all cores, which other load spares
    peak: float = 0.0  # MiB

    def __enter__(self) -> "Contender":
        before = time.perf_counter()
        self.process = subprocess.Popen(
            [self.python, CONTENDERS / self.script, json.dumps(self.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"GLOG_v": "4", "OMP_NUM_THREADS": str(self.settings["threads"]), **self.environ},
        )
        self.first = self._answer()
        self.started = time.perf_counter() - before
        self.process.send_signal(signal.SIGSTOP)  # until its turn: some runtimes spin while they wait
        return self

    def turn(self) -> None:
        """A call that fills caches and wakes threads again, and one that counts."""
        self.process.send_signal(signal.SIGCONT)
        self.call()
        before = processor_seconds(self.process.pid)
        self.seconds.append(self.call())
        self.processor.append(processor_seconds(self.process.pid) - before)
        self.process.send_signal(signal.SIGSTOP)

    def call(self) -> float:
        """Seconds of a call of a process that is not stopped."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.name} ended; see {subprocess.list2cmdline(map(str, self.process.args))}")
        answer = json.loads(line)
        self.peak = answer["peak"]
        return answer["seconds"]

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def milliseconds(self) -> float:
        return 1000 * statistics.median(self.seconds)

    @property
    def processor_milliseconds(self) -> float:
        return 1000 * statistics.fmean(self.processor)  # the clock of processes ticks every 10 ms

    def results(self) -> dict[str, object]:
        names = ("name", "started", "first", "seconds", "processor", "peak")
        return {name: getattr(self, name) for name in names}


def take_turns(contenders: Iterable[Contender], rounds: int) -> list[Contender]:
    """Start all, then let each take its turn ``rounds`` times, after a round that does not count."""
    running = []
    with ExitStack() as stack:
        for contender in contenders:
            print(f"{contender.settings.get('model', '')} {contender.name}", file=sys.stderr)
            running.append(stack.enter_context(contender))
        for number in range(rounds + 1):
            for contender in running:
                contender.turn()
                if number == 0:
                    contender.seconds.clear()
                    contender.processor.clear()
    return running


def ratio(one: Contender, other: Contender, key: str = "seconds") -> float:
    """The median over the rounds of one's time divided by the other's of the same round."""
    if key == "processor":
        return one.processor_milliseconds / other.processor_milliseconds
    return statistics.median(a / b for a, b in zip(getattr(one, key), getattr(other, key)))


def ours(name: str, form: str, model: str, batch: int, threads: int, **more: object) -> Contender:
    settings = {"form": form, "model": model, "size": input_size(model), "batch": batch, "threads": threads}
    return Contender(name, sys.executable, "ours.py", {**settings, "hparams": HPARAMS.get(model, {}), **more})


def timm(name: str, form: str, model: str, batch: int, threads: int) -> Contender:
    settings = {"form": form, "model": TIMM.get(model, model), "size": input_size(model), "batch": batch}
    return Contender(name, torch_python(), "timm_network.py", {**settings, "threads": threads})


def mindcv(name: str, form: str, model: str, batch: int, threads: int, checkout: str) -> Contender:
    settings = {"form": form, "model": model, "size": input_size(model), "batch": batch, "threads": threads}
    # Without the limit its convolutions are a hundred times slower, see mindcv_reparam/runtime.py.
    limit = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    return Contender(name, mindcv_python(checkout), "mindcv_network.py", {**settings, "checkout": checkout}, limit)


def onnx(name: str, exporter: Contender, file: Path) -> Contender:
    """What an exporter (form "onnx") writes, in onnxruntime."""
    settings = {**exporter.settings, "form": "onnx", "file": str(file)}
    command = [exporter.python, CONTENDERS / exporter.script, json.dumps(settings)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise UserError(f"{name}: the export failed: {run.stderr.strip().splitlines()[-1]}")
    return Contender(name, torch_python(), "onnx_file.py", settings)
