"""Tell what images show, as the model's task does: the most probable classes, by a bundle or a checkpoint.

    python -m mindcv_reparam infer exports/visformer_tiny photo.jpg
    python -m mindcv_reparam infer visformer_tiny_best.ckpt photos "more/**/*.png" --output predictions.csv

Images are resized, cropped and normalised as in validation. A train-time checkpoint is fused before it runs. What
cannot be read is named and skipped. Exit status 0; 1 when images were skipped, all others being done; 2 for a mistake.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import check_output, shown
from mindcv_reparam.labels import read_labels
from mindcv_reparam.run.contact_sheet import CAPACITY, write_contact_sheet
from mindcv_reparam.run.drawings import Drawings
from mindcv_reparam.run.image_files import find_images
from mindcv_reparam.run.prediction import Prediction, Predictor, Skipped
from mindcv_reparam.run.prediction_files import WRITERS, line
from mindcv_reparam.run.runners import BACKENDS, backend_for, bundle_program
from mindcv_reparam.runtime import prepare
from mindcv_reparam.settings import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="BUNDLE_OR_CKPT", help="folder that export.py wrote, or a checkpoint")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder (searched below too), quoted pattern")
    parser.add_argument("--topk", type=whole_number(), help="per image; classes: 5 by default")
    parser.add_argument("--threshold", type=_probability, help="least probability of what is told (classes: default 0)")
    parser.add_argument(
        "--batch_size", type=whole_number(), default=32, help="images together, at most (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the predictions too: .csv or .json")
    parser.add_argument("--contact_sheet", metavar="FILE", type=Path, help="draw images and predictions: .png")
    parser.add_argument(
        "--draw", metavar="FOLDER", type=Path, help="write the images with what was found marked in them"
    )
    parser.add_argument("--labels", metavar="FILE", type=Path, help="names of the classes, one a line, by index")
    parser.add_argument("--backend", choices=BACKENDS, help="what runs a bundle (default: the first that fits it)")
    parser.add_argument("--model", metavar="NAME", help="of a checkpoint that does not tell it")
    parser.add_argument("--device_target", choices=("Ascend", "CPU"), help="MindSpore's; Ascend where there is one")


def run(args: argparse.Namespace) -> int:
    check_output("--output", args.output, WRITERS)
    check_output("--contact_sheet", args.contact_sheet, [".png"])
    files = find_images(args.images)
    labels = read_labels(args.labels) if args.labels else None
    predictor = (_of_bundle if Path(args.source).is_dir() else _of_checkpoint)(args, labels, len(files))
    drawings = Drawings(args.draw, predictor) if args.draw else None
    predictions, skipped = _predict(predictor, files, args, drawings)
    if args.output:
        WRITERS[args.output.suffix](args.output, predictor, predictions, skipped)
    drawn = [prediction for prediction in predictions if prediction.thumbnail is not None]
    if drawn:
        write_contact_sheet(args.contact_sheet, predictor.results, drawn, predictor.name)
        if len(drawn) < len(predictions):
            _say(f"{args.contact_sheet} shows the first {len(drawn)} of {len(predictions)} images")
    return 1 if skipped else 0


def _of_bundle(args: argparse.Namespace, labels: Sequence[str] | None, images: int) -> Predictor:
    if args.model:
        raise UserError(f"--model is for checkpoints, {args.source} is a folder: a bundle knows its model")
    manifest, backend = read_manifest(args.source), backend_for(args.source, args.backend)
    if backend == "mindspore":
        prepare(args.device_target)
    return Predictor(manifest, bundle_program(args.source, backend), labels)


def _of_checkpoint(args: argparse.Namespace, labels: Sequence[str] | None, images: int) -> Predictor:
    if args.backend not in (None, "mindspore"):
        raise UserError(f"--backend {args.backend} runs bundles and {args.source} is none: export.py writes one")
    prepare(args.device_target)
    from mindcv_reparam.run.fused import fused_model

    return Predictor(*fused_model(args.source, min(args.batch_size, images), args.model), labels)


def _predict(
    predictor: Predictor, files: Sequence[Path], args: argparse.Namespace, drawings: Drawings | None
) -> tuple[list[Prediction], list[Skipped]]:
    """Print every result as it comes: predictions on stdout, everything else on stderr."""
    predictions: list[Prediction] = []
    skipped: list[Skipped] = []
    thumbnails = CAPACITY if args.contact_sheet else 0
    start = time.perf_counter()
    with tqdm(total=len(files), unit="img", disable=None, leave=False) as bar:  # None: only on a terminal
        for result in predictor.predict(files, args.batch_size, args.topk, thumbnails, args.threshold):
            if isinstance(result, Prediction):
                predictions.append(result)
                bar.write(line(predictor.results, result, predictor.name))
                if drawings is not None:
                    drawings.write(result)
            else:
                skipped.append(result)
                bar.write(f"{shown(result.file)} skipped: {result.reason}", file=sys.stderr)
            bar.update()
    seconds = time.perf_counter() - start
    read = len(predictions)
    _say(f"images: {read}, skipped: {len(skipped)}, {seconds:.1f} s, {read / seconds:.1f} img/s")
    return predictions, skipped


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def _say(message: str) -> None:
    print(message, file=sys.stderr)
