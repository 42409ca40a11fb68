"""Compare inference with PyTorch's (timm's networks), MindCV's, and both sides' ONNX files in onnxruntime: float32.

    python benchmarks/inference.py [--models visformer_tiny …] [--batches 1 8] [--rounds 9] [--compile]
        [--threads N] [--mindcv CHECKOUT]

Peers run in environments of their own, made at the first run. Every contender is a process; in a round each wakes up,
makes a call that does not count, and one that does. "first" is the first call, compilation included. With other load on
the machine, compare processor times, of --threads 1: threads that wait for one another burn it.
PyTorch's networks are fused by timm where it can. --compile adds torch.compile, whose first call takes a minute.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import MINDCV, Contender, mindcv, onnx, ours, ratio, take_turns, timm
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("visformer_tiny", "fastvit_t8", "fastvit_sa12", "poolformer_s12", "riformer_s12")
OURS, OURS_ONNX, TORCH, TORCH_ONNX = "ours, fused", "ours, ONNX", "PyTorch, fused", "timm, ONNX"
RIVALS = {OURS_ONNX: TORCH_ONNX}  # what a contender is compared with: otherwise, PyTorch
HEADER = (
    *("model", "batch", "contender", "first (s)", "call (ms)", "processor (ms)"),
    *("compared with", "ratio", "processor ratio"),
)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--mindcv", default="", help="a checkout of MindCV; default: its release on PyPI")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    results = {}
    for model in args.models:
        for batch in args.batches:
            with tempfile.TemporaryDirectory() as folder:
                size = (model, batch, args.threads)
                contenders = [
                    ours(OURS, "fused", *size),
                    ours("ours, train-time", "train-time", *size),
                    timm(TORCH, "eager", *size),
                    onnx(OURS_ONNX, ours("", "onnx", *size), Path(folder) / "ours.onnx"),
                    onnx(TORCH_ONNX, timm("", "onnx", *size), Path(folder) / "timm.onnx"),
                ]
                if args.compile:
                    contenders.append(timm("PyTorch, compiled", "compiled", *size))
                if model in MINDCV:
                    contenders.append(mindcv("MindCV", "inference", *size, args.mindcv))
                results[f"{model}, batch {batch}"] = take_turns(contenders, args.rounds)
    print(markdown(HEADER, [row for case in results for row in rows(case, results[case])]))
    plain = {case: [one.results() for one in some] for case, some in results.items()}
    save("inference", {"machine": machine("mindspore"), **vars(args), "contenders": plain},
         lambda figure: draw(figure, results))  # fmt: skip
    return 0


def rows(case: str, contenders: list[Contender]) -> list[list[str]]:
    by_name = {one.name: one for one in contenders}
    found = []
    for one in contenders:
        rival = by_name[RIVALS.get(one.name, TORCH)]
        numbers = f"{one.first:.1f}", f"{one.milliseconds:.0f}", f"{one.processor_milliseconds:.0f}"
        ratios = rival.name, f"{ratio(one, rival):.2f}", f"{ratio(one, rival, 'processor'):.2f}"
        found.append([*case.split(", batch "), one.name, *numbers, *(ratios if one is not rival else ("", "", ""))])
    return found


def draw(figure: "Figure", results: dict[str, list[Contender]]) -> None:
    """Times of a call in units of PyTorch's, a group of bars per model and batch."""
    axis = figure.subplots()
    names = list(dict.fromkeys(one.name for contenders in results.values() for one in contenders))
    width = 0.8 / len(names)
    for number, contenders in enumerate(results.values()):
        by_name = {one.name: one for one in contenders}
        for place, name in enumerate(names):
            if name in by_name:
                height = ratio(by_name[name], by_name[TORCH])
                label = name if number == 0 else None  # the first case has every contender
                axis.bar(number + (place + 0.5) * width - 0.4, height, width, color=f"C{place}", label=label)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(results)), [case.replace(", ", "\n") for case in results], fontsize=7)
    axis.set_ylabel("time of a call ÷ PyTorch's, fused", fontsize=8)
    axis.legend(fontsize=7)


if __name__ == "__main__":
    run_script(main)
