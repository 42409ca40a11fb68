"""The graph that is exported: a network between the input and the outputs that a serving system wants.

What a file computes is checked against :func:`reference`, which does the same around the network in NumPy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from mindcv_reparam.bundle.manifest import INPUT_NAME, SIZES_NAME, InputKind
from mindcv_reparam.checkpoint import resized_of
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.export.half import with_half_weights
from mindcv_reparam.export.stem import on_pixels
from mindcv_reparam.run.runners import Program, cell_program
from mindcv_reparam.suggestions import suggestion
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tasks.head import Head
from mindcv_reparam.tasks.task import Task
from mindcv_reparam.tensors import TensorSpec


@dataclass(frozen=True)
class Interface:
    """How the exported model is called; see Manifest for the kinds.

    Attributes:
        output_kind, top_k: None for the task's own; of networks that say nothing of their task, classification's.
    """

    input_kind: InputKind = "normalized"
    output_kind: str | None = None
    top_k: int | None = None
    weights: Literal["fp32", "fp16"] = "fp32"
    batch_sizes: tuple[int, ...] | None = (1,)  # rising; for several, as for None, the graph takes any
    dynamic_image_size: bool = False

    @property
    def batch(self) -> int | None:
        """Of the graph; None for a dynamic one."""
        return self.batch_sizes[0] if self.batch_sizes and len(self.batch_sizes) == 1 else None

    def kind_of(self, task: Task) -> str:
        """The kind of output, of those that the task has.

        Raises:
            UserError: it has none of this name.
        """
        kinds = task.results.kinds
        kind = kinds[0] if self.output_kind is None else self.output_kind
        if kind not in kinds:
            raise UserError(
                f"export_head {shortened(kind)}: {task.name} has {', '.join(kinds)}{suggestion(kind, kinds)}"
            )
        return kind


@dataclass(frozen=True)
class Deployment:
    """A network as it is exported.

    Attributes:
        graph: what is written.
        expected: what it has to compute, from the same inputs; see :func:`reference`.
        image_size: (H, W) of a normal input.
        output_kind: of those of the task.
        sizes: the second input, where the head takes the images' sizes.
    """

    graph: nn.Cell
    expected: Program
    interface: Interface
    image_size: tuple[int, int]
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    task: Task
    output_kind: str
    sizes: TensorSpec | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """In the order in which the graph takes them."""
        return (self.input,) if self.sizes is None else (self.input, self.sizes)

    def on_images(self, program: Program) -> Program:
        """The program with sizes chosen for it, where it takes them."""
        return program if self.sizes is None else lambda images: program(images, random_sizes(len(images)))

    def trials(self) -> list[np.ndarray]:
        """Random inputs that together reach all that is dynamic."""
        interface, (height, width) = self.interface, self.image_size
        sizes = interface.batch_sizes or (1, 3)
        images = [random_images(interface.input_kind, size, self.image_size) for size in sizes]
        if interface.dynamic_image_size:
            images.append(random_images(interface.input_kind, sizes[0], (height + 32, width + 64)))
        return images


def prepare(
    net: nn.Cell, state: str, interface: Interface, preprocessing: Mapping[str, Any], task: Task | None = None
) -> Deployment:
    """A network in evaluation mode, which is not touched, made ready for export.

    Args:
        state: what it was fused to, "train" if it was not.
        preprocessing: ``image_resize`` (H, W), ``mean`` and ``std`` (0–255 scale) of the network's input.
        task: what the network is for; what families are for that do not say, by default.

    Raises:
        UserError: the network cannot be called that way.
    """
    _check(net, state, interface)
    size = tuple(preprocessing["image_resize"])
    mean, std = preprocessing["mean"], preprocessing["std"]
    task = task or task_named()
    kind = interface.kind_of(task)
    head = task.head(kind, interface.top_k)
    network = head.network(net)
    if interface.weights == "fp16":
        network = with_half_weights(network)
    expected = reference(network.set_train(False), head, interface.input_kind, mean, std)
    batch = interface.batch or 1
    example = expected(random_images(interface.input_kind, batch, size), random_sizes(batch))
    if not all(np.isfinite(output).all() for output in example):
        raise UserError("the network's own outputs are not finite: its training diverged, export another checkpoint")
    outputs = head.specs(example, interface.batch, interface.dynamic_image_size)

    before, inner = nn.Identity(), network
    if interface.input_kind != "normalized":
        before, inner = PixelInput(), on_pixels(network, mean, std, size, bgr=interface.input_kind == "bgr")
    graph = (SizedGraph if head.takes_sizes else Graph)(before, inner, head.cell()).set_train(False)
    height_and_width = (None, None) if interface.dynamic_image_size else size
    if interface.input_kind == "normalized":
        spec = TensorSpec(INPUT_NAME, "float32", (interface.batch, 3, *height_and_width))
    else:
        spec = TensorSpec(INPUT_NAME, "uint8", (interface.batch, *height_and_width, 3))
    sizes = TensorSpec(SIZES_NAME, "int32", (interface.batch, 2)) if head.takes_sizes else None
    return Deployment(graph, expected, interface, size, spec, outputs, task, kind, sizes)


def reference(
    net: nn.Cell, head: Head, input_kind: InputKind, mean: tuple[float, ...], std: tuple[float, ...]
) -> Program:
    """What ``Results.difference`` compares the file with: ``net``, with what surrounds it done in NumPy."""
    network = cell_program(net)

    def run(images: np.ndarray, sizes: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        if input_kind != "normalized":
            pixels = images[..., ::-1] if input_kind == "bgr" else images
            images = ((pixels - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2).astype(np.float32)
        return head.expected(network(images), sizes)

    return run


def random_sizes(batch: int) -> np.ndarray:
    """Sizes of images as they were decoded, (N, 2) int32."""
    return np.random.default_rng(0).integers(100, 1000, (batch, 2), np.int32)


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


class SizedGraph(Graph):
    """Input processing → network → output processing, which takes the images' sizes, too."""

    def construct(self, images, sizes):
        return self.after(self.network(self.before(images)), sizes)


class PixelInput(nn.Cell):
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32."""

    def construct(self, images):
        return ops.cast(images, ms.float32).transpose((0, 3, 1, 2))


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
        if any(name in parameter.name for name in resized_of(net)):
            raise UserError(f"the image size of this model is fixed: {parameter.name} has one entry per pixel")
