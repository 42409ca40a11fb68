"""Learning rate of every training step as a NumPy array; pure functions, no state to restore.

Names and meaning are MindCV's: `warmup_epochs` from `lr · warmup_factor` to `lr`, then a decay that counts epochs from
the end of the warm-up. With `lr_epoch_stair` the value of an epoch is that of its first step.
"""

from collections.abc import Sequence

import numpy as np

from mindcv_reparam.errors import UserError

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
) -> np.ndarray:
    """Rates of shape (epochs · steps_per_epoch,), float64; `milestones` and `decay_epochs` count after the warm-up.

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
    decayed = _decay(scheduler, lr, epoch - warmup_epochs, min_lr, decay_epochs, decay_rate, milestones)
    if warmup_epochs == 0:
        return decayed
    warmup = lr * (warmup_factor + (1.0 - warmup_factor) * epoch / warmup_epochs)
    return np.where(epoch < warmup_epochs, warmup, decayed)


def _decay(
    scheduler: str,
    lr: float,
    epoch: np.ndarray,
    min_lr: float,
    decay_epochs: int,
    decay_rate: float,
    milestones: Sequence[int],
) -> np.ndarray:
    """Rates after the warm-up; `epoch` is the fractional epoch since its end, negative values are discarded later."""
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
