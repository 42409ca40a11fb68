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

from mindcv_reparam.errors import UserError

_momentum_update = ops.MultitypeFuncGraph("momentum_update")
_adamw_update = ops.MultitypeFuncGraph("adamw_update")
_adam_update = ops.MultitypeFuncGraph("adam_update")
_lamb_update = ops.MultitypeFuncGraph("lamb_update")
_fused_adam = ops.AdamWeightDecay()
_BLOCK = re.compile(r"stages?\.?\d+\.(blocks\.)?\d+\.")  # as the families of the zoo name them


def _times(rate, factor):
    """The graph holds no multiplication where the factor, a constant of compilation, is 1."""
    return rate if factor == 1.0 else rate * factor


@_momentum_update.register("Bool", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Float", "Float")
def _update_momentum(nesterov, momentum, lr, parameter, velocity, gradient, weight_decay, lr_factor):
    if weight_decay > 0.0:
        gradient = gradient + weight_decay * parameter
    next_velocity = momentum * velocity + gradient
    direction = gradient + momentum * next_velocity if nesterov else next_velocity
    done = ops.assign(velocity, next_velocity)
    return ops.assign(parameter, ops.depend(parameter - _times(lr, lr_factor) * direction, done))


@_adamw_update.register(
    "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Float", "Float"
)
def _update_adamw(beta1, beta2, step_size, eps, decay_scale, parameter, m, v, gradient, weight_decay, lr_factor):
    step_size = _times(step_size, lr_factor)
    return _fused_adam(parameter, m, v, step_size, beta1, beta2, eps, weight_decay * decay_scale, gradient)


@_adam_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Float", "Float")
def _update_adam(beta1, beta2, step_size, eps, parameter, m, v, gradient, weight_decay, lr_factor):
    if weight_decay > 0.0:
        gradient = gradient + weight_decay * parameter
    return _fused_adam(parameter, m, v, _times(step_size, lr_factor), beta1, beta2, eps, 0.0, gradient)


@_lamb_update.register(
    *("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor"),
    *("Float", "Float"),
)
def _update_lamb(beta1, beta2, correction1, correction2, lr, eps, parameter, m, v, gradient, weight_decay, lr_factor):
    next_m = beta1 * m + (1.0 - beta1) * gradient
    next_v = beta2 * v + (1.0 - beta2) * gradient * gradient
    update = (next_m / correction1) / (ops.sqrt(next_v / correction2) + eps)
    if weight_decay > 0.0:
        update = update + weight_decay * parameter
    weight_norm = ops.sqrt((parameter * parameter).sum())
    update_norm = ops.sqrt((update * update).sum())
    both = ops.logical_and(weight_norm > 0.0, update_norm > 0.0)
    trust = ops.select(both, weight_norm / ops.maximum(update_norm, 1e-30), ops.ones_like(weight_norm))
    next_parameter = parameter - _times(lr, lr_factor) * trust * update
    done = ops.assign(m, next_m), ops.assign(v, next_v)
    return ops.assign(parameter, ops.depend(next_parameter, done))


class Optimizer(nn.Cell):
    """Base: the parameters in the network's order and, for each, its weight decay and the factor on its learning rate.

    `construct(lr, gradients)` updates in place; `lr` is a float32 scalar Tensor, `gradients` follow `parameters`.
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

    def construct(self, lr: Tensor, gradients: tuple[Tensor, ...]) -> bool:
        self.map(
            ops.partial(_momentum_update, self.nesterov, self.momentum, lr),
            self.parameters,
            self.velocity,
            gradients,
            self.weight_decays,
            self.lr_factors,
        )
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

    def bias_corrections(self) -> tuple[Tensor, Tensor]:
        """Count the update; 1 − β₁ᵗ and 1 − β₂ᵗ by expm1, since 1 − 0.999ᵗ loses four digits in float32."""
        updates = self.updates + 1.0
        ops.assign(self.updates, updates)
        return -ops.expm1(updates * self.log_beta1), -ops.expm1(updates * self.log_beta2)


class AdamW(_Adaptive):
    """AdamW with bias correction and decoupled weight decay (arXiv 1711.05101; PyTorch's `AdamW`).

    MindSpore's fused kernel computes `w −= s·(m/(√v + ε′) + λ′w)` without bias correction. With
    `s = lr·√(1−β₂ᵗ)/(1−β₁ᵗ)`, `ε′ = ε·√(1−β₂ᵗ)` and `λ′ = λ·lr/s` that is AdamW exactly.
    """

    def construct(self, lr: Tensor, gradients: tuple[Tensor, ...]) -> bool:
        correction1, correction2 = self.bias_corrections()
        root2 = ops.sqrt(correction2)
        self.map(
            ops.partial(
                _adamw_update,
                self.beta1,
                self.beta2,
                lr * root2 / correction1,
                self.eps * root2,
                correction1 / root2,
            ),
            self.parameters,
            self.moment1,
            self.moment2,
            gradients,
            self.weight_decays,
            self.lr_factors,
        )
        return True


class Adam(_Adaptive):
    """Adam with bias correction; weight decay is added to the gradient (PyTorch's `Adam`). The kernel is `AdamW`'s."""

    def construct(self, lr: Tensor, gradients: tuple[Tensor, ...]) -> bool:
        correction1, correction2 = self.bias_corrections()
        root2 = ops.sqrt(correction2)
        self.map(
            ops.partial(_adam_update, self.beta1, self.beta2, lr * root2 / correction1, self.eps * root2),
            self.parameters,
            self.moment1,
            self.moment2,
            gradients,
            self.weight_decays,
            self.lr_factors,
        )
        return True


class Lamb(_Adaptive):
    """LAMB, algorithm 2 of arXiv 1904.00962 with φ the identity: AdamW's update rescaled to the norm of its tensor."""

    def construct(self, lr: Tensor, gradients: tuple[Tensor, ...]) -> bool:
        correction1, correction2 = self.bias_corrections()
        self.map(
            ops.partial(_lamb_update, self.beta1, self.beta2, correction1, correction2, lr, self.eps),
            self.parameters,
            self.moment1,
            self.moment2,
            gradients,
            self.weight_decays,
            self.lr_factors,
        )
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
) -> Optimizer:
    """The optimizer of that name over the network's trainable parameters; see `layer_factors` for `layer_decay`.

    `sgd` and `momentum` are one algorithm here, as their MindSpore namesakes are without dampening.
    """
    parameters = network.trainable_params()
    decays = weight_decays(network, weight_decay, weight_decay_filter)
    names = [parameter.name for parameter in parameters]
    factors = [1.0] * len(names) if layer_decay is None else layer_factors(names, layer_decay)
    if opt in ("sgd", "momentum"):
        return Momentum(parameters, decays, factors, momentum=momentum, nesterov=nesterov)
    adaptive = {"adam": Adam, "adamw": AdamW, "lamb": Lamb}
    if opt not in adaptive:
        raise UserError(f"optimizer {opt!r} is not supported; choose one of {', '.join(OPTIMIZERS)}")
    return adaptive[opt](parameters, decays, factors, eps=eps)


def layer_factors(names: Sequence[str], layer_decay: float) -> list[float]:
    """Factors on the learning rate, `layer_decay` to the power of a layer's distance from the head (arXiv 2106.08254).

    As in timm every block is a layer, the stem is the first and what follows the blocks the last, with factor 1. A
    downsampling goes with the block that it leads to. `names` are in the order of the network.

    Raises:
        UserError: no name is that of a block.
    """
    blocks: list[str] = []
    layers = []
    for name in names:
        match = _BLOCK.match(name)
        if match and match[0] not in blocks:
            blocks.append(match[0])
        layers.append(len(blocks) if match or not blocks else len(blocks) + 1)
    if not blocks:
        raise UserError("layer_decay finds no blocks in this model's parameters: leave it out")
    return [layer_decay ** (len(blocks) + 1 - layer) for layer in layers]


def weight_decays(network: nn.Cell, weight_decay: float, weight_decay_filter: str) -> list[float]:
    """The weight decay of each trainable parameter, in order.

    - `disable`: every parameter decays.
    - `auto`: all but parameters with `beta` or `gamma` in the name (MindSpore's own rule for ungrouped parameters).
    - `norm_and_bias`: as `auto`, and no `bias` either.
    - `1d`: tensors of two or more dimensions decay (timm's rule).

    Except for `disable` and `auto`, the names that an optional `network.no_weight_decay()` returns do not decay.
    """
    listed = frozenset(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else frozenset()
    rules = {
        "disable": lambda parameter: True,
        "auto": lambda parameter: not _has_word(parameter.name, ("beta", "gamma")),
        "norm_and_bias": lambda parameter: (
            parameter.name not in listed and not _has_word(parameter.name, ("beta", "gamma", "bias"))
        ),
        "1d": lambda parameter: parameter.name not in listed and parameter.ndim > 1,
    }
    if weight_decay_filter not in rules:
        raise UserError(f"unknown weight_decay_filter {weight_decay_filter!r}; choose one of {', '.join(rules)}")
    decays = rules[weight_decay_filter]
    return [weight_decay if decays(parameter) else 0.0 for parameter in network.trainable_params()]


def _has_word(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name for word in words)
