"""Measure what a user waits for before anything happens: seconds from the start of a process, medians.

    python benchmarks/startup.py [--model visformer_tiny] [--rounds 5] [--threads N] [--mindcv CHECKOUT]

Help and argument errors never import MindSpore; the first call includes imports, building the network and compiling.
"later" is the first call of a process that finds MindSpore's compile cache filled (MS_COMPILER_CACHE_ENABLE=1, which
this project does not set).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import MINDCV, Contender, mindcv, ours, timm
from processor import processor_seconds
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "import mindspore": ["-c", "import mindspore"],
    "import mindcv_reparam": ["-c", "import mindcv_reparam"],
    "train.py --help": ["train.py", "--help"],
    "python -m mindcv_reparam --help": ["-m", "mindcv_reparam", "--help"],
    "misspelt flag": ["train.py", "--modell", "visformer_tiny"],
    "misspelt value in YAML": [
        "train.py",
        "--config",
        "configs/visformer/visformer_tiny_ascend.yaml",
        "--opt",
        "adamv",
    ],
    "missing checkpoint": ["validate.py", "--model", "visformer_tiny", "--ckpt_path", "missing.ckpt"],
}
HEADER = ("what", "seconds", "processor seconds")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="visformer_tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mindcv", default="", help="a checkout of MindCV; default: its release on PyPI")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    results = {name: [run(command) for _ in range(args.rounds)] for name, command in COMMANDS.items()}
    with tempfile.TemporaryDirectory() as cache:
        firsts = first_calls(args.model, args.threads, args.mindcv, cache)
        for _ in range(args.rounds):
            for name, contender in firsts.items():
                results.setdefault(name, []).append(start(contender))
    rows = [
        [name, *(f"{statistics.median(some):.2f}" for some in zip(*measured))] for name, measured in results.items()
    ]
    print(markdown(HEADER, rows))
    save("startup", {"machine": machine("mindspore"), **vars(args), "seconds": results},
         lambda figure: draw(figure, results))  # fmt: skip
    return 0


def first_calls(model: str, threads: int, checkout: str, cache: str) -> dict[str, Contender]:
    size = (model, 8, threads)
    found = {}
    for task, form, peer_form in (("training step", "step", "step"), ("inference", "fused", "eager")):
        cached = ours("", form, *size)
        cached.environ = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": f"{cache}/{form}"}
        start(cached)
        found |= {
            f"first {task}": ours("", form, *size),
            f"first {task}, later": cached,
            f"first {task}, PyTorch": timm("", peer_form, *size),
        }
        if model in MINDCV:
            found[f"first {task}, MindCV"] = mindcv("", form, *size, checkout)
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


def draw(figure: "Figure", results: dict[str, list[tuple[float, float]]]) -> None:
    axis = figure.subplots()
    axis.barh(list(results), [statistics.median(wall for wall, _ in measured) for measured in results.values()])
    axis.invert_yaxis()
    axis.set_xlabel("seconds")


if __name__ == "__main__":
    run_script(main)
