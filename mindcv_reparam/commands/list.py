"""List the models whose names match a pattern: parameters, GMACs, input, published accuracy.

Parameters are trainable ones with 1000 classes, of detectors with 80, of the network as it trains and re-parameterized
at both levels; GMACs are 1e9 multiply-accumulates of the fused network for one image of the input size. Accuracies are
those that the named sources published for ImageNet-1k, of detectors COCO's average precision; none was measured by this
project.
"""

import argparse
import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mindcv_reparam.complexity import STATES, Measured, measured
from mindcv_reparam.config.texts import load_yaml
from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import ModelInfo, matching_models, model_info

HEADER = ("name", "family", *(f"{state} M" for state in STATES), "GMACs", "input", "crop", "published top-1 or AP")


_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help='part of the name, or a pattern such as "fast*"')
    parser.add_argument("--recipes", action="store_true", help="list the recipes of a checkout for them instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    names, costs = matching_models(args.pattern), measured()
    if args.recipes:
        found = recipes(names)
        keys = ("recipe", "model", "about")
        print(json.dumps([dict(zip(keys, row)) for row in found], indent=2) if args.json else _lines(found))
        return 0
    if args.json:
        rows = [dataclasses.asdict(model_info(name)) | _costs(costs.get(name)) for name in names]
        print(json.dumps(rows, indent=2))
    else:
        table = [HEADER, *(_row(model_info(name), costs.get(name)) for name in names)]
        print(aligned(table, left=(0, 1, len(HEADER) - 1)))
    return 0


def recipes(names: Sequence[str], folder: Path = _CONFIGS) -> list[tuple[str, str, str]]:
    """Path, model and first line of every recipe for one of these models; those for any model come first.

    Raises:
        UserError: there are no recipes, as where the package is installed.
    """
    found = []
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        model = load_yaml(path).model
        if model is None or model in names:
            about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
            found.append((str(path.relative_to(folder.parent)), model or "any", about))
    if not found:
        raise UserError(f"there are no recipes for them in {folder}: a checkout of the project has them, in configs/")
    return found


def _lines(rows: Sequence[tuple[str, str, str]]) -> str:
    width = max(len(recipe) for recipe, _, _ in rows)
    return "\n".join(f"{recipe:<{width}}  {about}" for recipe, _, about in rows)


def _costs(cost: Measured | None) -> dict[str, Any]:
    """Nothing is known of a family from outside the package, which nobody measured."""
    return dataclasses.asdict(cost) if cost else {field.name: None for field in dataclasses.fields(Measured)}


def _row(info: ModelInfo, cost: Measured | None) -> tuple[str, ...]:
    params = (f"{cost.params[state] / 1e6:.3f}" if cost else "-" for state in STATES)
    accuracies = "; ".join(f"{entry.best:.2f} @{entry.input_size} {entry.source}" for entry in info.published)
    return (
        info.name,
        info.family,
        *params,
        f"{cost.macs / 1e9:.2f}" if cost else "-",
        str(info.input_size),
        str(info.crop_pct),
        accuracies,
    )


def aligned(rows: Sequence[tuple[str, ...]], left: Collection[int]) -> str:
    """Aligned columns: those of texts, whose numbers are given, to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
