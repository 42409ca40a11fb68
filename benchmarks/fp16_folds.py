"""Print what each level of re-parameterization costs in half precision.

python benchmarks/fp16_folds.py [--size 64] [--models visformer_tiny fastvit_t8 …]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import line, markdown

from mindcv_reparam.errors import Parser, run_script
from mindcv_reparam.registry import create_model, model_info
from mindcv_reparam.runtime import prepare

if TYPE_CHECKING:
    from mindspore import nn

MODELS = ("visformer_tiny", "fastvit_t8", "fastvit_sa12", "riformer_s12")
HEADER = ("model", "layer scales", "train-time", "q scale alone", "branches", "full", "full, subnormals lost")
SMALLEST_NORMAL = np.finfo(np.float16).smallest_normal  # 6.1e-5: below it, some devices flush to zero
# Layer scales as drawn: all as initialised, as large as in the parity fixtures, and over six decades.
SCALES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "1e-5": lambda _, shape: np.full(shape, 1e-5),
    "0.05 … 0.4": lambda rng, shape: rng.uniform(0.05, 0.4, shape),
    "1e-6 … 1": lambda rng, shape: 10.0 ** rng.uniform(-6.0, 0.0, shape),
}


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--size", type=int, default=64, help="pixels, a side")
    args = parser.parse_args()
    families = {name: model_info(name).family for name in args.models}

    prepare("CPU", mode=1, seed=0)
    print(markdown(HEADER))
    for name, family in families.items():
        for scales in ["-"] if family == "visformer" else SCALES:
            print(line([name, scales, *_errors(name, scales, args.size)]), flush=True)
    return 0


def _errors(name: str, scales: str, size: int) -> list[str]:
    """The error of every fp16 network, against the logits of the train-time network in fp32."""
    from mindcv_reparam.reparam import reparameterize

    net = create_model(name, img_size=size).set_train(False)
    rng = np.random.default_rng(0)
    for parameter in net.get_parameters():
        _randomise(parameter, rng, scales)
    images = rng.standard_normal((4, 3, size, size)).astype(np.float32)
    expected = _run(net, images)
    full = reparameterize(net)
    networks = (
        _with_folded_queries(net),
        reparameterize(net, "branches"),
        full,
        _without_subnormals(full),
        net,  # last: it is cast in place
    )
    queries, *fused, train_time = [_error(network, images, expected) if network else "-" for network in networks]
    return [train_time, queries, *fused]


def _randomise(parameter, rng: np.random.Generator, scales: str) -> None:
    """Numbers as in a trained network: variances near one, weights that keep the size of activations."""
    import mindspore as ms

    leaf, shape = parameter.name.rsplit(".", 1)[-1], parameter.shape
    if "layer_scale" in parameter.name:
        value = SCALES[scales](rng, shape)
    elif leaf == "moving_variance":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("moving_mean", "beta", "bias") or "pos_embed" in leaf:
        value = rng.normal(0.0, 0.05, shape)
    elif len(shape) == 1:
        value = rng.uniform(0.7, 1.3, shape)
    else:
        value = rng.normal(0.0, (0.6 / np.prod(shape[1:])) ** 0.5, shape)
    parameter.set_data(ms.Tensor(value, ms.float32))


def _with_folded_queries(net: "nn.Cell") -> "nn.Cell | None":
    """The train-time network with the scale of attention in the rows of q and nothing else folded."""
    from mindcv_reparam.layers import Attention
    from mindcv_reparam.reparam import reparameterize, replace_children

    new = replace_children(net)
    places = [
        (cell, name, child)
        for _, cell in new.cells_and_names()
        for name, child in cell.name_cells().items()
        if isinstance(child, Attention)
    ]
    for cell, name, attention in places:
        setattr(cell, name, reparameterize(attention))
    return new if places else None


def _without_subnormals(net: "nn.Cell") -> "nn.Cell":
    """With weights that are subnormal in float16 set to zero, as on a device that flushes them."""
    import mindspore as ms

    from mindcv_reparam.reparam import replace_children

    new = replace_children(net)
    for parameter in new.get_parameters():
        value = parameter.asnumpy()
        parameter.set_data(ms.Tensor(np.where(np.abs(value) < SMALLEST_NORMAL, 0.0, value), ms.float32))
    return new


def _run(net: "nn.Cell", images: np.ndarray) -> np.ndarray:
    import mindspore as ms

    return net(ms.Tensor(images)).asnumpy().astype(np.float64)


def _error(net: "nn.Cell", images: np.ndarray, expected: np.ndarray) -> str:
    """Of the logits in float16 (group normalisation in float32, as in training), root mean square, relative."""
    from mindcv_reparam.training.precision import mixed_precision

    logits = _run(mixed_precision(net, "O3").set_train(False), images)
    return f"{np.sqrt(np.square(logits - expected).mean() / np.square(expected).mean()):.1e}"


if __name__ == "__main__":
    run_script(main)
