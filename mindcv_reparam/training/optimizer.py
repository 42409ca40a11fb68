"""Optimizers as Cells that take the learning rate with the gradients.

The host computes the rate of every step (schedule.py) and passes it in, so schedules are exact, nothing recompiles and
resuming needs no schedule state. One `HyperMap` over all parameters keeps compilation short: a Python loop that unrolls
in the graph takes about three times as long to compile.
"""

import math
import re
from collections.abc import Iterable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindcv_reparam.checkpoint import classifier_prefixes
from mindcv_reparam.errors import UserError
from mindcv_reparam.features import in_backbone
from mindcv_reparam.multi_tensor import AdamUpdate, times

_momentum_update = ops.MultitypeFuncGraph("momentum_update")
_masked_momentum_update = ops.MultitypeFuncGraph("masked_momentum_update")
_lamb_update = ops.MultitypeFuncGraph("lamb_update")
_masked_lamb_update = ops.MultitypeFuncGraph("masked_lamb_update")
BLOCKS = r"stages?\.?\d+\.(blocks\.)?\d+\."  # stages of blocks, in most names


def _momentum(nesterov, momentum, lr, parameter, velocity, gradient, weight_decay, lr_factor):
    """The next velocity and the next parameter."""
    if weight_decay > 0.0:
        gradient = gradient + weight_decay * parameter
    next_velocity = momentum * velocity + gradient
    direction = gradient + momentum * next_velocity if nesterov else next_velocity
    return next_velocity, parameter - times(lr, lr_factor) * direction


@_momentum_update.register("Bool", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Float", "Float")
def _update_momentum(nesterov, momentum, lr, parameter, velocity, gradient, weight_decay, lr_factor):
    next_velocity, moved = _momentum(nesterov, momentum, lr, parameter, velocity, gradient, weight_decay, lr_factor)
    done = ops.assign(velocity, next_velocity)
    return ops.assign(parameter, ops.depend(moved, done))


@_masked_momentum_update.register("Tensor", "Bool", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Float", "Float")
def _update_momentum_or_not(finite, nesterov, momentum, lr, parameter, velocity, gradient, weight_decay, lr_factor):
    next_velocity, moved = _momentum(nesterov, momentum, lr, parameter, velocity, gradient, weight_decay, lr_factor)
    moved = ops.select(finite, moved, parameter)
    done = ops.assign(velocity, ops.select(finite, next_velocity, velocity))
    return ops.assign(parameter, ops.depend(moved, done))


def _lamb(beta1, beta2, correction1, correction2, lr, eps, parameter, m, v, gradient, weight_decay, lr_factor):
    """The next moments and the next parameter."""
    next_m = beta1 * m + (1.0 - beta1) * gradient
    next_v = beta2 * v + (1.0 - beta2) * gradient * gradient
    update = (next_m / correction1) / (ops.sqrt(next_v / correction2) + eps)
    if weight_decay > 0.0:
        update = update + weight_decay * parameter
    weight_norm = ops.sqrt((parameter * parameter).sum())
    update_norm = ops.sqrt((update * update).sum())
    both = ops.logical_and(weight_norm > 0.0, update_norm > 0.0)
    trust = ops.select(both, weight_norm / ops.maximum(update_norm, 1e-30), ops.ones_like(weight_norm))
    return next_m, next_v, parameter - times(lr, lr_factor) * trust * update


@_lamb_update.register(
    *("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor"),
    *("Float", "Float"),
)
def _update_lamb(beta1, beta2, correction1, correction2, lr, eps, parameter, m, v, gradient, weight_decay, lr_factor):
    next_m, next_v, moved = _lamb(
        beta1, beta2, correction1, correction2, lr, eps, parameter, m, v, gradient, weight_decay, lr_factor
    )
    done = ops.assign(m, next_m), ops.assign(v, next_v)
    return ops.assign(parameter, ops.depend(moved, done))


@_masked_lamb_update.register(
    *("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor"),
    *("Float", "Float"),
)
def _update_lamb_or_not(
    finite, beta1, beta2, correction1, correction2, lr, eps, parameter, m, v, gradient, weight_decay, lr_factor
):
    next_m, next_v, moved = _lamb(
        beta1, beta2, correction1, correction2, lr, eps, parameter, m, v, gradient, weight_decay, lr_factor
    )
    moved = ops.select(finite, moved, parameter)
    done = ops.assign(m, ops.select(finite, next_m, m)), ops.assign(v, ops.select(finite, next_v, v))
    return ops.assign(parameter, ops.depend(moved, done))


class Optimizer(nn.Cell):
    """Base: the parameters in the network's order and, for each, its weight decay and the factor on its learning rate.

    `construct(lr, gradients, finite)` updates in place; `lr` is a float32 scalar Tensor, `gradients` follow
    `parameters`. Where the scalar `finite` is not None and False, no bit changes but the sign of a zero; which of both
    is never the host's to know, so that it waits for nothing.
    """

    def __init__(
        self, parameters: Iterable[Parameter], weight_decays: Iterable[float], lr_factors: Iterable[float]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.weight_decays = tuple(float(decay) for decay in weight_decays)
        self.lr_factors = tuple(float(factor) for factor in lr_factors)
        self.map = ops.HyperMap()


class Momentum(Optimizer):
    """SGD with momentum, optionally Nesterov; weight decay is added to the gradient (PyTorch's `SGD`, no dampening).

    Written out, because the CPU kernel of `ops.ApplyMomentum` ignores `use_nesterov`.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        weight_decays: Iterable[float],
        lr_factors: Iterable[float],
        momentum: float = 0.9,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, weight_decays, lr_factors)
        self.momentum = Tensor(momentum, ms.float32)
        self.velocity = self.parameters.clone(prefix="velocity", init="zeros")
        self.nesterov = nesterov

    def construct(self, lr: Tensor, gradients: tuple[Tensor, ...], finite: Tensor | None = None) -> bool:
        of_parameters = (self.parameters, self.velocity, gradients, self.weight_decays, self.lr_factors)
        if finite is None:
            self.map(ops.partial(_momentum_update, self.nesterov, self.momentum, lr), *of_parameters)
        else:
            self.map(ops.partial(_masked_momentum_update, finite, self.nesterov, self.momentum, lr), *of_parameters)
        return True


class _Adaptive(Optimizer):
    """Moments and bias corrections of Adam's family."""

    def __init__(
        self,
        parameters: Iterable[Parameter],
        weight_decays: Iterable[float],
        lr_factors: Iterable[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, weight_decays, lr_factors)
        self.beta1 = Tensor(betas[0], ms.float32)
        self.beta2 = Tensor(betas[1], ms.float32)
        # Of the rounded betas that the kernel uses: float32's 1 − 0.999 is off by 5e-5, which then cancels.
        self.log_beta1 = math.log(float(np.float32(betas[0])))
        self.log_beta2 = math.log(float(np.float32(betas[1])))
        self.eps = Tensor(eps, ms.float32)
        self.moment1 = self.parameters.clone(prefix="moment1", init="zeros")
        self.moment2 = self.parameters.clone(prefix="moment2", init="zeros")
        self.updates = Parameter(Tensor(0.0, ms.float32), name="optimizer.updates", requires_grad=False)

    def bias_corrections(self, finite: Tensor | None) -> tuple[Tensor, Tensor]:
        """Count the update; 1 − β₁ᵗ and 1 − β₂ᵗ by expm1, since 1 − 0.999ᵗ loses four digits in float32."""
        updates = self.updates + 1.0
        ops.assign(self.updates, updates if finite is None else self.updates + ops.cast(finite, ms.float32))
        return -ops.expm1(updates * self.log_beta1), -ops.expm1(updates * self.log_beta2)


class AdamW(_Adaptive):
    """AdamW with bias correction and decoupled weight decay (arXiv 1711.05101; PyTorch's `AdamW`).

    MindSpore's fused kernel computes `w −= s·(m/(√v + ε′) + λ′w)` without bias correction. With
    `s = lr·√(1−β₂ᵗ)/(1−β₁ᵗ)`, `ε′ = ε·√(1−β₂ᵗ)` and `λ′ = λ·lr/s` that is AdamW exactly.
    """

    decoupled = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        none = (0.0,) * len(self.parameters)
        decays = (none, self.weight_decays) if self.decoupled else (self.weight_decays, none)
        self.update = AdamUpdate(self.parameters, self.moment1, self.moment2, *decays, self.lr_factors)

    def construct(self, lr: Tensor, gradients: tuple[Tensor, ...], finite: Tensor | None = None) -> bool:
        correction1, correction2 = self.bias_corrections(finite)
        root2 = ops.sqrt(correction2)
        done = self.update(
            gradients,
            *(lr * root2 / correction1, self.beta1, self.beta2, self.eps * root2, correction1 / root2),
            finite,
        )
        return ops.depend(True, done)  # MindSpore 2.7 leaves out a Cell's updates of which nobody wants the result


class Adam(AdamW):
    """Adam with bias correction; weight decay is added to the gradient (PyTorch's `Adam`). The kernel is `AdamW`'s."""

    decoupled = False


class Lamb(_Adaptive):
    """LAMB, algorithm 2 of arXiv 1904.00962 with φ the identity: AdamW's update rescaled to the norm of its tensor."""

    def construct(self, lr: Tensor, gradients: tuple[Tensor, ...], finite: Tensor | None = None) -> bool:
        correction1, correction2 = self.bias_corrections(finite)
        of_parameters = (self.parameters, self.moment1, self.moment2, gradients, self.weight_decays, self.lr_factors)
        beta1, beta2, eps = self.beta1, self.beta2, self.eps
        if finite is None:
            self.map(ops.partial(_lamb_update, beta1, beta2, correction1, correction2, lr, eps), *of_parameters)
        else:
            update = ops.partial(_masked_lamb_update, finite, beta1, beta2, correction1, correction2, lr, eps)
            self.map(update, *of_parameters)
        return True


OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "lamb")


def create_optimizer(
    network: nn.Cell,
    opt: str = "adamw",
    *,
    weight_decay: float = 0.0,
    weight_decay_filter: str = "disable",
    momentum: float = 0.9,
    nesterov: bool = False,
    eps: float = 1e-8,
    layer_decay: float | None = None,
    blocks: str = BLOCKS,
    backbone_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
) -> Optimizer:
    """The optimizer of that name over the network's trainable parameters.

    `sgd` and `momentum` are one algorithm here, as their MindSpore namesakes are without dampening.

    Args:
        layer_decay: see `layer_factors`, as for `blocks`.
        backbone_lr_factor: on the learning rate of what the network calls `backbone`.
        head_lr_factor: on that of what has an entry per class.

    Raises:
        UserError: no optimizer or filter has that name, or the network has no blocks or no backbone for its factors.
    """
    parameters = network.trainable_params()
    decays = weight_decays(network, weight_decay, weight_decay_filter)
    names = [parameter.name for parameter in parameters]
    factors = [1.0] * len(names) if layer_decay is None else layer_factors(names, layer_decay, blocks)
    if backbone_lr_factor != 1.0:
        if not any(map(in_backbone, names)):
            raise UserError("backbone_lr_factor is for a detector's backbone, and this model has none: leave it out")
        factors = [f * backbone_lr_factor if in_backbone(name) else f for name, f in zip(names, factors)]
    if head_lr_factor != 1.0:
        heads = classifier_prefixes(network)
        factors = [f * head_lr_factor if name.startswith(heads) else f for name, f in zip(names, factors)]
    if opt in ("sgd", "momentum"):
        return Momentum(parameters, decays, factors, momentum=momentum, nesterov=nesterov)
    adaptive = {"adam": Adam, "adamw": AdamW, "lamb": Lamb}
    if opt not in adaptive:
        raise UserError(f"optimizer {opt!r} is not supported; choose one of {', '.join(OPTIMIZERS)}")
    return adaptive[opt](parameters, decays, factors, eps=eps)


def layer_factors(names: Sequence[str], layer_decay: float, blocks: str = BLOCKS) -> list[float]:
    """Factors on the learning rate, `layer_decay` to the power of a layer's distance from the head (arXiv 2106.08254).

    As in timm every block is a layer, the stem is the first and what follows the blocks the last, with factor 1. A
    downsampling goes with the block that it leads to. `names` are in the order of the
    network; the expression `blocks` matches what the names of a block's parameters begin with.

    Raises:
        UserError: no name is that of a block.
    """
    found: list[str] = []
    layers = []
    for name in names:
        match = re.match(blocks, name) if blocks else None
        if match and match[0] not in found:
            found.append(match[0])
        layers.append(len(found) if match or not found else len(found) + 1)
    if not found:
        raise UserError("layer_decay finds no blocks in this model's parameters: leave it out")
    return [layer_decay ** (len(found) + 1 - layer) for layer in layers]


def weight_decays(network: nn.Cell, weight_decay: float, weight_decay_filter: str) -> list[float]:
    """The weight decay of each trainable parameter, in order.

    - `disable`: every parameter decays.
    - `auto`: all but parameters with `beta` or `gamma` in the name (MindSpore's own rule for ungrouped parameters).
    - `norm_and_bias`: as `auto`, and no `bias` either.
    - `1d`: tensors of two or more dimensions decay (timm's rule).
    - `by_name`: as in RT-DETR's recipes: all but what has `norm` in its name and, outside of the backbone, the
      biases. A normalisation that is not called so keeps its decay.
    """
    rules = {
        "disable": lambda parameter: True,
        "auto": lambda parameter: not _has_word(parameter.name, ("beta", "gamma")),
        "norm_and_bias": lambda parameter: not _has_word(parameter.name, ("beta", "gamma", "bias")),
        "1d": lambda parameter: parameter.ndim > 1,
        "by_name": lambda parameter: (
            not (
                "norm" in parameter.name
                or (_has_word(parameter.name, ("beta", "bias")) and not in_backbone(parameter.name))
            )
        ),
    }
    if weight_decay_filter not in rules:
        raise UserError(f"unknown weight_decay_filter {weight_decay_filter!r}; choose one of {', '.join(rules)}")
    decays = rules[weight_decay_filter]
    return [weight_decay if decays(parameter) else 0.0 for parameter in network.trainable_params()]


def _has_word(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name for word in words)
