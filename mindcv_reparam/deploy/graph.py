"""The graph that is exported: a network between the input and the outputs that a serving system wants.

What a file computes is checked against :func:`reference`, which does the same around the network in NumPy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ..checkpoint import RESIZED
from ..errors import UserError
from ..features import feature_network
from .half import with_half_weights
from .manifest import InputKind, OutputKind, TensorSpec
from .probabilities import softmax
from .runners import Program, cell_program
from .stem import on_pixels

INPUT_NAME = "images"  # in the files it is the name of the argument of Graph.construct


@dataclass(frozen=True)
class Interface:
    """How the exported model is called; see Manifest for the kinds."""

    input_kind: InputKind = "normalized"
    output_kind: OutputKind = "logits"
    top_k: int = 5
    weights: Literal["fp32", "fp16"] = "fp32"
    batch_sizes: tuple[int, ...] | None = (1,)  # rising; for several, as for None, the graph takes any
    dynamic_image_size: bool = False

    @property
    def batch(self) -> int | None:
        """Of the graph; None for a dynamic one."""
        return self.batch_sizes[0] if self.batch_sizes and len(self.batch_sizes) == 1 else None


@dataclass(frozen=True)
class Deployment:
    """A network as it is exported.

    Attributes:
        graph: what is written.
        expected: what it has to compute, from the same inputs; see :func:`reference`.
        image_size: (H, W) of a normal input.
    """

    graph: nn.Cell
    expected: Program
    interface: Interface
    image_size: tuple[int, int]
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]

    def trials(self) -> list[np.ndarray]:
        """Random inputs that together reach all that is dynamic."""
        interface, (height, width) = self.interface, self.image_size
        sizes = interface.batch_sizes or (1, 3)
        images = [random_images(interface.input_kind, size, self.image_size) for size in sizes]
        if interface.dynamic_image_size:
            images.append(random_images(interface.input_kind, sizes[0], (height + 32, width + 64)))
        return images


def prepare(net: nn.Cell, state: str, interface: Interface, preprocessing: Mapping[str, Any]) -> Deployment:
    """A network in evaluation mode, which is not touched, made ready for export.

    Args:
        state: what it was fused to, "train" if it was not.
        preprocessing: ``image_resize`` (H, W), ``mean`` and ``std`` (0–255 scale) of the network's input.

    Raises:
        UserError: the network cannot be called that way.
    """
    _check(net, state, interface)
    size = tuple(preprocessing["image_resize"])
    mean, std = preprocessing["mean"], preprocessing["std"]
    network = feature_network(net) if interface.output_kind == "features" else net
    if interface.weights == "fp16":
        network = with_half_weights(network)
    expected = reference(network.set_train(False), interface, mean, std)
    example = expected(random_images(interface.input_kind, interface.batch or 1, size))
    if not all(np.isfinite(output).all() for output in example):
        raise UserError("the network's own outputs are not finite: its training diverged, export another checkpoint")
    outputs = _outputs(example, interface)

    before, inner = nn.Identity(), network
    if interface.input_kind != "normalized":
        before, inner = PixelInput(), on_pixels(network, mean, std, size, bgr=interface.input_kind == "bgr")
    after = {"softmax": Probabilities(), "topk": TopProbabilities(interface.top_k)}
    graph = Graph(before, inner, after.get(interface.output_kind, nn.Identity())).set_train(False)
    height_and_width = (None, None) if interface.dynamic_image_size else size
    if interface.input_kind == "normalized":
        spec = TensorSpec(INPUT_NAME, "float32", (interface.batch, 3, *height_and_width))
    else:
        spec = TensorSpec(INPUT_NAME, "uint8", (interface.batch, *height_and_width, 3))
    return Deployment(graph, expected, interface, size, spec, outputs)


def reference(net: nn.Cell, interface: Interface, mean: tuple[float, ...], std: tuple[float, ...]) -> Program:
    """What the file has to compute: ``net``, with what surrounds it done in NumPy.

    For "topk" it gives the probabilities of all classes, see :func:`compare.difference`.
    """
    network = cell_program(net)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        if interface.input_kind != "normalized":
            pixels = images[..., ::-1] if interface.input_kind == "bgr" else images
            images = ((pixels - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2).astype(np.float32)
        outputs = network(images)
        return outputs if interface.output_kind in ("logits", "features") else (softmax(outputs[0]),)

    return run


def random_images(kind: InputKind, batch: int, size: tuple[int, int]) -> np.ndarray:
    """Inputs of the kind: bytes, or numbers distributed as normalised pixels."""
    rng = np.random.default_rng(0)
    if kind == "normalized":
        return rng.standard_normal((batch, 3, *size), np.float32)
    return rng.integers(0, 256, (batch, *size, 3), np.uint8)


class Graph(nn.Cell):
    """Input processing → network → output processing."""

    def __init__(self, before: nn.Cell, network: nn.Cell, after: nn.Cell):
        super().__init__(auto_prefix=False)  # parameters keep the names they have in the network
        self.before = before
        self.network = network
        self.after = after

    def construct(self, images):
        return self.after(self.network(self.before(images)))


class PixelInput(nn.Cell):
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32."""

    def construct(self, images):
        return ops.cast(images, ms.float32).transpose((0, 3, 1, 2))


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


def _check(net: nn.Cell, state: str, interface: Interface) -> None:
    if interface.input_kind != "normalized" and state == "train":
        raise UserError(f"input {interface.input_kind} folds into a fused stem: give --reparam full or branches")
    if not interface.dynamic_image_size:
        return
    if interface.input_kind != "normalized":
        raise UserError(f"input {interface.input_kind} fixes the image size: its stem has to know where the border is")
    if interface.batch is None:
        raise UserError("a dynamic image size needs one batch size: Ascend's converters take either of the two")
    for parameter in net.get_parameters():
        if any(name in parameter.name for name in RESIZED):
            raise UserError(f"the image size of this model is fixed: {parameter.name} has one entry per pixel")


def _outputs(example: tuple[np.ndarray, ...], interface: Interface) -> tuple[TensorSpec, ...]:
    """From what :func:`reference` gives."""
    batch, kind, k = interface.batch, interface.output_kind, interface.top_k
    if kind == "features":
        sizes = [(None, None) if interface.dynamic_image_size else map.shape[2:] for map in example]
        shapes = [(batch, map.shape[1], *size) for map, size in zip(example, sizes)]
        return tuple(TensorSpec(f"stage{i + 1}", "float32", shape) for i, shape in enumerate(shapes))
    classes = example[0].shape[1]
    if kind != "topk":
        return (TensorSpec("logits" if kind == "logits" else "probabilities", "float32", (batch, classes)),)
    if k > classes:
        raise UserError(f"top_k {k} is more than the model's {classes} classes")
    return TensorSpec("probabilities", "float32", (batch, k)), TensorSpec("classes", "int32", (batch, k))
