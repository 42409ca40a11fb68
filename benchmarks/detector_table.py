"""Print what re-parameterization and export make of detectors, beside the deploy model of RT-DETR's authors.

    python benchmarks/detector_table.py ["rtdetr_*"] [--peers]

Per model, at its own image size: trainable parameters as it trains and re-parameterized at both levels, multiply-adds
of convolutions and matrix products, nodes of the ONNX file (opset 17; Constant and Identity left out) and those among
them that read from places (Gather of any kind, GridSample), and the largest difference of the re-parameterized outputs
from the train-time network's, relative to the largest logit and box: float32 on a CPU, one image, random weights,
statistics, affines and layer scales.

Behind the slash, with --peers and where transformers has the network: the authors' deploy model, RepVGG blocks fused
and the other norms left to the exporter, whose file is counted. transformers runs in an environment of its own, made
at the first run.
"""

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from export_table import OPSET, operators
from model_table import HEADER as OF_FOLDS
from model_table import states
from peers import Case, run_once, torch, write_onnx
from report import line, markdown

from mindcv_reparam.complexity import cost, count_parameters
from mindcv_reparam.errors import Parser, UserError, run_script
from mindcv_reparam.registry import matching_models, model_info
from mindcv_reparam.runtime import prepare
from mindcv_reparam.tasks import task_of

if TYPE_CHECKING:
    from mindspore import nn

PUBLISHED = ("rtdetr_r18vd", "rtdetr_r34vd", "rtdetr_r50vd", "rtdetr_r101vd")  # that transformers has
HEADER = (
    "model",
    OF_FOLDS[1],
    "BatchNorms train / full",
    "GMACs",
    "ONNX operators",
    "Conv",
    "Gather…, GridSample",
    "max\\|Δ\\| branches / full",
)


@dataclass(frozen=True)
class Exported:
    """An ONNX file: scalars in its weights and what it computes with them."""

    parameters: int
    macs: int
    operators: Counter[str]


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="rtdetr_*", help="shell pattern of the models' names")
    parser.add_argument(
        "--peers", action="store_true", help="compare with transformers, in an environment made at the first run"
    )
    args = parser.parse_args()
    names = [name for name in matching_models(args.pattern) if model_info(name).task == "detection"]

    prepare("CPU", mode=1, seed=0)  # graphs are compiled for the exports; the networks themselves run without
    start = time.perf_counter()
    print(markdown(HEADER))
    for name in names:
        peer = official(name) if args.peers and name in PUBLISHED else None
        print(line(row(name, peer)), flush=True)
    print(f"{len(names)} models, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


def row(name: str, peer: Exported | None) -> list[str]:
    from mindcv_reparam.run.runners import cell_program

    results, side = task_of(name).results, model_info(name).input_size
    images = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    params, norms, expected, differences = [], [], None, []
    for state, net in states(name, randomise):
        params.append(f"{count_parameters(net) / 1e6:.3f}")
        if state != "branches":
            measured = cost(net, (1, 3, side, side))
            norms.append(str(measured.operators["BatchNorm"]))
        outputs = cell_program(net)(images)
        if expected is None:
            expected = outputs
        else:
            differences.append(f"{results.difference('logits', expected, outputs):.0e}")
    # The last state is the fully fused one, which is what export.py writes.
    found = exported(net, side)
    files = [found] if peer is None else [found, peer]
    if peer is not None:
        params[1] += f" (theirs {peer.parameters / 1e6:.3f})"
    return [
        name,
        " / ".join(params),
        " / ".join(norms),
        " / ".join(f"{one / 1e9:.2f}" for one in [measured.macs, *(file.macs for file in files[1:])]),
        " / ".join(str(file.operators.total()) for file in files),
        " / ".join(str(file.operators["Conv"]) for file in files),
        " / ".join(f"{gathers(file.operators)}, {file.operators['GridSample']}" for file in files),
        " / ".join(differences),
    ]


def randomise(net: "nn.Cell") -> "nn.Cell":
    """Give every parameter random numbers under which no fold is an identity and maps differ from place to place, so
    that queries are selected by more than rounding; returns the network."""
    import mindspore as ms

    rng = np.random.default_rng(0)
    for parameter in net.get_parameters():
        leaf, shape = parameter.name.rsplit(".", 1)[-1], parameter.shape
        if leaf in ("bias", "beta", "moving_mean"):
            value = rng.normal(0, 1.5 if "sampling_offsets" in parameter.name else 0.05, shape)
        elif len(shape) > 1:
            value = rng.normal(0, (1.5 / np.prod(shape[1:])) ** 0.5, shape)
        else:
            value = rng.uniform(0.7, 1.3, shape)
        parameter.set_data(ms.Tensor(value, ms.float32))
    return net


def gathers(found: Counter[str]) -> int:
    return sum(count for kind, count in found.items() if kind.startswith("Gather"))


def exported(net: "nn.Cell", side: int) -> Exported:
    """This project's file of a fused network, logits and boxes."""
    from mindcv_reparam.bundle.manifest import TensorSpec
    from mindcv_reparam.export.mindir import write_mindir
    from mindcv_reparam.export.onnx import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        mindir, file = Path(folder, "net.mindir"), Path(folder, "net.onnx")
        write_mindir(net, mindir, TensorSpec("images", "float32", (1, 3, side, side)), ("logits", "boxes"))
        export_onnx(mindir, file, opset=OPSET)
        return Exported(count_parameters(net), multiply_adds(file), operators(file))


def official(name: str) -> Exported:
    """The authors' deploy model by its ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(name, batch=1, threads=1, weights=folder)
        run_once(torch("", "weights", case))
        file = Path(folder, "net.onnx")
        write_onnx(torch("", "onnx", case), file)
        return Exported(int(run_once(torch("", "count", case))), multiply_adds(file), operators(file))


def multiply_adds(file: Path) -> int:
    """Of convolutions and matrix products, of a file whose shapes are all known."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Folds what is constant, without which most shapes of PyTorch's files are not known.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file.with_suffix(".folded.onnx"))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    graph = onnx.shape_inference.infer_shapes(onnx.load(options.optimized_model_filepath)).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for one in (*graph.value_info, *graph.input, *graph.output):
        shapes[one.name] = tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            total += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]  # no Gemm here is transposed
            if not math.prod(shapes[node.output[0]]):
                raise UserError(f"{file}: the shape of {node.output[0]} is not known")
    return total


if __name__ == "__main__":
    run_script(main)
