"""Every step of the input pipeline alone, beside the ways it could be done: processor time, and whether pixels stay.

python benchmarks/input_steps.py [--rounds 15]

Alternatives take turns, so that load from elsewhere meets all of them; the figure is the median of the rounds, of one
thread's processor time per image. Images are those of input_pipeline.py; the crop is 280 × 370 pixels, the output 224.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline import write_images
from report import machine, markdown, save

from mindcv_reparam.data import kernels
from mindcv_reparam.data.auto_augment import Operation, Style
from mindcv_reparam.data.mixup import BatchMix
from mindcv_reparam.data.picture import BICUBIC, Picture
from mindcv_reparam.data.transforms import Normalize
from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 32
BOX = 50, 60, 280, 370  # top, left, height, width
CORNERS = 60, 50, 430, 330
SIZE = 224, 224
SHEAR = 1.0, 0.27, 0.0, 0.0, 1.0, 0.0
FILL = 124, 116, 104
HEADER = ("step", "way", "processor ms/img", "÷ first", "largest difference of pixels")


@dataclass(frozen=True)
class Way:
    """One way to do a step: ``run(index)`` does it for one image and returns what it makes."""

    step: str
    name: str
    run: Callable[[int], np.ndarray | Image.Image]


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 0)
        some = ways([file.read_bytes() for file in sorted(Path(folder).rglob("*.jpg"))[:IMAGES]], Path(folder))
        times = measure(some, args.rounds)
        table = rows(some, times)
    print(markdown(HEADER, table))
    results = {"machine": machine("pillow", "numba", "simplejpeg"), "table": [dict(zip(HEADER, row)) for row in table]}
    save("input_steps", results, lambda figure: draw(figure, some, times))
    return 0


def ways(files: list[bytes], folder: Path) -> list[Way]:
    pixels = [simplejpeg.decode_jpeg(file) for file in files]
    images = [Image.fromarray(one) for one in pixels]
    for index, one in enumerate(pixels):
        one.tofile(folder / f"{index}.raw")
    small = [np.array(image.resize(SIZE, BICUBIC)) for image in images]
    small_images = [Image.fromarray(one) for one in small]
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    normalize, planes = Normalize(tuple(mean.tolist()), tuple(std.tolist())), np.empty((3, *SIZE), np.float32)
    rotate, shear = Operation("Rotate", 1.0, 9), Image.Transform.AFFINE
    degrees = rotate.argument(np.random.default_rng(0))[1]
    batch = np.random.default_rng(0).standard_normal((IMAGES, 3, *SIZE), dtype=np.float32)
    mix, targets = BatchMix(cutmix_alpha=1.0), np.zeros((IMAGES, 1), np.float32)

    def opened(index: int) -> Image.Image:
        return Image.open(io.BytesIO(files[index]))

    def scaled(index: int) -> Image.Image:
        image = opened(index)
        image.draft("RGB", (250, 187))  # half the sides, by the discrete cosine transform
        image.load()
        return image

    def loaded(index: int) -> Image.Image:
        image = opened(index)
        image.load()
        return image

    def through_planes(index: int) -> np.ndarray:
        normalize.fill(planes, Picture(small[index]))
        return planes

    def mixed(index: int) -> np.ndarray:
        if index == 0:
            mix(batch, targets, np.random.default_rng(0))
        return planes[:, :1, :1]

    def copied(index: int) -> np.ndarray:
        if index == 0:
            batch[:, :, 20:180, 20:180] = batch[::-1, :, 20:180, 20:180].copy()
        return planes[:, :1, :1]

    return [
        Way("decode", "Pillow, convert to RGB", lambda i: opened(i).convert("RGB")),
        Way("decode", "Pillow", loaded),
        Way("decode", "simplejpeg (used)", lambda i: simplejpeg.decode_jpeg(files[i])),
        Way("decode", "simplejpeg, fast DCT and upsampling",
            lambda i: simplejpeg.decode_jpeg(files[i], fastdct=True, fastupsample=True)),
        Way("decode", "Pillow, draft to half the size", scaled),
        Way("decode", "none: decoded before, 7.5 times the disk", lambda i: np.fromfile(folder / f"{i}.raw", np.uint8)),
        Way("crop, resize", "Pillow, crop and resize", lambda i: images[i].crop(CORNERS).resize(SIZE, BICUBIC)),
        Way("crop, resize", "Pillow, resize with a box", lambda i: images[i].resize(SIZE, BICUBIC, CORNERS)),
        Way("crop, resize", "kernel (used)", lambda i: kernels.resize_crop(pixels[i], BOX, SIZE, (False, False), 1)),
        Way("rotate", "Pillow", lambda i: small_images[i].rotate(degrees, BICUBIC, fillcolor=FILL)),
        Way("rotate", "kernel (used)",
            lambda i: rotate(Picture(small[i]), np.random.default_rng(0), Style(FILL, BICUBIC)).pixels()),
        Way("shear", "Pillow", lambda i: small_images[i].transform(SIZE, shear, SHEAR, BICUBIC, fillcolor=FILL)),
        Way("shear", "kernel (used)", lambda i: kernels.affine(small[i], SHEAR, FILL)),
        Way("equalize", "Pillow", lambda i: ImageOps.equalize(small_images[i])),
        Way("equalize", "table, then applied",
            lambda i: Operation("Equalize", 1.0, 5)(Picture(small[i]), np.random.default_rng(0), Style()).pixels()),
        Way("equalize", "table, composed with the next (used)",
            lambda i: Operation("Equalize", 1.0, 5)(Picture(small[i]), np.random.default_rng(0), Style()).tables),
        Way("normalise", "table, by NumPy", lambda i: normalize(small_images[i])),
        Way("normalise", "arithmetic, by NumPy",
            lambda i: np.ascontiguousarray(((small[i] - mean) / std).transpose(2, 0, 1))),
        Way("normalise", "table, kernel (used)", through_planes),
        Way("cutmix", "copy of all patches", copied),
        Way("cutmix", "pair by pair (used)", mixed),
    ]  # fmt: skip


def measure(some: list[Way], rounds: int) -> dict[Way, float]:
    """Milliseconds per image of every way; the round that warms up does not count."""
    times: dict[Way, list[float]] = {way: [] for way in some}
    for _ in range(rounds + 1):
        for way in some:
            start = time.thread_time()
            for index in range(IMAGES):
                way.run(index)
            times[way].append(1000 * (time.thread_time() - start) / IMAGES)
    return {way: statistics.median(measured[1:]) for way, measured in times.items()}


def rows(some: list[Way], times: dict[Way, float]) -> list[list[str]]:
    firsts: dict[str, Way] = {}
    found = []
    for way in some:
        first = firsts.setdefault(way.step, way)
        expected, output = np.asarray(first.run(1), np.float32), np.asarray(way.run(1), np.float32)
        difference = "–" if expected.shape != output.shape else f"{np.abs(expected - output).max():.2g}"  # noqa: RUF001
        found.append([way.step, way.name, f"{times[way]:.3f}", f"{times[way] / times[first]:.2f}", difference])
    return found


def draw(figure: "Figure", some: list[Way], times: dict[Way, float]) -> None:
    axis = figure.subplots()
    names = [f"{way.step}: {way.name}" for way in some]
    axis.barh(names, [times[way] for way in some], color=["tab:green" if "used" in name else "grey" for name in names])
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=6)
    axis.set_xlabel("processor milliseconds per image")


if __name__ == "__main__":
    run_script(main)
