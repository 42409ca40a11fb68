"""What a classifier tells: the most probable classes of an image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from mindcv_reparam.config import Config
from mindcv_reparam.data.transforms import EvalTransform, eval_transform
from mindcv_reparam.tasks.results import KnownNumber, Label, Number
from mindcv_reparam.tensors import TensorSpec, relative_difference

_SMALLEST = np.finfo(np.float32).tiny


class Class(BaseModel):
    """One of a model."""

    index: int
    label: str
    probability: float


class Classes(BaseModel):
    """The most probable ones of an image."""

    model_name: str
    model_version: str
    classes: list[Class]


@dataclass(frozen=True)
class Found:
    """The most probable classes of an image, from the first one down."""

    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


def ranked(found: Found, label: Label) -> list[dict[str, Any]]:
    """Index, label and probability of every class, from the first one down."""
    pairs = zip(found.classes, found.probabilities)
    return [{"index": index, "label": label(index), "probability": value} for index, value in pairs]


class ClassificationResults:
    """Logits or probabilities of all classes (N, classes), the largest probabilities and their classes (N, k), or maps.

    "logits" and "softmax" are one tensor, "topk" two, "features" one map per stage.
    """

    kinds = ("logits", "softmax", "topk", "features")
    what = "classes"
    marks = False
    selects = False
    route = "classify"
    most = 5
    least = 0.0
    columns = ("rank", "label", "probability", "index")
    answer = Classes

    def tells(self, kind: str) -> bool:
        return kind != "features"

    def fits(self, kind: str, outputs: Sequence[TensorSpec]) -> bool:
        axes = {"features": (4,) * len(outputs), "topk": (2, 2)}.get(kind, (2,))
        return tuple(len(output.shape) for output in outputs) == axes

    def classes(self, kind: str, outputs: Sequence[TensorSpec]) -> int | None:
        return outputs[0].shape[1] if kind in ("logits", "softmax") else None

    def plain(self, hparams: Mapping[str, Any], batch: int | None) -> tuple[str, tuple[TensorSpec, ...]]:
        return "logits", (TensorSpec("logits", "float32", (batch, hparams["num_classes"])),)

    def meanings(self, kind: str) -> Mapping[str, str]:
        order = "in the order of the lines of labels.txt"
        return {
            "logits": {"logits": f"of every class, before the softmax, {order}"},
            "softmax": {"probabilities": f"of every class, {order}"},
            "topk": {
                "probabilities": "the largest ones, from the first down",
                "classes": "their indices, counted from 0, as the lines of labels.txt are",
            },
        }.get(kind, {})

    def transform(self, config: Config) -> EvalTransform:
        return eval_transform(config)

    def find(
        self, kind: str, outputs: Sequence[np.ndarray], sizes: np.ndarray, most: int, least: float
    ) -> list[Found | None]:
        indices, probabilities = most_probable(outputs, kind, most)
        found = []
        for classes, values in zip(indices.tolist(), probabilities.tolist()):
            kept = [pair for pair in zip(classes, values) if pair[1] >= least]
            one = Found(tuple(index for index, _ in kept), tuple(value for _, value in kept))
            found.append(one if np.isfinite(values).all() else None)
        return found

    def line(self, found: Found, label: Label) -> str:
        """``label 61.32 %; label 30.15 %``, with semicolons since many labels have commas."""
        ranked = zip(found.classes, found.probabilities)
        return "; ".join(f"{label(index)} {100 * value:.2f} %" for index, value in ranked)

    def record(self, found: Found, label: Label, number: KnownNumber) -> dict[str, Any]:
        return {"classes": ranked(found, label)}

    def document(
        self, found: Sequence[tuple[str, Found]], skipped: Sequence[tuple[str, str]], label: Label, number: Number
    ) -> dict[str, Any]:
        """``{"images": [{"file", "classes": […]}], "skipped": [{"file", "reason"}]}``, classes as :func:`ranked`."""
        return {
            "images": [{"file": file, "classes": ranked(one, label)} for file, one in found],
            "skipped": [{"file": file, "reason": reason} for file, reason in skipped],
        }

    def table(self, found: Sequence[tuple[str, Found]], label: Label) -> Iterator[Sequence[object]]:
        """One row per image: file, then index, label and probability of its first class, of its second …"""
        ranks = range(1, 1 + max((len(one.classes) for _, one in found), default=0))
        yield ["file", *(f"{field}_{rank}" for rank in ranks for field in ("index", "label", "probability"))]
        for file, one in found:
            ranked = zip(one.classes, one.probabilities)
            yield [file, *(cell for index, value in ranked for cell in (index, label(index), f"{value:.6g}"))]

    def rows(self, found: Found, label: Label) -> list[tuple[Any, ...]]:
        """One per class, from the most probable down; ranks count from 1."""
        ranked = enumerate(zip(found.classes, found.probabilities), 1)
        return [(rank, label(index), value, index) for rank, (index, value) in ranked]

    def caption(self, found: Found, label: Label) -> tuple[str, str]:
        """The first class and its probability."""
        return (label(found.classes[0]), f"{100 * found.probabilities[0]:.1f} %") if found.classes else ("", "")

    def drawn(self, image: Image.Image, found: Found, label: Label) -> Image.Image:
        """A class is nowhere in the image."""
        return image

    def difference(self, kind: str, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
        return difference(kind, expected, actual)

    def difference_note(self, kind: str) -> str:
        if kind in ("softmax", "topk"):
            return "That of probabilities is divided by the spread of their logits, if it is above 1."
        return ""

    def expected_names(self, kind: str, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """For "topk": the probabilities of all classes, which tell ties from faults."""
        return ("probabilities",) if kind == "topk" else tuple(output.name for output in outputs)

    def expected_fits(self, kind: str, outputs: Sequence[TensorSpec], expected: Sequence[np.ndarray]) -> bool:
        if kind == "topk":
            k = outputs[0].shape[1] or 1
            return len(expected) == 1 and all(
                o.ndim == 2 and o.shape[1] >= k and len(o) > 0 and o.dtype == np.float32 for o in expected
            )
        return len(expected) == len(outputs) and all(
            spec.accepts(output.shape) and output.dtype == spec.dtype and output.size > 0
            for spec, output in zip(outputs, expected)
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis; NaN where a logit is NaN or +∞."""
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def most_probable(outputs: Sequence[np.ndarray], kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and probabilities (N, count) of the most probable classes; of equal ones the first, as in validation.

    Fewer than ``count`` where a model has or tells fewer.
    """
    if kind == "topk":
        probabilities, classes = outputs
        return classes[:, :count], probabilities[:, :count]
    values = outputs[0].astype(np.float64)
    classes = np.argsort(-values, axis=1, kind="stable")[:, :count]
    probabilities = softmax(values) if kind == "logits" else values
    return classes, np.take_along_axis(probabilities, classes, axis=1)


def difference(kind: str, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """max|Δ| / max|expected| over all outputs; NaN where one of them has NaN, infinite where the shapes differ.

    Probabilities move by as much as their logits, not by as large a part of themselves: their difference is divided by
    the spread of the logits, so that the tolerance is as strict for every kind of output.

    Args:
        kind: for "topk", ``expected`` is the probabilities of all classes, (N, classes), and ``actual`` the k largest
            and their classes: the classes may be any that have these probabilities, in case of ties.
    """
    scale = 1.0 if kind in ("logits", "features") else max(1.0, _logit_spread(expected[0]))
    if kind == "topk":
        (probabilities,), (values, classes) = expected, actual
        if not (classes.min(initial=0) >= 0 and classes.max(initial=0) < probabilities.shape[1]):
            return float("inf")
        largest = -np.sort(-probabilities, axis=1)[:, : values.shape[1]]
        expected = largest, np.take_along_axis(probabilities, classes.astype(np.int64), axis=1)
        actual = values, values
    return relative_difference(expected, actual) / scale


def _logit_spread(probabilities: np.ndarray) -> float:
    """The largest difference of two logits of an image that gives the probabilities (N, classes)."""
    logs = np.log(np.maximum(probabilities, _SMALLEST))
    return float(np.ptp(logs, axis=1).max())
