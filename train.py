"""Train a model of the zoo.

python train.py --config configs/visformer/visformer_tiny_digits_cpu.yaml
mpirun -n 8 python train.py --config configs/visformer/visformer_tiny_ascend.yaml --data_dir /path/to/imagenet
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from mindcv_reparam import distributed, runtime
from mindcv_reparam.config import Config, parse, save_yaml
from mindcv_reparam.data import Loader, create_dataset, create_loader, parse_auto_augment
from mindcv_reparam.errors import UserError, run_script
from mindcv_reparam.files import clear_unfinished, set_aside
from mindcv_reparam.registry import create_model, model_info
from mindcv_reparam.training.tensorboard import TensorBoard, require_tensorboard


def main() -> None:
    config = parse(None, "train")
    config = config.with_defaults(**model_info(config.model).preprocessing)
    if config.auto_augment:
        parse_auto_augment(config.auto_augment)
    check_teachers(config)
    if config.tensorboard:
        require_tensorboard()
    runtime.show_log()
    device = runtime.prepare(config.device_target, config.mode, config.seed)
    ranks = distributed.start(config.distribute, device)
    source = create_dataset(config, train=True)
    with contextlib.ExitStack() as loaders:
        train_loader = create_loader(source, config, train=True, rank=ranks.rank, size=ranks.size)
        loaders.enter_context(train_loader)
        val_loader = None
        if config.val_while_train:
            val_source = create_dataset(config, train=False, classes=source.classes)
            val_loader = create_loader(val_source, config, train=False, rank=ranks.rank, size=ranks.size)
            loaders.enter_context(val_loader)
        config = config.with_defaults(num_classes=train_loader.num_classes)
        train(config, device, ranks, source.classes, train_loader, val_loader)
    ranks.close()


def train(
    config: Config,
    device: str,
    ranks: distributed.Distributed,
    classes: Sequence[str],
    train_loader: Loader,
    val_loader: Loader | None,
) -> None:
    """Train on this rank; rank 0 fills ``config.ckpt_save_dir``."""
    # MindSpore must not be imported before runtime.prepare, nor for --help.
    from mindcv_reparam.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
    from mindcv_reparam.cpu import use_kernels
    from mindcv_reparam.stochastic import mask_states, seed_masks
    from mindcv_reparam.training.ema import WeightAverage
    from mindcv_reparam.training.evaluate import evaluate
    from mindcv_reparam.training.keeper import CheckpointKeeper
    from mindcv_reparam.training.loss_scale import LossScale
    from mindcv_reparam.training.losses import create_loss
    from mindcv_reparam.training.metrics import COLUMNS, EMA_COLUMNS, MetricsFile, metrics_of, plot_curves, read_metrics
    from mindcv_reparam.training.optimizer import create_optimizer
    from mindcv_reparam.training.precision import mixed_precision, supported_level
    from mindcv_reparam.training.resume import Progress, TrainingState, resume_path, state_path
    from mindcv_reparam.training.schedule import learning_rates, scaled_rates
    from mindcv_reparam.training.statistics import synchronize
    from mindcv_reparam.training.step import TrainStep
    from mindcv_reparam.training.teachers import create_distillation, create_imitation
    from mindcv_reparam.training.trainer import Trainer

    hparams = {
        "num_classes": train_loader.num_classes,
        "in_channels": config.in_channels,
        "img_size": config.image_resize,
        "gelu": config.gelu,
    }
    network = create_model(config.model, drop_rate=config.drop_rate, drop_path_rate=config.drop_path_rate, **hparams)
    if config.sync_bn:
        synchronize(network, device)
    seed_masks(network, config.seed, ranks.rank)
    folder = Path(config.ckpt_save_dir)
    resumed = resume_path(config.resume, folder, config.model, ranks)
    if config.ckpt_path and not resumed:
        load_checkpoint(network, config.ckpt_path, new_head=True)
    level = supported_level(config.amp_level, device)
    loss = create_loss(config.loss, reduction=config.reduction)  # labels come smoothed
    distillation, exported_teacher = create_distillation(config, loss, classes, train_loader.num_classes, level)
    imitation = create_imitation(config, network, level)
    mixed_precision(network, level)
    average = WeightAverage(network, config.ema_decay, config.ema_warmup) if config.ema else None
    weights = ("online",)
    if average:
        weights = ("online", "ema") if config.ckpt_select == "online" else ("ema", "online")
    step = TrainStep(
        network,
        loss,
        create_optimizer(
            network,
            config.opt,
            weight_decay=config.weight_decay,
            weight_decay_filter=config.weight_decay_filter,
            momentum=config.momentum,
            nesterov=config.use_nesterov,
            eps=config.eps,
            layer_decay=config.layer_decay,
        ),
        size=ranks.size,
        loss_scale=LossScale(config.loss_scale, dynamic=config.loss_scale_type == "dynamic"),
        drop_overflow_update=config.drop_overflow_update,
        clip_norm=config.clip_value if config.clip_grad else None,
        accumulation_steps=config.gradient_accumulation_steps,
        average=average,
        distillation=distillation,
        imitation=imitation,
    )
    if device == "CPU":
        use_kernels(step)
    lr, min_lr = config.lr, config.min_lr
    if config.lr_scale == "linear":
        batch = ranks.size * config.batch_size * config.gradient_accumulation_steps
        lr, min_lr = scaled_rates(lr, min_lr, batch, config.lr_base_batch)
    rates = learning_rates(
        config.scheduler,
        lr,
        config.epoch_size,
        train_loader.steps_per_epoch,
        min_lr=min_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_factor=config.warmup_factor,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        milestones=config.multi_step_decay_milestones,
        lr_epoch_stair=config.lr_epoch_stair,
        warmup_prefix=config.warmup_prefix,
    )

    def validate() -> dict[str, float]:
        metrics = evaluate(network, val_loader, ranks).metrics()
        if average:
            with average.applied():
                metrics |= evaluate(network, val_loader, ranks).metrics("ema_")
        return metrics

    def save(path: Path, record: dict[str, float], weights: str) -> None:
        measured = metrics_of(weights, record)
        info = CheckpointInfo(
            model=config.model,
            hparams=hparams,
            classes=list(classes),
            preprocessing={name: getattr(config, name) for name in model_info(config.model).preprocessing},
            epoch=measured.pop("epoch"),
            step=measured.pop("step"),
            weights=weights,
            metrics=measured,
        )
        with average.applied() if weights == "ema" else contextlib.nullcontext():
            save_checkpoint(path, network, info)

    state = TrainingState(
        state_path(folder, config.model),
        {parameter.name: parameter for parameter in step.get_parameters()} | mask_states(network),
        ranks,
        config,
        train_loader.steps_per_epoch,
    )
    start = state.restore(resumed) if resumed else Progress()
    interval_hooks, epoch_hooks = [], []
    ranks.barrier()  # until every rank has read what may lie in the folder that is set aside
    if ranks.is_main:
        open_folder(folder, resumed)
        metrics = MetricsFile(folder / "metrics.csv", COLUMNS + (EMA_COLUMNS if average else ()), start.epoch + 1)
        save_yaml(config, folder / f"{config.model}.yaml")
        keeper = CheckpointKeeper(
            folder,
            config.model,
            save,
            keep=config.keep_checkpoint_max,
            policy=config.ckpt_save_policy,
            interval=config.ckpt_save_interval,
            weights=weights,
        )
        keeper.recall(read_metrics(metrics.path))
        epoch_hooks = [
            metrics.append,
            keeper.epoch_end,
            lambda record: plot_curves({"": read_metrics(metrics.path)}, folder / "curves.png"),
        ]
        if config.tensorboard:
            board = TensorBoard(folder / "tensorboard", start.epoch * train_loader.steps_per_epoch + start.step)
            interval_hooks.append(board.interval_end)
            epoch_hooks.append(board.epoch_end)
    trainer = Trainer(
        step,
        train_loader,
        rates,
        ranks,
        log_interval=config.log_interval,
        validate=validate if val_loader else None,
        val_interval=config.val_interval,
        on_epoch_start=[imitation.start_epoch] if imitation else [],
        on_interval=interval_hooks,
        on_epoch_end=epoch_hooks,
        teacher=exported_teacher,
        state=state,
        save_interval=config.ckpt_save_interval,
    )
    record = trainer.run(start)
    if ranks.is_main:
        keeper.train_end(record)


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


def check_teachers(config: Config) -> None:
    """Refuse, before anything is read or compiled, teachers that no model of the zoo is or can learn from."""
    if config.teacher_ckpt:
        model_info(config.teacher)
    if config.imitation_ckpt and model_info(config.model).family != "riformer":
        raise UserError(f"imitation_ckpt is for the models riformer_*, which imitate a PoolFormer, not {config.model}")


if __name__ == "__main__":
    run_script(main)
