"""Print the table of exported models: MindIR and ONNX, their sizes, how far they are from the network, their operators.

    python benchmarks/export_table.py ["fastvit_*"] [--peers]

Every model is fused fully, with random weights, statistics and affines, at its published image size and with a dynamic
batch; both files are run with one image and with three, the MindIR by MindSpore, the ONNX by onnxruntime.

Operators are the nodes of the ONNX file (opset 17), Constant and Identity left out. Behind the slash are those of the
export that timm itself makes of the same network, after its fusing; for RIFormer of the PoolFormer of its size, which
has pooling in addition. timm's Visformer has the exact GELU, which is 5 nodes where MindCV's approximate one is 8, so
that there is a row of it, too. timm runs in an environment of its own, made at the first run; without --peers its
numbers are left out.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from model_table import randomise
from peers import Case, torch, write_onnx
from report import line, markdown

from mindcv_reparam.errors import Parser, run_script
from mindcv_reparam.registry import list_models, matching_models, model_info
from mindcv_reparam.runtime import prepare
from mindcv_reparam.zoo import create_model

if TYPE_CHECKING:
    from mindspore import nn

ZOO = ("visformer_*", "riformer_*", "fastvit_*", "gfnet_h_b")
VISFORMERS = ("visformer_tiny", "visformer_small")  # that timm has
BATCHES = (1, 3)
OPSET = 17
# Columns of operators; Erf and Tanh are one a GELU, Pow stands in the approximate one.
OPERATORS = {
    "Conv": ("Conv",),
    "MatMul, Gemm": ("MatMul", "Gemm"),
    "Add": ("Add",),
    "Mul": ("Mul",),
    "Div, Erf, Tanh, Pow": ("Div", "Erf", "Tanh", "Pow"),
    "BatchNorm": ("BatchNormalization",),
}
HEADER = ("model", "MB MindIR / ONNX", "max\\|Δ\\| / max\\|logits\\| MindIR / ONNX", *OPERATORS, "all")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pattern", nargs="?", help="shell pattern of the models' names; the zoo and gfnet_h_b by default"
    )
    parser.add_argument(
        "--peers", action="store_true", help="compare with timm, in an environment made at the first run"
    )
    args = parser.parse_args()
    names = matching_models(args.pattern) if args.pattern else [name for zoo in ZOO for name in list_models(zoo)]

    prepare("CPU", mode=1, seed=0)  # graphs are compiled for the exports; the networks themselves run without
    start = time.perf_counter()
    peers = timm_operators(names) if args.peers else {}
    print(markdown(HEADER))
    for name in names:
        if name in VISFORMERS:
            print(line([name, *_row(create_model(name), name, None)]), flush=True)
            net = create_model(name, gelu="exact")
            print(line([f"{name}, exact GELU", *_row(net, name, peers.get(name))]), flush=True)
        else:
            print(line([name, *_row(create_model(name), name, peers.get(_peer(name)))]), flush=True)
    print(f"{len(names)} models, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


def _row(net: "nn.Cell", name: str, peer: Counter[str] | None) -> list[str]:
    from mindcv_reparam.bundle.manifest import TensorSpec
    from mindcv_reparam.export.mindir import write_mindir
    from mindcv_reparam.export.onnx import export_onnx
    from mindcv_reparam.reparam import reparameterize
    from mindcv_reparam.run.compare import largest_difference
    from mindcv_reparam.run.runners import cell_program, mindspore_program, onnxruntime_program

    net, size = reparameterize(randomise(net)), model_info(name).input_size
    rng = np.random.default_rng(0)
    trials = [rng.standard_normal((batch, 3, size, size), np.float32) for batch in BATCHES]
    with tempfile.TemporaryDirectory() as folder:
        mindir, path = Path(folder, f"{name}.mindir"), Path(folder, f"{name}.onnx")
        write_mindir(net, mindir, TensorSpec("images", "float32", (None, 3, size, size)), ("logits",))
        export_onnx(mindir, path, opset=OPSET)
        programs = mindspore_program(mindir), onnxruntime_program(path)
        differences = [largest_difference(cell_program(net), program, trials) for program in programs]
        found = operators(path)
        sizes = [file.stat().st_size / 1e6 for file in (mindir, path)]
    return [
        " / ".join(f"{size:.1f}" for size in sizes),
        " / ".join(f"{difference:.0e}" for difference in differences),
        *(_compared(found, peer, kinds) for kinds in OPERATORS.values()),
        _compared(found, peer),
    ]


def operators(file: Path) -> Counter[str]:
    import onnx

    kinds = (node.op_type for node in onnx.load(file).graph.node)
    return Counter(kind for kind in kinds if kind not in ("Constant", "Identity"))


def _compared(ours: Counter[str], peer: Counter[str] | None, kinds: Iterable[str] | None = None) -> str:
    """Nodes of some kinds, all by default, in this project's file and in timm's."""
    counts = [sum(found[kind] for kind in kinds or found) for found in (ours, peer) if found is not None]
    return " / ".join(map(str, counts))


def _peer(name: str) -> str:
    """timm's model that is the same network, or, for RIFormer, the nearest."""
    return name.replace("riformer", "poolformer")


def timm_operators(names: Iterable[str]) -> dict[str, Counter[str]]:
    """What timm's exports of those models consist of that it has, by its names."""
    known = (*VISFORMERS, *list_models("poolformer_*"), *list_models("fastvit_*"))
    wanted = dict.fromkeys(_peer(name) for name in names if _peer(name) in known)
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            write_onnx(torch("", "onnx", Case(name, batch=1, threads=1)), Path(folder, name), dynamic=True)
        return {name: operators(Path(folder, name)) for name in wanted}


if __name__ == "__main__":
    run_script(main)
