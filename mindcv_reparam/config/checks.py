"""What settings must hold together, whatever each of them is alone."""

import re
from typing import TYPE_CHECKING

from mindcv_reparam.errors import UserError, shortened

if TYPE_CHECKING:
    from mindcv_reparam.config.schema import Config


def check(config: "Config") -> None:
    """Raise UserError, in one line, for settings that contradict each other."""
    for name in ("scale", "ratio", "re_scale", "re_ratio"):
        low, high = getattr(config, name)
        if low > high:
            raise UserError(f"{name} must be a range from low to high, got {low:g}, {high:g}")
    if len(config.mean) != len(config.std):
        raise UserError(f"mean has {len(config.mean)} channels and std {len(config.std)}: give one of each per channel")
    if config.scheduler == "cosine_decay" and config.min_lr > config.lr:
        raise UserError(f"min_lr {config.min_lr:g} is above lr {config.lr:g}: cosine_decay goes from lr down to min_lr")
    if config.lr_scale == "linear" and config.lr_base_batch is None:
        raise UserError("lr_scale linear needs lr_base_batch, the images per update that lr is meant for")
    if config.ckpt_save_policy == "top_k" and not config.val_while_train:
        raise UserError("ckpt_save_policy top_k keeps the most accurate checkpoints: it needs val_while_train True")
    if config.class_weights and config.loss != "CE":
        raise UserError(f"class_weights {config.class_weights} is for the loss CE, not {config.loss}")
    if config.early_stopping and not config.val_while_train:
        raise UserError("early_stopping ends a training by its validations: it needs val_while_train True")
    if config.ckpt_select == "ema" and not config.ema:
        raise UserError("ckpt_select ema keeps averaged weights: it needs ema True")
    profiled_steps(config.profile)
    _check_fold(config.fold)
    _check_distillation(config)


def _check_fold(fold: str) -> None:
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", fold)
    if fold and (found is None or int(found[2]) < 2 or not 1 <= int(found[1]) <= int(found[2])):
        raise UserError(
            f"fold must be k/n with k from 1 to n and n of at least 2, such as 1/5; got {shortened(fold)!r}"
        )


def profiled_steps(text: str) -> tuple[int, int] | None:
    """The first and the last step, from 1, that the setting ``profile`` names; None where it is empty.

    Raises:
        UserError: it names none.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"profile must be FIRST:LAST, two steps counted from 1, such as 20:30; got {text!r}")
    return first, last


def _check_distillation(config: "Config") -> None:
    if config.distill and not config.teacher:
        raise UserError(f"distill {config.distill} needs a teacher: name a model, or an exported .mindir file")
    if config.teacher and not config.distill:
        raise UserError("a teacher is named but not asked: set distill to soft or hard")
    if config.distill and config.reduction != "mean":
        raise UserError(f"distill {config.distill} takes the mean over the batch: it needs reduction mean")
    exported = config.teacher.endswith(".mindir")
    if config.teacher and not exported and not config.teacher_ckpt:
        raise UserError(f"the teacher {config.teacher} needs trained weights: name them by teacher_ckpt")
    if config.teacher_ckpt and (exported or not config.teacher):
        raise UserError("teacher_ckpt is the checkpoint of a teacher that is named as a model, by teacher")
    for name in ("imitation_in", "imitation_out", "imitation_rel"):
        if getattr(config, name) and not config.imitation_ckpt:
            raise UserError(f"{name} needs the network to imitate: name its checkpoint by imitation_ckpt")
