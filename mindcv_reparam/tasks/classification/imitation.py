"""Module imitation: RIFormer learns from a PoolFormer's blocks (Wang et al., arXiv 2304.05659, section 3.4).

There is no published code of it. Where the equations leave a choice: tokens have length one before they are related,
what the teacher's mixer makes of the student's input is a constant target, and both phases start with the training.
"""

import logging
import os
from collections.abc import Sequence
from typing import Protocol

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.checkpoint import load_arrays

log = logging.getLogger(__name__)


class ImitationTeacher(Protocol):
    """What the teacher of module imitation offers; `MetaFormer` in models/ does."""

    def forward_observed(self, images: Tensor) -> tuple[Tensor, tuple[tuple[Tensor, Tensor, Tensor], ...]]:
        """Logits and, for every matched block, its token mixer's normed input, the mixer's output, its own output."""

    def mix_tokens(self, normed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs of the matched blocks' token mixers on these normed inputs."""


def mean_square(actual: Tensor, expected: Tensor) -> Tensor:
    """Over all N·C·H·W elements."""
    difference = ops.cast(actual, ms.float32) - ops.cast(expected, ms.float32)
    return (difference * difference).mean()


def relation_difference(actual: Tensor, expected: Tensor) -> Tensor:
    """`‖T̃ₐT̃ₐᵀ − T̃ₜT̃ₜᵀ‖² / (N·H²W²)` for maps (N, C, H, W); T̃ are the tokens (N, HW, C), each of length one.

    Where there are fewer channels than tokens, by way of C×C matrices: `‖AAᵀ − BBᵀ‖² = ‖AᵀA‖² + ‖BᵀB‖² − 2‖AᵀB‖²`.
    At 224 pixels the first stage has 3136 tokens, whose relations would take 39 MB an image.
    """
    batch, channels, height, width = actual.shape
    tokens = height * width
    a, b = unit_tokens(actual), unit_tokens(expected)
    if tokens <= channels:
        difference = ops.bmm(a.swapaxes(1, 2), a) - ops.bmm(b.swapaxes(1, 2), b)
        total = (difference * difference).sum()
    else:
        aa, bb, ab = (ops.bmm(x, y.swapaxes(1, 2)) for x, y in ((a, a), (b, b), (a, b)))
        total = (aa * aa).sum() + (bb * bb).sum() - 2.0 * (ab * ab).sum()
    return total / (batch * tokens * tokens)


def unit_tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C, HW) in float32, every token's channels of Euclidean length one."""
    x = ops.cast(x, ms.float32).reshape(x.shape[0], x.shape[1], -1)
    return x * ops.rsqrt((x * x).sum(1, keepdims=True) + 1e-12)


class Imitation(nn.Cell):
    """images, the student's observed blocks → `λ1·L_in' + λ2·L_out + λ3·L_rel`, each summed over the matched blocks.

    - L_in': mean square difference of the outputs of the blocks, student and teacher each on their own inputs;
    - L_out: of the outputs of the token mixers, both on the student's normed input;
    - L_rel: of the relations between tokens in the outputs of the blocks.

    The factors of the current epoch are data of the compiled graph: changing them compiles nothing. From the epoch in
    which all are zero, the teacher does not run: that is another graph, as `active` is when it is compiled.

    Args:
        teacher: frozen.
        factors: λ1, λ2, λ3; a term with 0 is not computed.
        epochs: how many epochs, from the first, the first two terms count, and how many the third.
    """

    def __init__(self, teacher: ImitationTeacher, factors: Sequence[float], epochs: tuple[int, int]) -> None:
        super().__init__(auto_prefix=False)
        self.teachers = (teacher,)
        self.wanted = tuple(factor > 0.0 for factor in factors)
        self.factors_and_epochs = tuple(zip(factors, (epochs[0], epochs[0], epochs[1])))
        self.factors = Parameter(Tensor(factors, ms.float32), name="imitation.factors", requires_grad=False)
        self.active = any(self.wanted)

    def start_epoch(self, epoch: int) -> None:
        """Set the factors of an epoch, counted from 0."""
        factors = [factor if epoch < epochs else 0.0 for factor, epochs in self.factors_and_epochs]
        self.factors.set_data(Tensor(factors, ms.float32))
        self.active = any(factor > 0.0 for factor in factors)

    def construct(self, images: Tensor, observed: tuple[tuple[Tensor, Tensor, Tensor], ...]) -> Tensor:
        if not self.active:
            return ops.zeros((), ms.float32)
        return (self.factors * ops.stack(self.terms(images, observed))).sum()

    def terms(self, images: Tensor, observed: tuple[tuple[Tensor, Tensor, Tensor], ...]) -> tuple[Tensor, ...]:
        """L_in', L_out and L_rel; zero where not wanted."""
        # Not `+=`, which on Tensors works in place, and here all three start as one.
        zero = ops.zeros((), ms.float32)
        like_inputs, like_outputs, like_relations = zero, zero, zero
        teacher = self.teachers[0]
        if self.wanted[0] or self.wanted[2]:
            _, expected = teacher.forward_observed(images)
            for (_, _, student), (_, _, taught) in zip(observed, expected):
                taught = ops.stop_gradient(taught)
                if self.wanted[0]:
                    like_inputs = like_inputs + mean_square(student, taught)
                if self.wanted[2]:
                    like_relations = like_relations + relation_difference(student, taught)
        if self.wanted[1]:
            mixed = teacher.mix_tokens(tuple(normed for normed, _, _ in observed))
            for (_, student, _), taught in zip(observed, mixed):
                like_outputs = like_outputs + mean_square(student, ops.stop_gradient(taught))
        return like_inputs, like_outputs, like_relations


def donate(donor: nn.Cell, student: nn.Cell, path: str | os.PathLike[str]) -> None:
    """Load every parameter of a network into the one that imitates it, whose ``own_parameters`` alone keep theirs.

    A classifier with another number of classes stays the student's too, which is logged.

    Args:
        path: where the donor comes from, for the messages.

    Raises:
        UserError: the networks have different sizes.
    """
    arrays = {parameter.name: parameter.asnumpy() for parameter in donor.get_parameters()}
    own = {p.name: p.asnumpy() for p in student.get_parameters() if student.own_parameters in p.name}
    load_arrays(student, arrays | own, path, new_head=True)
    log.info("%s donated %d parameters; %d that it lacks start new", path, len(arrays), len(own))
