"""Check a deployment bundle: that no byte changed and its models still compute what they did.

    python -m mindcv_reparam verify BUNDLE
    python -m mindcv_reparam verify BUNDLE --verify_data COCO_FOLDER --ckpt_path FILE

With labelled images, a classifier's top-1 or a detector's AP of every file is told, beside that of a checkpoint, from
which it may differ by half a point at most.

It needs NumPy, Pillow, PyYAML and pydantic; a model whose program is not installed (MindSpore, onnxruntime) is left out
with a line that says so.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindcv_reparam.errors import UserError, require
from mindcv_reparam.settings import whole_number

if TYPE_CHECKING:
    from mindcv_reparam.bundle.manifest import Manifest
    from mindcv_reparam.run.accuracy import Comparison
    from mindcv_reparam.run.runners import Program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that export.py wrote")
    parser.add_argument("--verify_data", metavar="DATA", help="labelled images: a folder, or digits or scenes")
    parser.add_argument("--ckpt_path", metavar="FILE", help="checkpoint to compare with on them")
    parser.add_argument(
        "--dataset", choices=("imagenet", "folder", "cifar10", "coco", "yolo"), help="what the folder holds"
    )
    parser.add_argument("--labels", metavar="FILE", help="class folder or category of every output, a line each")
    parser.add_argument("--num_samples", type=whole_number(), help="use this many images only")


def run(args: argparse.Namespace) -> int:
    from mindcv_reparam.bundle.manifest import read_manifest
    from mindcv_reparam.packages import is_installed
    from mindcv_reparam.run.verify import verify_bundle

    given = [name for name in ("ckpt_path", "dataset", "labels", "num_samples") if getattr(args, name)]
    if given and not args.verify_data:
        raise UserError(f"--{given[0]} is for labelled images: name them by --verify_data")
    if args.ckpt_path:
        require("mindspore")
    manifest = read_manifest(args.bundle)
    if args.ckpt_path or ("MINDIR" in manifest.files and is_installed("mindspore")):
        from mindcv_reparam.runtime import prepare

        prepare("CPU")
    for line in verify_bundle(args.bundle, _comparison(args, manifest) if args.verify_data else None):
        print(line, flush=True)
    print(f"{args.bundle} is whole")
    return 0


def _comparison(args: argparse.Namespace, manifest: "Manifest") -> "Comparison":
    from mindcv_reparam.commands.export import images_to_compare_on
    from mindcv_reparam.config import Config
    from mindcv_reparam.run.accuracy import Comparison

    Comparison.check(manifest.results, manifest.output_kind)
    values = {"dataset": args.dataset, "labels": args.labels, "verify_data": args.verify_data}
    values = {name: value for name, value in values.items() if value is not None}
    config = Config(**values, given=frozenset(values))
    checkpoint, named = _checkpoint(args.ckpt_path, manifest) if args.ckpt_path else (None, folders_of(manifest))
    images = images_to_compare_on(config, manifest.model, manifest.preprocessing, named, len(manifest.labels))
    return Comparison(images, args.num_samples, checkpoint)


def folders_of(manifest: "Manifest") -> tuple[str, ...]:
    """What data sets call the classes; those of published weights have folders that are not their names."""
    from mindcv_reparam.labels import published

    known = published(len(manifest.labels))
    return known.folders if known and known.shown == manifest.labels else manifest.labels


def _checkpoint(path: str, manifest: "Manifest") -> "tuple[Program, list[str] | None]":
    """The network of a checkpoint, and its classes. Raises UserError where the bundle is of another one."""
    from mindcv_reparam.run.runners import cell_program
    from mindcv_reparam.zoo import model_from_checkpoint

    network, info = model_from_checkpoint(path)
    classes = info.hparams["num_classes"]
    if (info.model, classes) != (manifest.model, len(manifest.labels)):
        raise UserError(
            f"{path} is a {info.model} of {classes} classes, the bundle a {manifest.model} of {len(manifest.labels)}"
        )
    return cell_program(network), info.classes
