"""The sample of a bundle: an image, the input that preprocessing makes of it, and the outputs expected of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from mindcv_reparam.archives import DamagedArrays, open_arrays, read_array
from mindcv_reparam.bundle.checksums import REMEDY
from mindcv_reparam.bundle.manifest import Manifest
from mindcv_reparam.bundle.preprocessing import decoder, preprocessor
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.runners import Program, arguments, sizes_of
from mindcv_reparam.untrusted import inside

FOLDER = "sample"
_IMAGE, _INPUT, _EXPECTED = "image.png", "input.npy", "expected.npz"
_ARRAY_BYTES = 2**30
FILES = tuple(f"{FOLDER}/{name}" for name in (_IMAGE, _INPUT, _EXPECTED))


def write_sample(folder: Path, manifest: Manifest, expected: Program) -> None:
    """Write the sample of a bundle.

    Args:
        expected: what the model has to compute, see :func:`mindcv_reparam.export.graph.reference`.
    """
    folder = folder / FOLDER
    folder.mkdir()
    _picture().save(folder / _IMAGE)
    single, size = input_of(folder / _IMAGE, manifest)
    count = (manifest.batch_sizes or (1,))[0]
    images = np.stack([single] * count)
    np.save(folder / _INPUT, images)
    outputs = expected(*arguments(manifest, images, sizes_of([size] * count)))
    names = manifest.results.expected_names(manifest.output_kind, manifest.outputs)
    np.savez(folder / _EXPECTED, **dict(zip(names, outputs, strict=True)))


def input_of(image: Path | bytes, manifest: Manifest) -> tuple[np.ndarray, tuple[int, int]]:
    """What preprocessing makes of an image file, or of its bytes, and the (width, height) that it has.

    Raises UnreadableImage.
    """
    with decoder(manifest).image(image) as picture:
        return preprocessor(manifest)(picture), picture.size


def read_sample(folder: Path, manifest: Manifest) -> tuple[Path, np.ndarray, tuple[np.ndarray, ...]]:
    """The image's path, the input and the expected outputs of a bundle's sample, of the forms that the manifest tells.

    Raises:
        UserError: a file of it cannot be read, or has another form.
    """
    image, inputs, expected = (inside(folder, name) for name in FILES)
    try:
        images = read_array(inputs, _ARRAY_BYTES)
        with open_arrays(expected, _ARRAY_BYTES) as arrays:
            outputs = tuple(arrays.read(name) for name in arrays.headers)
    except DamagedArrays as error:
        raise UserError(f"{folder}: the sample cannot be read: {error}; {REMEDY}") from error
    if not manifest.input.accepts(images.shape) or images.dtype != manifest.input.dtype or not len(images):
        raise UserError(f"{folder}: the sample's input does not have the form that the manifest tells; {REMEDY}")
    if not manifest.results.expected_fits(manifest.output_kind, manifest.outputs, outputs):
        raise UserError(f"{folder}: the sample's outputs do not have the form that the manifest tells; {REMEDY}")
    return image, images, outputs


def _picture() -> Image.Image:
    """A picture of 320 × 240 pixels with edges, gradients and texture, the same everywhere."""
    rows, columns = np.mgrid[0:240, 0:320]
    texture = np.random.default_rng(0).integers(0, 64, (240, 320))
    red = columns * 191 // 319 + texture
    green = rows * 191 // 239 + texture[::-1]
    blue = np.where((rows - 120) ** 2 + (columns - 160) ** 2 < 6400, 220, 40) + texture // 4
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8), mode="RGB")
