"""What a deployment bundle holds and how its models are called, as ``bundle.json`` tells it.

A bundle is a folder:

    bundle.json                 this manifest
    model.mindir, model.onnx, model.air   one network, in the formats that were asked for
    labels.txt                  one class name a line, by index
    preprocessing.json          from an image file to the input
    sample/                     an image, the input it becomes and the outputs expected of it
    README.md                   how it is checked, asked and served, for somebody who has nothing else
    config.pbtxt, Dockerfile    for Triton, and for a container with the server; where there is an ONNX file
    ascend/                     convert.sh with the command lines of Ascend's converters, and what they read
    report.md                   where it comes from, what it costs, how far the formats agree
    SHA256SUMS                  of all other files, as sha256sum writes and checks them

Reading one needs neither MindSpore nor ONNX.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from annotated_types import Len

from mindcv_reparam.bundle.checksums import REMEDY
from mindcv_reparam.bundle.schema import read_preprocessing
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.labels import CategoryIds
from mindcv_reparam.registry import DEFAULT_TASK
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tasks.results import Results
from mindcv_reparam.tensors import STRICT, Name, Size, TensorSpec
from mindcv_reparam.untrusted import inside, lines, parse_json, read_text

_T = TypeVar("_T")

INPUT_NAME, SIZES_NAME = "images", "sizes"  # in the files they are the names of the arguments of Graph.construct
MANIFEST, LABELS, PREPROCESSING = "bundle.json", "labels.txt", "preprocessing.json"
VERSION: Literal[1] = 1  # of the manifest's layout

InputKind = Literal["normalized", "rgb", "bgr"]
Format = Literal["MINDIR", "ONNX", "AIR"]

_TEXT_BYTES = 16 * 2**20  # of bundle.json, labels.txt, preprocessing.json
_NUMBERS = 2**27  # that an input or an output of the largest batch may have


@dataclass(frozen=True)
class Description:
    """What bundle.json says.

    Attributes:
        state: "train", or the level it was fused at.
        input_kind: "normalized" is float32 (N, C, H, W), (pixel − mean) / std; "rgb" and "bgr" are uint8 (N, H, W, 3)
            as decoded, the model normalises.
        output_kind: one of those of the task, whose ``results`` know what the outputs mean.
        batch_sizes: the listed ones; None where any goes.
        files: of the models, by format ("MINDIR", "ONNX", "AIR").
        task: what the model is for.
        sizes: a second input (N, 2), width and height of every image as it was decoded, in pixels; None where the
            model takes images alone.
        meanings: what a client has to know of inputs and outputs, by name.
        category_ids: what the annotations of the training images call the classes, by index; None for a class that
            they do not have, and in whole where classes have no numbers.
    """

    __pydantic_config__ = STRICT

    model: Name
    state: Literal["train", "branches", "full"]
    input: TensorSpec
    input_kind: InputKind
    outputs: Annotated[tuple[TensorSpec, ...], Len(1, 16)]
    output_kind: Name
    batch_sizes: Annotated[tuple[Size, ...], Len(1, 100)] | None
    weights: Literal["fp32", "fp16"]
    files: Annotated[Mapping[Format, Name], Len(1)]
    task: Name = dataclasses.field(default=DEFAULT_TASK, kw_only=True)
    sizes: TensorSpec | None = dataclasses.field(default=None, kw_only=True)
    meanings: Annotated[Mapping[Name, Annotated[str, Len(0, 1000)]], Len(0, 32)] = dataclasses.field(
        default_factory=dict, kw_only=True
    )
    category_ids: CategoryIds | None = dataclasses.field(default=None, kw_only=True)
    version: Literal[1] = dataclasses.field(default=VERSION, kw_only=True)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """In the order in which a program takes them."""
        return (self.input,) if self.sizes is None else (self.input, self.sizes)

    def known_number(self, index: int) -> int | None:
        """What the annotations call a class; None for one that they do not have, or where classes have no numbers."""
        ids = self.category_ids or ()
        return ids[index] if index < len(ids) else None

    def number(self, index: int) -> int:
        """The same; for a class that they do not have a number above all of theirs, its index where none has one."""
        known = self.known_number(index)
        if known is not None or self.category_ids is None:
            return index if known is None else known
        return max((number for number in self.category_ids if number is not None), default=0) + 1 + index

    @property
    def results(self) -> Results[Any]:
        """What the outputs mean."""
        return task_named(self.task, f"this {self.model}").results


@dataclass(frozen=True)
class Manifest(Description):
    """What a bundle holds: beside its description, the contents of the two other files that steer it.

    Attributes:
        labels: names of the classes, by index.
        preprocessing: ``image_resize`` (H, W), ``crop_pct``, ``interpolation``, ``mean`` and ``std`` (0–255 scale).
    """

    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any]


@dataclass(frozen=True)
class _Versioned:
    version: int


@functools.cache
def _schema(kind: type[_T]) -> pydantic.TypeAdapter[_T]:
    return pydantic.TypeAdapter(kind)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    return Path(path, MANIFEST).is_file()


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write bundle.json, labels.txt and preprocessing.json."""
    values = dataclasses.asdict(manifest)
    labels, preprocessing = values.pop("labels"), values.pop("preprocessing")
    _write_json(folder / MANIFEST, values)
    _write_json(folder / PREPROCESSING, preprocessing)
    (folder / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a bundle, every field checked.

    Raises:
        UserError: the folder is no bundle, or one of another version, or something in these files is wrong.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise UserError(f"{folder} is no bundle: it has no {MANIFEST}; export.py --output FOLDER writes one")
    text, name = read_text(inside(folder, MANIFEST), _TEXT_BYTES), str(folder / MANIFEST)
    version = parse_json(text, _schema(_Versioned), name, REMEDY).version
    if version != VERSION:
        raise UserError(f"{folder} is a bundle of version {version:.9g}, this program reads {VERSION}: export it anew")
    said = parse_json(text, _schema(Description), name, REMEDY)
    preprocessing = read_preprocessing(inside(folder, PREPROCESSING), REMEDY)
    labels = lines(read_text(inside(folder, LABELS), _TEXT_BYTES))
    values = {field.name: getattr(said, field.name) for field in dataclasses.fields(said)}
    manifest = Manifest(**values, labels=tuple(labels), preprocessing=preprocessing)
    for file in manifest.files.values():
        inside(folder, file)
    problem = _contradiction(manifest)
    if problem:
        raise UserError(f"{folder} is damaged: {problem}; {REMEDY}")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """What two fields say that cannot both be, or that would take more memory than there is."""
    pixels = manifest.input_kind != "normalized"
    batches = manifest.batch_sizes or (None,)
    batch = batches[0] if len(batches) == 1 else None
    channels = manifest.input.shape[-1 if pixels else 1 : None if pixels else 2]
    if len(manifest.input.shape) != 4 or channels != (3,) or manifest.input.dtype != ("uint8" if pixels else "float32"):
        return (
            f"input: {manifest.input.dtype} {list(manifest.input.shape)} is no input of the kind {manifest.input_kind}"
        )
    results = manifest.results
    if manifest.output_kind not in results.kinds:
        kinds = ", ".join(results.kinds)
        return f"output_kind {shortened(manifest.output_kind)!r} is none of those of {manifest.task}: {kinds}"
    if not results.fits(manifest.output_kind, manifest.outputs):
        return f"outputs: their number or shapes are not those of the kind {manifest.output_kind}"
    if manifest.sizes is not None and (manifest.sizes.shape[1:], manifest.sizes.dtype) != ((2,), "int32"):
        return f"sizes: {manifest.sizes.dtype} {list(manifest.sizes.shape)} is no width and height of images"
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.shape[0] != batch:
            return f"{spec.name}: a batch of {spec.shape[0]} does not go with batch_sizes {list(batches)}"
    if manifest.category_ids is not None and len(manifest.category_ids) > len(manifest.labels):
        return f"category_ids: {len(manifest.category_ids)} for {len(manifest.labels)} labels"
    largest = max(manifest.batch_sizes or (1,))
    height, width = height_and_width(manifest.preprocessing["image_resize"])
    image = 3 * math.prod(own or usual for own, usual in zip(_sides(manifest.input, pixels), (height, width)))
    numbers = [image, 3 * height * width, *(math.prod(size or 1 for size in o.shape[1:]) for o in manifest.outputs)]
    if largest * max(numbers) > _NUMBERS:
        return f"a tensor of {largest * max(numbers):.9g} numbers, more than {_NUMBERS:,}"
    return None


def _sides(spec: TensorSpec, pixels: bool) -> tuple[int | None, ...]:
    return spec.shape[1:3] if pixels else spec.shape[2:4]


def unfit_label(labels: Sequence[str]) -> str | None:
    """The first name that labels.txt could not give back; None where all can be told."""
    return next((label for label in labels if "\n" in label or "\r" in label or label.startswith("\ufeff")), None)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
