"""What rank 0 keeps of a run: its folder with configuration, metrics, curves, events and checkpoints."""

import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.checkpoint_info import DATA_LENGTH, Weights
from mindcv_reparam.config import Config, save_yaml
from mindcv_reparam.data.outline import named
from mindcv_reparam.files import clear_unfinished, set_aside
from mindcv_reparam.tasks.task import Task
from mindcv_reparam.training.data import Data
from mindcv_reparam.training.keeper import CheckpointKeeper
from mindcv_reparam.training.metrics import MetricsFile, Record, columns, counted, metrics_of, plot_curves, read_metrics
from mindcv_reparam.training.resume import Progress
from mindcv_reparam.training.step import TrainStep
from mindcv_reparam.training.tensorboard import TensorBoard
from mindcv_reparam.training.writer import Writer, copies_of


class Records:
    """Opens the folder; its hooks are the trainer's. Files are written by a thread, checkpoints from one copy.

    Args:
        hyper_parameters: of the network, for its checkpoints.
        start: how far the run was, if it is ``resumed``.
        resumed: the file it goes on from.
        writer: of the run's files, the states among them.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        step: TrainStep,
        data: Data,
        hyper_parameters: Mapping[str, object],
        start: Progress,
        resumed: Path | None,
        writer: Writer,
    ) -> None:
        self.config = config
        self.writer = writer
        self._copied: tuple[object, dict[str, dict[str, np.ndarray]]] = (None, {})
        self.step = step
        self.data = data
        self.model = config.required_model()
        self.hyper_parameters = dict(hyper_parameters)
        self.folder = Path(config.ckpt_save_dir)
        open_folder(self.folder, resumed)
        parts = step.objective.parts if len(step.objective.parts) > 1 else ()
        written = columns(task.metrics, step.average is not None, parts)
        self.metrics = MetricsFile(self.folder / "metrics.csv", written, start.epoch + 1)
        save_yaml(config, self.folder / f"{self.model}.yaml")
        data.source.write_split(self.folder)
        self.keeper = CheckpointKeeper(
            self.folder,
            self.model,
            self.save,
            task.selects,
            keep=config.keep_checkpoint_max,
            policy=config.ckpt_save_policy,
            interval=config.ckpt_save_interval,
            weights=kept_weights(config),
            delete=lambda path: writer.submit(functools.partial(path.unlink, missing_ok=True)),
        )
        self.keeper.recall(read_metrics(self.metrics.path))
        self.interval_hooks: list[Callable[[dict[str, float]], None]] = []
        self.epoch_hooks = [
            lambda record: writer.submit(functools.partial(self.metrics.append, dict(record))),
            self.keeper.epoch_end,
            self._forget_copies,
            lambda record: writer.submit(self._plot),
        ]
        self.shown = task.metrics
        if config.tensorboard:
            done = start.epoch * data.train.steps_per_epoch + start.step
            board = TensorBoard(self.folder / "tensorboard", task.metrics, done)
            self.interval_hooks.append(board.interval_end)
            self.epoch_hooks.append(board.epoch_end)

    def save(self, path: Path, record: Record, weights: Weights) -> None:
        """Have a checkpoint written of the "online" or the "ema" weights as they are now."""
        config = self.config
        info = CheckpointInfo(
            model=self.model,
            hparams=self.hyper_parameters,
            classes=list(self.data.classes),
            category_ids=self.data.source.category_ids,
            preprocessing=config.preprocessing(),
            epoch=counted("epoch", record),
            step=counted("step", record),
            weights=weights,
            metrics={
                name: value
                for name, value in metrics_of(weights, record).items()
                if name not in ("epoch", "step") and value is not None
            },
            data=named(config, self.data.source)[:DATA_LENGTH],
        )
        arrays = self._copies(weights, record["step"])
        self.writer.submit(functools.partial(save_checkpoint, path, arrays, info))

    def _copies(self, weights: Weights, step: float | None) -> dict[str, np.ndarray]:
        """The same for all files of a step."""
        if self._copied[0] != step:
            self._copied = (step, {})
        copies = self._copied[1]
        if weights not in copies:
            names = [parameter.name for parameter in self.step.network.get_parameters()]
            average = self.step.average if weights == "ema" else None
            values = self.step.network.get_parameters() if average is None else average.shadow
            copies[weights] = copies_of({name: value.asnumpy() for name, value in zip(names, values, strict=True)})
        return copies[weights]

    def _forget_copies(self, record: Record) -> None:
        self._copied = (None, {})

    def _plot(self) -> None:
        rows = read_metrics(self.metrics.path)
        plot_curves({"": rows}, self.shown, self.folder / "curves.png", str(self.config.model))

    def train_end(self, record: Record) -> None:
        self.keeper.train_end(record)


def kept_weights(config: Config) -> tuple[Weights, ...]:
    """The weights whose metric says what is best, then the others, if there are two sets."""
    if not config.ema:
        return ("online",)
    return ("online", "ema") if config.ckpt_select == "online" else ("ema", "online")


def open_folder(folder: Path, resumed: Path | None) -> None:
    """Make room for a new run, or go on in the folder of the one that is resumed; elsewhere with its metrics so far."""
    if resumed and resumed.resolve().parent == folder.resolve():
        clear_unfinished(folder)
        return
    set_aside(folder, marker="metrics.csv")
    if resumed:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(resumed.with_name("metrics.csv"), folder)
