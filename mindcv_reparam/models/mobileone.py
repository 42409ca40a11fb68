"""Blocks of re-parameterizable convolutions that families share: MobileOne's branches, and RepLKNet's large kernel."""

from mindspore import nn

from mindcv_reparam import fusion
from mindcv_reparam.layers import (
    ConvNorm,
    Gelu,
    SqueezeExcite,
    affine_of,
    batch_norm,
    conv2d,
    gelu,
    linear_of,
    with_linear,
)
from mindcv_reparam.reparam import Reparameterizable, fused


class MobileOneConv(Reparameterizable, nn.Cell):
    """Sum of a k×k and (if k > 1) a 1×1 "scale" convolution and (if shapes allow) the identity, each with its own norm.

    MobileOne (Vasu et al., arXiv 2206.04040, section 3.2) with one convolutional branch.
    """

    level = "branches"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        channels = (in_channels, out_channels)
        self.kxk = ConvNorm(conv2d(*channels, kernel_size, stride, groups=groups), batch_norm(out_channels))
        has_scale, has_identity = kernel_size > 1, in_channels == out_channels and stride == 1
        self.scale = (
            ConvNorm(conv2d(*channels, 1, stride, groups=groups), batch_norm(out_channels)) if has_scale else None
        )
        self.identity = batch_norm(out_channels) if has_identity else None

    def construct(self, x):
        y = self.kxk(x)
        if self.scale is not None:
            y = y + self.scale(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return y

    def fuse(self) -> nn.Cell:
        conv = fused(self.kxk)
        branches = [linear_of(conv)]
        if self.scale is not None:
            branches.append(linear_of(fused(self.scale)))
        if self.identity is not None:
            identity = fusion.identity(conv.out_channels, conv.group)
            branches.append(fusion.affine_after(affine_of(self.identity), identity))
        return with_linear(conv, fusion.parallel(*branches))


class MobileOneBlock(nn.Cell):
    """Branches, optionally squeeze-and-excitation with ratio 1/16, then GELU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        squeeze_excite: bool = False,
        gelu_kind: Gelu = "exact",
    ):
        super().__init__()
        self.conv = MobileOneConv(in_channels, out_channels, kernel_size, stride, groups)
        self.se = SqueezeExcite(out_channels, out_channels // 16) if squeeze_excite else None
        self.act = gelu(gelu_kind)

    def construct(self, x):
        x = self.conv(x)
        if self.se is not None:
            x = self.se(x)
        return self.act(x)


class LargeKernelConv(Reparameterizable, nn.Cell):
    """Sum of a 7×7 and a 3×3 convolution, each with its own norm (RepLKNet, Ding et al., arXiv 2203.06717)."""

    level = "branches"

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        channels = (in_channels, out_channels)
        self.large = ConvNorm(conv2d(*channels, 7, stride, groups=in_channels), batch_norm(out_channels))
        self.small = ConvNorm(conv2d(*channels, 3, stride, groups=in_channels), batch_norm(out_channels))

    def construct(self, x):
        return self.large(x) + self.small(x)

    def fuse(self) -> nn.Cell:
        large, small = fused(self.large), fused(self.small)
        return with_linear(large, fusion.parallel(linear_of(large), linear_of(small)))
