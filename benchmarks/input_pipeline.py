"""Compare this project's input pipeline with its peers': images per second, and processor time per image.

    python benchmarks/input_pipeline.py [--workers 2] [--rounds 5] [--images 2048] [--data_dir FOLDER]
        [--mindcv CHECKOUT] [--recipes visformer fastvit]
    python benchmarks/input_pipeline.py --layouts 1 2 4 [--rounds 5] [--images 2048]
    python benchmarks/input_pipeline.py --detection [--workers 2] [--rounds 5] [--images 2048]

Without a folder it writes its own images: JPEGs of 500×375 pixels and about 77 KB. The peers run in environments of
their own, made at the first run: MindCV from PyPI (or a checkout) beside this project's MindSpore, timm with PyTorch.
Every pipeline is a process that lives through the whole run; a round is one epoch of each, one after the other, so that
load from elsewhere meets all of them. The first epoch of each and the first batch of every epoch do not count.

Processor time (of all threads and worker processes) is the robust figure on a machine with other load; "per core" is
its inverse.

``--layouts`` compares how workers could be laid out instead: our threads and processes by their number, on files and on
a tar archive of them, MindSpore's dataset, and its autotune, on the same batches of the Visformer recipe; and
MindSpore's own operators, which have no such recipe, on random crop and flip, beside ours with the same.

``--detection`` compares with the pipeline of RT-DETR's authors, torchvision's transforms in an environment of its own:
their augmentation to 640×640 pixels, of generated JPEGs of 640×480 with seven objects each. Ours also pads the objects
and draws the denoising queries, which is part of their training step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from environments import environment
from peers import pipes, processor_seconds
from report import machine, markdown, save

from mindcv_reparam.errors import Parser, UserError, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 64
DISTINCT = 256  # images written; the epoch repeats them under other names
MIXED = {"interpolation": "bicubic", "re_prob": 0.25, "cutmix": 1.0, "cutmix_prob": 1.0, "label_smoothing": 0.1}
RECIPES: dict[str, dict[str, object]] = {
    "visformer": {**MIXED, "auto_augment": "autoaug", "mixup": 0.8, "image_resize": 224},
    "fastvit": {
        **MIXED, "auto_augment": "rand-m9-mstd0.5-inc1", "re_mode": "pixel", "mixup": 0.2, "image_resize": 256,
    },
    "crop and flip": {"interpolation": "bicubic", "color_jitter": 0.0, "image_resize": 224},
}  # fmt: skip
DETECTION = {
    **{"model": "rtdetr_r18vd", "dataset": "coco", "train_split": "train", "train_annotations": "objects.json"},
    **{"image_resize": 640, "interpolation": "bilinear", "mean": [0.0] * 3, "std": [255.0] * 3, "batch_size": 4},
    **{"num_classes": 80, "photometric": 0.5, "zoom_out": 0.5, "iou_crop": 0.8, "hflip": 0.5},
}
TORCHVISION = ("torch==2.13.0", "torchvision==0.28.0", "pillow==13.0.0", "pycocotools==2.0.11", "numpy==1.26.4")
PIPELINES = Path(__file__).parent / "pipelines"
TIMM = (
    "torch==2.13.0",
    "torchvision==0.28.0",
    "timm==1.0.24",
    "pillow==11.3.0",
)  # newer ones refuse Posterize to 0 bits
HEADER = (
    "recipe", "pipeline", "first batch (s)", "img/s", "processor ms/img", "img/s per core",
    "img/s ÷ {}", "img/s per core ÷ {}",
)  # fmt: skip
PEERS = ("MindCV", "torchvision")  # that the last two columns compare with, where they are


@dataclass(frozen=True)
class Epoch:
    """One epoch of a pipeline: to the first batch, and after it."""

    first: float  # seconds to the first batch
    rate: float  # images per second after it
    cost: float  # processor milliseconds per image, all of them


class Pipeline:
    """A pipeline's process; ``run`` measures an epoch."""

    def __init__(self, name: str, python: str | Path, script: str, *arguments: str) -> None:
        self.name = name
        self._command = [str(python), str(PIPELINES / script), *arguments]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self) -> Epoch:
        before = processor_seconds(self._process.pid)
        try:
            asked, answers = pipes(self._process)
            asked.write("\n")
            asked.flush()
            answer = json.loads(answers.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise UserError(f"the pipeline {self.name!r} ended: {subprocess.list2cmdline(self._command)}") from None
        spent = processor_seconds(self._process.pid) - before
        return Epoch(answer["first"], answer["after"] / answer["seconds"], 1000 * spent / answer["images"])

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048, help="of an epoch, a multiple of 256")
    parser.add_argument("--data_dir", help="image folder with train/ and a folder per class; default: generated images")
    parser.add_argument("--mindcv", default="", help="a checkout of MindCV; default: its release on PyPI")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["visformer", "fastvit"])
    parser.add_argument("--layouts", type=int, nargs="+", help="numbers of workers: compare layouts instead of peers")
    parser.add_argument("--detection", action="store_true", help="boxes too, beside the pipeline of RT-DETR's authors")
    args = parser.parse_args()

    name = "input_layout" if args.layouts else "input_detection" if args.detection else "input_pipeline"
    with tempfile.TemporaryDirectory() as folder:
        if args.detection:
            write_objects(Path(folder), args.images)
            results = with_boxes(folder, args)
        else:
            if args.data_dir is None:
                write_images(Path(folder), args.images)
            data = args.data_dir or folder
            packed = os.path.join(folder, "packed")
            results = laid_out(data, packed, args.layouts, args.rounds) if args.layouts else against_peers(data, args)
    header = [cell.format("torchvision's" if args.detection else "MindCV's") for cell in HEADER]
    header = header[:-2] if args.layouts else header
    print(markdown(header, [row[: len(header)] for recipe in results for row in rows(recipe, results[recipe])]))
    plain = {
        recipe: {name: [asdict(one) for one in some] for name, some in of.items()} for recipe, of in results.items()
    }
    save(
        name,
        {"machine": machine("mindspore", "pillow", "numba", "simplejpeg"), **vars(args), "epochs": plain},
        lambda figure: draw(figure, results),
    )
    return 0


def against_peers(folder: str, args: argparse.Namespace) -> dict[str, dict[str, list[Epoch]]]:
    """Epochs by recipe and pipeline; decoding alone comes first."""
    mindcv = sys.executable if args.mindcv else environment("mindcv", ["mindcv==0.3.0"], beside_project=True)
    timm = environment("timm", TIMM)
    workers = str(args.workers)
    decoders = [
        Pipeline(f"{decoder}, {workers} threads", sys.executable, "decoding.py", folder, workers, decoder)
        for decoder in ("mindspore", "pillow", "simplejpeg")
    ]
    results = {"decoding alone": measure(decoders, args.rounds)}
    for recipe in args.recipes:
        pipelines = [
            Pipeline("MindCV", mindcv, "mindcv_recipe.py", settings(recipe), folder, workers, args.mindcv),
            Pipeline("timm", timm, "timm_recipe.py", settings(recipe), folder, workers),
            ours("ours, threads", recipe, folder, workers, "threads"),
            ours("ours, processes", recipe, folder, workers, "processes"),
        ]
        results[recipe] = measure(pipelines, args.rounds)
    return results


def with_boxes(folder: str, args: argparse.Namespace) -> dict[str, dict[str, list[Epoch]]]:
    """Epochs of RT-DETR's training pipeline."""
    more = json.dumps(DETECTION), folder, str(args.workers)
    pipelines = [
        Pipeline("torchvision", environment("detection", TORCHVISION), "torchvision_detection.py", *more),
        *(Pipeline(f"ours, {kind}", sys.executable, "ours.py", *more, kind) for kind in ("threads", "processes")),
    ]
    return {"RT-DETR": measure(pipelines, args.rounds)}


def laid_out(folder: str, packed: str, counts: Sequence[int], rounds: int) -> dict[str, dict[str, list[Epoch]]]:
    """Epochs by recipe and layout. MindSpore's dataset and its operators have as many threads as there are cores.

    Args:
        packed: where an archive of the folder's images is made.
    """
    os.makedirs(packed)
    with tarfile.open(os.path.join(packed, "train.tar"), "w") as archive:
        archive.add(os.path.join(folder, "train"), ".")
    cores = str(len(os.sched_getaffinity(0)))
    in_mindspore = [dataset(f"MindSpore's, {how}", "visformer", folder, cores, how) for how in ("fixed", "autotune")]
    plain = [
        ours(f"threads {cores}", "crop and flip", folder, cores, "threads"),
        dataset("MindSpore's operators", "crop and flip", folder, cores, "operators"),
    ]
    return {
        "visformer": measure([*layouts(folder, counts), *layouts(packed, counts, "archive, "), *in_mindspore], rounds),
        "crop and flip": measure(plain, rounds),
    }


def layouts(folder: str, counts: Sequence[int], what: str = "") -> list[Pipeline]:
    """Ours with the Visformer recipe, named by kind and number of workers: "threads 2"."""
    return [
        ours(f"{what}{kind} {count}", "visformer", folder, str(count), kind)
        for kind in ("threads", "processes")
        for count in counts
    ]


def ours(name: str, recipe: str, folder: str, workers: str, kind: str) -> Pipeline:
    return Pipeline(name, sys.executable, "ours.py", settings(recipe), folder, workers, kind)


def dataset(name: str, recipe: str, folder: str, workers: str, how: str) -> Pipeline:
    return Pipeline(name, sys.executable, "mindspore_dataset.py", settings(recipe), folder, workers, how)


def settings(recipe: str) -> str:
    return json.dumps({**RECIPES[recipe], "batch_size": BATCH, "num_classes": 1000})


def write_objects(folder: Path, count: int, objects: int = 7) -> None:
    """Images of COCO's usual size and a file of COCO's form; boxes of all sizes, anywhere."""
    width, height = 640, 480
    write_images(folder, count, width, height)
    files = sorted(path.relative_to(folder / "train") for path in (folder / "train").rglob("*.jpg"))
    generator = np.random.default_rng(1)
    annotations: list[dict[str, object]] = []
    for image in range(len(files)):
        sides = generator.uniform(0.03, 0.6, (objects, 2)) * (width, height)
        places = generator.uniform(0, 1, (objects, 2)) * ((width, height) - sides)
        for box, category in zip(np.concatenate([places, sides], axis=1).tolist(), generator.integers(1, 81, objects)):
            number, area = len(annotations) + 1, box[2] * box[3]
            annotations.append(
                {"id": number, "image_id": image, "category_id": int(category), "bbox": box, "area": area, "iscrowd": 0}
            )
    images = [{"id": i, "file_name": str(file), "width": width, "height": height} for i, file in enumerate(files)]
    categories = [{"id": number, "name": str(number)} for number in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / str(DETECTION["train_annotations"])).write_text(json.dumps(content))


def write_images(folder: Path, count: int, width: int = 500, height: int = 375) -> None:
    """Smooth colours under fine noise, which make JPEGs of the size of ImageNet's."""
    generator = np.random.default_rng(0)
    for index in range(DISTINCT):
        colours = Image.fromarray(generator.integers(0, 256, (40, 53, 3)).astype(np.uint8))
        noise = generator.normal(0, 9.2, (height, width, 1))
        pixels = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC)) + noise
        path = folder / "train" / str(index % 4) / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
        for copy in range(1, count // DISTINCT):
            os.link(path, path.with_name(f"{index}-{copy}.jpg"))


def measure(pipelines: list[Pipeline], rounds: int) -> dict[str, list[Epoch]]:
    """``rounds`` epochs of every pipeline, taking turns, by its name; the epoch that warms each up comes first."""
    epochs: dict[str, list[Epoch]] = {pipeline.name: [] for pipeline in pipelines}
    with ExitStack() as stack:
        for pipeline in pipelines:
            stack.enter_context(pipeline)
        for number in range(rounds + 1):
            for pipeline in pipelines:
                epochs[pipeline.name].append(pipeline.run())
                print(f"{number}/{rounds} {pipeline.name}: {epochs[pipeline.name][-1]}", file=sys.stderr)
    return epochs


def rows(recipe: str, epochs: dict[str, list[Epoch]]) -> list[list[str]]:
    """Medians over the rounds; ratios are medians of the rounds' ratios."""
    found = []
    for name, (warm_up, *measured) in epochs.items():
        rate, cost = (statistics.median(getattr(one, key) for one in measured) for key in ("rate", "cost"))
        ratios = ["", ""]
        if peer := next((peer for peer in PEERS if peer in epochs), None):
            pairs = list(zip(measured, epochs[peer][1:]))
            faster = statistics.median(one.rate / other.rate for one, other in pairs)
            cheaper = statistics.median(other.cost / one.cost for one, other in pairs)
            ratios = [f"{faster:.2f}", f"{cheaper:.2f}"]
        found.append(
            [recipe, name, f"{warm_up.first:.1f}", f"{rate:.0f}", f"{cost:.2f}", f"{1000 / cost:.0f}", *ratios]
        )
    return found


def draw(figure: "Figure", results: dict[str, dict[str, list[Epoch]]]) -> None:
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (recipe, epochs) in zip(axes, results.items()):
        rates = {name: [one.rate for one in measured] for name, (_, *measured) in epochs.items()}
        axis.bar(list(rates), [statistics.median(some) for some in rates.values()], color="tab:blue", alpha=0.7)
        for place, some in enumerate(rates.values()):
            axis.plot([place] * len(some), some, ".", color="black", markersize=3)
        axis.set_title(recipe)
        axis.tick_params(axis="x", rotation=30)
    axes[0].set_ylabel("images per second")


if __name__ == "__main__":
    run_script(main)
