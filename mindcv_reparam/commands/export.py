"""Fuse a checkpoint and write a deployment bundle, whose files are kept only if they compute what the network does.

python -m mindcv_reparam export --ckpt_path FILE --file_format MINDIR ONNX --output DIR
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindcv_reparam.config import Config, add_settings, configuration
from mindcv_reparam.errors import Parser, UserError, require
from mindcv_reparam.files import check_checkpoint
from mindcv_reparam.labels import check_order, class_folders, read_labels

if TYPE_CHECKING:
    from mindcv_reparam.data.source import ImageSource
    from mindcv_reparam.export.graph import Interface


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "export")


def run(args: argparse.Namespace) -> int:
    config = configuration(args, "export")
    check_checkpoint(config.ckpt_path)
    require("mindspore", "numpy", "PIL", *(("onnx", "onnxruntime") if "ONNX" in config.file_format else ()))
    from mindcv_reparam import runtime

    runtime.show_log()
    device = runtime.prepare(config.device_target, config.mode, config.seed)

    from mindcv_reparam.export.bundle import Candidate, write_bundle
    from mindcv_reparam.reparam import reparameterize
    from mindcv_reparam.run.accuracy import Comparison
    from mindcv_reparam.run.runners import cell_program
    from mindcv_reparam.zoo import model_from_checkpoint

    network, info = model_from_checkpoint(config.ckpt_path, config.model, **config.model_arguments())
    fused, state = network, info.state
    if config.reparam != "none" and state != "full":
        fused, state = reparameterize(network, config.reparam), config.reparam
    compared = None
    if config.verify_data:
        images = images_to_compare_on(config, info.model, info.preprocessing, info.classes, info.hparams["num_classes"])
        compared = Comparison(images, config.num_samples, cell_program(network))
    folder = Path(config.output or f"{info.model}_{state}")
    report = write_bundle(
        folder,
        Candidate(fused, info, state, config.ckpt_path),
        _interface(config),
        config.file_format,
        labels=read_labels(config.labels) if config.labels else None,
        opset=config.opset,
        device_target=device,
        comparison=compared,
    )
    for name, measurement in report.measured.items():
        print(f"{folder / report.manifest.files[name]}: {info.model} ({state}), {measurement}")
    return 0


def _interface(config: Config) -> "Interface":
    """What the files take and give."""
    from mindcv_reparam.export.graph import Interface

    return Interface(
        input_kind=config.export_input,
        output_kind=config.export_head,
        top_k=config.top_k,
        weights=config.export_weights,
        batch_sizes=None if config.export_batch_size == "dynamic" else tuple(sorted(set(config.export_batch_size))),
        dynamic_image_size=config.dynamic_image_size,
    )


def images_to_compare_on(
    config: Config,
    model: str,
    preprocessing: Mapping[str, Any],
    named: Sequence[str] | None,
    outputs: int,
) -> "ImageSource":
    """The data set ``verify_data``, on which accuracies are compared.

    One that comes along, by its name, or a folder, which without ``dataset`` is of the first kind that the task has.

    Args:
        preprocessing: as the checkpoint or the bundle says.
        named: their names of the classes in data sets.
        outputs: how many classes the model tells apart.

    Raises:
        UserError: it is not there, or not what the model is for.
    """
    from mindcv_reparam.data import EMBEDDED, create_dataset
    from mindcv_reparam.tasks import check_dataset, task_of

    task = task_of(model)
    config = config.with_defaults(**preprocessing, dataset=task.datasets[0])
    dataset = next((name for name in EMBEDDED if name == config.verify_data), config.dataset)
    if dataset not in EMBEDDED and not Path(config.verify_data).is_dir():
        raise UserError(
            f"verify_data {config.verify_data} is no folder: give that of a data set, or one of {', '.join(EMBEDDED)}"
        )
    config = dataclasses.replace(config, model=model, dataset=dataset, data_dir=config.verify_data, val_split="val")
    check_dataset(task, config)
    classes = class_folders(config.labels, named, outputs)
    source = create_dataset(config, train=False, classes=classes)
    check_order(classes, source.classes, outputs)
    return source
