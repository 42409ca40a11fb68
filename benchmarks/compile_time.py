"""How long MindSpore compiles a network on this machine, beside how many Cells it has.

    python benchmarks/compile_time.py [--models visformer_tiny ...] [--size 256]

A process per model; two images a batch, whose size the compiler does not care about. The table is on standard output:
processor seconds, which other load disturbs least, and seconds on the clock, of the training step and of the network
in validation, and processor milliseconds per Cell. docs/speed.md has where the constants of
``mindcv_reparam/tasks/evaluate.py`` are from; this shows that the time goes by the Cells.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent / "contenders"))

from ours import outputs_of, train_step
from report import line, markdown

from mindcv_reparam.errors import Parser, UserError, run_script
from mindcv_reparam.runtime import prepare

MODELS = ("visformer_tiny", "fastvit_t8", "fastvit_sa12", "riformer_s12", "riformer_s24")
HEADER = (
    "model",
    "Cells",
    "step, processor (s)",
    "step (s)",
    "validation, processor (s)",
    "validation (s)",
    "ms per Cell",
)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side (default 256)")
    parser.add_argument("--one", action="store_true", help="measure the one model in this process, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.models[0], args.size)))
        return
    print(markdown(HEADER), flush=True)
    for model in args.models:
        command = [sys.executable, __file__, "--one", "--models", model, "--size", str(args.size)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise UserError(f"{model}: {ended.stderr[-2000:]}")
        cells, *seconds = json.loads(ended.stdout.splitlines()[-1])
        each = " / ".join(f"{1000 * processor / cells:.0f}" for processor in seconds[::2])
        print(line((model, str(cells), *(f"{some:.1f}" for some in seconds), each)), flush=True)


def measure(model: str, size: int) -> tuple[float, ...]:
    """Cells; processor seconds and seconds of the step's compilation, which comes first as in training, and of both
    for validation."""
    prepare("CPU", seed=0)
    import mindspore as ms

    from mindcv_reparam.cpu import use_kernels
    from mindcv_reparam.zoo import create_model

    net = create_model(model, img_size=(size, size))
    cells = len(list(net.cells_and_names()))
    images = ms.Tensor(np.random.default_rng(0).standard_normal((2, 3, size, size)), ms.float32)
    step, targets = train_step(net, model, 2)
    use_kernels(step, alone=True)  # as train.py
    step.set_train()
    rate, update = ms.Tensor(1e-3, ms.float32), ms.Tensor(True)
    stepped = compilation(lambda: step(images, targets, rate, update)[0].asnumpy())
    net.set_train(False)
    return cells, *stepped, *compilation(lambda: [one.asnumpy() for one in outputs_of(net(images))])


def compilation(call: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds and seconds of the first call, less those of the second."""
    clocks = [(time.process_time(), time.perf_counter())]
    for _ in range(2):
        call()
        clocks.append((time.process_time(), time.perf_counter()))
    processor, wall = (2 * second - first - third for first, second, third in zip(*clocks, strict=True))
    return processor, wall


if __name__ == "__main__":
    run_script(main)
