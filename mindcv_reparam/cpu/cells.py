"""Cells whose computation is a kernel of this package, forwards and backwards."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from .. import layers, stochastic
from .library import library

KERNEL_SIZES, STRIDES = (3, 7), (1, 2)  # of the depthwise convolutions that depthwise.cc instantiates


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
    if type(cell) is nn.Conv2d:
        kernel = _convolution(cell)
        return Conv2d(cell, kernel) if kernel else None
    if type(cell) is layers.GroupNorm:
        return GroupNorm(cell)
    if type(cell) is layers.LayerScale:
        return LayerScale(cell)
    if type(cell) is stochastic.DropPath:
        return DropPath(cell)
    return None


def _convolution(conv: nn.Conv2d) -> nn.Cell | None:
    """The kernel that computes a convolution."""
    (size, width), (stride, across) = conv.kernel_size, conv.stride
    plain = conv.pad_mode == "pad" and isinstance(conv.padding, int) and conv.dilation == (1, 1)
    if not plain or size != width or stride != across:
        return None
    if conv.group < conv.in_channels or conv.group == 1:
        return _Convolution(stride, conv.padding, conv.has_bias)
    if size in KERNEL_SIZES and stride in STRIDES and conv.padding == (size - 1) // 2:
        return _Depthwise(size, stride)
    return None


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


class _Convolution(nn.Cell):
    """x (N, C, H, W), weight (O, C / groups, k, k), bias (O,) → (N, O, H', W')

    Stride and padding are the shape of an operand, (stride, padding + 1): MindSpore takes two operators of one name and
    equal shapes for the same one.
    """

    def __init__(self, stride: int, padding: int, has_bias: bool):
        super().__init__()
        self.has_bias = has_bias
        self.geometry = Tensor(np.zeros((stride, padding + 1)), ms.float32)
        self.forward = _Kernel("convolution", _convolved, lambda x, weight, bias, geometry: x)
        self.input_gradient = _Kernel("convolution_input_grad", lambda dy, weight, x, geometry: x)
        self.weight_gradient = _Kernel("convolution_weight_grad", lambda x, dy, weight, geometry: weight)
        self.bias_gradient = _Kernel("channel_sums", lambda dy: [dy[1]], lambda dy: dy)

    def construct(self, x, weight, bias):
        return self.forward(x, weight, bias, self.geometry)

    def bprop(self, x, weight, bias, y, dy):
        return (
            self.input_gradient(dy, weight, x, self.geometry),
            self.weight_gradient(x, dy, weight, self.geometry),
            self.bias_gradient(dy) if self.has_bias else bias,
        )


def _convolved(x: list[int], weight: list[int], bias: list[int], geometry: list[int]) -> list[int]:
    stride, padding = geometry[0], geometry[1] - 1
    return [x[0], weight[0], *((side + 2 * padding - weight[2]) // stride + 1 for side in x[2:])]


class Conv2d(nn.Conv2d):
    def __init__(self, conv: nn.Conv2d, kernel: nn.Cell):
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
        self.kernel = kernel

    def construct(self, x):
        return self.kernel(x, self.weight, self.bias if self.has_bias else self.zeros)


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


class _Scale(nn.Cell):
    """x (N, C, H, W), factors (C, 1, 1) or (N, 1, 1, 1) → x · factors"""

    def __init__(self):
        super().__init__()
        self.product = _Kernel("scale", lambda x, factors: x)
        self.factors_gradient = _Kernel("scale_grad", lambda x, dy, factors: factors)

    def construct(self, x, factors):
        return self.product(x, factors)

    def bprop(self, x, factors, y, dy):
        return self.product(dy, factors), self.factors_gradient(x, dy, factors)


class LayerScale(layers.LayerScale):
    def __init__(self, scale: layers.LayerScale):
        super().__init__(scale.gamma.shape, 0.0)
        self.gamma = scale.gamma
        self.product = _Scale()

    def construct(self, x):
        return self.product(x, self.gamma.reshape((-1, 1, 1)))


class DropPath(stochastic.DropPath):
    def __init__(self, drop: stochastic.DropPath):
        nn.Cell.__init__(self)  # the state is the other's
        self.rate, self.mask = drop.rate, drop.mask
        self.set_train(drop.training)
        self.product = _Scale()

    def construct(self, x):
        if not self.training or self.rate == 0.0:
            return x
        return self.product(x, self.factors(x))
