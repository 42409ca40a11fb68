"""The validation of a run: of the weights as they are and of their average."""

from mindcv_reparam.data import Loader
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.tasks.evaluate import evaluate
from mindcv_reparam.tasks.task import Task
from mindcv_reparam.training.metrics import AVERAGED
from mindcv_reparam.training.step import TrainStep


class Validation:
    """Called on every rank; returns the task's metrics by their columns' names."""

    def __init__(self, task: Task, step: TrainStep, loader: Loader, ranks: Ranks) -> None:
        self.task = task
        self.step = step
        self.loader = loader
        self.ranks = ranks

    def __call__(self) -> dict[str, float]:
        metrics = self._measured()
        if self.step.average:
            with self.step.average.applied():
                metrics |= self._measured(AVERAGED)
        return metrics

    def _measured(self, prefix: str = "") -> dict[str, float]:
        evaluator = self.task.evaluator(self.loader.batches.source)
        found = evaluate(self.step.network, self.loader, evaluator, self.ranks, normalize=self.step.normalize)
        return found.metrics(prefix)
