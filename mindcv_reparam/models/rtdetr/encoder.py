"""RT-DETR's hybrid encoder (Zhao et al., arXiv 2304.08069, section 4.2).

AIFI: attention among the pixels of the coarsest map. CCFF: a top-down and a bottom-up path of convolutions between the
maps. Names and numbers as in the reference implementation (lyuwenyu/RT-DETR, rtdetr_pytorch).
"""

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Zero

from mindcv_reparam import fusion
from mindcv_reparam.layers import (
    ConvNorm,
    batch_norm,
    conv2d,
    dense,
    gelu,
    initialize,
    initialize_as_torch,
    linear_of,
    with_linear,
)
from mindcv_reparam.models.resnet_vd import ConvNormLayer
from mindcv_reparam.models.rtdetr.layers import MultiheadAttention
from mindcv_reparam.operations import LayerNorm, Upsample
from mindcv_reparam.reparam import Reparameterizable, fused


@ops.constexpr
def position_table(height: int, width: int, dim: int) -> Tensor:
    """Sines and cosines of every pixel's row, then of its column, (1, height · width, dim).

    The reference enumerates columns first, which is the same on squares alone, and which its users report as broken
    training on other shapes.
    """
    frequencies = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (rows, columns)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return Tensor(table[None].astype(np.float32))


class TransformerEncoderLayer(nn.Cell):
    """Attention and MLP, each followed by its normalisation; (N, T, dim) → (N, T, dim)."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.linear1 = dense(dim, dim_feedforward)
        self.act = gelu("exact")
        self.linear2 = dense(dim_feedforward, dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)

    def construct(self, x, positions):
        x = self.norm1(x + self.self_attn(x, positions))
        return self.norm2(x + self.linear2(self.act(self.linear1(x))))


class TransformerEncoder(nn.Cell):
    """Layers of attention on one map."""

    def __init__(self, num_layers: int, dim: int, num_heads: int, dim_feedforward: int):
        super().__init__()
        self.layers = nn.CellList([TransformerEncoderLayer(dim, num_heads, dim_feedforward) for _ in range(num_layers)])

    def construct(self, x):
        """(N, dim, H, W) → (N, dim, H, W)."""
        dim, height, width = x.shape[1], x.shape[2], x.shape[3]
        positions = position_table(height, width, dim)
        x = x.reshape((-1, dim, height * width)).transpose((0, 2, 1))
        for layer in self.layers:
            x = layer(x, positions)
        return x.transpose((0, 2, 1)).reshape((-1, dim, height, width))


class RepVggBlock(Reparameterizable, nn.Cell):
    """``silu(conv3x3(x) + conv1x1(x))``, each with its norm (Ding et al., arXiv 2101.03697); fuses to one 3×3."""

    level = "branches"

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvNormLayer(channels, channels, 3)
        self.conv2 = ConvNormLayer(channels, channels, 1)
        self.act = nn.SiLU()

    def construct(self, x):
        return self.act(self.conv1(x) + self.conv2(x))

    def fuse(self) -> nn.Cell:
        conv1, conv2 = fused(self.conv1).conv, fused(self.conv2).conv
        return FusedRepVggBlock(with_linear(conv1, fusion.parallel(linear_of(conv1), linear_of(conv2))))


class FusedRepVggBlock(nn.Cell):
    """``silu(conv3x3(x))``."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.act = nn.SiLU()

    def construct(self, x):
        return self.act(self.conv(x))


class CSPRepLayer(nn.Cell):
    """``conv3(bottlenecks(conv1(x)) + conv2(x))`` on ``expansion`` times the channels."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int, expansion: float):
        super().__init__()
        hidden = int(channels * expansion)
        self.conv1 = ConvNormLayer(in_channels, hidden, 1, act=nn.SiLU())
        self.conv2 = ConvNormLayer(in_channels, hidden, 1, act=nn.SiLU())
        self.bottlenecks = nn.SequentialCell([RepVggBlock(hidden) for _ in range(num_blocks)])
        self.conv3 = ConvNormLayer(hidden, channels, 1, act=nn.SiLU()) if hidden != channels else nn.Identity()

    def construct(self, x):
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class HybridEncoder(nn.Cell):
    """Maps of a backbone → as many maps of ``hidden_dim`` channels and the same sizes, finest first.

    Every map but the finest must have twice as many rows and columns as the next.

    Args:
        in_channels: of the maps, finest first.
        dim_feedforward: hidden channels of AIFI's MLP.
        expansion: channels inside a CSPRep layer per channel.
        num_blocks: RepVGG blocks per CSPRep layer; 3 times the reference's ``depth_mult``.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        hidden_dim: int,
        num_heads: int,
        dim_feedforward: int,
        expansion: float,
        num_blocks: int,
    ):
        super().__init__()
        projections = [ConvNorm(conv2d(channels, hidden_dim), batch_norm(hidden_dim)) for channels in in_channels]
        self.input_proj = nn.CellList(projections)
        self.encoder = nn.CellList([TransformerEncoder(1, hidden_dim, num_heads, dim_feedforward)])
        steps = range(len(in_channels) - 1)
        merge = (2 * hidden_dim, hidden_dim, num_blocks, expansion)
        self.lateral_convs = nn.CellList([ConvNormLayer(hidden_dim, hidden_dim, 1, act=nn.SiLU()) for _ in steps])
        self.fpn_blocks = nn.CellList([CSPRepLayer(*merge) for _ in steps])
        self.downsample_convs = nn.CellList([ConvNormLayer(hidden_dim, hidden_dim, 3, 2, nn.SiLU()) for _ in steps])
        self.pan_blocks = nn.CellList([CSPRepLayer(*merge) for _ in steps])
        self.upsample = Upsample()
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        initialize_as_torch(self)
        for layer in self.encoder[0].layers:
            initialize(layer.self_attn.out_proj.bias, Zero())

    def construct(self, maps):
        projected = ()
        for i, projection in enumerate(self.input_proj):
            projected += (projection(maps[i]),)
        coarse = self.encoder[0](projected[-1])
        inner = ()  # the top-down path, coarsest first
        for i in range(len(projected) - 1):
            coarse = self.lateral_convs[i](coarse)
            inner += (coarse,)
            fine = projected[len(projected) - 2 - i]
            coarse = self.fpn_blocks[i](ops.cat((self.upsample(coarse, fine.shape[2], fine.shape[3]), fine), 1))
        outputs = (coarse,)
        for i in range(len(projected) - 1):
            downsampled = self.downsample_convs[i](outputs[-1])
            outputs += (self.pan_blocks[i](ops.cat((downsampled, inner[len(inner) - 1 - i]), 1)),)
        return outputs
