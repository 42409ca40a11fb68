"""ResNet-vd (He et al., arXiv 1812.01187, figure 2d): the backbones of the published RT-DETR detectors.

A deep stem of three 3×3 convolutions, and shortcuts that average before they project. Names are those of the reference
implementation (lyuwenyu/RT-DETR, rtdetr_pytorch, presnet.py). Backbones only: they have no classifier.
"""

from collections import OrderedDict

from mindspore import nn

from mindcv_reparam.layers import batch_norm, conv2d, fold_after, initialize_as_torch
from mindcv_reparam.reparam import Reparameterizable, replace_children


class ConvNormLayer(Reparameterizable, nn.Cell):
    """Convolution without bias → batch normalisation → activation; fuses to a convolution with bias → activation."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1, act: nn.Cell | None = None):
        super().__init__()
        self.conv = conv2d(in_channels, channels, kernel_size, stride)
        self.norm = batch_norm(channels)
        self.act = nn.Identity() if act is None else act

    def construct(self, x):
        return self.act(self.norm(self.conv(x)))

    def fuse(self) -> nn.Cell:
        return replace_children(self, conv=fold_after(self.conv, self.norm), norm=nn.Identity())


def shortcut(in_channels: int, channels: int, stride: int) -> nn.Cell:
    """A projection; at stride 2 of the mean of 2×2 pixels, so that none is left out."""
    if stride == 1:
        return ConvNormLayer(in_channels, channels, 1)
    pool = nn.AvgPool2d(kernel_size=2, stride=2, pad_mode="valid")
    return nn.SequentialCell(OrderedDict(pool=pool, conv=ConvNormLayer(in_channels, channels, 1)))


class BasicBlock(nn.Cell):
    """``relu(short(x) + branch(x))`` with two 3×3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, project: bool):
        super().__init__()
        self.short = shortcut(in_channels, channels, stride) if project else nn.Identity()
        self.branch2a = ConvNormLayer(in_channels, channels, 3, stride, nn.ReLU())
        self.branch2b = ConvNormLayer(channels, channels, 3)
        self.act = nn.ReLU()

    def construct(self, x):
        return self.act(self.short(x) + self.branch2b(self.branch2a(x)))


class Bottleneck(nn.Cell):
    """``relu(short(x) + branch(x))`` with a 1×1, a 3×3 and a 1×1 convolution to four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, project: bool):
        super().__init__()
        self.short = shortcut(in_channels, self.expansion * channels, stride) if project else nn.Identity()
        self.branch2a = ConvNormLayer(in_channels, channels, 1, act=nn.ReLU())
        self.branch2b = ConvNormLayer(channels, channels, 3, stride, nn.ReLU())
        self.branch2c = ConvNormLayer(channels, self.expansion * channels, 1)
        self.act = nn.ReLU()

    def construct(self, x):
        return self.act(self.short(x) + self.branch2c(self.branch2b(self.branch2a(x))))


class Stage(nn.Cell):
    """Blocks, of which the first projects its shortcut."""

    def __init__(self, block: type[nn.Cell], in_channels: int, channels: int, depth: int, stride: int):
        super().__init__()
        blocks = [block(in_channels, channels, stride, True)]
        blocks += [block(block.expansion * channels, channels, 1, False) for _ in range(depth - 1)]
        self.blocks = nn.SequentialCell(blocks)

    def construct(self, x):
        return self.blocks(x)


class ResNetVd(nn.Cell):
    """ResNet-vd.

    Args:
        depths: blocks per stage.
        bottleneck: blocks of three convolutions rather than two.
        num_classes: not used, there is no classifier; nor is img_size, the network takes images of any size.
    """

    head_parts = ()
    output_norm = staticmethod(batch_norm)

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        bottleneck: bool,
        num_classes: int = 0,
        in_channels: int = 3,
        img_size: tuple[int, int] = (640, 640),
    ):
        super().__init__()
        self.conv1 = nn.SequentialCell(
            OrderedDict(
                conv1_1=ConvNormLayer(in_channels, 32, 3, 2, nn.ReLU()),
                conv1_2=ConvNormLayer(32, 32, 3, 1, nn.ReLU()),
                conv1_3=ConvNormLayer(32, 64, 3, 1, nn.ReLU()),
            )
        )
        # Zeros pad as -inf would behind a ReLU. Padding of its own would make the pool one of five axes with places,
        # which no format for deployment has.
        self.pool = nn.SequentialCell(
            nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1))), nn.MaxPool2d(kernel_size=3, stride=2, pad_mode="valid")
        )
        block = Bottleneck if bottleneck else BasicBlock
        stages, channels, self.feature_info = [], 64, []
        for i, depth in enumerate(depths):
            stages.append(Stage(block, channels, 64 * 2**i, depth, 2 if i else 1))
            channels = block.expansion * 64 * 2**i
            self.feature_info.append({"channels": channels, "stride": 4 * 2**i, "parts": (f"res_layers.{i}",)})
        self.res_layers = nn.CellList(stages)
        initialize_as_torch(self)

    def forward_stages(self, x):
        """(N, in_channels, H, W) → the outputs of the four stages, at strides 4, 8, 16 and 32."""
        x = self.pool(self.conv1(x))
        outputs = ()
        for stage in self.res_layers:
            x = stage(x)
            outputs += (x,)
        return outputs

    def construct(self, x):
        return self.forward_stages(x)


VARIANTS = {
    "resnet18_vd": dict(depths=(2, 2, 2, 2), bottleneck=False),
    "resnet34_vd": dict(depths=(3, 4, 6, 3), bottleneck=False),
    "resnet50_vd": dict(depths=(3, 4, 6, 3), bottleneck=True),
    "resnet101_vd": dict(depths=(3, 4, 23, 3), bottleneck=True),
}
