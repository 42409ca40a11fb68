"""Networks of this project and of its peers as contenders: processes that make one call when told, taking turns."""

import dataclasses
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
from typing import IO

from environments import environment

from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import model_info

CONTENDERS = Path(__file__).parent / "contenders"
TORCH = ("torch==2.13.0", "torchvision==0.28.0", "timm==1.0.24", "onnx==1.17.0", "onnxruntime==1.31.1", "numpy==1.26.4")
# The script of the networks in PyTorch, by what a network is for.
IN_TORCH = {"classification": "timm_network.py", "detection": "transformers_network.py"}
TRANSFORMERS = (
    *("torch==2.13.0", "transformers==4.57.1", "scipy==1.15.3", "pillow==13.0.0"),  # its losses want the last two
    *("onnx==1.17.0", "onnxruntime==1.31.1", "numpy==1.26.4"),
)
# timm's network of the same computation (mmpretrain's RIFormer is a PoolFormer with an operator in place of pooling).
TIMM = {"riformer_s12": "poolformer_s12"}
MINDCV = ("visformer_tiny", "poolformer_s12")
# timm's Visformer has the exact GELU.
HPARAMS = {"visformer_tiny": {"gelu": "exact"}}
_TICK = os.sysconf("SC_CLK_TCK")


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """To a process and from it."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def processor_seconds(root: int) -> float:
    """User and system time so far of process ``root``, of its living descendants and of those they have waited for."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = sum(map(int, fields[11:15])) / _TICK
    family = {root}
    while children := {process for process, parent in parents.items() if parent in family} - family:
        family |= children
    return sum(spent.get(process, 0.0) for process in family)


def torch_python(model: str) -> Path:
    """Of the environment in which PyTorch has the model."""
    if model_info(model).task == "detection":
        return environment("transformers", TRANSFORMERS)
    return environment("peers", TORCH)


def mindcv_python(checkout: str) -> Path:
    return Path(sys.executable) if checkout else environment("mindcv", ["mindcv==0.3.0"], beside_project=True)


@dataclass(frozen=True)
class Case:
    """What every contender of a comparison computes."""

    model: str
    batch: int
    threads: int
    size: int | None = None  # pixels, a side; None: what the model is made for
    drop_rate: float = 0.0  # dropout where the family has it, in timm that before the classifier
    weights: str = ""  # folder of those that all contenders share; none: each has its own random ones

    def settings(self, form: str, model: str | None = None) -> dict[str, object]:
        return {
            "form": form,
            "model": model or self.model,
            "size": self.size or model_info(self.model).input_size,
            "batch": self.batch,
            "threads": self.threads,
            "weights": self.weights,
        }


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
            self._command(),
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
        asked, _ = pipes(self.process)
        asked.write("\n")
        asked.flush()
        return self._answer()

    def _command(self) -> list[str]:
        return [str(self.python), str(CONTENDERS / self.script), json.dumps(self.settings)]

    def _answer(self) -> float:
        line = pipes(self.process)[1].readline()
        if not line:
            raise UserError(f"{self.name} ended; see {subprocess.list2cmdline(self._command())}")
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


def ours(name: str, form: str, case: Case, environ: Mapping[str, str] | None = None) -> Contender:
    dropout = {"drop_rate": case.drop_rate} if case.drop_rate else {}
    settings = {**case.settings(form), "hparams": {**HPARAMS.get(case.model, {}), **dropout}}
    return Contender(name, sys.executable, "ours.py", settings, environ or {})


def torch(name: str, form: str, case: Case) -> Contender:
    script = IN_TORCH[model_info(case.model).task]
    settings = {**case.settings(form, TIMM.get(case.model)), "drop_rate": case.drop_rate}
    return Contender(name, torch_python(case.model), script, settings)


def shared_weights(case: Case, folder: Path) -> Case:
    """A detector's case with random weights of PyTorch's in ``folder``, and the same converted, as ``ours.ckpt``; any
    other case as it is. Raises UserError when they cannot be written."""
    if model_info(case.model).task != "detection":
        return case
    from mindcv_reparam.__main__ import main as command

    case = dataclasses.replace(case, weights=str(folder))
    side = case.settings("weights")["size"]
    run_once(torch("", "weights", case))
    command(["convert", str(folder / "model.safetensors"), "-o", str(folder / "ours.ckpt"), "--img_size", str(side)])
    return case


def mindcv(name: str, form: str, case: Case, checkout: str) -> Contender:
    # Without the limit its convolutions are a hundred times slower, see mindcv_reparam/runtime.py.
    limit = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    settings = {**case.settings(form), "checkout": checkout}
    return Contender(name, mindcv_python(checkout), "mindcv_network.py", settings, limit)


def onnx(name: str, exporter: Contender, case: Case, file: Path) -> Contender:
    """What an exporter (form "onnx") writes, in onnxruntime."""
    write_onnx(exporter, file)
    python = torch_python(case.model)
    return Contender(name, python, "onnx_file.py", {**exporter.settings, "file": str(file)})


def write_onnx(exporter: Contender, file: Path, dynamic: bool = False) -> None:
    """What a contender of form "onnx" has instead of calls. Raises UserError when it fails."""
    run_once(exporter, file=str(file), dynamic=dynamic)


def run_once(contender: Contender, **more: object) -> str:
    """What a contender prints of a form that does something once. Raises UserError when it fails."""
    command = [contender.python, CONTENDERS / contender.script, json.dumps({**contender.settings, **more})]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        what = f"{contender.settings['form']} of {contender.settings['model']}"
        raise UserError(f"{what}: {contender.script} failed: {run.stderr.strip().splitlines()[-1]}")
    return run.stdout
