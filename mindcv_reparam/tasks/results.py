"""What outputs of networks mean: the part of a task that bundles, programs and the server use, without MindSpore."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pydantic
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.tensors import TensorSpec

Label = Callable[[int], str]  # what a class is called, by its index
Number = Callable[[int], int]  # and what number the annotations of the training images give it
KnownNumber = Callable[[int], int | None]  # the same; None where they give it none
F = TypeVar("F")  # what is found in one image


class Transform(Protocol):
    """From a decoded RGB image to a network's input float32 (3, H, W); a dataclass. Raises UnreadableImage.

    Attributes:
        normalize: the last step, from the resized image to the array; models that take bytes do without it.
        in_words: the steps before it, after "it is".
    """

    @property
    def normalize(self) -> Callable[[Image.Image], np.ndarray]: ...

    @property
    def in_words(self) -> str: ...

    def __call__(self, image: Image.Image) -> np.ndarray: ...


class Results(Protocol[F]):
    """What a task's networks tell of images. ``kind`` is always one of ``kinds``, ``outputs`` what a model of it gives.

    Attributes:
        kinds: of outputs that networks are exported with, of the words that ``export_head`` has; the first by default.
        what: that is told of an image, for messages: "classes".
        marks: whether what is found has a place in the image, so that :meth:`drawn` marks it.
        selects: whether the graph computes places in tensors or in images, which takes more than float16.
        route: under which the server tells it of an image file, "classify" in ``/v2/models/NAME/classify``.
        most: so much is told of an image where nobody asks for more or less.
        least: and nothing less probable than this.
        columns: of the table that Python's ``predict`` gives, behind that of the image.
        answer: of the server, for OpenAPI: ``model_name``, ``model_version`` and what :meth:`record` gives.
    """

    @property
    def kinds(self) -> tuple[str, ...]: ...

    @property
    def what(self) -> str: ...

    @property
    def marks(self) -> bool: ...

    @property
    def selects(self) -> bool: ...

    @property
    def route(self) -> str: ...

    @property
    def most(self) -> int: ...

    @property
    def least(self) -> float: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def answer(self) -> type[pydantic.BaseModel]: ...

    # what a bundle's manifest says

    def tells(self, kind: str) -> bool:
        """Whether such outputs tell ``what``; feature maps do not."""

    def fits(self, kind: str, outputs: Sequence[TensorSpec]) -> bool:
        """Whether outputs of this kind can have these forms."""

    def classes(self, kind: str, outputs: Sequence[TensorSpec]) -> int | None:
        """How many classes the forms of the outputs say that there are; None where they do not."""

    def plain(self, hparams: Mapping[str, Any], batch: int | None) -> tuple[str, tuple[TensorSpec, ...]]:
        """Kind and forms of what the network itself gives, from the arguments of create_model."""

    def meanings(self, kind: str) -> Mapping[str, str]:
        """What a client has to know of the inputs beside the images and of the outputs, by name, for the manifest."""

    def transform(self, config: Config) -> Transform:
        """The preprocessing of validation."""

    # what is found, and how it is told

    def find(
        self, kind: str, outputs: Sequence[np.ndarray], sizes: np.ndarray, most: int, least: float
    ) -> list[F | None]:
        """What every image of a batch shows; None where its outputs are not finite.

        Args:
            sizes: (N, 2) int32, width and height of the images as they were decoded, in pixels.
            most: of an image, from the most probable down.
            least: probability or score.
        """

    def line(self, found: F, label: Label) -> str:
        """For people, in one line."""

    def record(self, found: F, label: Label, number: KnownNumber) -> dict[str, Any]:
        """For the server's answer."""

    def document(
        self, found: Sequence[tuple[str, F]], skipped: Sequence[tuple[str, str]], label: Label, number: Number
    ) -> dict[str, Any]:
        """For a JSON file: what was found, by file, and why other files were left out."""

    def table(self, found: Sequence[tuple[str, F]], label: Label) -> Iterable[Sequence[object]]:
        """For a CSV file: its head and its rows."""

    def rows(self, found: F, label: Label) -> list[tuple[Any, ...]]:
        """For a table in Python with ``columns``: a row for everything that is told of an image."""

    def caption(self, found: F, label: Label) -> tuple[str, str]:
        """Two lines below a thumbnail."""

    def drawn(self, image: Image.Image, found: F, label: Label) -> Image.Image:
        """A copy of the image, of whatever size it was made, with what was found marked in it; itself without marks."""

    # what two models of one network may differ by

    def difference(self, kind: str, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
        """How far outputs are from what a :class:`Head` expects: at most ``tensors.TOLERANCE`` for equal networks.

        NaN where a number is NaN, infinite where the forms differ.
        """

    def difference_note(self, kind: str) -> str:
        """What a reader of the report has to know about that number; empty where it is max|Δ| / max|output|."""

    def expected_names(self, kind: str, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """Names of the arrays that a :class:`Head` expects, for the sample of a bundle."""

    def expected_fits(self, kind: str, outputs: Sequence[TensorSpec], expected: Sequence[np.ndarray]) -> bool:
        """Whether arrays of a sample, which may be anybody's, have the forms that such outputs are compared with."""
