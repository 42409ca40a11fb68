"""The Cells that several families share, and the bridge between Cells and the algebra of :mod:`fusion`.

MindSpore's defaults differ from the field's (asymmetric "same" padding, no convolution bias, LayerNorm eps 1e-7) and
are about to change, so every layer is built by the functions below, which say them all.
"""

from collections.abc import Sequence
from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Uniform, initializer

from mindcv_reparam import fusion
from mindcv_reparam.errors import UserError
from mindcv_reparam.operations import Softmax
from mindcv_reparam.private import Float32
from mindcv_reparam.reparam import Reparameterizable, float64_parameter, replace_children
from mindcv_reparam.runtime import limit_onednn
from mindcv_reparam.stochastic import Dropout, DropPath

Gelu = Literal["exact", "tanh"]


def check_map_size(size: Sequence[int], img_size: Sequence[int], stride: int) -> None:
    """Raise UserError if an image leaves a map without pixels, for networks with a parameter per pixel."""
    if not all(size):
        raise UserError(f"image size {'x'.join(map(str, img_size))} is too small: no pixel is left at stride {stride}")


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution with symmetric zero padding, by default (kernel_size - 1) // 2; its family draws the weights."""
    limit_onednn()
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        pad_mode="pad",
        padding=(kernel_size - 1) // 2 if padding is None else padding,
        dilation=1,
        group=groups,
        has_bias=bias,
        weight_init="zeros",
        bias_init="zeros",
    )


def dense(in_channels: int, out_channels: int, bias: bool = True) -> nn.Dense:
    """A fully connected layer on the last axis; its family draws the weights."""
    return nn.Dense(in_channels, out_channels, weight_init="zeros", bias_init="zeros", has_bias=bias, activation=None)


def batch_norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    """Batch normalisation; MindSpore's momentum 0.9 is what PyTorch calls 0.1."""
    return nn.BatchNorm2d(
        channels,
        eps=eps,
        momentum=0.9,
        affine=True,
        gamma_init="ones",
        beta_init="zeros",
        moving_mean_init="zeros",
        moving_var_init="ones",
    )


def gelu(kind: Gelu) -> nn.GELU:
    """GELU by the error function ("exact": PyTorch, the papers) or by its tanh approximation (MindCV's checkpoints)."""
    return nn.GELU(approximate=kind == "tanh")


def dropout(rate: float) -> nn.Cell:
    return Dropout(rate) if rate > 0 else nn.Identity()


def drop_path(rate: float) -> nn.Cell:
    return DropPath(rate) if rate > 0 else nn.Identity()


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth growing linearly from 0 to ``rate`` over all blocks, split by stage."""
    rates = np.linspace(0.0, rate, sum(depths)).tolist()
    starts = np.cumsum((0, *depths))
    return [rates[start : start + depth] for start, depth in zip(starts, depths)]


class Scale(nn.Cell):
    """Multiplication by a constant, such as attention's 1/sqrt(d); its owner folds it into a weight."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def construct(self, x):
        return x * self.value


class GlobalAvgPool(nn.Cell):
    """(N, C, H, W) → (N, C), by a mean: NPUs refuse some forms of average pooling."""

    def construct(self, x):
        return x.mean((2, 3))


class LayerScale(Float32):
    """A learned factor per channel on a residual branch (Touvron et al., arXiv 2103.17239, section 2).

    Float32 in any precision, for what factors of 1e-5 and 1e-6 would be in float16: subnormal, which is off by up to
    3 %, or zero.

    Args:
        shape: of the parameter, with one entry per channel: (C, 1, 1) decays under the rule of one dimension, (C,) not.
    """

    def __init__(self, shape: tuple[int, ...], value: float):
        super().__init__()
        self.gamma = Parameter(Tensor(np.full(shape, value), ms.float32), name="gamma")

    def construct(self, x):
        return x * self.gamma.reshape((-1, 1, 1))


class GroupNorm(Float32):
    """Group normalisation with one group: over channels and pixels together, then a scale and a shift per channel.

    Equal to ``nn.GroupNorm(1, channels)``, on a (N, C·H·W) view with reductions in two steps: on CPU twice as fast in
    both directions, made of primitives that every converter knows, and able to do without the scale and the shift that
    a fold has moved into its neighbours.
    """

    def __init__(self, channels: int, eps: float = 1e-5, scale: bool = True, shift: bool = True):
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.gamma = Parameter(Tensor(np.ones(channels), ms.float32), name="gamma") if scale else None
        self.beta = Parameter(Tensor(np.zeros(channels), ms.float32), name="beta") if shift else None

    def construct(self, x):
        _, channels, height, width = x.shape
        centred = x.reshape((-1, channels * height * width))
        centred = centred - self.mean(centred)
        factor = ops.rsqrt(self.mean(ops.square(centred)) + self.eps)  # (N, 1)
        if self.gamma is not None:
            x = centred.reshape((-1, channels, height, width)) * (factor * self.gamma).reshape((-1, channels, 1, 1))
        else:
            x = (centred * factor).reshape((-1, channels, height, width))
        return x if self.beta is None else x + self.beta.reshape((-1, 1, 1))

    def mean(self, x):
        """(N, C·H·W) → (N, 1), by channels first: one long float32 sum would lose a digit."""
        by_channel = x.reshape((-1, x.shape[1] // self.channels)).mean(1)
        return by_channel.reshape((-1, self.channels)).mean(1, keep_dims=True)

    def affine(self) -> fusion.Affine:
        """The scale and shift behind the statistics."""
        scale = np.ones(self.channels) if self.gamma is None else self.gamma.asnumpy()
        return fusion.affine(scale, None if self.beta is None else self.beta.asnumpy())

    def with_affine(self, scale: np.ndarray | None, shift: np.ndarray | None) -> "GroupNorm":
        """A new normalisation with the same statistics and another scale and shift."""
        new = GroupNorm(self.channels, self.eps, scale is not None, shift is not None)
        if scale is not None:
            new.gamma = float64_parameter(scale, "gamma")
        if shift is not None:
            new.beta = float64_parameter(shift, "beta")
        return new

    def scaled(self, factors: np.ndarray) -> "GroupNorm":
        """A new normalisation equal to ``factors · self(x)``."""
        scale, shift = self.affine()
        return self.with_affine(factors * scale, factors * shift)


class SqueezeExcite(nn.Cell):
    """Gates per channel from the mean over pixels (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = conv2d(channels, hidden, bias=True)
        self.act = nn.ReLU()
        self.fc2 = conv2d(hidden, channels, bias=True)
        self.gate = nn.Sigmoid()

    def construct(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keep_dims=True)))))


class Attention(Reparameterizable, nn.Cell):
    """Multi-head self-attention over the pixels of a map, with q, k and v from one 1×1 convolution.

    Args:
        dim: channels, a multiple of num_heads.
        scale: the factor of the scores qᵀk.
        bias: whether the projection has a bias; q, k and v have none.
    """

    def __init__(self, dim: int, num_heads: int, scale: float, bias: bool, drop_rate: float):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = conv2d(dim, 3 * dim)
        self.scale = Scale(scale)
        self.proj = conv2d(dim, dim, bias=bias)
        self.proj_drop = dropout(drop_rate)
        # Channels first throughout: qᵀk and v·attnᵀ are batched products on transposed operands, without a transpose.
        self.scores = ops.BatchMatMul(transpose_a=True)
        self.gather = ops.BatchMatMul(transpose_b=True)
        self.softmax = Softmax()

    def construct(self, x):
        _, channels, height, width = x.shape
        qkv = self.qkv(x).reshape((-1, 3 * self.num_heads, self.head_dim, height * width))
        q, k, v = ops.split(qkv, self.num_heads, axis=1)  # each (N, heads, head_dim, H·W)
        attention = self.softmax(self.scores(self.scale(q), k))  # (N, heads, H·W, H·W)
        x = self.gather(v, attention).reshape((-1, channels, height, width))
        return self.proj_drop(self.proj(x))

    def fuse(self) -> nn.Cell:
        """The scale goes into the rows of q. The bias of k adds the same to every score of a softmax, so it drops out;
        that of v passes through the rows of attention, which sum to one, into the bias of the projection."""
        qkv, proj = linear_of(self.qkv), linear_of(self.proj)
        q, v = slice(None, qkv.weight.shape[0] // 3), slice(-qkv.weight.shape[0] // 3, None)
        scale = self.scale.value if isinstance(self.scale, Scale) else 1.0
        weight, bias = qkv.weight.copy(), np.zeros_like(qkv.bias)
        weight[q] *= scale
        bias[q] = qkv.bias[q] * scale
        value_bias = fusion.affine(np.ones_like(qkv.bias[v]), qkv.bias[v])
        return replace_children(
            self,
            qkv=with_linear(self.qkv, fusion.Linear(weight, bias)),
            scale=nn.Identity(),
            proj=with_linear(self.proj, fusion.affine_before(proj, value_bias)),
        )


class ConvNorm(Reparameterizable, nn.SequentialCell):
    """Convolution → batch normalisation (→ activation); fuses to a convolution with bias."""

    def fuse(self) -> nn.Cell:
        conv, norm, *rest = self
        fused = fold_after(conv, norm)
        return nn.SequentialCell(fused, *rest) if rest else fused


# -- Cells as algebra -------------------------------------------------------------------------------------------------


def affine_of(cell: nn.Cell) -> fusion.Affine:
    """The per-channel map of a Cell in evaluation mode.

    Raises:
        TypeError: the Cell is no per-channel map.
    """
    if isinstance(cell, nn.BatchNorm2d):
        parameters = (cell.gamma, cell.beta, cell.moving_mean, cell.moving_variance)
        gamma, beta, mean, variance = (parameter.asnumpy() for parameter in parameters)
        return fusion.batch_norm(gamma, beta, mean, variance, cell.eps)
    if isinstance(cell, LayerScale):
        return fusion.affine(cell.gamma.asnumpy())
    raise TypeError(f"{type(cell).__name__} is no per-channel affine map")


def linear_of(cell: nn.Conv2d | nn.Dense) -> fusion.Linear:
    """The weight and bias of a convolution or dense layer."""
    return fusion.linear(cell.weight.asnumpy(), cell.bias.asnumpy() if cell.has_bias else None)


def with_linear(cell: nn.Conv2d | nn.Dense, linear: fusion.Linear, bias: bool = True) -> nn.Conv2d | nn.Dense:
    """A new layer of the geometry of ``cell`` (but the kernel size of ``linear``) with the given weight and bias."""
    if isinstance(cell, nn.Dense):
        new = nn.Dense(cell.in_channels, cell.out_channels, weight_init="zeros", bias_init="zeros", has_bias=bias)
    else:
        new = nn.Conv2d(
            cell.in_channels,
            cell.out_channels,
            linear.weight.shape[2:],
            stride=cell.stride,
            pad_mode=cell.pad_mode,
            padding=cell.padding,
            dilation=cell.dilation,
            group=cell.group,
            has_bias=bias,
            weight_init="zeros",
            bias_init="zeros",
        )
    new.weight = float64_parameter(linear.weight, "weight")
    if bias:
        new.bias = float64_parameter(linear.bias, "bias")
    return new


def fold_after(layer: nn.Conv2d | nn.Dense, norm: nn.Cell) -> nn.Conv2d | nn.Dense:
    """``norm(layer(x))`` as one layer, the layer itself if the norm is the identity; exact with any padding."""
    if isinstance(norm, nn.Identity):
        return layer
    return with_linear(layer, fusion.affine_after(affine_of(norm), linear_of(layer)))


def fold_before(norm: nn.Cell, layer: nn.Conv2d | nn.Dense) -> nn.Conv2d | nn.Dense:
    """``layer(norm(x))`` as one layer, the layer itself if the norm is the identity; it must be 1×1 or dense."""
    if isinstance(norm, nn.Identity):
        return layer
    groups = getattr(layer, "group", 1)
    return with_linear(layer, fusion.affine_before(linear_of(layer), affine_of(norm), groups))


def fold_norm(norm: GroupNorm, layer: nn.Conv2d | nn.Dense) -> tuple[GroupNorm, nn.Conv2d | nn.Dense]:
    """``layer(norm(x))`` with the scale and shift of the norm in the layer, which must be 1×1 or dense."""
    groups = getattr(layer, "group", 1)
    folded = with_linear(layer, fusion.affine_before(linear_of(layer), norm.affine(), groups))
    return norm.with_affine(None, None), folded


def move_bias(first: nn.Conv2d, second: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d]:
    """``second(first(x))`` as two layers of which only the second has a bias; the second must be 1×1."""
    linear = linear_of(first)
    shift = fusion.affine(np.ones_like(linear.bias), linear.bias)
    moved = fusion.affine_before(linear_of(second), shift, second.group)
    return with_linear(first, linear, bias=False), with_linear(second, moved)


# -- Initialisation ---------------------------------------------------------------------------------------------------


def initialize(parameter: ms.Parameter, init) -> None:
    """Fill a parameter from a MindSpore initializer."""
    parameter.set_data(initializer(init, parameter.shape, parameter.dtype))


def initialize_as_torch(net: nn.Cell) -> None:
    """PyTorch's own initialisation of convolutions and dense layers: U(±1/√fan_in), biases too."""
    for _, cell in net.cells_and_names():
        if isinstance(cell, nn.Conv2d | nn.Dense):
            bound = float(np.prod(cell.weight.shape[1:])) ** -0.5
            for parameter in (cell.weight, *([cell.bias] if cell.has_bias else [])):
                initialize(parameter, Uniform(bound))
