"""Cells whose computation is a kernel of this package, forwards and backwards.

The kernels check nothing, so a Cell asks first whether its operand is one they take. If not, the Cell that it replaced
computes: another type, an empty batch and every error are that one's.
"""

import logging
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindcv_reparam import layers, operations, private, stochastic, tree
from mindcv_reparam.cpu import by_operators, multi_tensor
from mindcv_reparam.cpu.library import Kernel, library, lift_onednn_limit
from mindcv_reparam.runtime import limit_onednn

MAP, ANY_RANK = (4,), tuple(range(1, 9))  # ranks of operands
OTHER_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv1dTranspose, nn.Conv2d, nn.Conv2dTranspose, nn.Conv3d, nn.Conv3dTranspose),
    nn.GraphCell,  # what a file says
)
KERNEL_SIZES, STRIDES = (3, 5, 7), (1, 2)  # of the depthwise convolutions that depthwise.cc instantiates


_log = logging.getLogger(__name__)


def use_kernels(net: nn.Cell, alone: bool = False) -> nn.Cell:
    """Replace, in place and before its first call, the Cells of a float32 network that have a kernel; returns it.

    Parameters are shared and keep their names. Where the kernels cannot be built nothing changes.

    Args:
        net: the network, or a Cell around several.
        alone: nothing else in this process will compute a convolution, so that the limit which MindSpore's need can go
            and its products and BatchNorms have the whole width of the processor.
    """
    if library() is None:
        return net
    net = tree.replace(net, _replacement)
    if alone and limit_onednn() and not _has_other_convolutions(net) and lift_onednn_limit():
        _log.info("lifted the limit on oneDNN: all convolutions are operators of this package, which need none")
    return net


def _has_other_convolutions(net: nn.Cell) -> bool:
    return any(isinstance(cell, OTHER_CONVOLUTIONS) and type(cell) is not Conv2d for _, cell in net.cells_and_names())


def _replacement(cell: nn.Cell) -> nn.Cell | None:
    kind = type(cell)
    if kind in _WITH_STATE:
        return _WITH_STATE[kind](cell)
    if kind in _WITHOUT:
        return _WITHOUT[kind]()
    if kind is nn.Pad and cell.mode == "CONSTANT":
        return by_operators.Pad(cell)
    return None


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether depthwise.cc has a convolution."""
    (size, width), (stride, across) = conv.kernel_size, conv.stride
    return (
        conv.group == conv.in_channels > 1
        and (size == width in KERNEL_SIZES and stride == across in STRIDES and conv.dilation == (1, 1))
        and (conv.pad_mode == "pad" and _paddings(conv) == (size // 2,) * 4)
    )


@ops.constexpr
def _takes(
    kind: ms.Type,
    shape: tuple[int, ...],
    ranks: tuple[int, ...],
    channels: int | None = None,
    height: int = 1,
    width: int = 1,
) -> bool:
    """Whether a kernel takes a tensor: float32, with elements, of one of those ranks, and a map of that many channels
    and at least that height and width."""
    if kind != ms.float32 or len(shape) not in ranks or 0 in shape:
        return False
    return channels is None or (shape[-3] == channels and shape[-2] >= height and shape[-1] >= width)


class _Gelu(nn.Cell):
    def __init__(self, name: str):
        super().__init__()
        self.forward = Kernel(name, lambda x: x)
        self.backward = Kernel(f"{name}_grad", lambda x, dy: x)

    def construct(self, x):
        return self.forward(x)

    def bprop(self, x, y, dy):
        return (self.backward(x, dy),)


class Gelu(nn.GELU):
    def __init__(self, gelu: nn.GELU):
        super().__init__(approximate=gelu.approximate == "tanh")
        self.kernel = _Gelu("gelu_tanh" if gelu.approximate == "tanh" else "gelu_exact")

    def construct(self, x):
        if not _takes(x.dtype, x.shape, ANY_RANK):
            return super().construct(x)
        return self.kernel(x)


class _Depthwise(nn.Cell):
    """x (N, C, H, W), weight (M·C, 1, k, k), bias (M·C,) → (N, M·C, ⌈H/s⌉, ⌈W/s⌉)"""

    def __init__(self, size: int, stride: int):
        super().__init__()
        name = f"depthwise_{size}_{stride}"

        def shapes(x, weight, bias):
            return [x[0], weight[0], *((side - 1) // stride + 1 for side in x[2:])]

        self.forward = Kernel(name, shapes, lambda x, weight, bias: x)
        self.backward = Kernel(f"{name}_grad", lambda x, weight, dy, bias: (x, weight, bias))

    def construct(self, x, weight, bias):
        return self.forward(x, weight, bias)

    def bprop(self, x, weight, bias, y, dy):
        return self.backward(x, weight, dy, bias)


class _Convolution(nn.Cell):
    """x (N, C, H, W), weight (O, C / groups, k, l), bias (O,) → (N, O, H', W')"""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.has_bias = conv.has_bias
        paddings = (-1, -1) if conv.pad_mode == "same" else _paddings(conv)[::2]  # above and on the left
        geometry = (*conv.stride, *conv.dilation, *paddings, int(conv.has_bias))
        self.geometry = Tensor(geometry, ms.int64)

        def kernel(name: str, shapes: Callable, types: Callable | None = None) -> ops.Custom:
            # MindSpore takes two operators of one name and equal attributes and inputs for the same one.
            return Kernel(name, shapes, types).add_prim_attr("geometry", geometry)

        def convolved(x, weight, bias, geometry):
            return [x[0], weight[0], *_output_sides(conv, x[2:])]

        self.forward = kernel("convolution", convolved, lambda x, weight, bias, geometry: x)
        self.input_gradient = kernel("convolution_input_grad", lambda dy, weight, x, geometry: x)
        self.weight_gradient = kernel("convolution_weight_grad", lambda x, dy, weight, bias, geometry: (weight, bias))

    def construct(self, x, weight, bias):
        return self.forward(x, weight, bias, self.geometry)

    def bprop(self, x, weight, bias, y, dy):
        dx = self.input_gradient(dy, weight, x, self.geometry)
        dweight, dbias = self.weight_gradient(x, dy, weight, bias, self.geometry)
        return dx, dweight, dbias if self.has_bias else bias


def _paddings(conv: nn.Conv2d) -> tuple[int, ...]:
    """Above, below, left, right; where they follow from the image ("same"), none."""
    if conv.pad_mode != "pad":
        return (0,) * 4
    return (conv.padding,) * 4 if isinstance(conv.padding, int) else tuple(conv.padding)


def _window(conv: nn.Conv2d) -> list[int]:
    """Pixels that an output sees, down and across."""
    return [dilation * (size - 1) + 1 for size, dilation in zip(conv.kernel_size, conv.dilation)]


def _output_sides(conv: nn.Conv2d, sides: list[int]) -> list[int]:
    if conv.pad_mode == "same":
        return [(side - 1) // stride + 1 for side, stride in zip(sides, conv.stride)]
    padded = [side + sum(_paddings(conv)[2 * axis : 2 * axis + 2]) for axis, side in enumerate(sides)]
    return [(side - window) // stride + 1 for side, window, stride in zip(padded, _window(conv), conv.stride)]


def _least_sides(conv: nn.Conv2d) -> list[int]:
    """Of an image that has an output."""
    if conv.pad_mode == "same":
        return [1, 1]
    above, below, left, right = _paddings(conv)
    return [max(1, window - padding) for window, padding in zip(_window(conv), (above + below, left + right))]


class Conv2d(nn.Conv2d):
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
        self.kernel = _Depthwise(conv.kernel_size[0], conv.stride[0]) if _is_depthwise(conv) else _Convolution(conv)
        self.height, self.width = _least_sides(conv)

    def construct(self, x):
        if not _takes(x.dtype, x.shape, MAP, self.in_channels, self.height, self.width):
            return super().construct(x)
        return self.kernel(x, self.weight, self.bias if self.has_bias else self.zeros)


class _Normalise(nn.Cell):
    def __init__(self, name: str, eps: float):
        super().__init__()
        self.eps = Tensor([eps], ms.float32)
        self.forward = Kernel(name, lambda x, gamma, beta, eps: x)
        self.backward = Kernel(f"{name}_grad", lambda x, gamma, dy, eps: (x, gamma, gamma))

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
        self.normalise = _Normalise("group_norm", norm.eps)

    def construct(self, x):
        if not _takes(x.dtype, x.shape, MAP, self.channels):
            return super().construct(x)
        gamma = self.ones if self.gamma is None else self.gamma
        return self.normalise(x, gamma, self.zeros if self.beta is None else self.beta)


class _Softmax(nn.Cell):
    def __init__(self):
        super().__init__()
        self.forward = Kernel("softmax", lambda x: x)
        self.backward = Kernel("softmax_grad", lambda y, dy: y)

    def construct(self, x):
        return self.forward(x)

    def bprop(self, x, y, dy):
        return (self.backward(y, dy),)


class Softmax(operations.Softmax):
    def __init__(self):
        super().__init__()
        self.kernel = _Softmax()

    def construct(self, x):
        return self.kernel(x) if _takes(x.dtype, x.shape, ANY_RANK) else super().construct(x)


class Float32Softmax(private.Float32, Softmax):
    """The same in float32 in any precision."""


class LayerNorm(operations.LayerNorm):
    def __init__(self, norm: operations.LayerNorm):
        super().__init__(norm.gamma.size, norm.epsilon)
        self.gamma, self.beta = norm.gamma, norm.beta
        self.normalise = _Normalise("layer_norm", norm.epsilon)

    def construct(self, x):
        if not _takes(x.dtype, x.shape, ANY_RANK) or x.shape[-1] != self.gamma.size:
            return super().construct(x)
        return self.normalise(x, self.gamma, self.beta)


class _Scale(nn.Cell):
    """x (N, C, H, W), factors (C, 1, 1) or (N, 1, 1, 1) → x · factors"""

    def __init__(self):
        super().__init__()
        self.product = Kernel("scale", lambda x, factors: x)
        self.factors_gradient = Kernel("scale_grad", lambda x, dy, factors: factors)

    def construct(self, x, factors):
        return self.product(x, factors)

    def bprop(self, x, factors, y, dy):
        return self.product(dy, factors), self.factors_gradient(x, dy, factors)


class LayerScale(layers.LayerScale):
    def __init__(self, scale: layers.LayerScale):
        super().__init__(scale.gamma.shape, 0.0)
        self.gamma = scale.gamma
        self.channels = scale.gamma.size
        self.product = _Scale()

    def construct(self, x):
        if not _takes(x.dtype, x.shape, MAP, self.channels):
            return super().construct(x)
        return self.product(x, self.gamma.reshape((-1, 1, 1)))


class DropPath(stochastic.DropPath):
    def __init__(self, drop: stochastic.DropPath):
        nn.Cell.__init__(self)  # the state is the other's
        self.rate, self.mask = drop.rate, drop.mask
        self.set_train(drop.training)
        self.product = _Scale()

    def construct(self, x):
        if not self.training or self.rate == 0.0 or not _takes(x.dtype, x.shape, MAP):
            return super().construct(x)
        return self.product(x, self.factors(x))


_WITH_STATE: dict[type[nn.Cell], Callable[[nn.Cell], nn.Cell]] = {
    nn.GELU: Gelu,
    nn.Conv2d: Conv2d,
    layers.GroupNorm: GroupNorm,
    layers.LayerScale: LayerScale,
    operations.LayerNorm: LayerNorm,
    stochastic.DropPath: DropPath,
    **multi_tensor.OF_PARAMETERS,
}
_WITHOUT: dict[type[nn.Cell], type[nn.Cell]] = {
    operations.Softmax: Softmax,
    operations.Float32Softmax: Float32Softmax,
    **by_operators.REPLACEMENTS,
    **multi_tensor.WITHOUT_STATE,
}
