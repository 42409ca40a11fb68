"""The sample of a bundle: an image, the input that preprocessing makes of it, and the outputs expected of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from .images import decode, preprocessor
from .manifest import Manifest
from .runners import Program

FOLDER = "sample"
_IMAGE, _INPUT, _EXPECTED = "image.png", "input.npy", "expected.npz"
FILES = tuple(f"{FOLDER}/{name}" for name in (_IMAGE, _INPUT, _EXPECTED))


def write_sample(folder: Path, manifest: Manifest, expected: Program) -> None:
    """Write the sample of a bundle.

    Args:
        expected: what the model has to compute, see :func:`graph.reference`.
    """
    folder = folder / FOLDER
    folder.mkdir()
    _picture().save(folder / _IMAGE)
    single = preprocessor(manifest)(decode(folder / _IMAGE))
    images = np.stack([single] * (manifest.batch_sizes or (1,))[0])
    np.save(folder / _INPUT, images)
    outputs = expected(images)
    # For "topk": the probabilities of all classes, which tell ties from faults.
    names = ["probabilities"] if manifest.output_kind == "topk" else [output.name for output in manifest.outputs]
    np.savez(folder / _EXPECTED, **dict(zip(names, outputs, strict=True)))


def read_sample(folder: Path) -> tuple[Path, np.ndarray, tuple[np.ndarray, ...]]:
    """The image's path, the input and the expected outputs of a bundle's sample."""
    folder = folder / FOLDER
    with np.load(folder / _EXPECTED) as expected:
        return folder / _IMAGE, np.load(folder / _INPUT), tuple(expected[name] for name in expected.files)


def _picture() -> Image.Image:
    """A picture of 320 × 240 pixels with edges, gradients and texture, the same everywhere."""
    rows, columns = np.mgrid[0:240, 0:320]
    texture = np.random.default_rng(0).integers(0, 64, (240, 320))
    red = columns * 191 // 319 + texture
    green = rows * 191 // 239 + texture[::-1]
    blue = np.where((rows - 120) ** 2 + (columns - 160) ** 2 < 6400, 220, 40) + texture // 4
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8), mode="RGB")
