"""Operations on all of a network's tensors, as Cells, so that :mod:`cpu` can put one kernel in the place of an operator
per tensor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mindspore import Parameter, ParameterTuple, Tensor, amp, nn, ops

_square_sum = ops.MultitypeFuncGraph("square_sum")
_average = ops.MultitypeFuncGraph("average")
_masked_average = ops.MultitypeFuncGraph("masked_average")
_zero_unless = ops.MultitypeFuncGraph("zero_unless")
_adam_update = ops.MultitypeFuncGraph("adam_update")
_fused_adam = ops.AdamWeightDecay()


@_square_sum.register("Tensor")
def _square_sum_of(x):
    """Not by L2Loss, whose running sum on a CPU loses 2e-3 of two million squares."""
    return ops.square(x).sum()


@_average.register("Tensor", "Tensor", "Tensor")
def _move_average(decay, average, value):
    return ops.assign(average, average * decay + value * (1.0 - decay))


@_masked_average.register("Tensor", "Tensor", "Tensor", "Tensor")
def _move_average_or_not(moves, decay, average, value):
    return ops.assign(average, ops.select(moves, average * decay + value * (1.0 - decay), average))


@_zero_unless.register("Tensor", "Tensor")
def _select_or_zero(finite, gradient):
    return ops.select(finite, gradient, ops.zeros_like(gradient))


@_adam_update.register(
    *("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor"),
    *("Float", "Float", "Float"),
)
def _update_adam(
    step_size, beta1, beta2, eps, decay_scale, parameter, m, v, gradient, coupled_decay, decoupled_decay, lr_factor
):
    if coupled_decay > 0.0:
        gradient = gradient + coupled_decay * parameter
    step_size = times(step_size, lr_factor)
    decay = decoupled_decay * decay_scale if decoupled_decay > 0.0 else 0.0
    return _fused_adam(parameter, m, v, step_size, beta1, beta2, eps, decay, gradient)


def times(rate, factor):
    """The graph holds no multiplication where the factor, a constant of compilation, is 1."""
    return rate if factor == 1.0 else rate * factor


class AllFinite(nn.Cell):
    """Whether tensors have no infinity and no NaN; an Ascend 910 asks its status register instead."""

    def construct(self, tensors):
        return amp.all_finite(tensors)


class SquareSum(nn.Cell):
    """Σ x² over all elements of all tensors, a scalar."""

    def __init__(self):
        super().__init__()
        self.map = ops.HyperMap()
        self.add_n = ops.AddN()

    def construct(self, tensors):
        return self.add_n(self.map(_square_sum, tensors))


class Scaled(nn.Cell):
    """Every tensor times a scalar."""

    def __init__(self):
        super().__init__()
        self.map = ops.HyperMap()
        self.mul = ops.Mul()

    def construct(self, tensors, factor):
        return self.map(ops.partial(self.mul, factor), tensors)


class MovingAverage(nn.Cell):
    """``average ← d·average + (1 − d)·value``, in place; where the scalar ``moves`` is not None and False, nothing.

    The result is to be depended on.

    Args:
        averages, values: with one another in order.
    """

    def __init__(self, averages: ParameterTuple, values: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.averages, self.values = averages, values
        self.map = ops.HyperMap()

    def construct(self, decay, moves):
        if moves is None:
            return self.map(ops.partial(_average, decay), self.averages, self.values)
        return self.map(ops.partial(_masked_average, moves, decay), self.averages, self.values)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the values are the averages, which are not to be read there; afterwards both are as before,
        bit for bit. On the device, and in place, since a compiled step keeps the memory it writes."""
        held = [value.value() for value in self.values]  # copies
        try:
            _assign(self.values, self.averages)
            yield
        finally:
            _assign(self.values, held)


def _assign(parameters: Sequence[Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values):
        ops.assign(parameter, value)


class AdamUpdate(nn.Cell):
    """``m ← β₁m + (1−β₁)g``, ``v ← β₂v + (1−β₂)g²``, ``w ← w − s·(m/(√v + ε) + λ·d·w)``, in place.

    All of ``step_size`` s, the betas, ``eps`` and ``decay_scale`` d are float32 scalars. Where the scalar ``finite`` is
    not None and False, no bit changes but the sign of a zero. The result is to be depended on.

    Args:
        parameters, moment1, moment2: w, m and v.
        coupled_decays: for each tensor a factor on the weight that is added to its gradient (Adam's weight decay).
        decoupled_decays: for each tensor λ (AdamW's).
        lr_factors: for each tensor a factor on s.
    """

    def __init__(
        self,
        parameters: ParameterTuple,
        moment1: ParameterTuple,
        moment2: ParameterTuple,
        coupled_decays: tuple[float, ...],
        decoupled_decays: tuple[float, ...],
        lr_factors: tuple[float, ...],
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters, self.moment1, self.moment2 = parameters, moment1, moment2
        self.factors = (coupled_decays, decoupled_decays, lr_factors)
        self.map = ops.HyperMap()

    def construct(self, gradients, step_size, beta1, beta2, eps, decay_scale, finite):
        if finite is not None:
            one = ops.ones_like(step_size)
            step_size = ops.select(finite, step_size, ops.zeros_like(step_size))
            beta1, beta2 = ops.select(finite, beta1, one), ops.select(finite, beta2, one)
            gradients = self.map(ops.partial(_zero_unless, finite), gradients)
        update = ops.partial(_adam_update, step_size, beta1, beta2, eps, decay_scale)
        return self.map(update, self.parameters, self.moment1, self.moment2, gradients, *self.factors)
