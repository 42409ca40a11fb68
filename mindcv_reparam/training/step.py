"""One training step as one compiled graph."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.errors import UserError

from .distillation import Distillation
from .ema import WeightAverage
from .imitation import Imitation
from .loss_scale import LossScale
from .objective import Objective
from .optimizer import Optimizer

_accumulate = ops.MultitypeFuncGraph("accumulate")
_clear = ops.MultitypeFuncGraph("clear")


@_accumulate.register("Tensor", "Tensor")
def _add_to(total, gradient):
    return ops.assign_add(total, gradient)


@_clear.register("Tensor")
def _set_to_zero(total):
    return ops.assign(total, ops.zeros_like(total))


class ScaledForward(nn.Cell):
    """images, labels, scale → (loss · scale, loss)"""

    def __init__(self, objective: Objective, scaled: bool) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective
        self.scaled = scaled

    def construct(self, images: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.objective(images, labels)
        return (loss * scale if self.scaled else loss), loss


class TrainStep(nn.Cell):
    """Forward, backward, reduction over ranks, clipping, update and average of the weights.

    `construct(images, labels, lr, update)` takes images (B, C, H, W), labels (B,) or (B, classes), the learning rate
    of this update as a float32 scalar Tensor and, for gradient accumulation, a boolean Tensor: False only adds this
    batch's gradient to the sum, True also updates with the mean since the last update. It returns the loss of this
    rank's batch, the global gradient norm before clipping (0 without an update) and whether the norm is finite, which
    tells of a NaN that ReLU hides from the loss.

    Gradients are reduced once per update, as the mean over ranks, so every rank takes the same decision about clipping,
    skipping and stopping. A skipped update leaves weights, optimizer and average untouched and is counted in `skipped`.

    Args:
        network: the float32 network, or the same after `mixed_precision`.
        loss: Cell (logits, labels) → scalar.
        optimizer: updates `network`'s trainable parameters.
        size: number of ranks; more than one needs MindSpore's communication initialised.
        loss_scale: factor on the loss, undone on the gradients.
        drop_overflow_update: skip an update whose gradients are not finite; a dynamic loss scale always does.
        clip_norm: largest global gradient norm, None for no clipping.
        accumulation_steps: batches per update.
        average: moves after every update.
        distillation: takes the place of `loss`; where its teacher runs before the step, labels are a pair.
        imitation: is added to the loss.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        optimizer: Optimizer,
        *,
        size: int = 1,
        loss_scale: LossScale | None = None,
        drop_overflow_update: bool = False,
        clip_norm: float | None = None,
        accumulation_steps: int = 1,
        average: WeightAverage | None = None,
        distillation: Distillation | None = None,
        imitation: Imitation | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        if accumulation_steps < 1:
            raise UserError(f"gradient_accumulation_steps must be at least 1, got {accumulation_steps}")
        if clip_norm is not None and clip_norm <= 0.0:
            raise UserError(f"clip_value must be positive, got {clip_norm}")
        self.network = network
        self.optimizer = optimizer
        self.loss_scale = loss_scale or LossScale()
        self.average = average
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self.checks_overflow = drop_overflow_update or self.loss_scale.dynamic
        self.rescales = self.loss_scale.active or accumulation_steps > 1 or clip_norm is not None
        self.reduce = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=size) if size > 1 else None
        self.totals = optimizer.parameters.clone(prefix="accumulated", init="zeros") if accumulation_steps > 1 else None
        self.skipped = Parameter(Tensor(0, ms.int32), name="skipped_updates", requires_grad=False)
        objective = Objective(network, loss, distillation, imitation)
        self.forward = ScaledForward(objective, scaled=self.loss_scale.active)
        self.value_and_grad = ms.value_and_grad(self.forward, None, optimizer.parameters, has_aux=True)
        self.map = ops.HyperMap()
        self.mul = ops.Mul()
        self.half_square_sum = ops.L2Loss()
        self.add_n = ops.AddN()
        self.set_train(True)

    def construct(self, images: Tensor, labels: Tensor, lr: Tensor, update: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (_, loss), gradients = self.value_and_grad(images, labels, self.loss_scale.value)
        norm = ops.zeros_like(lr)
        finite = ops.isfinite(norm)
        if self.totals is None:
            norm, finite = self.apply_gradients(gradients, lr)
        else:
            loss = ops.depend(loss, self.map(_accumulate, self.totals, gradients))
            if update:
                norm, finite = self.apply_gradients(self.totals, lr)
                finite = ops.depend(finite, self.map(_clear, self.totals))
        return loss, norm, finite

    def apply_gradients(self, gradients: tuple[Tensor, ...], lr: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce, unscale, clip and update; returns the norm of the unscaled gradients and whether they are finite."""
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        factor = 1.0 / (self.loss_scale.value * self.accumulation_steps)
        norm = ops.sqrt(2.0 * self.add_n(self.map(self.half_square_sum, gradients))) * factor
        finite = ops.isfinite(norm)
        if self.clip_norm is not None:
            factor = factor * (self.clip_norm / ops.maximum(norm, self.clip_norm))
        if self.rescales:
            gradients = self.map(ops.partial(self.mul, factor), gradients)
        if self.checks_overflow:
            if finite:
                self.update_weights(lr, gradients)
            else:
                ops.assign_add(self.skipped, ops.ones_like(self.skipped))
            self.loss_scale(finite)
        else:
            self.update_weights(lr, gradients)
        return norm, finite

    def update_weights(self, lr: Tensor, gradients: tuple[Tensor, ...]) -> bool:
        done = self.optimizer(lr, gradients)
        if self.average is not None:
            done = ops.depend(self.average(), done)
        return done


def gradients_by_name(network: nn.Cell, loss: nn.Cell, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The loss's gradient for every trainable parameter, in train mode, without an update; for tests and inspection."""
    network.set_train(True)
    parameters = network.trainable_params()
    forward = ScaledForward(Objective(network, loss), scaled=False)
    value_and_grad = ms.jit(ms.value_and_grad(forward, None, parameters, has_aux=True))
    _, gradients = value_and_grad(Tensor(images), Tensor(labels), Tensor(1.0, ms.float32))
    return {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients)}
