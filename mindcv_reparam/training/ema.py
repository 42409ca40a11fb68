"""Exponential moving average of a network's weights."""

from contextlib import AbstractContextManager

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindcv_reparam.multi_tensor import MovingAverage


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
        self.move = MovingAverage(self.shadow, self.online)

    def construct(self, moves: Tensor | None = None) -> bool:
        """Account for one update, or where the scalar ``moves`` is False for none, bit for bit."""
        updates = self.updates + (1.0 if moves is None else ops.cast(moves, ms.float32))
        ops.assign(self.updates, updates)
        decay = (
            self.decay * (1.0 - ops.exp(-updates / self.warmup)) if self.warmup > 0.0 else self.decay + 0.0 * updates
        )
        return ops.depend(True, self.move(decay, moves))  # as the optimizer's updates

    def applied(self) -> AbstractContextManager[None]:
        """Within its block the network holds the averaged weights; afterwards its own, bit for bit."""
        return self.move.in_place()
