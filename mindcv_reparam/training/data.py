"""The data of a training run, opened before MindSpore is imported."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from mindcv_reparam.config import Config
from mindcv_reparam.data import ImageSource, Loader, create_dataset, run_to_resume
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.labels import class_folders
from mindcv_reparam.tasks import Task, check_dataset, open_loader


@dataclass(frozen=True)
class Data:
    """What a run trains on, and what it is validated on, if it is."""

    source: ImageSource  # of the training
    train: Loader
    val: Loader | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by index."""
        return self.source.classes

    @property
    def num_classes(self) -> int:
        """That the targets tell apart; at least as many as have names."""
        return self.train.num_classes


@contextlib.contextmanager
def open_data(config: Config, task: Task, ranks: Ranks) -> Iterator[Data]:
    """This rank's batches; their workers end with the block.

    Raises:
        UserError: the data is not there, or is not what the configuration says.
    """
    check_dataset(task, config)
    earlier = run_to_resume(config)
    named = class_folders(config.labels, None, config.num_classes)
    source = create_dataset(config, train=True, classes=named, run=earlier)
    with contextlib.ExitStack() as loaders:
        train = loaders.enter_context(open_loader(task, source, config, True, ranks.rank, ranks.size))
        val = None
        if config.val_while_train:
            val_source = create_dataset(config, False, source.classes, run=earlier, beside=source)
            plain = dataclasses.replace(config, tta="none")  # which is for validate alone: every view costs a forward
            val = loaders.enter_context(open_loader(task, val_source, plain, False, ranks.rank, ranks.size))
        yield Data(source, train, val)
