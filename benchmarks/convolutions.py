"""Convolutions and their gradients: MindSpore's operators beside the kernels of mindcv_reparam/cpu, per layer.

    python benchmarks/convolutions.py [--batch 32] [--rounds 9] [--threads N]

Layers are those the networks spend their time in. Both sides take turns; the figure is the median of the rounds, in
multiplications and additions per second (2 per weight and output pixel), of the convolution and of both its gradients.
A call takes a millisecond of its own, so small batches tell less.
"""

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import machine, markdown, save

from mindcv_reparam.errors import Parser, run_script
from mindcv_reparam.runtime import prepare

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Layer:
    channels: int
    side: int
    out_channels: int
    size: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def __str__(self) -> str:
        kernel = f"{self.size}x{self.size}" + f" / {self.stride}" * (self.stride > 1)
        groups = f" in {self.groups} groups" * (self.groups > 1)
        return f"{kernel}, {self.channels} → {self.out_channels}{groups}, {self.side}x{self.side}"

    def operations(self, batch: int) -> float:
        side = (self.side + 2 * self.padding - self.size) // self.stride + 1
        return 2.0 * batch * self.out_channels * side**2 * self.channels // self.groups * self.size**2


LAYERS = (
    Layer(64, 56, 256),
    Layer(192, 28, 192),
    Layer(768, 14, 192),
    Layer(384, 7, 1536),
    Layer(192, 28, 192, size=3, padding=1, groups=8),
    Layer(128, 28, 320, size=3, stride=2, padding=1),
    Layer(3, 224, 64, size=7, stride=4, padding=2),
    Layer(64, 80, 64, size=3, padding=1),
    Layer(64, 56, 64, size=5, padding=2, groups=64),
)
HEADER = ("layer", "pass", "MindSpore (ms)", "kernels (ms)", "ratio", "MindSpore (GFLOP/s)", "kernels (GFLOP/s)")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # as many threads as cores
    prepare("CPU", seed=0)
    measured = {
        (layer, name): times for layer in LAYERS for name, times in measure(layer, args.batch, args.rounds).items()
    }
    table = [row(layer, name, args.batch, *times) for (layer, name), times in measured.items()]
    print(markdown(HEADER, table))
    save("convolutions", {"machine": machine("mindspore"), **vars(args), "table": [HEADER, *table]},
         lambda figure: draw(figure, table))  # fmt: skip
    return 0


def measure(layer: Layer, batch: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of MindSpore's operators and of the kernels, by pass."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn, ops

    from mindcv_reparam.cpu import use_kernels
    from mindcv_reparam.layers import conv2d

    def convolution() -> nn.Cell:
        shape = layer.channels, layer.out_channels, layer.size, layer.stride
        return nn.SequentialCell(conv2d(*shape, padding=layer.padding, groups=layer.groups))

    # One number leaves the graph: what does is copied into fresh memory, which takes as long as a convolution.
    class Forwards(nn.Cell):
        def __init__(self, net: nn.Cell):
            super().__init__()
            self.net = net

        def construct(self, x, dy):
            return self.net(x)[0, 0, 0, 0]

    class Gradients(nn.Cell):
        def __init__(self, net: nn.Cell):
            super().__init__()
            self.net, self.weights = net, ms.ParameterTuple(net.trainable_params())
            self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

        def construct(self, x, dy):
            (dx,), (dweight,) = self.gradient(self.net, self.weights)(x, dy)
            return dx[0, 0, 0, 0] + dweight[0, 0, 0, 0]

    x = ms.Tensor(np.random.default_rng(0).normal(size=(batch, layer.channels, layer.side, layer.side)), ms.float32)
    nets = [convolution(), use_kernels(convolution())]
    dy = ops.ones_like(nets[0](x))
    kinds: dict[str, Callable[[nn.Cell], Callable]] = {"forwards": Forwards, "gradients": Gradients}
    found = {}
    for name, kind in kinds.items():
        mindspore, kernels = medians([functools.partial(kind(net), x, dy) for net in nets], rounds)
        found[name] = mindspore, kernels
    return found


def medians(calls: list[Callable], rounds: int) -> list[float]:
    """Of each call's seconds; they take turns, after a round that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, some in zip(calls, seconds):
            start = time.perf_counter()
            call().asnumpy()
            some.append(time.perf_counter() - start)
    return [statistics.median(some[1:]) for some in seconds]


def row(layer: Layer, name: str, batch: int, mindspore: float, kernels: float) -> list[str]:
    work = layer.operations(batch) * (2 if name == "gradients" else 1) / 1e9
    times = f"{1000 * mindspore:.2f}", f"{1000 * kernels:.2f}", f"{kernels / mindspore:.2f}"
    return [str(layer), name, *times, f"{work / mindspore:.0f}", f"{work / kernels:.0f}"]


def draw(figure: "Figure", table: list[list[str]]) -> None:
    axis = figure.subplots()
    for shift, column in ((-0.2, 5), (0.2, 6)):
        places = [place + shift for place in range(len(table))]
        axis.barh(places, [float(line[column]) for line in table], 0.4, label=HEADER[column].split()[0])
    axis.set_yticks(range(len(table)), [f"{line[0]} {line[1]}" for line in table], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("GFLOP/s")
    axis.legend()


if __name__ == "__main__":
    run_script(main)
