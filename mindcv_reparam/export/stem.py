"""The normalisation of pixels inside the first convolution."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindcv_reparam import fusion, tree
from mindcv_reparam.layers import linear_of, with_linear
from mindcv_reparam.reparam import finished


class PixelStem(nn.Cell):
    """A convolution of (pixel − mean) / std, on the pixels (N, 3, H, W) themselves.

    The deviation (and the order of the channels) goes into the kernel. The mean becomes a bias; near the border, where
    the padding is zero and not the mean, it is another one, hence a map of biases instead of one per channel.
    """

    def __init__(self, conv: nn.Conv2d, border: np.ndarray):
        super().__init__()
        self.conv = conv
        self.bias = Parameter(Tensor(border[None], ms.float32), name="bias")

    def construct(self, x):
        return self.conv(x) + self.bias


def stem_of(net: nn.Cell) -> str:
    """Name of the convolution that sees the image: the first, in a fused network of any family."""
    return next(name for name, cell in net.cells_and_names() if isinstance(cell, nn.Conv2d))


def on_pixels(
    net: nn.Cell, mean: Sequence[float], std: Sequence[float], size: tuple[int, int], bgr: bool = False
) -> nn.Cell:
    """A copy of a network on normalised images that takes pixels (0–255) of images of ``size`` (H, W) instead.

    Args:
        bgr: the channels come in this order; ``mean`` and ``std`` are those of red, green and blue in any case.
    """
    net = tree.copy_of(net)
    conv = dict(net.cells_and_names())[stem_of(net)]
    linear, shift = fusion.on_pixels(linear_of(conv), mean, std)
    top, bottom, left, right = conv.padding if isinstance(conv.padding, tuple) else (conv.padding,) * 4
    border = fusion.padded_response(linear.weight, shift, size, conv.stride, ((top, bottom), (left, right)))
    if bgr:
        linear = linear._replace(weight=linear.weight[:, ::-1])
    stem = PixelStem(with_linear(conv, linear, bias=False), border + linear.bias[:, None, None])
    return finished(tree.replace(net, lambda cell: stem if cell is conv else None))
