"""The protocol between the scripts and what a network is for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mindcv_reparam.config import Config
from mindcv_reparam.data import ImageSource
from mindcv_reparam.data.batches import Batches
from mindcv_reparam.data.sampler import Shard
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.tasks.about import About
from mindcv_reparam.tasks.results import Label, Results

if TYPE_CHECKING:  # --help must not import MindSpore
    from mindspore import nn

    from mindcv_reparam.tasks.head import Head
    from mindcv_reparam.tasks.objective import Objective


@dataclass(frozen=True)
class Metric:
    """A number that a validation gives, and how people read it.

    Args:
        name: in metrics files, checkpoints and event files.
        title: in the log.
        form: format of the value in the log, with its unit.
        panel: title of the axis on which it is drawn.
        legend: what its curve is called.
    """

    name: str
    title: str
    form: str
    panel: str
    legend: str


class Evaluation(Protocol):
    """What a validation found, over all ranks."""

    @property
    def samples(self) -> int: ...

    @property
    def images_per_second(self) -> float: ...

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """The task's metrics by name; ``prefix`` tells averaged weights from the online ones."""

    def line(self) -> str:
        """For people."""

    def record(self) -> dict[str, Any]:
        """For a JSON file."""

    def documents(self) -> dict[str, Any]:
        """What goes into JSON files of its own, by what their names end with."""


class Evaluator(Protocol):
    """Accumulates one validation of this rank."""

    def add(self, outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> int:
        """Account for a batch of a network's outputs; returns how many images it held, padding left out."""

    def result(self, ranks: Ranks, images_per_second: float) -> Evaluation:
        """Over all ranks; collective. ``images_per_second`` is this rank's."""


class Examiner(Evaluator, Protocol):
    """An evaluator that keeps what was told of every image."""

    def report(self, ranks: Ranks, evaluation: Any, about: About) -> dict[str, str]:
        """Contents of files by name, ``report.html`` among them; none but on the main rank. Collective.

        Args:
            evaluation: what :meth:`result` gave.
        """


class EvalLoader(Protocol):
    """Yields images (B, C, H, W), float32 or uint8, and what the task's evaluator takes beside them."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, ...]]: ...


class Agreement(Protocol):
    """What an exported model tells of labelled images; as text, one line, with the checkpoint's beside it if known."""

    @property
    def apart(self) -> float:
        """How far both are from each other in the task's metric, as a part of its range; 0 without a checkpoint."""


class Comparison(Protocol):
    """Compares what an exported model and its checkpoint's network tell of labelled images."""

    def add(
        self,
        exported: Sequence[np.ndarray],
        checkpoint: Sequence[np.ndarray] | None,
        indices: np.ndarray,
        valid: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        """Account for a batch.

        Args:
            exported: the model's outputs.
            checkpoint: the network's own; None where there is none, for all batches.
            indices: of the source's images, (N,).
            valid: False where one only fills up the batch, (N,) bool.
            sizes: (N, 2) int32, width and height of the images as decoded, in pixels.
        """

    def result(self) -> Agreement:
        """What was found."""


class Changes(Protocol):
    """Compares what two models tell of the same labelled images."""

    def add(
        self, first: Sequence[np.ndarray], second: Sequence[np.ndarray], indices: np.ndarray, valid: np.ndarray
    ) -> None:
        """Account for a batch of both models' outputs; ``indices`` and ``valid`` as in :class:`Comparison`."""

    def lines(self, names: tuple[str, str]) -> Iterator[str]:
        """What was found, for people; ``names`` of both models."""

    def table(self) -> Iterator[Sequence[object]]:
        """Of the images of which they tell something else: a head, then a row each."""


class Task(Protocol):
    """What a network is for.

    Attributes:
        name: as the registry's rows give it.
        datasets: those of the configuration's data sets that have its targets.
        metrics: of a validation, in the order in which they are written.
        selects: name of the metric that chooses checkpoints; more is better.
        results: what the outputs mean.
    """

    @property
    def name(self) -> str: ...

    @property
    def datasets(self) -> tuple[str, ...]: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    @property
    def selects(self) -> str: ...

    @property
    def results(self) -> Results[Any]: ...

    def check(self, config: Config) -> None:
        """Refuse what cannot be trained, before anything is read or compiled. Raises UserError."""

    def facts(self, config: Config) -> list[tuple[str, str]]:
        """What is said of a training before it begins, beside what holds for every task: titles and texts."""

    def batches(self, config: Config, source: ImageSource, train: bool, shard: Shard) -> Batches:
        """Images and targets of one rank. Raises UserError where source and settings do not suit each other."""

    def objective(self, config: Config, network: nn.Cell, classes: Sequence[str], level: str, size: int) -> Objective:
        """What a training step minimises.

        Args:
            network: in float32, may receive weights here.
            classes: names of the data's classes, by index.
            level: the mixed precision of the run, for networks beside the trained one.
            size: number of ranks.

        Raises:
            UserError: a file that the objective needs cannot be used.
        """

    def evaluator(self, source: ImageSource) -> Evaluator:
        """For one validation on the images of a source. Raises UserError where they have not the task's targets."""

    def examiner(self, batches: Batches) -> Examiner:
        """For one validation that ends in a report. Raises UserError where the task has none.

        Args:
            batches: of this rank, in the order in which they are handed over.
        """

    def head(self, kind: str, most: int | None) -> Head:
        """What export puts behind a network.

        Args:
            kind: one of ``results.kinds``.
            most: classes or objects that a head gives which ranks them; the task's own number by default.
        """

    def changes(self, kinds: tuple[str, str], source: ImageSource, label: Label) -> Changes:
        """Of two models with outputs of kinds that ``results.tells``. Raises UserError where the task compares none.

        Args:
            label: what a class is called, by its index.
        """

    def comparison(self, kind: str, source: ImageSource) -> Comparison:
        """Of an exported model with outputs of a kind that ``results.tells``, on labelled images."""
