"""How workers could be laid out: our threads and processes by their number, MindSpore's dataset, and its autotune.

    python benchmarks/input_layout.py [--workers 1 2 4] [--rounds 3] [--images 2048]

All but the last read the same batches of the Visformer recipe. The last is MindSpore's own operators, which have no
such recipe: random crop and flip, beside ours with the same. See input_pipeline.py for how it is measured.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline import BATCH, RECIPES, Pipeline, draw, measure, rows, write_images
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, run_script

HEADER = ("recipe", "layout", "first batch (s)", "img/s", "processor ms/img", "img/s per core")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2048, help="of an epoch, a multiple of 256")
    args = parser.parse_args()
    cores = str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images)
        in_mindspore = [
            dataset(f"MindSpore's, {how}", "visformer", folder, cores, how) for how in ("fixed", "autotune")
        ]
        results = {
            "visformer": measure([*layouts(folder, args.workers), *in_mindspore], args.rounds),
            "crop and flip": measure(
                [
                    ours("threads", "crop and flip", folder, cores),
                    dataset("MindSpore's operators", "crop and flip", folder, cores, "operators"),
                ],
                args.rounds,
            ),
        }
    print(markdown(HEADER, [row[: len(HEADER)] for recipe in results for row in rows(recipe, results[recipe])]))
    plain = {
        recipe: {name: [asdict(one) for one in some] for name, some in of.items()} for recipe, of in results.items()
    }
    results_and_machine = {"machine": machine("mindspore", "numba", "simplejpeg"), **vars(args), "epochs": plain}
    save("input_layout", results_and_machine, lambda figure: draw(figure, results))
    return 0


def layouts(folder: str, workers: Sequence[int]) -> list[Pipeline]:
    """Named by kind and number, "threads 2"."""
    return [ours(kind, "visformer", folder, str(count)) for kind in ("threads", "processes") for count in workers]


def ours(kind: str, recipe: str, folder: str, workers: str) -> Pipeline:
    return Pipeline(f"{kind} {workers}", sys.executable, "ours.py", settings(recipe), folder, workers, kind)


def dataset(name: str, recipe: str, folder: str, workers: str, how: str) -> Pipeline:
    return Pipeline(name, sys.executable, "mindspore_dataset.py", settings(recipe), folder, workers, how)


def settings(recipe: str) -> str:
    return json.dumps({**RECIPES[recipe], "batch_size": BATCH, "num_classes": 1000})


if __name__ == "__main__":
    run_script(main)
