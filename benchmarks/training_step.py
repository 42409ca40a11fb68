"""Compare a training step with PyTorch's (timm's networks) and MindCV's: forward, backward, AdamW, float32.

    python benchmarks/training_step.py [--models visformer_tiny …] [--batch 8] [--rounds 7]
        [--threads N] [--mindcv CHECKOUT]

Peers run in environments of their own, made at the first run. Every contender is a process; a round is one step of
each. "first" is the first step, compilation included. With other load on the machine, compare processor times, of
--threads 1: threads that wait for one another burn it.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import MINDCV, Contender, mindcv, ours, ratio, take_turns, timm
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("visformer_tiny", "fastvit_t8", "fastvit_sa12", "poolformer_s12", "riformer_s12")
HEADER = ("model", "contender", "first (s)", "step (ms)", "processor (ms)", "÷ PyTorch's", "processor ÷ PyTorch's")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mindcv", default="", help="a checkout of MindCV; default: its release on PyPI")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    results = {}
    for model in args.models:
        size = (model, args.batch, args.threads)
        contenders = [ours("ours", "step", *size), timm("PyTorch, timm", "step", *size)]
        if model in MINDCV:
            contenders.append(mindcv("MindCV", "step", *size, args.mindcv))
        results[model] = take_turns(contenders, args.rounds)
    print(markdown(HEADER, [row for model in results for row in rows(model, results[model])]))
    plain = {model: [one.results() for one in some] for model, some in results.items()}
    save("training_step", {"machine": machine("mindspore"), **vars(args), "contenders": plain},
         lambda figure: draw(figure, results))  # fmt: skip
    return 0


def rows(model: str, contenders: list[Contender]) -> list[list[str]]:
    torch = next(one for one in contenders if one.name.startswith("PyTorch"))
    return [
        [
            *(model, one.name, f"{one.first:.1f}", f"{one.milliseconds:.0f}", f"{one.processor_milliseconds:.0f}"),
            *(f"{ratio(one, torch):.2f}", f"{ratio(one, torch, 'processor'):.2f}"),
        ]
        for one in contenders
    ]


def draw(figure: "Figure", results: dict[str, list[Contender]]) -> None:
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, (model, contenders) in zip(axes, results.items()):
        axis.bar([one.name for one in contenders], [one.processor_milliseconds for one in contenders], color="tab:blue")
        axis.set_title(model)
        axis.tick_params(axis="x", rotation=60)
    axes[0].set_ylabel("processor time of a step, milliseconds")


if __name__ == "__main__":
    run_script(main)
