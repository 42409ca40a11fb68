"""Loss scaling for float16 gradients."""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


class LossScale(nn.Cell):
    """The scale, and how it reacts to an overflow.

    A fixed scale never changes. A dynamic one halves after an overflow (never below 1) and doubles after
    `window` updates in a row without one (MindSpore's and MindCV's constants), up to `MAXIMUM`: where a device hides
    overflows, nothing else would end the doubling.
    """

    MAXIMUM = 2.0**24

    def __init__(self, scale: float = 1.0, dynamic: bool = False, window: int = 2000) -> None:
        super().__init__(auto_prefix=False)
        self.dynamic = dynamic
        self.active = dynamic or scale != 1.0
        self.window = window
        self.value = Parameter(Tensor(scale, ms.float32), name="loss_scale.value", requires_grad=False)
        self.streak = Parameter(Tensor(0, ms.int32), name="loss_scale.streak", requires_grad=False)

    def construct(self, finite: Tensor) -> bool:
        """Account for one update attempt whose gradients were all finite, or not."""
        if self.dynamic:
            streak = ops.select(finite, self.streak + 1, ops.zeros_like(self.streak))
            doubled = ops.maximum(self.value, ops.minimum(self.value * 2.0, self.MAXIMUM))
            grown = ops.select(streak >= self.window, doubled, self.value + 0.0)
            ops.assign(self.value, ops.select(finite, grown, ops.maximum(self.value * 0.5, 1.0)))
            ops.assign(self.streak, ops.select(streak >= self.window, ops.zeros_like(streak), streak))
        return True
