"""What a deployment bundle holds and how its models are called, as ``bundle.json`` tells it.

A bundle is a folder:

    bundle.json                 this manifest
    model.mindir, model.onnx, model.air   one network, in the formats that were asked for
    labels.txt                  one class name a line, by index
    preprocessing.json          from an image file to the input
    sample/                     an image, the input it becomes and the outputs expected of it
    ascend/                     convert.sh with the command lines of Ascend's converters, and what they read
    report.md                   where it comes from, what it costs, how far the formats agree
    SHA256SUMS                  of all other files, as sha256sum writes and checks them

Reading one needs neither MindSpore nor ONNX.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError

MANIFEST, LABELS, PREPROCESSING = "bundle.json", "labels.txt", "preprocessing.json"
VERSION = 1  # of the manifest's layout

OutputKind = Literal["logits", "softmax", "topk", "features"]
InputKind = Literal["normalized", "rgb", "bgr"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives."""

    name: str
    dtype: str  # NumPy's name
    shape: tuple[int | None, ...]  # None where any size goes, the batch in front

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(own is None or own == size for own, size in zip(self.shape, shape))


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        state: "train", or the level it was fused at.
        input_kind: "normalized" is float32 (N, C, H, W), (pixel − mean) / std; "rgb" and "bgr" are uint8 (N, H, W, 3)
            as decoded, the model normalises.
        output_kind: "logits" or "softmax" is one tensor (N, classes); "topk" the largest probabilities and their class
            indices, both (N, k); "features" one map per stage.
        batch_sizes: the listed ones; None where any goes.
        files: of the models, by format ("MINDIR", "ONNX", "AIR").
        preprocessing: ``image_resize`` (H, W), ``crop_pct``, ``interpolation``, ``mean`` and ``std`` (0–255 scale).
    """

    model: str
    state: str
    input: TensorSpec
    input_kind: InputKind
    outputs: tuple[TensorSpec, ...]
    output_kind: OutputKind
    batch_sizes: tuple[int, ...] | None
    weights: Literal["fp32", "fp16"]
    files: Mapping[str, str]
    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any]


def is_bundle(path: str | os.PathLike[str]) -> bool:
    return Path(path, MANIFEST).is_file()


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write bundle.json, labels.txt and preprocessing.json."""
    values = dataclasses.asdict(manifest)
    labels, preprocessing = values.pop("labels"), values.pop("preprocessing")
    _write_json(folder / MANIFEST, {"version": VERSION, **values})
    _write_json(folder / PREPROCESSING, preprocessing)
    (folder / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a bundle.

    Raises:
        UserError: the folder is no bundle, or one of another version, or something in these files is wrong.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise UserError(f"{folder} is no bundle: it has no {MANIFEST}; export.py --output FOLDER writes one")
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = values.pop("version", None)
        if version != VERSION:
            raise UserError(f"{folder} is a bundle of version {version}, this program reads {VERSION}: export it anew")
        values["input"] = _spec(values["input"])
        values["outputs"] = tuple(_spec(output) for output in values["outputs"])
        values["batch_sizes"] = values["batch_sizes"] and tuple(values["batch_sizes"])
        preprocessing = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
        preprocessing = {key: tuple(v) if isinstance(v, list) else v for key, v in preprocessing.items()}
        labels = tuple(_lines((folder / LABELS).read_text(encoding="utf-8")))
        return Manifest(**values, labels=labels, preprocessing=preprocessing)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.filename}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder} is damaged: {MANIFEST} or {PREPROCESSING} cannot be understood ({error})") from None


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a text file, one a line; a byte order mark in front is left out.

    Raises:
        UserError: there is no such text file.
    """
    try:
        return _lines(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the labels {path}: {getattr(error, 'strerror', None) or 'no UTF-8 text'}"
        ) from None


def _lines(text: str) -> list[str]:
    """Lines as files have them; to ``splitlines`` some characters that a name may hold end one, too."""
    return text.removesuffix("\n").split("\n") if text else []


def _spec(values: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(values["name"], values["dtype"], tuple(values["shape"]))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
