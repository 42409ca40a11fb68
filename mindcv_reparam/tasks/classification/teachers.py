"""Teachers from files, refused where their answers would mean something else than the student's."""

import os
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindcv_reparam.checkpoint import CheckpointInfo
from mindcv_reparam.config import Config
from mindcv_reparam.errors import UserError
from mindcv_reparam.plain_paths import readable_path
from mindcv_reparam.precision import mixed_precision
from mindcv_reparam.registry import model_info
from mindcv_reparam.reparam import reparameterize
from mindcv_reparam.tasks.classification.distillation import Distillation, DistillationLoss, freeze
from mindcv_reparam.tasks.classification.imitation import Imitation, donate
from mindcv_reparam.zoo import model_from_checkpoint

EXPORTED = ".mindir"


def create_distillation(
    config: Config, loss: nn.Cell, classes: Sequence[str], num_classes: int, level: str
) -> tuple[Distillation | None, "ExportedTeacher | None"]:
    """What takes the loss's place, and the teacher that runs before the step because it is an exported graph."""
    if not config.distill:
        return None, None
    compared = DistillationLoss(loss, config.distill, config.distill_alpha, config.distill_tau)
    if not config.teacher_ckpt:
        size = config.image_resize if isinstance(config.image_resize, tuple) else (config.image_resize,) * 2
        shape = (config.batch_size, config.in_channels, *size)
        return Distillation(compared, None), ExportedTeacher(config.teacher, shape, num_classes)
    teacher = reparameterize(load_teacher(config.teacher_ckpt, config.teacher, config, classes, num_classes))
    return Distillation(compared, freeze(mixed_precision(teacher, level), "teacher")), None


def create_imitation(config: Config, network: nn.Cell, level: str) -> Imitation | None:
    """Imitating the model that the family names; it donates its weights unless there is a ckpt_path."""
    imitated = model_info(config.required_model()).imitates
    if not config.imitation_ckpt or imitated is None:
        return None
    teacher = load_imitated(config.imitation_ckpt, imitated, config)
    if not config.ckpt_path:
        donate(teacher, network, config.imitation_ckpt)
    factors = (config.imitation_in, config.imitation_out, config.imitation_rel)
    if not any(factors):
        return None
    return Imitation(freeze(mixed_precision(teacher, level), "imitated"), factors, config.imitation_epochs)


def load_teacher(
    path: str | os.PathLike[str], model: str, config: Config, classes: Sequence[str], num_classes: int
) -> nn.Cell:
    """The teacher of logits that a checkpoint holds, in evaluation mode, for the images of ``config``.

    Args:
        classes: names of the data's classes, by index.
        num_classes: of the labels and the student, at least as many.

    Raises:
        UserError: the checkpoint cannot be read, does not fit the model, or tells other classes apart than the data;
            its weights expect other channels, or another mean or deviation of the images.
    """
    teacher, info = model_from_checkpoint(path, model, img_size=config.image_resize)
    _check_input(path, info, config)
    if info.hparams["num_classes"] != num_classes:
        raise UserError(
            f"the teacher {path} tells {info.hparams['num_classes']} classes apart, the student {num_classes}"
        )
    for index, (known, given) in enumerate(zip(info.classes or classes, classes)):
        if known != given:
            raise UserError(f"class {index} of the teacher {path} is {known!r}, that of the data {given!r}")
    return teacher


def load_imitated(path: str | os.PathLike[str], model: str, config: Config) -> nn.Cell:
    """The network to imitate of a train-time checkpoint, whose classes do not matter, for the images of ``config``.

    Raises:
        UserError: as for `load_teacher`, or the checkpoint is of a fused network.
    """
    teacher, info = model_from_checkpoint(path, model)
    _check_input(path, info, config)
    if info.state != "train":
        raise UserError(f"imitation_ckpt {path} is fused (state {info.state}): give the checkpoint it was made from")
    return teacher


def _check_input(path: str | os.PathLike[str], info: CheckpointInfo, config: Config) -> None:
    channels = info.hparams.get("in_channels", config.in_channels)
    if channels != config.in_channels:
        raise UserError(f"the teacher {path} takes images of {channels} channels, the student of {config.in_channels}")
    for name in ("mean", "std"):
        expected, given = info.preprocessing.get(name), getattr(config, name)
        if expected is not None and (len(expected) != len(given) or not np.allclose(expected, given, rtol=1e-4)):
            numbers = [", ".join(f"{number:g}" for number in values) for values in (expected, given)]
            raise UserError(
                f"the teacher {path} expects images of {name} {numbers[0]}, the training gives {numbers[1]}"
            )


class ExportedTeacher:
    """A MindIR file as a teacher of logits: images (B, C, H, W) → logits (B, classes), a graph of its own.

    The file does not say which mean and deviation of the images its weights expect.

    Args:
        shape: of a batch.
        classes: of the labels and the student.

    Raises:
        UserError: the file cannot be read, does not take such batches, or puts out another number of classes.
    """

    def __init__(self, path: str | os.PathLike[str], shape: tuple[int, int, int, int], classes: int) -> None:
        if not os.path.isfile(path):
            raise UserError(f"no teacher at {path}")
        try:
            with readable_path(path) as readable:
                self.graph = nn.GraphCell(ms.load(str(readable)))
        except (RuntimeError, ValueError, TypeError):
            raise UserError(f"{path} is no MindIR file") from None
        try:
            logits = self.graph(ops.zeros(shape, ms.float32)).shape
        except (RuntimeError, ValueError, TypeError):
            raise UserError(
                f"the teacher {path} does not take a batch of shape {shape}: export it with "
                "--export_batch_size dynamic, for images of that size"
            ) from None
        if logits != (shape[0], classes):
            raise UserError(
                f"the teacher {path} puts out {logits} for {shape[0]} images, the student has {classes} classes"
            )

    def __call__(self, images: Tensor) -> Tensor:
        return self.graph(images)
