"""Cells whose computation is a kernel of this package, forwards and backwards."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from .. import layers
from .library import library

KERNEL_SIZES, STRIDES = (3, 7), (1, 2)  # of the depthwise convolutions that kernels.cc instantiates


def use_kernels(net: nn.Cell) -> nn.Cell:
    """Replace, in place and before its first call, the Cells of a float32 network that have a kernel; returns it.

    Parameters are shared and keep their names. Where the kernels cannot be built nothing changes.
    """
    if library() is not None:
        names = [(parameter, parameter.name) for parameter in net.get_parameters()]
        _replace_children(net)
        for parameter, name in names:  # assigning a Cell prefixes the names of its parameters
            parameter.name = name
    return net


def _replace_children(cell: nn.Cell) -> None:
    for name, child in cell.name_cells().items():
        new = _replacement(child)
        if new is None:
            _replace_children(child)
        # SequentialCell and CellList run a list of their own, which only item assignment updates.
        elif isinstance(cell, nn.SequentialCell | nn.CellList):
            cell[int(name)] = new
        else:
            setattr(cell, name, new)


def _replacement(cell: nn.Cell) -> nn.Cell | None:
    if type(cell) is nn.GELU:
        return Gelu(cell)
    if type(cell) is nn.Conv2d and _has_kernel(cell):
        return DepthwiseConv2d(cell)
    if type(cell) is layers.GroupNorm:
        return GroupNorm(cell)
    return None


def _has_kernel(conv: nn.Conv2d) -> bool:
    size = conv.kernel_size[0]
    return (
        conv.group == conv.in_channels
        and size in KERNEL_SIZES
        and conv.stride[0] in STRIDES
        and conv.kernel_size == (size, size)
        and conv.stride == (conv.stride[0],) * 2
        and conv.pad_mode == "pad"
        and conv.padding == (size - 1) // 2
        and conv.dilation == (1, 1)
    )


class _Kernel(ops.Custom):
    """A kernel as an operator; ``shapes`` gives the outputs' shapes from the inputs', by default the types too."""

    def __init__(self, name: str, shapes: Callable, types: Callable | None = None):
        super().__init__(f"{library()}:{name}", shapes, types or shapes, func_type="aot")

    def __deepcopy__(self, memo: dict) -> "_Kernel":
        return self  # it has no state, and copies of MindSpore's custom operators cannot be made


class Gelu(nn.GELU):
    def __init__(self, gelu: nn.GELU):
        super().__init__(approximate=gelu.approximate == "tanh")
        name = "gelu_tanh" if gelu.approximate == "tanh" else "gelu_exact"
        self.forward = _Kernel(name, lambda x: x)
        self.backward = _Kernel(f"{name}_grad", lambda x, dy: x)

    def construct(self, x):
        return self.forward(x)

    def bprop(self, x, y, dy):
        return (self.backward(x, dy),)


class _Depthwise(nn.Cell):
    """x (N, C, H, W), weight (M·C, 1, k, k), bias (M·C,) → (N, M·C, ⌈H/s⌉, ⌈W/s⌉)"""

    def __init__(self, size: int, stride: int):
        super().__init__()
        name = f"depthwise_{size}_{stride}"

        def shapes(x, weight, bias):
            return [x[0], weight[0], *((side - 1) // stride + 1 for side in x[2:])]

        self.forward = _Kernel(name, shapes, lambda x, weight, bias: x)
        self.backward = _Kernel(f"{name}_grad", lambda x, weight, dy, bias: (x, weight, bias))

    def construct(self, x, weight, bias):
        return self.forward(x, weight, bias)

    def bprop(self, x, weight, bias, y, dy):
        return self.backward(x, weight, dy, bias)


class DepthwiseConv2d(nn.Conv2d):
    def __init__(self, conv: nn.Conv2d):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            pad_mode=conv.pad_mode,
            padding=conv.padding,
            dilation=conv.dilation,
            group=conv.group,
            has_bias=conv.has_bias,
            weight_init="zeros",
            bias_init="zeros",
        )
        self.weight = conv.weight
        if conv.has_bias:
            self.bias = conv.bias
        self.zeros = None if conv.has_bias else Tensor(np.zeros(conv.out_channels), ms.float32)
        self.depthwise = _Depthwise(conv.kernel_size[0], conv.stride[0])

    def construct(self, x):
        return self.depthwise(x, self.weight, self.bias if self.has_bias else self.zeros)


class _Normalise(nn.Cell):
    def __init__(self, eps: float):
        super().__init__()
        self.eps = Tensor([eps], ms.float32)
        self.forward = _Kernel("group_norm", lambda x, gamma, beta, eps: x)
        self.backward = _Kernel("group_norm_grad", lambda x, gamma, dy, eps: (x, gamma, gamma))

    def construct(self, x, gamma, beta):
        return self.forward(x, gamma, beta, self.eps)

    def bprop(self, x, gamma, beta, y, dy):
        return self.backward(x, gamma, dy, self.eps)


class GroupNorm(layers.GroupNorm):
    def __init__(self, norm: layers.GroupNorm):
        super().__init__(norm.channels, norm.eps, scale=False, shift=False)
        self.gamma, self.beta = norm.gamma, norm.beta
        self.ones = Tensor(np.ones(norm.channels), ms.float32)
        self.zeros = Tensor(np.zeros(norm.channels), ms.float32)
        self.normalise = _Normalise(norm.eps)

    def construct(self, x):
        gamma = self.ones if self.gamma is None else self.gamma
        return self.normalise(x, gamma, self.zeros if self.beta is None else self.beta)
