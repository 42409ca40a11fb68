"""Every step of the input pipeline alone, beside the ways it could be done: processor time, and whether pixels stay.

python benchmarks/input_steps.py [--rounds 15]

Alternatives take turns, so that load from elsewhere meets all of them; the figure is the median of the rounds, of the
processor time per image on one thread. Images are those of input_pipeline.py; the crop is 280 × 370 pixels, the output
224. MindSpore's operators run eagerly; OpenCV has an environment of its own, made at the first run.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline import write_images
from input_ways import Samples, all_ways
from mindspore.device_context.cpu import op_tuning
from report import machine, markdown, save
from way import Way

from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 32
HEADER = ("step", "way", "processor ms/img", "÷ first", "largest difference of pixels")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    op_tuning.threads_num(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 0)
        files = [file.read_bytes() for file in sorted(Path(folder).rglob("*.jpg"))[:IMAGES]]
        some = all_ways(Samples(files, Path(folder)))
        times = measure(some, args.rounds)
        table = rows(some, times)
    print(markdown(HEADER, table))
    results = {
        "machine": machine("pillow", "numba", "simplejpeg", "mindspore"),
        "table": [dict(zip(HEADER, row)) for row in table],
    }
    save("input_steps", results, lambda figure: draw(figure, some, times))
    return 0


def measure(some: list[Way], rounds: int) -> dict[Way, float]:
    """Milliseconds per image of every way; the round that warms up does not count."""
    times: dict[Way, list[float]] = {way: [] for way in some}
    for _ in range(rounds + 1):
        for way in some:
            start = time.process_time()
            for index in range(IMAGES):
                way.run(index)
            times[way].append(1000 * (time.process_time() - start) / IMAGES)
    return {way: statistics.median(measured[1:]) for way, measured in times.items()}


def rows(some: list[Way], times: dict[Way, float]) -> list[list[str]]:
    firsts: dict[str, Way] = {}
    found = []
    for way in some:
        first = firsts.setdefault(way.step, way)
        ratio = f"{times[way] / times[first]:.2f}"
        found.append([way.step, way.name, f"{times[way]:.3f}", ratio, difference(first, way)])
    return found


def difference(first: Way, way: Way) -> str:
    """The largest of image 0; – where the two make something of different shapes or positions."""
    expected, output = (np.array(one.run(0), np.float32) for one in (first, way))
    if expected.shape != output.shape or not way.compared:
        return "–"  # noqa: RUF001
    return f"{np.abs(expected - output).max():.2g}"


def draw(figure: "Figure", some: list[Way], times: dict[Way, float]) -> None:
    figure.set_size_inches(9, 10)
    axis = figure.subplots()
    names = [f"{way.step}: {way.name}" for way in some]
    axis.barh(names, [times[way] for way in some], color=["tab:green" if "used" in name else "grey" for name in names])
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=6)
    axis.set_xlabel("processor milliseconds per image")


if __name__ == "__main__":
    run_script(main)
