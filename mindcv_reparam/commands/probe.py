"""Fit a classifier to the features of a frozen network: the quick start with own classes, in seconds.

python -m mindcv_reparam probe -c configs/finetune.yaml --ckpt_path FILE --data_dir flowers --val_split 0.2

The network sees every image once, without augmentation; its features are kept in ckpt_save_dir/features, and used again
as long as weights, images and preprocessing are the same. The checkpoint is an ordinary one, for validate and export,
or to start a training from.
"""

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mindcv_reparam.config import Config, add_settings, configuration
from mindcv_reparam.errors import Parser, UserError, require
from mindcv_reparam.files import check_checkpoint

if TYPE_CHECKING:
    from mindcv_reparam.checkpoint_info import CheckpointInfo
    from mindcv_reparam.data import ImageSource
    from mindcv_reparam.network import Network
    from mindcv_reparam.probe.features import Features
    from mindcv_reparam.probe.regression import Linear
    from mindcv_reparam.tasks.classification.evaluation import Evaluation
    from mindcv_reparam.tasks.task import Task

_log = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "probe")


def run(args: argparse.Namespace) -> int:
    config = configuration(args, "probe")
    check_checkpoint(config.ckpt_path)
    require("mindspore", "numpy", "PIL", "scipy", "tqdm")
    from mindcv_reparam import distributed, runtime
    from mindcv_reparam.owner import own

    folder = Path(config.ckpt_save_dir)
    if distributed.launched().size > 1:
        raise UserError("probe runs on one device: start it without mpirun or msrun")
    if (folder / "metrics.csv").exists():
        raise UserError(f"{folder} holds a training: name another folder by --ckpt_save_dir")
    runtime.show_log()
    own(folder)
    device = runtime.prepare(config.device_target, config.mode, config.seed, config.jit_level)
    _probe(config, device, folder)
    return 0


def _probe(config: Config, device: str, folder: Path) -> None:
    # MindSpore must not be imported before runtime.prepare, nor for --help.
    from mindcv_reparam.config import save_yaml
    from mindcv_reparam.data import create_dataset
    from mindcv_reparam.features import pooled_network
    from mindcv_reparam.labels import class_folders
    from mindcv_reparam.tasks import check_dataset, task_of
    from mindcv_reparam.zoo import model_from_checkpoint

    # The classes are those of the data, whatever the recipe and the file say.
    arguments = {name: value for name, value in config.model_arguments().items() if name != "num_classes"}
    network, info = model_from_checkpoint(config.ckpt_path, config.model, **arguments)
    if info.state != "train":
        raise UserError(f"{config.ckpt_path} is fused (reparam {info.state}): give the checkpoint that it was made of")
    info.check_images()
    network.get_classifier()  # a detector has none, and says so
    pooled, task = pooled_network(network), task_of(info.model)
    config = config.with_defaults(**info.preprocessing, model=info.model, dataset=task.datasets[0])
    check_dataset(task, config)
    source = create_dataset(config, train=True, classes=class_folders(config.labels, None, None))
    val_source = create_dataset(config, False, source.classes, beside=source)
    config = dataclasses.replace(config, num_classes=len(source.classes), tta="none")
    _announce(config, info, source, val_source)
    parts = _features(config, task, pooled, device, (source, val_source), folder / "features")
    found, l2 = _fitted(config, parts[0])
    results = [_measured(found, part) for part in parts]
    path = folder / f"{info.model}_probe.ckpt"
    _save(path, config, network, info, source, found, results[1].metrics())
    save_yaml(config, folder / f"{info.model}.yaml")
    source.write_split(folder)
    print(f"{info.model} (linear probe, l2 {l2:g}), training images: {results[0].line()}")
    print(f"{info.model} (linear probe, l2 {l2:g}): {results[1].line()}")
    print(f"written: {path}")


def _announce(config: Config, info: "CheckpointInfo", source: "ImageSource", val_source: "ImageSource") -> None:
    from mindcv_reparam.data.outline import block, data_doubts, described, place_of

    rows = [
        ("data", f"{place_of(config)}: {described(source)}"),
        ("validation", described(val_source)),
        ("model", f"{info.model}, frozen but for a new classifier of {config.num_classes} classes"),
        ("weights", config.ckpt_path),
        ("output", config.ckpt_save_dir),
    ]
    _log.info("this probe:\n%s", block(rows))
    for line in data_doubts(config, source, val_source):
        _log.warning("%s", line)


def _features(
    config: Config,
    task: "Task",
    network: "Network",
    device: str,
    sources: "tuple[ImageSource, ImageSource]",
    folder: Path,
) -> "list[Features]":
    """Those of the training and of the validation images."""
    from mindcv_reparam.cpu import use_kernels
    from mindcv_reparam.probe.features import cached_features, images_key, weights_key
    from mindcv_reparam.tasks import open_loader

    said = {"model": network.model_name, **network.hparams, "num_classes": 0}
    weights = weights_key(network, said)
    if device == "CPU":
        use_kernels(network, alone=True)
    preprocessing = json.dumps(config.preprocessing(), sort_keys=True)
    config = dataclasses.replace(config, normalize_on_device=False)  # which is for train and validate
    found = []
    for name, source in zip(("train", "val"), sources, strict=True):
        with open_loader(task, source, config, False) as loader:
            draws = [loader.batches.sampler.draw(0, step) for step in range(loader.steps_per_epoch)]
            indices = np.concatenate([draw.indices[draw.valid] for draw in draws])
            keys = {"weights": weights, "images": images_key(source, indices), "preprocessing": preprocessing}
            found.append(cached_features(folder / f"{name}.npz", network, loader, keys))
    return found


def _fitted(config: Config, features: "Features") -> "tuple[Linear, float]":
    """The classifier, and the penalty of its weights."""
    from mindcv_reparam.data.splits import hold_out
    from mindcv_reparam.probe.regression import choose_l2, fit
    from mindcv_reparam.tasks.classification.batches import balanced_weights

    start, classes, labels = time.perf_counter(), config.num_classes or 0, features.labels
    weights = None
    if config.class_weights:
        weights = balanced_weights(np.bincount(labels, minlength=classes), classes)[labels]
    l2 = config.probe_l2
    if l2 is None:
        l2 = choose_l2(features.values, labels, classes, hold_out(labels, 0.2, config.seed), weights)
    found = fit(features.values, labels, classes, l2, weights)
    _log.info("logistic regression in %.1f s", time.perf_counter() - start)
    return found, l2


def _measured(found: "Linear", features: "Features") -> "Evaluation":
    from mindcv_reparam.tasks.classification.evaluation import Evaluation, ranks_and_losses

    rank, loss = ranks_and_losses(found.logits(features.values).astype(np.float64), features.labels)
    return Evaluation(len(rank), int((rank < 1).sum()), int((rank < 5).sum()), float(loss.mean()), 0.0)


def _save(
    path: Path,
    config: Config,
    network: "Network",
    info: "CheckpointInfo",
    source: "ImageSource",
    found: "Linear",
    metrics: dict[str, float],
) -> None:
    """The network with the classifier that was found, as a checkpoint."""
    from mindspore import Tensor

    from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint

    network.reset_classifier(len(source.classes), source.classes)
    values = {"weight": found.weight, "bias": found.bias}
    parameters = dict(network.get_classifier().parameters_and_names())
    if {name: parameter.shape for name, parameter in parameters.items()} != {n: v.shape for n, v in values.items()}:
        raise UserError(f"the classifier of {info.model} is no dense layer with a bias: train it instead")
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(values[name], parameter.dtype))
    described = CheckpointInfo(
        model=info.model,
        hparams={**info.hparams, "num_classes": len(source.classes), "img_size": network.hparams["img_size"]},
        classes=list(source.classes),
        preprocessing=config.preprocessing(),
        metrics=metrics,
    )
    save_checkpoint(path, network, described)
