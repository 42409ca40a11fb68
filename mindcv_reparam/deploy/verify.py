"""Checking a bundle again, wherever it is: its bytes, its preprocessing, and what its models compute."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import UserError
from .checksums import check_checksums
from .compare import TOLERANCE, difference
from .images import NoImage, decode, preprocessor
from .manifest import LABELS, MANIFEST, PREPROCESSING, Manifest, TensorSpec, read_manifest
from .runners import Program, mindspore_program, onnxruntime_program
from .sample import FILES as SAMPLE_FILES
from .sample import read_sample

_PROGRAMS = {"MINDIR": ("mindspore", mindspore_program), "ONNX": ("onnxruntime", onnxruntime_program)}


def verify_bundle(folder: Path) -> Iterator[str]:
    """Check a bundle, giving a line for everything that holds, or that cannot be checked here.

    Raises:
        UserError: the first thing that does not hold.
    """
    manifest = read_manifest(folder)
    required = (MANIFEST, LABELS, PREPROCESSING, *manifest.files.values(), *SAMPLE_FILES)
    yield f"checksums: {check_checksums(folder, required)} files unchanged"
    yield _check_labels(folder, manifest)
    try:
        image, inputs, expected = read_sample(folder)
        found = preprocessor(manifest)(decode(image))
    except (OSError, ValueError, KeyError, BadZipFile, NoImage) as error:
        raise UserError(f"{folder}: the sample cannot be read: {error}") from error
    if not manifest.input.accepts(inputs.shape) or inputs.dtype != manifest.input.dtype:
        raise UserError(f"{folder}: the sample's input does not have the form that the manifest tells")
    if not np.array_equal(found, inputs[0]):
        raise UserError(f"{folder}: preprocessing gives another input than it did: Pillow's version may differ")
    yield "preprocessing: the sample's image gives the sample's input, bit for bit"
    for name, file in manifest.files.items():
        package, load = _PROGRAMS.get(name, (None, None))
        if package is None:
            yield f"{name}: not run, nothing but Ascend runs it"
        elif importlib.util.find_spec(package) is None:
            yield f"{name}: not run, {package} is not installed here"
        else:
            largest = _run(load(folder / file), manifest, inputs, expected)
            if not largest <= TOLERANCE:
                raise UserError(f"{folder / file} gives other outputs than expected: they differ by {largest:.1e}")
            yield f"{name}: the outputs of the sample differ by {largest:.1e} from those expected, at most {TOLERANCE}"


def _check_labels(folder: Path, manifest: Manifest) -> str:
    classes = None if manifest.output_kind in ("topk", "features") else manifest.outputs[0].shape[1]
    if classes is not None and len(manifest.labels) != classes:
        raise UserError(f"{folder} has {len(manifest.labels)} labels for {classes} classes")
    return f"manifest: {manifest.model} ({manifest.state}), {len(manifest.labels)} classes"


def _run(program: Program, manifest: Manifest, inputs: np.ndarray, expected: tuple[np.ndarray, ...]) -> float:
    """The largest difference, over all listed batch sizes or two of a dynamic batch."""
    differences = []
    for size in manifest.batch_sizes or (1, 3):
        outputs = program(np.repeat(inputs[:1], size, axis=0))
        _check_form(manifest.outputs, outputs, size)
        repeated = [np.repeat(output[:1], size, axis=0) for output in expected]
        differences.append(difference(manifest.output_kind, repeated, outputs))
    return float(np.max(differences))  # NaN stays NaN


def _check_form(specs: tuple[TensorSpec, ...], outputs: tuple[np.ndarray, ...], batch: int) -> None:
    forms = [(output.dtype.name, output.shape) for output in outputs]
    fits = len(specs) == len(outputs) and all(
        spec.dtype == dtype and spec.accepts(shape) and shape[0] == batch for spec, (dtype, shape) in zip(specs, forms)
    )
    if not fits:
        raise UserError(f"the model gives {forms}, the manifest tells {[(s.dtype, s.shape) for s in specs]}")
