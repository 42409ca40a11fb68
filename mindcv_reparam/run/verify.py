"""Checking a bundle again, wherever it is: its bytes, its preprocessing, and what its models compute."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mindcv_reparam.bundle.checksums import REMEDY, check_checksums
from mindcv_reparam.bundle.manifest import LABELS, MANIFEST, PREPROCESSING, Format, Manifest, read_manifest
from mindcv_reparam.data.decoder import UnreadableImage
from mindcv_reparam.errors import UserError
from mindcv_reparam.packages import is_installed
from mindcv_reparam.run.accuracy import Comparison
from mindcv_reparam.run.runners import Program, arguments, fitting, mindspore_program, onnxruntime_program, sizes_of
from mindcv_reparam.run.sample import FILES as SAMPLE_FILES
from mindcv_reparam.run.sample import input_of, read_sample
from mindcv_reparam.tensors import TOLERANCE
from mindcv_reparam.untrusted import inside

# Of the range of a metric. Equal networks rank a few images or boxes the other way round, float16 weights some more.
APART = 0.005
_PROGRAMS: dict[Format, tuple[str, Callable[[Path], Program]]] = {
    "MINDIR": ("mindspore", mindspore_program),
    "ONNX": ("onnxruntime", onnxruntime_program),
}


def verify_bundle(folder: Path, comparison: Comparison | None = None) -> Iterator[str]:
    """Check a bundle, giving a line for everything that holds, or that cannot be checked here.

    Args:
        comparison: on labelled images, of every model that runs here.

    Raises:
        UserError: the first thing that does not hold.
    """
    manifest = read_manifest(folder)
    required = (MANIFEST, LABELS, PREPROCESSING, *manifest.files.values(), *SAMPLE_FILES)
    yield f"checksums: {check_checksums(folder, required)} files unchanged"
    yield _check_labels(folder, manifest)
    image, inputs, expected = read_sample(folder, manifest)
    try:
        found, size = input_of(image, manifest)
    except UnreadableImage as error:
        raise UserError(f"{folder}: the sample cannot be read: {error}; {REMEDY}") from error
    if not np.array_equal(found, inputs[0]):
        raise UserError(f"{folder}: preprocessing gives another input than it did: Pillow's version may differ")
    yield "preprocessing: the sample's image gives the sample's input, bit for bit"
    for name, file in manifest.files.items():
        if name not in _PROGRAMS:
            yield f"{name}: not run, nothing but Ascend runs it"
        elif not is_installed(_PROGRAMS[name][0]):
            yield f"{name}: not run, {_PROGRAMS[name][0]} is not installed here"
        else:
            _, load = _PROGRAMS[name]
            path = inside(folder, file)
            program = fitting(load(path), manifest, path)
            largest = _run(program, manifest, inputs, size, expected)
            if not largest <= TOLERANCE:
                raise UserError(f"{folder / file} gives other outputs than expected: they differ by {largest:.1e}")
            yield f"{name}: the outputs of the sample differ by {largest:.1e} from those expected, at most {TOLERANCE}"
            if comparison is not None:
                agreement = comparison(manifest, program)
                if not agreement.apart <= APART:
                    raise UserError(f"{folder / file} tells other {manifest.results.what} than expected: {agreement}")
                yield f"{name}: {agreement}"


def _check_labels(folder: Path, manifest: Manifest) -> str:
    classes = manifest.results.classes(manifest.output_kind, manifest.outputs)
    if classes is not None and len(manifest.labels) != classes:
        raise UserError(f"{folder} has {len(manifest.labels)} labels for {classes} classes")
    return f"manifest: {manifest.model} ({manifest.state}), {len(manifest.labels)} classes"


def _run(
    program: Program,
    manifest: Manifest,
    inputs: np.ndarray,
    size: tuple[int, int],
    expected: tuple[np.ndarray, ...],
) -> float:
    """The largest difference, over all listed batch sizes or two of a dynamic batch; the image has ``size``."""
    differences = []
    for count in manifest.batch_sizes or (1, 3):
        outputs = program(*arguments(manifest, np.repeat(inputs[:1], count, axis=0), sizes_of([size] * count)))
        repeated = [np.repeat(output[:1], count, axis=0) for output in expected]
        differences.append(manifest.results.difference(manifest.output_kind, repeated, outputs))
    return float(np.max(differences))  # NaN stays NaN
