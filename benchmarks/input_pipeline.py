"""Images per second of the input pipeline: 500×375 JPEGs of about 77 KB, batches of 64, the recipes' augmentation.

python benchmarks/input_pipeline.py [--workers 2] [--batches 16] [--data_dir FOLDER]

Without a folder it writes its own images. "per core" is the processor time an image takes, which unlike the wall clock
does not suffer from other load on the machine.
"""

import argparse
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, create_loader
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.data.workers import ProcessWorkers, ThreadWorkers

BATCH = 64
MIXED = {"interpolation": "bicubic", "re_prob": 0.25, "cutmix": 1.0, "label_smoothing": 0.1, "num_classes": 1000}
RECIPES = {
    "visformer": {**MIXED, "auto_augment": "autoaug", "mixup": 0.8},
    "fastvit": {**MIXED, "auto_augment": "rand-m9-mstd0.5-inc1", "re_mode": "pixel", "mixup": 0.2, "image_resize": 256},
    "crop and flip": {"interpolation": "bicubic", "color_jitter": 0.0, "num_classes": 1000},
}


def write_images(folder: Path, count: int = 256) -> None:
    """Smooth colours under fine noise, which make JPEGs of the size of ImageNet's."""
    generator = np.random.default_rng(0)
    for index in range(count):
        colours = Image.fromarray(generator.integers(0, 256, (40, 53, 3)).astype(np.uint8))
        pixels = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC)) + generator.normal(
            0, 9, (375, 500, 1)
        )
        path = folder / "train" / str(index % 4) / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def processor_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(workers: ThreadWorkers | ProcessWorkers, batches: int, steps: int) -> tuple[float, float, float]:
    """Seconds to the first batch; images per second after it; processor milliseconds per image over all."""
    start, spent = time.perf_counter(), processor_seconds()
    workers.submit(0, 0).result()
    first = time.perf_counter()
    for future in [workers.submit(1 + index // steps, index % steps) for index in range(batches)]:
        future.result()
    rate = batches * BATCH / (time.perf_counter() - first)
    workers.close()
    return first - start, rate, 1000 * (processor_seconds() - spent) / ((batches + 1) * BATCH)


def measure_decoding(source: ImageSource, workers: int) -> tuple[float, float]:
    """Images per second and processor milliseconds per image of decoding alone, the bound of everything else."""
    start, spent = time.perf_counter(), processor_seconds()
    with ThreadPoolExecutor(workers) as executor:
        list(executor.map(source.load, range(len(source))))
    seconds = time.perf_counter() - start
    return len(source) / seconds, 1000 * (processor_seconds() - spent) / len(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--data_dir", help="image folder; default: generated images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data_dir is None:
            write_images(Path(folder))
        run(arguments.data_dir or folder, arguments.workers, arguments.batches)


def run(data_dir: str, workers: int, batches: int) -> None:
    print(f"{'recipe':14} {'workers':12} {'first batch':>12} {'img/s':>8} {'ms/img per core':>16}")
    source = create_dataset(Config(data_dir=data_dir), train=True)
    rate, cost = measure_decoding(source, workers)
    print(f"{'decoding only':14} {f'{workers} threads':12} {'':12} {rate:8.0f} {cost:16.2f}")
    for name, recipe in RECIPES.items():
        config = Config(data_dir=data_dir, batch_size=BATCH, **recipe)
        loader = create_loader(source, config, train=True)
        for kind, label in ((ThreadWorkers, "threads"), (ProcessWorkers, "processes")):
            first, rate, cost = measure(kind(loader.batches, workers), batches, loader.steps_per_epoch)
            print(f"{name:14} {f'{workers} {label}':12} {first:10.2f} s {rate:8.0f} {cost:16.2f}", flush=True)


if __name__ == "__main__":
    main()
