"""What a training is going to do, said before it begins."""

import logging
from pathlib import Path

import numpy as np
from mindspore import nn

from mindcv_reparam.config import Config
from mindcv_reparam.data.outline import block, data_doubts, described, place_of
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.tasks.task import Task
from mindcv_reparam.training.data import Data

_log = logging.getLogger(__name__)


def announce(
    config: Config, task: Task, data: Data, network: nn.Cell, weights: str, rates: np.ndarray, ranks: Ranks
) -> None:
    """Log the run in a block, then a line for everything that looks like a mistake.

    Args:
        weights: where the network's come from.
        rates: the learning rate of every step.
    """
    rows = [
        *_data(config, data),
        ("batch", _batch(config, data, ranks)),
        ("model", _model(config, task, network)),
        ("weights", weights),
        ("rate", _rate(config, rates, data.train.steps_per_epoch)),
        *task.facts(config),
        ("output", str(Path(config.ckpt_save_dir).resolve())),
    ]
    _log.info("this training:\n%s", block(rows))
    for line in data_doubts(config, data.source, data.val.batches.source if data.val else None):
        _log.warning("%s", line)
    if config.dataset_sink_mode and "dataset_sink_mode" in config.given:
        _log.info("dataset_sink_mode is not used: batches are fed step by step, for which no step waits")
    if data.val is None:
        _log.warning("no validation: there will be no best checkpoint, only the latest; see --val_while_train True")


def _data(config: Config, data: Data) -> list[tuple[str, str]]:
    rows = [("data", f"{place_of(config)}: {described(data.source)}")]
    if data.val:
        often = "after every epoch" if config.val_interval == 1 else f"every {config.val_interval} epochs"
        rows.append(("validation", f"{described(data.val.batches.source)}; {often}"))
    return rows


def _batch(config: Config, data: Data, ranks: Ranks) -> str:
    accumulated = config.gradient_accumulation_steps
    update = config.batch_size * ranks.size * accumulated
    return (
        f"{config.batch_size} images x {ranks.size} rank{'s' if ranks.size > 1 else ''} x {accumulated} accumulated = "
        f"{update} images an update; {data.train.steps_per_epoch} steps an epoch, epochs: {config.epoch_size}"
    )


def _model(config: Config, task: Task, network: nn.Cell) -> str:
    # As everywhere in the project: statistics are none.
    parameters = [p for p in network.get_parameters() if not p.name.rpartition(".")[2].startswith("moving_")]
    count = sum(parameter.size for parameter in parameters)
    learnt = sum(parameter.size for parameter in parameters if parameter.requires_grad)
    height, width = height_and_width(config.image_resize)
    return (
        f"{config.model} for {task.name}, {config.num_classes} classes, images of {height}x{width}; "
        f"{count / 1e6:.3f} M parameters, {'all' if learnt == count else f'{learnt / 1e6:.3f} M'} of them learn"
    )


def _rate(config: Config, rates: np.ndarray, steps_per_epoch: int) -> str:
    peak = int(np.argmax(rates))
    warmup = f"warm-up of {config.warmup_epochs} epochs, " if config.warmup_epochs else ""
    return (
        f"{config.opt}, {warmup}{config.scheduler}: {rates[0]:.3g} at first, {rates[peak]:.3g} in epoch "
        f"{peak // steps_per_epoch + 1}, {rates[-1]:.3g} at the end"
    )
