"""Measure a checkpoint, train-time or fused, over every validation image once, by the metrics of its task.

python -m mindcv_reparam validate -c RECIPE --ckpt_path FILE --data_dir /path/to/imagenet
mpirun -n 8 python -m mindcv_reparam validate ...
"""

import argparse
import json
import logging
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mindcv_reparam.config import Config, add_settings, configuration
from mindcv_reparam.errors import Parser, require
from mindcv_reparam.files import check_checkpoint, check_replaceable, check_writable, written_folder, written_whole

if TYPE_CHECKING:
    from mindspore.nn import Cell

    from mindcv_reparam.checkpoint_info import CheckpointInfo
    from mindcv_reparam.data import ImageSource
    from mindcv_reparam.distributed import Ranks


_PAGE = "report.html"
_log = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "validate")


def run(args: argparse.Namespace) -> int:
    config = configuration(args, "validate")
    check_checkpoint(config.ckpt_path)
    if config.report:
        check_replaceable(config.report, _PAGE)
        check_writable(Path(config.report) / _PAGE)
    if config.output:
        check_writable(config.output)
    require("mindspore", "numpy", "PIL")
    from mindcv_reparam import distributed, runtime

    runtime.show_log()
    device = runtime.prepare(config.device_target, config.mode, config.seed, config.jit_level, config.deterministic)
    # As launched: a recipe that asks for eight devices can be checked on one.
    with distributed.start(None, device, config.stall_timeout) as ranks:
        _measure(config, device, ranks)
    return 0


def _facts(
    config: Config, info: "CheckpointInfo", source: "ImageSource", images: int, network: "Cell"
) -> list[tuple[str, str]]:
    """What will be measured."""
    from mindcv_reparam.data.outline import described, place_of

    part = "" if images == len(source) else f"; {images} of them are validated"
    count = sum(parameter.size for parameter in network.get_parameters()) / 1e6
    views = [("views", f"{config.tta}, probabilities averaged")] if config.tta != "none" else []
    return [
        ("data", f"{place_of(config)}: {described(source)}{part}"),
        ("model", f"{info.model} ({info.state}), {info.hparams['num_classes']} classes, {count:.3f} M numbers"),
        ("weights", config.ckpt_path),
        *views,
    ]


def _write(files: Mapping[str, str], folder: Path) -> None:
    """Write a report's folder, where this rank has files for it."""
    if files:
        with written_folder(folder, _PAGE) as temporary:
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
        _log.info("%s shows what was found", folder / _PAGE)


def _measure(config: Config, device: str, ranks: "Ranks") -> None:
    # MindSpore must not be imported before runtime.prepare, nor for --help.
    from mindcv_reparam.cpu import use_kernels
    from mindcv_reparam.data import create_dataset
    from mindcv_reparam.data.outline import block, data_doubts
    from mindcv_reparam.labels import check_order, class_folders
    from mindcv_reparam.precision import mixed_precision, supported_level
    from mindcv_reparam.tasks import check_dataset, open_loader, task_of
    from mindcv_reparam.tasks.about import about_of
    from mindcv_reparam.tasks.evaluate import evaluate
    from mindcv_reparam.tasks.normalization import normalization
    from mindcv_reparam.zoo import model_from_checkpoint

    network, info = model_from_checkpoint(config.ckpt_path, config.model, **config.model_arguments())
    info.check_images()
    task = task_of(info.model)
    outputs = info.hparams["num_classes"]
    config = config.with_defaults(**info.preprocessing, num_classes=outputs, model=info.model, dataset=task.datasets[0])
    mixed_precision(network, supported_level(config.val_amp_level, device))
    if device == "CPU":
        use_kernels(network, alone=True)
    classes = class_folders(config.labels, info.classes, outputs)
    check_dataset(task, config)
    source = create_dataset(config, train=False, classes=classes, run=Path(config.ckpt_path).parent)
    check_order(classes, source.classes, outputs)
    with open_loader(task, source, config, False, ranks.rank, ranks.size) as loader:
        images = loader.batches.sampler.epoch_length
        facts = _facts(config, info, source, images, network)
        if ranks.is_main:
            _log.info("this validation:\n%s", block(facts))
            for line in data_doubts(config, source):
                _log.warning("%s", line)
        examiner = task.examiner(loader.batches) if config.report else None
        latencies: list[float] | None = [] if examiner else None
        evaluator = examiner or task.evaluator(source)
        result = evaluate(network, loader, evaluator, ranks, latencies, normalization(config))
        if examiner:
            facts.append(("left out", f"{images - result.samples} images that cannot be read"))
            latency = statistics.median(latencies or [0.0]) / config.batch_size
            about = about_of(config, info, facts, source.classes, latency)
            _write(examiner.report(ranks, result, about), Path(config.report))
    if ranks.is_main:
        print(f"{info.model} ({info.state}): {result.line()}, {result.images_per_second:.1f} img/s")
        if config.output:
            report = {"model": info.model, "state": info.state, "checkpoint": config.ckpt_path, **result.record()}
            report |= {"tta": config.tta} if config.tta != "none" else {}
            with written_whole(Path(config.output)) as temporary:
                temporary.write_text(json.dumps(report, indent=2) + "\n")
            for ending, document in result.documents().items():
                path = Path(config.output)
                with written_whole(path.with_name(f"{path.stem}.{ending}.json")) as temporary:
                    temporary.write_text(json.dumps(document) + "\n")
