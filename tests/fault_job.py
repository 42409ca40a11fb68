"""train.py, whose arguments these are, with a loader that can be hit and spoiled.

Batches come slowly enough to hit a given step. ``FAULT_NAN="images N"`` or ``"labels N"`` in the environment makes all
images or all labels of the N-th batch (from 0) NaN.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from mindcv_reparam import runtime
from mindcv_reparam.data.loader import Loader
from mindcv_reparam.errors import run_script

SECONDS = 0.1  # per batch


def main() -> None:
    runtime.prepare("CPU")
    Loader.epoch = faulty_epoch(Loader.epoch, *os.environ.get("FAULT_NAN", "none -1").split())
    train.main()


def faulty_epoch(epoch_of: Callable[..., Iterator], part: str, spoiled: str) -> Callable[..., Iterator]:
    """The loader's ``epoch``, slow and with one training batch spoiled."""

    def epoch(self: Loader, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        for step, (images, *rest) in enumerate(epoch_of(self, epoch, start_step), start_step):
            time.sleep(SECONDS)
            is_training = len(rest) == 1
            if is_training and epoch * self.steps_per_epoch + step == int(spoiled):
                batch = {"images": images, "labels": rest[0]}
                batch[part][:] = np.nan
            yield (images, *rest)

    return epoch


if __name__ == "__main__":
    run_script(main)
