"""Weights in float16: half the file, with float32 arithmetic where the runtime has no better."""

import mindspore as ms
from mindspore import nn, ops

from mindcv_reparam.export.stem import stem_of
from mindcv_reparam.tree import copy_of


class HalfConv2d(nn.Conv2d):
    """A convolution whose weight is float16."""

    def construct(self, x):
        output = self.conv2d(x, ops.cast(self.weight, ms.float32))
        return self.bias_add(output, self.bias) if self.has_bias else output


class HalfDense(nn.Dense):
    """A dense layer whose weight is float16."""

    def construct(self, x):
        shape = x.shape
        output = self.matmul(x.reshape((-1, shape[-1])), ops.cast(self.weight, ms.float32))
        output = self.bias_add(output, self.bias) if self.has_bias else output
        return output.reshape(shape[:-1] + (self.out_channels,)) if len(shape) != 2 else output


_HALVES: dict[type[nn.Cell], type[nn.Cell]] = {nn.Conv2d: HalfConv2d, nn.Dense: HalfDense}


def with_half_weights(net: nn.Cell) -> nn.Cell:
    """A copy whose convolutions and dense layers have float16 weights, cast to float32 before use.

    A runtime that computes in float16, as Ascend's do, drops the casts. What is not a weight of these layers is a few
    numbers and stays; so does the stem, whose kernel on pixels (:mod:`stem`) would fall below float16's normal range.
    """
    net = copy_of(net)
    stem = stem_of(net)
    for name, cell in net.cells_and_names():
        if type(cell) in _HALVES and name != stem:
            object.__setattr__(cell, "__class__", _HALVES[type(cell)])
            cell.weight.set_dtype(ms.float16)
    return net
