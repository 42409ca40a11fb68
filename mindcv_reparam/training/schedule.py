"""Learning rate of every training step as a NumPy array; pure functions, no state to restore.

Names and meaning are MindCV's: `warmup_epochs` from `lr · warmup_factor` to `lr`, then a decay that counts epochs from
the end of the warm-up. With `lr_epoch_stair` the value of an epoch is that of its first step.

timm counts the decay from the start of the training unless told otherwise, so that the warm-up hides its first epochs:
that is `warmup_prefix=False`. Its cool-down epochs are those that `epochs` has beyond the decay.
"""

import logging
from collections.abc import Sequence

import numpy as np

from mindcv_reparam.errors import UserError

log = logging.getLogger(__name__)

SCHEDULERS = ("constant", "cosine_decay", "exponential_decay", "step_decay", "multi_step_decay")


def learning_rates(
    scheduler: str,
    lr: float,
    epochs: int,
    steps_per_epoch: int,
    *,
    min_lr: float = 0.0,
    warmup_epochs: int = 0,
    warmup_factor: float = 0.0,
    decay_epochs: int = 0,
    decay_rate: float = 1.0,
    milestones: Sequence[int] = (),
    lr_epoch_stair: bool = False,
    warmup_prefix: bool = True,
) -> np.ndarray:
    """Rates of shape (epochs · steps_per_epoch,), float64.

    `milestones` and `decay_epochs` count from the end of the warm-up, without `warmup_prefix` from the start.

    `cosine_decay` reaches `min_lr` after `decay_epochs` and stays there, which leaves room for cool-down epochs.
    `step_decay` and `multi_step_decay` change at epoch boundaries only, as in MindCV.
    """
    if epochs < 1 or steps_per_epoch < 1:
        raise UserError(
            f"nothing to train: {epochs} epochs of {steps_per_epoch} steps; check epoch_size, batch_size and data_dir"
        )
    epoch = np.arange(epochs * steps_per_epoch) / steps_per_epoch
    if lr_epoch_stair:
        epoch = np.floor(epoch)
    start = warmup_epochs if warmup_prefix else 0
    decayed = _decay(scheduler, lr, epoch - start, min_lr, decay_epochs, decay_rate, milestones)
    rates = decayed
    if warmup_epochs:
        warmup = lr * (warmup_factor + (1.0 - warmup_factor) * epoch / warmup_epochs)
        rates = np.where(epoch < warmup_epochs, warmup, decayed)
    _check_rates(rates.reshape(epochs, steps_per_epoch), warmup_epochs)
    return rates


def scaled_rates(lr: float, min_lr: float, batch: int, base_batch: int) -> tuple[float, float]:
    """The linear rule: rates meant for updates of `base_batch` images, for updates of `batch` images.

    Goyal et al., arXiv 1706.02677, section 2.1. The warm-up starts at a part of `lr` and so scales with it.
    """
    factor = batch / base_batch
    lr, min_lr = lr * factor, min_lr * factor
    log.info("lr_scale linear: %d images per update instead of %d: lr %g, min_lr %g", batch, base_batch, lr, min_lr)
    return lr, min_lr


def _check_rates(rates: np.ndarray, warmup_epochs: int) -> None:
    """Name the epochs in which nothing is learnt; `rates` is (epochs, steps per epoch).

    Raises:
        UserError: that is all of them.
    """
    idle = np.flatnonzero(rates.max(axis=1) <= 0.0)
    remedies = []
    if np.any(idle < warmup_epochs):
        remedies.append("set warmup_factor above 0 or lr_epoch_stair to False")
    if np.any(idle >= warmup_epochs):
        remedies.append("set min_lr or decay_rate above 0, or a smaller epoch_size")
    if len(idle):
        line = f"the learning rate is 0 in {_numbers(idle + 1)} of {len(rates)}: {', and '.join(remedies)}"
        if len(idle) == len(rates):
            raise UserError(line)
        log.warning("%s", line)
    elif warmup_epochs >= len(rates):
        log.warning(
            "the warm-up takes all epochs, so the learning rate never reaches lr: warmup_epochs is %d, epoch_size %d",
            warmup_epochs,
            len(rates),
        )


def _numbers(epochs: np.ndarray) -> str:
    """ "epoch 3", "epochs 1, 5 to 9" """
    runs = np.split(epochs, np.flatnonzero(np.diff(epochs) > 1) + 1)
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"epoch{'s' if len(epochs) > 1 else ''} {', '.join(spans)}"


def _decay(
    scheduler: str,
    lr: float,
    epoch: np.ndarray,
    min_lr: float,
    decay_epochs: int,
    decay_rate: float,
    milestones: Sequence[int],
) -> np.ndarray:
    """Rates after the warm-up; `epoch` is the decay's, fractional; negative values are discarded later."""
    epoch = np.maximum(epoch, 0.0)
    if scheduler == "constant":
        return np.full_like(epoch, lr)
    if scheduler == "exponential_decay":
        return lr * decay_rate**epoch
    if scheduler == "multi_step_decay":
        return lr * decay_rate ** np.searchsorted(sorted(milestones), np.floor(epoch), side="right")
    if scheduler not in SCHEDULERS:
        raise UserError(f"scheduler {scheduler!r} is not supported; choose one of {', '.join(SCHEDULERS)}")
    if decay_epochs < 1:
        raise UserError(f"scheduler {scheduler} needs decay_epochs ≥ 1, got {decay_epochs}")
    if scheduler == "step_decay":
        return lr * decay_rate ** np.floor(np.floor(epoch) / decay_epochs)
    progress = np.minimum(epoch / decay_epochs, 1.0)
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + np.cos(np.pi * progress))
