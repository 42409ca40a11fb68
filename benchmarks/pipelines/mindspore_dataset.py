"""This project's batches through MindSpore's dataset. Arguments: JSON of settings, folder, workers, how.

How: "fixed" (MindSpore's threads call our code), "autotune" (and MindSpore picks how many of them, and how long the
queues are), "operators" (MindSpore's own operators of the recipe "crop and flip" alone).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from mindspore import dataset
from mindspore.dataset import vision
from rounds import serve

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.tasks import TASKS, open_loader

TUNING_INTERVAL = 4  # steps
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
settings, folder, workers, how = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
config = Config(data_dir=folder, epoch_size=1, **settings)
batches = open_loader(TASKS["classification"], create_dataset(config, train=True), config, train=True).batches


class Steps:
    """Our batches by their step."""

    def __len__(self) -> int:
        return batches.sampler.steps_per_epoch

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...]:
        images = np.empty(batches.image_shape, np.float32)
        return images, *batches.make(0, int(step), images).arrays


def of_our_code() -> dataset.Dataset:
    return dataset.GeneratorDataset(
        Steps(), ["images", "targets"], shuffle=False, num_parallel_workers=workers, python_multiprocessing=False
    )


def of_operators() -> dataset.Dataset:
    side = settings["image_resize"]
    images = dataset.ImageFolderDataset(folder + "/train", num_parallel_workers=workers, shuffle=True)
    operations = [
        vision.RandomCropDecodeResize((side, side), interpolation=vision.Inter.PILCUBIC),
        vision.RandomHorizontalFlip(),
        vision.Normalize(MEAN, STD),
        vision.HWC2CHW(),
    ]
    images = images.map(operations, "image", num_parallel_workers=workers)
    return images.batch(settings["batch_size"], drop_remainder=True, num_parallel_workers=workers)


def epoch() -> Iterator[int]:
    source = of_operators() if how == "operators" else of_our_code()
    for images, _ in source.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False):
        yield len(images)


if how == "autotune":
    dataset.config.set_enable_autotune(True)
    dataset.config.set_autotune_interval(TUNING_INTERVAL)
serve(epoch)
