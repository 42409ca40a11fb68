"""Compare two classifiers on the same labelled images: which predictions changed, and whether one is better.

    python -m mindcv_reparam compare old.ckpt new.ckpt --data_dir flowers --output changed.csv
    python -m mindcv_reparam compare best.ckpt BUNDLE --data_dir flowers

Each is a checkpoint, which runs as it is, train-time or fused; a bundle; or a model file in one. Images are
preprocessed as each of them asks. The difference of the accuracies is judged by McNemar's test.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mindcv_reparam.errors import UserError, require
from mindcv_reparam.files import check_output, written_whole
from mindcv_reparam.settings import whole_number

if TYPE_CHECKING:
    from mindcv_reparam.bundle.manifest import Manifest
    from mindcv_reparam.config import Config
    from mindcv_reparam.data import ImageSource
    from mindcv_reparam.run.runners import Program


class _Model(NamedTuple):
    path: str
    manifest: "Manifest"
    program: "Program"
    classes: Sequence[str] | None  # as data sets call them
    run: Path | None  # folder of the run that wrote it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, which in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=which, help="checkpoint, bundle, or a model file in a bundle")
    parser.add_argument("--data_dir", metavar="PATH", help="folder, tar archive or CSV list of labelled images")
    parser.add_argument("--dataset", choices=("imagenet", "folder", "cifar10", "digits"), help="what that is")
    parser.add_argument("--val_split", metavar="NAME", help="folder of the images in it, or the part that is held out")
    parser.add_argument("--fold", metavar="K/N", help="the part that is held out")
    parser.add_argument("--labels", metavar="FILE", help="class folder of every output, a line each")
    parser.add_argument("--num_samples", type=whole_number(), help="use this many images only")
    parser.add_argument("--model", metavar="NAME", help="of a checkpoint that does not tell it")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the images with another prediction: .csv")
    parser.add_argument("--device_target", choices=("Ascend", "CPU"), help="MindSpore's; Ascend where there is one")


def run(args: argparse.Namespace) -> int:
    check_output("--output", args.output, [".csv"])
    require("scipy")
    from mindcv_reparam.run.changes import Contender, compare
    from mindcv_reparam.runtime import prepare
    from mindcv_reparam.tasks import task_named
    from mindcv_reparam.tasks.about import distinct

    paths = args.first, args.second
    bundles = [_backend(path) for path in paths]
    if any(bundle is None or bundle[1] == "mindspore" for bundle in bundles):
        prepare(args.device_target)
    first, second = (_model(path, bundle, args.model) for path, bundle in zip(paths, bundles))
    _check_pair(first, second)
    sources = _sources(first, second, args)
    names = first.manifest.labels or second.manifest.labels or sources[0].classes
    kinds = first.manifest.output_kind, second.manifest.output_kind
    changes = task_named(first.manifest.task).changes(kinds, sources[0], distinct(names))
    before, after = (Contender(one.manifest, one.program, source) for one, source in zip((first, second), sources))
    compare(before, after, changes, args.num_samples)
    for line in changes.lines((first.path, second.path)):
        print(line)
    if args.output:
        with written_whole(args.output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(changes.table())
    return 0


def _backend(path: str) -> tuple[Path, str] | None:
    """Folder and backend of a bundle, or of the bundle that a model file is in; None for a checkpoint."""
    from mindcv_reparam.bundle.manifest import is_bundle, read_manifest
    from mindcv_reparam.files import check_checkpoint
    from mindcv_reparam.run.runners import BACKENDS, backend_for

    file = Path(path)
    if file.is_dir():
        return file, backend_for(file)
    if is_bundle(file.parent):
        formats = {name: form for form, name in read_manifest(file.parent).files.items()}
        backends = [name for name, (form, _) in BACKENDS.items() if form == formats.get(file.name)]
        if backends:
            return file.parent, backend_for(file.parent, backends[0])
    check_checkpoint(path)
    require("mindspore")
    return None


def _model(path: str, bundle: tuple[Path, str] | None, name: str | None) -> _Model:
    """Load a model; ``name`` is that of a checkpoint's which does not tell it."""
    from mindcv_reparam.bundle.manifest import read_manifest
    from mindcv_reparam.commands.verify import folders_of
    from mindcv_reparam.run.changes import BATCH
    from mindcv_reparam.run.runners import bundle_program

    if bundle is not None:
        manifest = read_manifest(bundle[0])
        return _Model(path, manifest, bundle_program(*bundle), folders_of(manifest), None)
    from mindcv_reparam.run.fused import network_model
    from mindcv_reparam.zoo import model_from_checkpoint

    network, info = model_from_checkpoint(path, name)
    info.check_images()
    return _Model(path, *network_model(network, (BATCH,)), info.classes, Path(path).parent)


def _check_pair(first: _Model, second: _Model) -> None:
    """Raise UserError where two models do not tell the same classes apart."""
    for one in (first, second):
        if not one.manifest.results.tells(one.manifest.output_kind):
            raise UserError(f"{one.path} gives its {one.manifest.output_kind}: there is nothing to compare")
    if first.manifest.task != second.manifest.task:
        raise UserError(f"{first.path} is for {first.manifest.task}, {second.path} for {second.manifest.task}")
    counts = [_outputs(one.manifest) for one in (first, second)]
    if None not in counts and counts[0] != counts[1]:
        raise UserError(f"{first.path} has {counts[0]} classes, {second.path} {counts[1]}: they cannot be compared")
    if first.classes and second.classes and tuple(first.classes) != tuple(second.classes):
        place = next(i for i, (one, other) in enumerate(zip(first.classes, second.classes)) if one != other)
        raise UserError(
            f"class {place} is {first.classes[place]!r} in {first.path}, {second.classes[place]!r} in {second.path}: "
            "they cannot be compared"
        )


def _outputs(manifest: "Manifest") -> int | None:
    return manifest.results.classes(manifest.output_kind, manifest.outputs) or len(manifest.labels) or None


def _sources(first: _Model, second: _Model, args: argparse.Namespace) -> "list[ImageSource]":
    """The images for each, one source for both where they decode files alike."""
    from mindcv_reparam.config import DECODING, Config
    from mindcv_reparam.data import create_dataset
    from mindcv_reparam.labels import check_order, class_folders
    from mindcv_reparam.tasks import check_dataset, task_named

    names = ("data_dir", "dataset", "val_split", "fold", "labels")
    values = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    task, outputs = task_named(first.manifest.task), _outputs(first.manifest)
    config = Config(**values, given=frozenset(values)).with_defaults(
        model=first.manifest.model, dataset=task.datasets[0], num_classes=outputs
    )
    check_dataset(task, config)
    classes = class_folders(config.labels, first.classes or second.classes, outputs)
    run = first.run or second.run

    def opened(one: _Model) -> "ImageSource":
        return create_dataset(config.with_defaults(**one.manifest.preprocessing), False, classes, run)

    decodings = [_decoding(config, one, DECODING) for one in (first, second)]
    sources = [opened(first)]
    sources.append(sources[0] if decodings[0] == decodings[1] else opened(second))
    check_order(classes, sources[0].classes, outputs or len(sources[0].classes))
    return sources


def _decoding(config: "Config", one: _Model, names: Sequence[str]) -> list[object]:
    return [one.manifest.preprocessing.get(name, getattr(config, name)) for name in names]
