"""Compare peak memory with PyTorch's (timm's networks): resident set of a process that infers or trains, in MiB.

    python benchmarks/memory.py [--models visformer_tiny …] [--batches 1 8] [--calls 5] [--steps 1000]

Frameworks and data are part of it; "above import" is what a process that only imports them leaves of it. "growth" is
that of our process from step 100 to the last of --steps training steps of the first model on small images.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import Contender, ours, take_turns, timm
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("visformer_tiny", "fastvit_t8", "poolformer_s12")
HEADER = (
    *("model", "batch", "task", "ours (MiB)", "PyTorch (MiB)", "ratio"),
    *("ours above import (MiB)", "PyTorch above import (MiB)", "ratio above import"),
)
FORMS = {"inference": ("fused", "eager"), "training": ("step", "step")}


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    size = (args.models[0], 1, args.threads)
    imports = take_turns([ours("ours", "import", *size), timm("PyTorch, timm", "import", *size)], 1)
    results = {}
    for model in args.models:
        for batch in args.batches:
            for task, (form, peer_form) in FORMS.items():
                size = (model, batch, args.threads)
                contenders = [ours("ours", form, *size), timm("PyTorch, timm", peer_form, *size)]
                results[model, batch, task] = take_turns(contenders, args.calls)
    rows = [["", "", "import", *compared(imports), "", "", ""]]
    for (model, batch, task), contenders in results.items():
        rows.append([model, str(batch), task, *compared(contenders), *compared(contenders, imports)])
    print(markdown(HEADER, rows))
    growth = {}
    for batch in args.batches:
        growth[batch] = growth_of(ours("ours", "step", args.models[0], batch, args.threads, size=64), args.steps)
        print(f"\ngrowth from step 100 to step {args.steps}, batch {batch}: {growth[batch]:.1f} MiB")
    save("memory", {"machine": machine("mindspore"), **vars(args), "growth": growth, "rows": [HEADER, *rows]},
         lambda figure: draw(figure, results, imports))  # fmt: skip
    return 0


def compared(contenders: list[Contender], without: list[Contender] | None = None) -> list[str]:
    """Our peak, PyTorch's and their ratio, both less the peaks of ``without``."""
    one, other = (contender.peak for contender in contenders)
    if without:
        one, other = one - without[0].peak, other - without[1].peak
    return [f"{one:.0f}", f"{other:.0f}", f"{one / other:.2f}"]


def growth_of(contender: Contender, steps: int) -> float:
    with contender:
        for _ in range(100 // 2):  # a turn is two calls
            contender.turn()
        before = contender.peak
        for _ in range((steps - 100) // 2):
            contender.turn()
        return contender.peak - before


def draw(figure: "Figure", results: dict[tuple[str, int, str], list[Contender]], imports: list[Contender]) -> None:
    """Two bars per case; the grey part of each is the framework's."""
    axis = figure.subplots()
    labels = [f"{model}\n{task}, {batch}" for model, batch, task in results]
    for shift, side in ((-0.2, 0), (0.2, 1)):
        peaks = [contenders[side].peak for contenders in results.values()]
        axis.bar([place + shift for place in range(len(labels))], peaks, 0.4, label=("ours", "PyTorch")[side])
        axis.bar([place + shift for place in range(len(labels))], imports[side].peak, 0.4, color="gray")
    axis.set_xticks(range(len(labels)), labels, rotation=60, fontsize=7)
    axis.set_ylabel("peak resident set, MiB")
    axis.legend()


if __name__ == "__main__":
    run_script(main)
