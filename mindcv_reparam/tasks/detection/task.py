"""Finding objects in images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mindcv_reparam.config import SETTINGS, Config
from mindcv_reparam.data import ImageSource
from mindcv_reparam.data.batches import Batches
from mindcv_reparam.data.objects import DetectionSource
from mindcv_reparam.data.sampler import Shard
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.errors import UserError, require
from mindcv_reparam.tasks.detection.agreement import PrecisionComparison
from mindcv_reparam.tasks.detection.batches import EvalBatches, TrainBatches, create_batches
from mindcv_reparam.tasks.detection.evaluation import NAMES, CocoEvaluator, DetectionExaminer
from mindcv_reparam.tasks.detection.results import DetectionResults
from mindcv_reparam.tasks.results import Label
from mindcv_reparam.tasks.task import Changes, Metric

if TYPE_CHECKING:
    from mindspore import nn

    from mindcv_reparam.tasks.detection.heads import DetectionHead
    from mindcv_reparam.tasks.detection.objective import DetectionObjective

# What only classification acts on: settings that a user must not believe to be at work.
_FOREIGN = (
    *("auto_augment", "color_jitter", "re_prob", "mixup", "cutmix", "label_smoothing", "scale", "ratio", "crop_pct"),
    *("class_weights", "balanced_sampling", "loss", "reduction", "distill", "teacher", "imitation_ckpt"),
)


class Detection:
    """Images → logits and boxes of queries, measured by COCO's average precision."""

    name = "detection"
    datasets = ("coco", "yolo", "scenes")
    metrics = tuple(
        Metric(name, name, "{:.4f}", "precision" if name.startswith("AP") else "recall", name) for name in NAMES
    )
    selects = "AP"
    results = DetectionResults()

    def check(self, config: Config) -> None:
        if config.val_while_train:
            require("faster_coco_eval")
        for name in _FOREIGN:
            if name in config.given and getattr(config, name) != SETTINGS[name].default:
                raise UserError(f"{name} is for classification: {config.model}, which finds objects, does not use it")
        if config.multi_scale and len(set(height_and_width(config.image_resize))) > 1:
            height, width = height_and_width(config.image_resize)
            raise UserError(f"multi_scale is for square images, and image_resize is {height}x{width}: leave it out")
        if config.plain_epochs > config.epoch_size:
            raise UserError(f"plain_epochs {config.plain_epochs} is more than epoch_size {config.epoch_size}")

    def facts(self, config: Config) -> list[tuple[str, str]]:
        strong = config.epoch_size - config.plain_epochs
        return [("objective", f"{config.class_loss}; {strong} of {config.epoch_size} epochs with strong augmentation")]

    def batches(self, config: Config, source: ImageSource, train: bool, shard: Shard) -> TrainBatches | EvalBatches:
        if config.tta != "none":
            raise UserError(f"tta {config.tta} is for classification: {config.model} finds objects")
        return create_batches(config, source, train, shard)

    def objective(
        self, config: Config, network: nn.Cell, classes: Sequence[str], level: str, size: int
    ) -> DetectionObjective:
        from mindcv_reparam.tasks.detection.objective import DetectionObjective

        network.check_sides(config.multi_scale)
        return DetectionObjective(network, network.layers, config.class_loss, size)

    def evaluator(self, source: ImageSource) -> CocoEvaluator:
        return CocoEvaluator(_with_objects(source))

    def examiner(self, batches: Batches) -> DetectionExaminer:
        assert isinstance(batches, EvalBatches), "a validation has no others"
        return DetectionExaminer(_with_objects(batches.source))

    def head(self, kind: str, most: int | None) -> DetectionHead:
        from mindcv_reparam.tasks.detection.heads import DetectionHead

        return DetectionHead(kind, most)

    def changes(self, kinds: tuple[str, str], source: ImageSource, label: Label) -> Changes:
        raise UserError("compare is for classifiers: of detectors, validate.py --output FILE has AP of every class")

    def comparison(self, kind: str, source: ImageSource) -> PrecisionComparison:
        return PrecisionComparison(kind, _with_objects(source))


def _with_objects(source: ImageSource) -> DetectionSource:
    if not isinstance(source, DetectionSource):
        raise UserError("these images have no boxes of objects to compare with")
    require("faster_coco_eval")
    return source
