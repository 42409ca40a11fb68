"""Exponential moving average of a network's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

_average = ops.MultitypeFuncGraph("average")


@_average.register("Tensor", "Tensor", "Tensor")
def _move_average(decay, shadow, parameter):
    return ops.assign(shadow, shadow * decay + parameter * (1.0 - decay))


class WeightAverage(nn.Cell):
    """`shadow ← d·shadow + (1 − d)·weight` over every parameter, BatchNorm statistics included.

    With `warmup > 0` the t-th update uses `d = decay · (1 − e^(−t/warmup))`, as MindCV does, so that early averages
    forget the initial weights; with 0, `d = decay` always, as timm's `ModelEma`.
    """

    def __init__(self, network: nn.Cell, decay: float = 0.9999, warmup: float = 2000.0) -> None:
        super().__init__(auto_prefix=False)
        self.decay = decay
        self.warmup = warmup
        self.online = ParameterTuple(network.get_parameters())
        self.shadow = self.online.clone(prefix="ema", init="same")
        for parameter in self.shadow:
            parameter.requires_grad = False
        self.updates = Parameter(Tensor(0.0, ms.float32), name="ema.updates", requires_grad=False)
        self.map = ops.HyperMap()

    def construct(self) -> bool:
        updates = self.updates + 1.0
        ops.assign(self.updates, updates)
        decay = (
            self.decay * (1.0 - ops.exp(-updates / self.warmup)) if self.warmup > 0.0 else self.decay + 0.0 * updates
        )
        self.map(ops.partial(_average, decay), self.shadow, self.online)
        return True

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network holds the averaged weights; afterwards its own, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # In place: after `set_data` the branches of a compiled step (accumulation, overflow check) would go on writing
        # into the memory that the shadows had before.
        for online, shadow in zip(self.online, self.shadow):
            held = Tensor(online.asnumpy().copy())
            ops.assign(online, Tensor(shadow.asnumpy().copy()))
            ops.assign(shadow, held)
