"""One training step as one compiled graph."""

from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.errors import UserError
from mindcv_reparam.multi_tensor import AllFinite, Scaled, SquareSum
from mindcv_reparam.tasks.normalization import Normalization
from mindcv_reparam.tasks.objective import Objective
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import Optimizer
from mindcv_reparam.training.reduction import create_reducer

_accumulate = ops.MultitypeFuncGraph("accumulate")
_clear = ops.MultitypeFuncGraph("clear")


@_accumulate.register("Tensor", "Tensor")
def _add_to(total, gradient):
    return ops.assign_add(total, gradient)


@_clear.register("Tensor")
def _set_to_zero(total):
    return ops.assign(total, ops.zeros_like(total))


class ScaledForward(nn.Cell):
    """inputs, targets, scale → (loss · scale, loss, its parts)"""

    def __init__(self, objective: Objective, scaled: bool, normalize: Normalization | None = None) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective
        self.scaled = scaled
        self.normalize = normalize

    def construct(
        self, inputs: Tensor, targets: Tensor | tuple[Tensor, ...], scale: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if self.normalize is not None:
            inputs = self.normalize(inputs)
        parts = self.objective(inputs, targets)
        loss = parts[0]
        for part in parts[1:]:
            loss = loss + part
        return (loss * scale if self.scaled else loss), loss, parts


class AccumulatedUpdate(nn.Cell):
    """The second graph of a step that accumulates: the update by the sums of `TrainStep.totals`, which are cleared.

    Args:
        step: held in a tuple, since this is a part of it.
    """

    def __init__(self, step: "TrainStep") -> None:
        super().__init__(auto_prefix=False)
        self.steps = (step,)
        self.map = ops.HyperMap()

    def construct(self, lr: Tensor, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step = self.steps[0]
        norm, finite = step.apply_gradients(step.totals, lr)
        # Cleared only once they were judged: MindSpore 2.7 else judges what is cleared, and a NaN passes.
        finite = ops.depend(finite, self.map(_clear, ops.depend(step.totals, (norm, finite))))
        return norm, finite, ops.concat((told[:-1], ops.cast(finite, ms.float32).reshape(1)))


class TrainStep(nn.Cell):
    """Forward, backward, reduction over ranks, clipping, update and average of the weights.

    `step(inputs, targets, lr, update)` takes what the objective takes, the learning rate of this update as a float32
    scalar Tensor and, for gradient accumulation, whether to update: False only adds this batch's gradient to the sum,
    True also updates with the mean since the last update. It returns

    - the loss of this rank's batch;
    - the global gradient norm before clipping, 0 without an update or where nothing asks for it. It may be infinite
      where the gradients are not: above 1.8e19 its square is. Clipping takes that for an overflow;
    - whether all gradients are finite, which tells of a NaN that ReLU hides from the loss;
    - the parts that the loss is the sum of;
    - what a log tells of, (L,) float32, to be brought to the host at once: the loss, its parts where there are several,
      and 1 where the gradients are finite, else 0.

    No value of the device decides what the host does next: a graph branches nowhere, so it waits for nothing. Updates
    are a graph of their own, and an update that is skipped is made with factors that change nothing.

    Gradients are reduced once per update, as the mean over ranks, so every rank takes the same decision about clipping,
    skipping and stopping. A skipped update leaves weights, optimizer and average untouched and is counted in `skipped`.

    Args:
        objective: of a float32 network, or of the same after `mixed_precision`.
        optimizer: updates the network's trainable parameters.
        size: number of ranks; more than one needs MindSpore's communication initialised.
        loss_scale: factor on the loss, undone on the gradients.
        drop_overflow_update: skip an update whose gradients are not finite; a dynamic loss scale always does.
        clip_norm: largest global gradient norm, None for no clipping.
        accumulation_steps: batches per update.
        average: moves after every update.
        measures_norm: give the norm without clipping, too: a pass over the gradients more.
        allreduce_mb: megabytes of gradients that are sent together, see `create_reducer`.
        normalize: of inputs that come as bytes; None: they come normalised.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        *,
        size: int = 1,
        loss_scale: LossScale | None = None,
        drop_overflow_update: bool = False,
        clip_norm: float | None = None,
        accumulation_steps: int = 1,
        average: WeightAverage | None = None,
        measures_norm: bool = False,
        allreduce_mb: int | None = None,
        normalize: Normalization | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        if accumulation_steps < 1:
            raise UserError(f"gradient_accumulation_steps must be at least 1, got {accumulation_steps}")
        if clip_norm is not None and clip_norm <= 0.0:
            raise UserError(f"clip_value must be positive, got {clip_norm}")
        self.network = objective.network
        self.objective = objective
        self.normalize = normalize
        self.optimizer = optimizer
        self.loss_scale = loss_scale or LossScale()
        self.average = average
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self.measures_norm = measures_norm or clip_norm is not None
        # An infinity or a NaN makes the norm one, too; but an Ascend 910 has neither, see `all_finite`.
        self.norm_tells = clip_norm is not None and ms.get_context("device_target") == "CPU"
        self.checks_overflow = drop_overflow_update or self.loss_scale.dynamic
        self.rescales = self.loss_scale.active or accumulation_steps > 1 or clip_norm is not None
        self.reduce = create_reducer(optimizer.parameters, size, allreduce_mb) if size > 1 else None
        self.sum_over_ranks = ops.AllReduce() if size > 1 else None
        self.totals: Any = (
            optimizer.parameters.clone(prefix="accumulated", init="zeros") if accumulation_steps > 1 else None
        )
        self.finite, self.square_sum, self.scaled = AllFinite(), SquareSum(), Scaled()
        self.skipped = Parameter(Tensor(0, ms.int32), name="skipped_updates", requires_grad=False)
        self.forward = ScaledForward(objective, self.loss_scale.active, normalize)
        self.value_and_grad = ms.value_and_grad(self.forward, None, optimizer.parameters, has_aux=True)
        self.accumulated = AccumulatedUpdate(self) if accumulation_steps > 1 else None
        self.map = ops.HyperMap()
        self.set_train(True)

    def __call__(
        self, inputs: Tensor, targets: Tensor | tuple[Tensor, ...], lr: Tensor, update: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        loss, norm, finite, parts, told = super().__call__(inputs, targets, lr, self.objective.variant)
        if self.accumulated is not None and update:
            norm, finite, told = self.accumulated(lr, told)
        return loss, norm, finite, parts, told

    def compile_graphs(
        self, inputs: Tensor, targets: Tensor | tuple[Tensor, ...], lr: Tensor, update: bool = True
    ) -> None:
        """Compile what a call with such arguments runs."""
        self.compile(inputs, targets, lr, self.objective.variant)
        if self.accumulated is not None and update:
            parts = len(self.objective.parts)
            self.accumulated.compile(lr, ops.zeros(2 + parts if parts > 1 else 2, ms.float32))

    def construct(
        self, inputs: Tensor, targets: Tensor | tuple[Tensor, ...], lr: Tensor, variant: int
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """Each `variant` is compiled on its own, with the objective's attributes as they are then."""
        (_, loss, parts), gradients = self.value_and_grad(inputs, targets, self.loss_scale.value)
        norm = ops.zeros_like(lr)
        finite = ops.isfinite(norm)
        if self.totals is None:
            norm, finite = self.apply_gradients(gradients, lr)
        else:
            loss = ops.depend(loss, self.map(_accumulate, self.totals, gradients))
        told = parts if len(parts) > 1 else ()
        return loss, norm, finite, parts, ops.stack((loss, *told, ops.cast(finite, ms.float32)))

    def apply_gradients(self, gradients: tuple[Tensor, ...], lr: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce, unscale, clip and update; returns the norm of the unscaled gradients and whether they are finite."""
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        factor = 1.0 / (self.loss_scale.value * self.accumulation_steps)
        norm = ops.zeros_like(lr)
        if self.measures_norm:
            norm = ops.sqrt(self.square_sum(gradients)) * factor
        finite = ops.isfinite(norm) if self.norm_tells else self.all_finite(gradients)
        if self.clip_norm is not None:
            finite = ops.logical_and(finite, ops.isfinite(norm))
            factor = factor * (self.clip_norm / ops.maximum(norm, self.clip_norm))
        if self.rescales:
            gradients = self.scaled(gradients, factor)
        if self.checks_overflow:
            self.update_weights(lr, gradients, finite)
            ops.assign_add(self.skipped, 1 - ops.cast(finite, ms.int32))
            self.loss_scale(finite)
        else:
            self.update_weights(lr, gradients, None)
        return norm, finite

    def all_finite(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Whether no rank has seen an overflow.

        The Ascend 910 saturates: an infinity becomes the largest number, a NaN zero. There MindSpore reads (and clears)
        the status register of this rank's device instead of the gradients, so the verdicts are reduced as well.
        """
        finite = self.finite(gradients)
        if self.sum_over_ranks is not None:
            overflows = self.sum_over_ranks(1.0 - ops.cast(finite, ms.float32))
            finite = overflows < 0.5
        return finite

    def update_weights(self, lr: Tensor, gradients: tuple[Tensor, ...], finite: Tensor | None) -> bool:
        """Where `finite` is a scalar and False, nothing changes."""
        done = self.optimizer(lr, gradients, finite)
        if self.average is not None:
            done = ops.depend(self.average(finite), done)
        return done
