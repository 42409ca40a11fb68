"""What a configuration says about training, as objects: the one place that reads these settings."""

from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from mindcv_reparam.config import Config
from mindcv_reparam.config.checks import profiled_steps
from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.features import freeze
from mindcv_reparam.precision import mixed_precision, supported_level
from mindcv_reparam.registry import families, model_info
from mindcv_reparam.stochastic import mask_states, seed_masks
from mindcv_reparam.tasks.normalization import normalization
from mindcv_reparam.tasks.task import Task
from mindcv_reparam.training.data import Data
from mindcv_reparam.training.early_stopping import EarlyStopping
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.initial_weights import load_initial
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import Optimizer, create_optimizer
from mindcv_reparam.training.outline import announce
from mindcv_reparam.training.profile import Profile
from mindcv_reparam.training.records import Records
from mindcv_reparam.training.resume import Progress, TrainingState, resume_path, state_path
from mindcv_reparam.training.run_log import RunLog
from mindcv_reparam.training.schedule import learning_rates, scaled_rates
from mindcv_reparam.training.statistics import synchronize
from mindcv_reparam.training.step import TrainStep
from mindcv_reparam.training.trainer import Trainer
from mindcv_reparam.training.transfer import open_transfer
from mindcv_reparam.training.validation import Validation
from mindcv_reparam.training.writer import Writer
from mindcv_reparam.zoo import create_model


def train(config: Config, task: Task, device: str, ranks: Ranks, data: Data, run_log: RunLog) -> None:
    """Train on this rank; rank 0 fills ``config.ckpt_save_dir``, where the log goes, too. Collective.

    Raises:
        UserError: a file or a setting cannot be used, or training has failed.
        Interrupted: a signal has stopped the run.
    """
    folder = Path(config.ckpt_save_dir)
    resumed = resume_path(config.resume, folder, config.required_model(), ranks)
    network = build_network(config, device, ranks)
    weights = f"those of the run that goes on, {resumed}" if resumed else load_initial(config, network, data.classes)
    step = build_step(config, task, network, device, ranks, data)
    state = TrainingState(
        state_path(folder, config.required_model()),
        {parameter.name: parameter for parameter in step.get_parameters()} | mask_states(network),
        ranks,
        config,
        data.train.steps_per_epoch,
    )
    start = state.restore(resumed) if resumed else Progress()
    ranks.barrier()  # until every rank has read what may lie in the folder that is set aside
    records = None
    with Writer() as writer:
        if ranks.is_main:
            records = Records(config, task, step, data, hyper_parameters(config), start, resumed, writer)
            run_log.open(records.folder)
        trainer = build_trainer(config, task, step, ranks, data, state, records, writer)
        if ranks.is_main:
            announce(config, task, data, network, weights, trainer.rates, ranks)
        record = trainer.run(start)
        if records:
            records.train_end(record)


def hyper_parameters(config: Config) -> dict[str, Any]:
    """The arguments of ``create_model`` that checkpoints remember."""
    return {
        "num_classes": config.num_classes,
        "in_channels": config.in_channels,
        "img_size": config.image_resize,
        "gelu": config.gelu,
    }


def build_network(config: Config, device: str, ranks: Ranks) -> nn.Cell:
    """The network to train, with weights and masks by the seed."""
    network = create_model(
        config.required_model(),
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        **hyper_parameters(config),
    )
    freeze(network, config.frozen_stages, config.frozen_norms, config.freeze)
    if config.sync_bn:
        synchronize(network, device)
    seed_masks(network, config.seed, ranks.rank)
    return network


def build_optimizer(config: Config, network: nn.Cell) -> Optimizer:
    return create_optimizer(
        network,
        config.opt,
        weight_decay=config.weight_decay,
        weight_decay_filter=config.weight_decay_filter,
        backbone_lr_factor=config.backbone_lr_factor,
        head_lr_factor=config.head_lr_factor,
        momentum=config.momentum,
        nesterov=config.use_nesterov,
        eps=config.eps,
        layer_decay=config.layer_decay,
        blocks=families()[model_info(config.required_model()).family].blocks,
    )


def build_step(config: Config, task: Task, network: nn.Cell, device: str, ranks: Ranks, data: Data) -> TrainStep:
    """One training step of the network, with the task's objective."""
    level = supported_level(config.amp_level, device)
    objective = task.objective(config, network, data.classes, level, ranks.size)
    mixed_precision(network, level)
    step = TrainStep(
        objective,
        build_optimizer(config, network),
        size=ranks.size,
        loss_scale=LossScale(config.loss_scale, dynamic=config.loss_scale_type == "dynamic"),
        drop_overflow_update=config.drop_overflow_update,
        clip_norm=config.clip_value if config.clip_grad else None,
        accumulation_steps=config.gradient_accumulation_steps,
        average=WeightAverage(network, config.ema_decay, config.ema_warmup) if config.ema else None,
        allreduce_mb=config.allreduce_mb,
        normalize=normalization(config),
    )
    return use_kernels(step, alone=True) if device == "CPU" else step


def build_rates(config: Config, steps_per_epoch: int, ranks: Ranks) -> np.ndarray:
    """The learning rate of every step, (epochs · steps per epoch,)."""
    lr, min_lr = config.lr, config.min_lr
    if config.lr_scale == "linear" and config.lr_base_batch is not None:
        batch = ranks.size * config.batch_size * config.gradient_accumulation_steps
        lr, min_lr = scaled_rates(lr, min_lr, batch, config.lr_base_batch)
    return learning_rates(
        config.scheduler,
        lr,
        config.epoch_size,
        steps_per_epoch,
        min_lr=min_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_factor=config.warmup_factor,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        milestones=config.multi_step_decay_milestones,
        lr_epoch_stair=config.lr_epoch_stair,
        warmup_prefix=config.warmup_prefix,
    )


def build_trainer(
    config: Config,
    task: Task,
    step: TrainStep,
    ranks: Ranks,
    data: Data,
    state: TrainingState,
    records: Records | None,
    writer: Writer | None = None,
) -> Trainer:
    """The loop over the data.

    Args:
        records: what rank 0 keeps of the run, None on the others.
        writer: of the run's files.
    """
    steps = profiled_steps(config.profile)
    return Trainer(
        step,
        data.train,
        build_rates(config, data.train.steps_per_epoch, ranks),
        ranks,
        metrics=task.metrics,
        log_interval=config.log_interval,
        validate=Validation(task, step, data.val, ranks) if data.val else None,
        val_interval=config.val_interval,
        on_interval=records.interval_hooks if records else (),
        on_epoch_end=records.epoch_hooks if records else (),
        enough=EarlyStopping(config.early_stopping, ranks, records.keeper if records else None),
        state=state,
        save_interval=config.ckpt_save_interval,
        writer=writer,
        profile=Profile(steps, Path(config.ckpt_save_dir) / "profile") if steps else None,
        transfer=open_transfer(config.transfer_ahead, data.train),
    )
