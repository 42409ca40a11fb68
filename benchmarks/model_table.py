"""Print the README's table of what structural re-parameterization does to every model.

    python benchmarks/model_table.py ["fastvit_*"] [--record]

Per model, for the network as it trains (in evaluation mode) and re-parameterized at both levels: trainable parameters,
operators of the exported graph, BatchNorms among them, and the largest difference of the logits from the train-time
network's, relative to the largest logit: fp32 on CPU, one image, random weights, statistics, affines and layer scales.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import line, markdown

from mindcv_reparam.complexity import STATES, Cost, Measured, cost, count_parameters, record
from mindcv_reparam.errors import Parser, run_script
from mindcv_reparam.registry import matching_models, model_info
from mindcv_reparam.run.runners import cell_program
from mindcv_reparam.runtime import prepare
from mindcv_reparam.tensors import relative_difference
from mindcv_reparam.zoo import create_model

if TYPE_CHECKING:
    from mindspore import nn

HEADER = (
    "model",
    "params (M) train / branches / full",
    "operators train / branches / full",
    "BatchNorms",
    "GMACs fused",
    "max\\|Δ\\| / max\\|logits\\| branches / full",
)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of the models' names; all by default")
    parser.add_argument("--record", action="store_true", help="keep parameters and MACs for the command list")
    args = parser.parse_args()
    names = matching_models(args.pattern)

    prepare("CPU", mode=1, seed=0)  # a graph is compiled for the export, another to run would double the time
    start = time.perf_counter()
    print(markdown(HEADER))
    for name in names:
        size = model_info(name).input_size
        images = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
        params, costs, logits = {}, {}, {}
        for state, net in states(name):
            params[state] = count_parameters(net)
            costs[state] = cost(net, (1, 3, size, size))
            logits[state] = cell_program(net)(images)
        print(line(_row(name, params, costs, logits)), flush=True)
        if args.record:
            record({name: Measured(params, costs["full"].macs)})
    print(f"{len(names)} models, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


def randomise(net: "nn.Cell") -> "nn.Cell":
    """Give every parameter random numbers under which no fold is an identity, and activations neither vanish nor
    explode; returns the network."""
    import mindspore as ms

    rng = np.random.default_rng(0)
    for parameter in net.get_parameters():
        leaf, shape = parameter.name.rsplit(".", 1)[-1], parameter.shape
        if leaf == "moving_variance":
            value = rng.uniform(0.5, 1.5, shape)
        elif leaf == "gamma":
            value = rng.uniform(0.1, 0.5, shape) * rng.choice([-1.0, 1.0], shape)
        elif leaf in ("moving_mean", "beta", "bias"):
            value = rng.normal(0.0, 0.1, shape)
        else:
            value = rng.normal(0.0, np.prod(shape[1:]) ** -0.5, shape)
        parameter.set_data(ms.Tensor(value, ms.float32))
    return net


def states(name: str, fill: Callable[["nn.Cell"], "nn.Cell"] = randomise) -> Iterator[tuple[str, "nn.Cell"]]:
    """The network as it trains, with random parameters, and re-parameterized at each level."""
    from mindcv_reparam.reparam import LEVELS, reparameterize

    net = fill(create_model(name)).set_train(False)
    yield "train", net
    for level in LEVELS:
        yield level, reparameterize(net, level)


def _row(
    name: str, params: dict[str, int], costs: dict[str, Cost], logits: dict[str, tuple[np.ndarray, ...]]
) -> list[str]:
    differences = [relative_difference(logits["train"], logits[state]) for state in STATES[1:]]
    return [
        name,
        " / ".join(f"{params[state] / 1e6:.3f}" for state in STATES),
        " / ".join(str(costs[state].operators.total()) for state in STATES),
        " / ".join(str(costs[state].operators["BatchNorm"]) for state in STATES),
        f"{costs['full'].macs / 1e9:.2f}",
        " / ".join(f"{one:.0e}" for one in differences),
    ]


if __name__ == "__main__":
    run_script(main)
