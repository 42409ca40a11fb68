"""Telling the classes of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mindcv_reparam.config import Config
from mindcv_reparam.data import ImageSource, parse_auto_augment
from mindcv_reparam.data.batches import Batches
from mindcv_reparam.data.sampler import Shard
from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import model_info, models
from mindcv_reparam.tasks.classification.agreement import Top1Comparison
from mindcv_reparam.tasks.classification.batches import EvalBatches, TrainBatches, create_batches
from mindcv_reparam.tasks.classification.changes import ClassChanges
from mindcv_reparam.tasks.classification.evaluation import AccuracyEvaluator
from mindcv_reparam.tasks.classification.examination import ClassificationExaminer
from mindcv_reparam.tasks.classification.results import ClassificationResults
from mindcv_reparam.tasks.results import Label
from mindcv_reparam.tasks.task import Metric

if TYPE_CHECKING:
    from mindspore import nn

    from mindcv_reparam.tasks.classification.heads import ClassificationHead
    from mindcv_reparam.tasks.classification.objective import ClassificationObjective


class Classification:
    """Images → logits, measured by top-1."""

    name = "classification"
    datasets = ("imagenet", "folder", "cifar10", "digits")
    metrics = (
        Metric("val_loss", "val loss", "{:.4f}", "loss", "validation"),
        Metric("top1", "top-1", "{:.2f} %", "accuracy (%)", "top-1"),
        Metric("top5", "top-5", "{:.2f} %", "accuracy (%)", "top-5"),
    )
    selects = "top1"
    results = ClassificationResults()

    def check(self, config: Config) -> None:
        if config.auto_augment:
            parse_auto_augment(config.auto_augment)
        if config.normalize_on_device and config.teacher.endswith(".mindir"):
            raise UserError(
                "normalize_on_device sends bytes, and a .mindir teacher works on normalised images in front of the "
                "step: leave out one of the two"
            )
        if config.teacher_ckpt:
            model_info(config.teacher)
        if config.imitation_ckpt and model_info(config.required_model()).imitates is None:
            able = ", ".join(sorted({f"{info.family}_*" for info in models().values() if info.imitates}))
            raise UserError(f"imitation_ckpt is for the models {able}, which imitate another, not {config.model}")

    def facts(self, config: Config) -> list[tuple[str, str]]:
        loss = f"{config.loss}, label smoothing {config.label_smoothing:g}"
        mixed = f"mixup {config.mixup:g}, cutmix {config.cutmix:g}, {config.auto_augment or 'no auto_augment'}"
        rows = [("objective", f"{loss}; {mixed}")]
        balanced = {"sampling": config.balanced_sampling, "weights of the loss": config.class_weights}
        if any(balanced.values()):
            rows.append(("balanced", ", ".join(name for name, on in balanced.items() if on)))
        if config.distill:
            rows.append(("teacher", f"{config.teacher} {config.teacher_ckpt}".strip()))
        if config.imitation_ckpt:
            rows.append(
                ("imitates", config.imitation_ckpt + ("" if config.ckpt_path else ", which gives weights, too"))
            )
        return rows

    def batches(self, config: Config, source: ImageSource, train: bool, shard: Shard) -> TrainBatches | EvalBatches:
        return create_batches(config, source, train, shard)

    def objective(
        self, config: Config, network: nn.Cell, classes: Sequence[str], level: str, size: int
    ) -> ClassificationObjective:
        from mindcv_reparam.tasks.classification.device import augmentation
        from mindcv_reparam.tasks.classification.losses import create_loss
        from mindcv_reparam.tasks.classification.objective import ClassificationObjective
        from mindcv_reparam.tasks.classification.teachers import create_distillation, create_imitation

        loss = create_loss(config.loss, reduction=config.reduction)  # labels come smoothed
        distillation, teacher = create_distillation(config, loss, classes, config.num_classes or len(classes), level)
        imitation = create_imitation(config, network, level)
        return ClassificationObjective(network, loss, distillation, imitation, teacher, augmentation(config))

    def evaluator(self, source: ImageSource) -> AccuracyEvaluator:
        return AccuracyEvaluator()

    def examiner(self, batches: Batches) -> ClassificationExaminer:
        assert isinstance(batches, EvalBatches), "a validation has no others"
        return ClassificationExaminer(batches)

    def head(self, kind: str, most: int | None) -> ClassificationHead:
        from mindcv_reparam.tasks.classification.heads import ClassificationHead

        return ClassificationHead(kind, self.results.most if most is None else most)

    def changes(self, kinds: tuple[str, str], source: ImageSource, label: Label) -> ClassChanges:
        return ClassChanges(kinds, source, label)

    def comparison(self, kind: str, source: ImageSource) -> Top1Comparison:
        return Top1Comparison(kind, source)
