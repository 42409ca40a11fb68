"""What networks are for. A task is all that the scripts have to know of it; nothing outside this room asks which."""

from mindcv_reparam.config import Config
from mindcv_reparam.data import ImageSource, Loader, create_loader
from mindcv_reparam.data.sampler import Shard
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.registry import DEFAULT_TASK, model_info
from mindcv_reparam.tasks.classification.task import Classification
from mindcv_reparam.tasks.detection.task import Detection
from mindcv_reparam.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Detection())}


def task_of(model: str) -> Task:
    """The task of a model of the zoo.

    Raises:
        UserError: no model has this name, or its family names a task that is none.
    """
    return task_named(model_info(model).task, model)


def task_named(name: str = DEFAULT_TASK, whose: str = "a network") -> Task:
    """The task of a name; ``whose`` it is, for the message.

    Raises:
        UserError: there is none.
    """
    if name not in TASKS:
        raise UserError(f"the task {shortened(name)!r} of {whose} is none; there are {', '.join(TASKS)}")
    return TASKS[name]


def check_dataset(task: Task, config: Config) -> None:
    """Raise UserError for a data set that has not what the task is about."""
    if config.dataset not in task.datasets:
        raise UserError(
            f"dataset {config.dataset} is not for {task.name}, which is what {config.model} is for: take "
            f"{', '.join(task.datasets[:-1])} or {task.datasets[-1]}"
        )


def open_loader(task: Task, source: ImageSource, config: Config, train: bool, rank: int = 0, size: int = 1) -> Loader:
    """The batches of ``source`` for one of ``size`` ranks; ``config.batch_size`` is that of one rank.

    Raises:
        UserError: the data or a setting does not suit the task or each other.
    """
    return create_loader(task.batches(config, source, train, Shard(config.batch_size, rank, size)), config, train)
