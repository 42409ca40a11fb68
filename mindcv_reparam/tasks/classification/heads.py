"""What export puts behind a classifier: nothing, probabilities, the largest of them; or the maps of its stages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import nn, ops

from mindcv_reparam.errors import UserError
from mindcv_reparam.features import feature_network
from mindcv_reparam.tasks.classification.results import softmax
from mindcv_reparam.tensors import TensorSpec


@dataclass(frozen=True)
class ClassificationHead:
    """The head of one of the kinds that ClassificationResults describes; ``k`` is that of "topk"."""

    kind: str
    k: int
    takes_sizes = False

    def network(self, network: nn.Cell) -> nn.Cell:
        return feature_network(network) if self.kind == "features" else network

    def cell(self) -> nn.Cell:
        return {"softmax": Probabilities(), "topk": TopProbabilities(self.k)}.get(self.kind, nn.Identity())

    def expected(self, outputs: tuple[np.ndarray, ...], sizes: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """For "topk" the probabilities of all classes, see :func:`results.difference`."""
        return outputs if self.kind in ("logits", "features") else (softmax(outputs[0]),)

    def specs(self, expected: Sequence[np.ndarray], batch: int | None, any_size: bool) -> tuple[TensorSpec, ...]:
        if self.kind == "features":
            sizes = [(None, None) if any_size else map.shape[2:] for map in expected]
            shapes = [(batch, map.shape[1], *size) for map, size in zip(expected, sizes)]
            return tuple(TensorSpec(f"stage{i + 1}", "float32", shape) for i, shape in enumerate(shapes))
        classes = expected[0].shape[1]
        if self.kind != "topk":
            name = "logits" if self.kind == "logits" else "probabilities"
            return (TensorSpec(name, "float32", (batch, classes)),)
        if self.k > classes:
            raise UserError(f"top_k {self.k} is more than the model's {classes} classes")
        shape = (batch, self.k)
        return TensorSpec("probabilities", "float32", shape), TensorSpec("classes", "int32", shape)


class Probabilities(nn.Cell):
    """(N, classes) logits → probabilities."""

    def __init__(self):
        super().__init__()
        self.softmax = ops.Softmax(axis=-1)

    def construct(self, logits):
        return self.softmax(logits)


class TopProbabilities(nn.Cell):
    """(N, classes) logits → the k largest probabilities and their classes, both (N, k), largest first."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.softmax = ops.Softmax(axis=-1)
        self.top = ops.TopK(sorted=True)

    def construct(self, logits):
        values, classes = self.top(self.softmax(logits), self.k)
        return values, classes
