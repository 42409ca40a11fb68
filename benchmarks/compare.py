"""Compare this project's networks with PyTorch's and MindCV's on this machine's CPU, float32.

    python benchmarks/compare.py inference [--models …] [--batches 1 8] [--rounds 9] [--compile]
    python benchmarks/compare.py step [--models …] [--batches 8] [--rounds 7]
    python benchmarks/compare.py memory [--models …] [--batches 1 8] [--rounds 5] [--steps 1000]
    python benchmarks/compare.py startup [--models visformer_tiny] [--batches 8] [--rounds 5]

Each takes --threads N, --size PIXELS (otherwise what a model is made for) and --mindcv CHECKOUT (otherwise its release
on PyPI). PyTorch's networks are timm's, its detectors transformers'. Peers run in environments of their own, made at
the first run. Every contender is a process; in a round each wakes up, makes a call that does not count, and one that
does. "first" is the first call, compilation included. With other load on the machine, compare processor times, of
--threads 1: threads that wait for one another burn it.

inference: networks are fused, PyTorch's by timm where it can, of detectors the RepVGG blocks; both sides' ONNX files
are run by onnxruntime. Detectors (rtdetr_r18vd, _r34vd, _r50vd, _r101vd) have the same random weights on both sides.
--compile adds torch.compile, whose first call takes a minute.
step: forward, backward, AdamW.
memory: peak of the resident set; "above import" is without what a process has that only imports the framework,
"growth" that of our process from step 100 to the last of --steps training steps of the first model on small images.
startup: seconds from the start of a process. Help and argument errors never import MindSpore; the first call includes
imports, building the network and compiling; "later" is that of a process that finds MindSpore's compile cache filled
(MS_COMPILER_CACHE_ENABLE=1, which this project does not set).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import (
    MINDCV,
    Case,
    Contender,
    mindcv,
    onnx,
    ours,
    processor_seconds,
    ratio,
    shared_weights,
    take_turns,
    torch,
)
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
MODELS = ("visformer_tiny", "fastvit_t8", "fastvit_sa12", "poolformer_s12", "riformer_s12")
OURS, OURS_ONNX, TORCH, TORCH_ONNX = "ours", "ours, ONNX", "PyTorch", "PyTorch, ONNX"
RIVALS = {OURS_ONNX: TORCH_ONNX}  # what a contender is compared with: otherwise, PyTorch
CALLS = (
    *("model", "batch", "contender", "first (s)", "call (ms)", "processor (ms)"),
    *("compared with", "ratio", "processor ratio"),
)
PEAKS = (
    *("model", "batch", "task", "ours (MiB)", "PyTorch (MiB)", "ratio"),
    *("ours above import (MiB)", "PyTorch above import (MiB)", "ratio above import"),
)
# What a process computes whose memory is measured, and its dropout.
TASKS = {"inference": ("inference", 0.0), "training": ("step", 0.0), "training, dropout": ("step", 0.1)}
COMMANDS = {
    "import mindspore": ["-c", "import mindspore"],
    "import mindcv_reparam": ["-c", "import mindcv_reparam"],
    "train.py --help": ["train.py", "--help"],
    "python -m mindcv_reparam --help": ["-m", "mindcv_reparam", "--help"],
    "misspelt flag": ["train.py", "--modell", "visformer_tiny"],
    "misspelt value": ["train.py", "--config", "configs/visformer/visformer_tiny_ascend.yaml", "--opt", "adamv"],
    "missing checkpoint": ["validate.py", "--model", "visformer_tiny", "--ckpt_path", "missing.ckpt"],
}


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True, metavar="inference | step | memory | startup")

    def part(run: Callable[[argparse.Namespace], None], models: tuple[str, ...], batches: list[int], rounds: int):
        found = parts.add_parser(run.__name__)
        found.set_defaults(run=run)
        found.add_argument("--models", nargs="+", default=models)
        found.add_argument("--batches", nargs="+", type=int, default=batches)
        found.add_argument("--rounds", type=int, default=rounds)
        found.add_argument("--size", type=int, help="pixels, a side")
        found.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
        found.add_argument("--mindcv", default="", help="a checkout of MindCV; default: its release on PyPI")
        return found

    part(inference, MODELS, [1, 8], 9).add_argument("--compile", action="store_true")
    part(step, MODELS, [8], 7)
    part(memory, ("visformer_tiny", "fastvit_t8", "poolformer_s12"), [1, 8], 5).add_argument(
        "--steps", type=int, default=1000
    )
    part(startup, ("visformer_tiny",), [8], 5)
    args = parser.parse_args()
    args.run(args)
    return 0


def cases(args: argparse.Namespace) -> list[Case]:
    return [Case(model, batch, args.threads, args.size) for model in args.models for batch in args.batches]


def sides(form: str, case: Case, checkout: str) -> list[Contender]:
    """The same computation by this project, by PyTorch and, where it has the network, by MindCV."""
    found = [ours(OURS, form, case), torch(TORCH, form, case)]
    return [*found, mindcv("MindCV", form, case, checkout)] if case.model in MINDCV else found


def keep(args: argparse.Namespace, results: dict[str, object], draw: Callable[["Figure"], None]) -> None:
    settings = {name: value for name, value in vars(args).items() if name != "run"}
    save(args.part, {"machine": machine("mindspore"), **settings, **results}, draw)


def inference(args: argparse.Namespace) -> None:
    results = {}
    for case in cases(args):
        with tempfile.TemporaryDirectory() as folder:
            case = shared_weights(case, Path(folder))
            contenders = [
                *sides("inference", case, args.mindcv),
                ours("ours, train-time", "train-time", case),
                onnx(OURS_ONNX, ours("", "onnx", case), case, Path(folder) / "ours.onnx"),
                onnx(TORCH_ONNX, torch("", "onnx", case), case, Path(folder) / "torch.onnx"),
            ]
            if args.compile:
                contenders.append(torch("PyTorch, compiled", "compiled", case))
            results[case] = take_turns(contenders, args.rounds)
    calls(args, results)


def step(args: argparse.Namespace) -> None:
    results = {}
    for case in cases(args):
        with tempfile.TemporaryDirectory() as folder:
            case = shared_weights(case, Path(folder))
            results[case] = take_turns(sides("step", case, args.mindcv), args.rounds)
    calls(args, results)


def calls(args: argparse.Namespace, results: dict[Case, list[Contender]]) -> None:
    """Print and keep what the calls of contenders took."""
    print(markdown(CALLS, [row for case, contenders in results.items() for row in rows(case, contenders)]))
    plain = {f"{case.model}, batch {case.batch}": [one.results() for one in some] for case, some in results.items()}
    keep(args, {"contenders": plain}, lambda figure: draw_calls(figure, results))


def rows(case: Case, contenders: list[Contender]) -> list[list[str]]:
    by_name = {one.name: one for one in contenders}
    found = []
    for one in contenders:
        rival = by_name[RIVALS.get(one.name, TORCH)]
        numbers = f"{one.first:.1f}", f"{one.milliseconds:.0f}", f"{one.processor_milliseconds:.0f}"
        ratios = rival.name, f"{ratio(one, rival):.2f}", f"{ratio(one, rival, 'processor'):.2f}"
        found.append([case.model, str(case.batch), one.name, *numbers, *(ratios if one is not rival else ("", "", ""))])
    return found


def draw_calls(figure: "Figure", results: dict[Case, list[Contender]]) -> None:
    """Times of a call in units of PyTorch's, a group of bars per model and batch."""
    axis = figure.subplots()
    names = list(dict.fromkeys(one.name for contenders in results.values() for one in contenders))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        found = [(number, {one.name: one for one in some}) for number, some in enumerate(results.values())]
        bars = {number: ratio(by_name[name], by_name[TORCH]) for number, by_name in found if name in by_name}
        shifted = [number + (place + 0.5) * width - 0.4 for number in bars]
        axis.bar(shifted, list(bars.values()), width, color=f"C{place}", label=name)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(results)), [f"{case.model}\nbatch {case.batch}" for case in results], fontsize=7)
    axis.set_ylabel("time of a call ÷ PyTorch's", fontsize=8)
    axis.legend(fontsize=7)


def memory(args: argparse.Namespace) -> None:
    def pair(form: str, case: Case) -> list[Contender]:
        return [ours(OURS, form, case), torch(TORCH, form, case)]

    imports = take_turns(pair("import", cases(args)[0]), 1)
    results = {}
    for case in cases(args):
        for task, (form, drop_rate) in TASKS.items():
            contenders = pair(form, Case(case.model, case.batch, case.threads, size=args.size, drop_rate=drop_rate))
            results[case, task] = take_turns(contenders, args.rounds)
    table = [["", "", "import", *compared(imports), "", "", ""]]
    for (case, task), contenders in results.items():
        table.append([case.model, str(case.batch), task, *compared(contenders), *compared(contenders, imports)])
    print(markdown(PEAKS, table))
    growth = {}
    for batch in args.batches:
        growing = ours(OURS, "step", Case(args.models[0], batch, args.threads, size=64))
        growth[batch] = growth_of(growing, args.steps)
        print(f"\ngrowth from step 100 to step {args.steps}, batch {batch}: {growth[batch]:.1f} MiB")
    labels = [f"{case.model}\n{task}, {case.batch}" for case, task in results]
    peaks = [[one.peak for one in contenders] for contenders in results.values()]
    keep(args, {"growth": growth, "rows": [PEAKS, *table]},
         lambda figure: draw_peaks(figure, labels, peaks, [one.peak for one in imports]))  # fmt: skip


def compared(contenders: list[Contender], without: list[Contender] | None = None) -> list[str]:
    """Our peak, PyTorch's and their ratio, both less the peaks of ``without``."""
    one, other = (contender.peak for contender in contenders)
    if without:
        one, other = one - without[0].peak, other - without[1].peak
    return [f"{one:.0f}", f"{other:.0f}", f"{one / other:.2f}"]


def growth_of(contender: Contender, steps: int) -> float:
    """MiB that the peak gains from the hundredth step on."""
    with contender:
        for _ in range(100 // 2):  # a turn is two calls
            contender.turn()
        before = contender.peak
        for _ in range((steps - 100) // 2):
            contender.turn()
        return contender.peak - before


def draw_peaks(figure: "Figure", labels: list[str], peaks: list[list[float]], imports: list[float]) -> None:
    """Two bars per case; the grey part of each is the framework's."""
    axis = figure.subplots()
    for shift, side, name in ((-0.2, 0, OURS), (0.2, 1, TORCH)):
        places = [place + shift for place in range(len(labels))]
        axis.bar(places, [both[side] for both in peaks], 0.4, label=name)
        axis.bar(places, imports[side], 0.4, color="gray")
    axis.set_xticks(range(len(labels)), labels, rotation=60, fontsize=7)
    axis.set_ylabel("peak resident set, MiB")
    axis.legend()


def startup(args: argparse.Namespace) -> None:
    results = {name: [run(command) for _ in range(args.rounds)] for name, command in COMMANDS.items()}
    with tempfile.TemporaryDirectory() as cache:
        firsts: dict[str, Contender] = {}
        for number, case in enumerate(cases(args)):
            firsts |= first_calls(case, args.mindcv, f"{cache}/{number}")
        for _ in range(args.rounds):
            for name, contender in firsts.items():
                results.setdefault(name, []).append(start(contender))
    medians = {name: [statistics.median(some) for some in zip(*measured)] for name, measured in results.items()}
    table = [[name, *(f"{median:.2f}" for median in both)] for name, both in medians.items()]
    print(markdown(("what", "seconds", "processor seconds"), table))
    keep(args, {"seconds": results},
         lambda figure: draw_seconds(figure, {name: wall for name, (wall, _) in medians.items()}))  # fmt: skip


def first_calls(case: Case, checkout: str, cache: str) -> dict[str, Contender]:
    """By what they are; each form has a compile cache of its own."""
    found: dict[str, Contender] = {}
    for form in ("step", "inference"):
        what = f"{case.model}, batch {case.batch}, first {form}"
        folder = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": f"{cache}/{form}"}
        cached = ours("ours, later", form, case, folder)
        start(cached)
        found |= {f"{what}: {one.name}": one for one in [*sides(form, case, checkout), cached]}
    return found


def start(contender: Contender) -> tuple[float, float]:
    with contender:
        return contender.started, processor_seconds(contender.process.pid)


def run(command: list[str]) -> tuple[float, float]:
    before, spent = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True)
    after = os.times()
    processor = after.children_user + after.children_system - spent.children_user - spent.children_system
    return time.perf_counter() - before, processor


def draw_seconds(figure: "Figure", seconds: dict[str, float]) -> None:
    axis = figure.subplots()
    axis.barh(list(seconds), list(seconds.values()))
    axis.invert_yaxis()
    axis.set_xlabel("seconds")


if __name__ == "__main__":
    run_script(main)
