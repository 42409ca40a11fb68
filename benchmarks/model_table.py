"""Print the README's table of what structural re-parameterization does to every model.

    python benchmarks/model_table.py ["fastvit_*"] [--record]

Per model, for the network as it trains (in evaluation mode) and re-parameterized at both levels: trainable parameters,
operators of the exported graph, BatchNorms among them, and the largest difference of the logits from the train-time
network's, relative to the largest logit: fp32 on CPU, one image, random weights, statistics, affines and layer scales.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_weights import randomise
from report import line, markdown

from mindcv_reparam.complexity import STATES, Cost, Measured, cost, count_parameters, record
from mindcv_reparam.deploy.compare import difference
from mindcv_reparam.deploy.runners import cell_program
from mindcv_reparam.errors import Parser, run_script
from mindcv_reparam.registry import create_model, matching_models, model_info
from mindcv_reparam.runtime import prepare

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
        for state, net in _states(name):
            params[state] = count_parameters(net)
            costs[state] = cost(net, images.shape)
            logits[state] = cell_program(net)(images)
        print(line(_row(name, params, costs, logits)), flush=True)
        if args.record:
            record({name: Measured(params, costs["full"].macs)})
    print(f"{len(names)} models, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


def _states(name: str) -> Iterator[tuple[str, "nn.Cell"]]:
    """The network as it trains, with random parameters, and re-parameterized at each level."""
    from mindcv_reparam.reparam import LEVELS, reparameterize

    net = randomise(create_model(name)).set_train(False)
    yield "train", net
    for level in LEVELS:
        yield level, reparameterize(net, level)


def _row(
    name: str, params: dict[str, int], costs: dict[str, Cost], logits: dict[str, tuple[np.ndarray, ...]]
) -> list[str]:
    differences = [difference("logits", logits["train"], logits[state]) for state in STATES[1:]]
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
