"""Cells of MindSpore's own operators, others than the network names: a CPU computes the same by them in a fraction of
the time, or closer. They need no kernel, and differentiate as any Cell unless they say how."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindcv_reparam import operations


class Sigmoid(operations.Sigmoid):
    """Within 1.1e-7, where MindSpore's own, by an exponential that is off by 4e-6, is off by 6e-7: through sampling
    points that are so much beside their pixels, a detector's logits at 640 by 9e-6 instead of 2e-6. Needs no kernel."""

    def construct(self, x):
        return 1.0 / (2.0 + ops.expm1(-x))

    def bprop(self, x, y, dy):
        return (dy * y * (1.0 - y),)


class Inside(operations.Inside):
    """By differences, exact for whole numbers: MindSpore's minimum divides ten times per number where it broadcasts."""

    def construct(self, x, last):
        return last - ops.relu(last - ops.relu(x))


class Pad(nn.Pad):
    """Zeros beside the operand, by copies: MindSpore's divides twice per axis for every number."""

    def __init__(self, pad: nn.Pad):
        super().__init__(pad.paddings)

    def construct(self, x):
        for axis in range(len(self.paddings)):
            before, after = self.paddings[axis]
            beside, beyond = x.shape[:axis], x.shape[axis + 1 :]
            parts = (x,)
            if before:
                parts = (ops.zeros((*beside, before, *beyond), x.dtype), *parts)
            if after:
                parts = (*parts, ops.zeros((*beside, after, *beyond), x.dtype))
            if len(parts) > 1:
                x = ops.concat(parts, axis)
        return x


class Apart(operations.Apart):
    """By a transposition: slices by an index take many times as long."""

    def construct(self, x):
        parts = ()
        for part in ops.split(x.reshape((-1, x.shape[-1])).transpose((1, 0)), 1, 0):
            parts += (part.reshape(x.shape[:-1]),)
        return parts


class Together(operations.Together):
    """By a transposition, for a fraction of the time."""

    def construct(self, tensors):
        count, shape = len(tensors), tensors[0].shape
        return ops.stack(tensors).reshape((count, -1)).transpose((1, 0)).reshape((*shape, count))


class _Doubled(nn.Cell):
    """Each pixel four times, (N, C, H, W) → (N, C, 2H, 2W), by a product, for a fraction of MindSpore's time."""

    def __init__(self):
        super().__init__()
        self.ones = Tensor(np.ones((1, 1, 1, 2, 1, 2)), ms.float32)

    def construct(self, x):
        _, channels, height, width = x.shape
        return (x.reshape((-1, channels, height, 1, width, 1)) * self.ones).reshape(
            (-1, channels, 2 * height, 2 * width)
        )

    def bprop(self, x, y, dy):
        return (4 * ops.avg_pool2d(dy, 2, 2),)


class Upsample(operations.Upsample):
    def __init__(self):
        super().__init__()
        self.doubled = _Doubled()

    def construct(self, x, height, width):
        if (height, width) != (2 * x.shape[2], 2 * x.shape[3]) or x.dtype != ms.float32:
            return super().construct(x, height, width)
        return self.doubled(x)


REPLACEMENTS: dict[type[nn.Cell], type[nn.Cell]] = {
    operations.Sigmoid: Sigmoid,
    operations.Inside: Inside,
    operations.Apart: Apart,
    operations.Together: Together,
    operations.Upsample: Upsample,
}
