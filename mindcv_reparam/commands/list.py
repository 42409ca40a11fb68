"""List the models whose names match a pattern: parameters, GMACs, input, published accuracy.

Parameters are trainable ones with 1000 classes, of the network as it trains and re-parameterized at both levels; GMACs
are 1e9 multiply-accumulates of the fused network for one image of the input size. Accuracies are those that the named
sources published for ImageNet-1k; none was measured by this project.
"""

import argparse
import dataclasses
import json

from mindcv_reparam.complexity import STATES, Measured, measured
from mindcv_reparam.registry import MODELS, ModelInfo, matching_models

HEADER = ("name", "family", *(f"{state} M" for state in STATES), "GMACs", "input", "crop", "published top-1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help='a shell pattern such as "fast*"; all by default')
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    names, costs = matching_models(args.pattern), measured()
    if args.json:
        rows = [dataclasses.asdict(MODELS[name]) | dataclasses.asdict(costs[name]) for name in names]
        print(json.dumps(rows, indent=2))
    else:
        print(_table([HEADER, *(_row(MODELS[name], costs[name]) for name in names)]))
    return 0


def _row(info: ModelInfo, cost: Measured) -> tuple[str, ...]:
    params = (f"{cost.params[state] / 1e6:.3f}" for state in STATES)
    accuracies = "; ".join(f"{entry.top1:.2f} @{entry.input_size} {entry.source}" for entry in info.published)
    return (
        info.name,
        info.family,
        *params,
        f"{cost.macs / 1e9:.2f}",
        str(info.input_size),
        str(info.crop_pct),
        accuracies,
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns: numbers to the right, the first two and the last to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    left = (0, 1, len(widths) - 1)
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
