"""This project's loader, of the task of the settings' model. Arguments: JSON of settings, folder, workers, "threads" or
"processes"."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rounds import serve

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, loader
from mindcv_reparam.tasks import open_loader, task_named, task_of

settings, folder, workers, kind = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
loader._MOST_THREADS = workers if kind == "threads" else 0
config = Config(data_dir=folder, epoch_size=1, num_parallel_workers=workers, **settings)
task = task_of(config.model) if config.model else task_named()
batches = open_loader(task, create_dataset(config, train=True), config, train=True)


def epoch() -> Iterator[int]:
    for images, *_ in batches.epoch(0):  # the last one: the workers, which live on, do not begin another
        yield len(images)


serve(epoch)
