"""RegNet: Designing Network Design Spaces (Radosavovic et al., arXiv 2003.13678).

Here as the teacher that FastViT distils from; timm's ``regnety_160`` is the same network.
"""

import math
from typing import Any

from mindspore import nn
from mindspore.common.initializer import Normal, Zero

from mindcv_reparam.formats import TIMM_HEAD, Formats, Parameters, Rule, Table, conv_norm, count, shape_of
from mindcv_reparam.layers import (
    ConvNorm,
    GlobalAvgPool,
    SqueezeExcite,
    batch_norm,
    conv2d,
    dense,
    drop_path,
    drop_path_rates,
    dropout,
    initialize,
)
from mindcv_reparam.registry import register_variants

FAMILY = {
    "place": 6,
    "input_size": 224,
    "crop_pct": 0.95,
    "blocks": r"stages\.\d+\.\d+\.",
    "models": {
        "regnety_160": {},
    },
    "published": {
        "timm, regnety_160.deit_in1k": {
            224: {
                "regnety_160": (83.0, 96.5),
            },
        },
    },
}


class Bottleneck(nn.Cell):
    """``relu(x + conv3(se(conv2(conv1(x)))))`` of 1×1, grouped 3×3 and 1×1 at full width: the Y block (figure 4, 11).

    Args:
        group_width: channels per group of the 3×3.
        se_ratio: channels inside squeeze-and-excitation over ``in_channels``.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, group_width: int, se_ratio: float, drop_path_rate: float
    ):
        super().__init__()
        groups = channels // group_width
        self.conv1 = ConvNorm(conv2d(in_channels, channels), batch_norm(channels), nn.ReLU())
        self.conv2 = ConvNorm(conv2d(channels, channels, 3, stride, groups=groups), batch_norm(channels), nn.ReLU())
        self.se = SqueezeExcite(channels, round(in_channels * se_ratio))
        self.conv3 = ConvNorm(conv2d(channels, channels), batch_norm(channels))
        self.downsample = None
        if in_channels != channels or stride != 1:
            self.downsample = ConvNorm(conv2d(in_channels, channels, 1, stride), batch_norm(channels))
        self.drop_path = drop_path(drop_path_rate)
        self.act = nn.ReLU()

    def construct(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv3(self.se(self.conv2(self.conv1(x))))
        return self.act(shortcut + self.drop_path(x))


class RegNet(nn.Cell):
    """RegNetY.

    Args:
        stem_width: channels of the stem.
        depths: blocks per stage.
        dims: channels per stage, multiples of group_width.
        img_size: not used; the network is fully convolutional and takes any size.
        drop_rate: dropout before the classifier.
    """

    classifier = "head"
    head_parts = ("pool", "drop", "head")
    output_norm = staticmethod(batch_norm)

    def __init__(
        self,
        stem_width: int,
        depths: tuple[int, int, int, int],
        dims: tuple[int, int, int, int],
        group_width: int,
        se_ratio: float,
        drop_path_rate: float,
        num_classes: int = 1000,
        in_channels: int = 3,
        img_size: tuple[int, int] = (224, 224),
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.stem = ConvNorm(conv2d(in_channels, stem_width, 3, stride=2), batch_norm(stem_width), nn.ReLU())
        stages, channels = [], stem_width
        for dim, rates in zip(dims, drop_path_rates(drop_path_rate, depths)):
            blocks = []
            for j, rate in enumerate(rates):
                blocks.append(Bottleneck(channels, dim, 1 if j else 2, group_width, se_ratio, rate))
                channels = dim
            stages.append(nn.SequentialCell(blocks))
        self.stages = nn.CellList(stages)
        self.feature_info = [
            {"channels": dim, "stride": 4 * 2**i, "parts": (f"stages.{i}",)} for i, dim in enumerate(dims)
        ]
        self.pool = GlobalAvgPool()
        self.drop = dropout(drop_rate)
        self.head = dense(channels, num_classes)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """As the authors and timm do: He over the fan-out per group, zero for the last norm of every block."""
        for _, cell in self.cells_and_names():
            if isinstance(cell, nn.Conv2d):
                fan_out = cell.out_channels * math.prod(cell.kernel_size) // cell.group
                initialize(cell.weight, Normal(math.sqrt(2 / fan_out)))
                if cell.has_bias:
                    initialize(cell.bias, Zero())
            elif isinstance(cell, Bottleneck):
                initialize(cell.conv3[1].gamma, Zero())
        initialize(self.head.weight, Normal(0.01))

    def forward_stages(self, x):
        """(N, in_channels, H, W) → the outputs of the four stages, at strides 4, 8, 16 and 32."""
        x = self.stem(x)
        outputs = ()
        for stage in self.stages:
            x = stage(x)
            outputs = outputs + (x,)
        return outputs

    def forward_features(self, x):
        """(N, in_channels, H, W) → (N, dims[-1], H / 32, W / 32)."""
        return self.forward_stages(x)[-1]

    def forward_head(self, x):
        """(N, channels, h, w) → (N, num_classes)."""
        return self.head(self.drop(self.pool(x)))

    def construct(self, x):
        return self.forward_head(self.forward_features(x))


VARIANTS = {
    "regnety_160": dict(
        stem_width=32,
        depths=(2, 4, 11, 1),
        dims=(224, 448, 1232, 3024),
        group_width=112,
        se_ratio=0.25,
        drop_path_rate=0.0,
    ),
}


def variant_of(parameters: Parameters) -> dict[str, Any]:
    """The hyper-parameters that tell the models apart, see Formats."""
    return {
        "depths": tuple(count(parameters, rf"stages\.{i}\.(\d+)\..*") for i in range(4)),
        "dims": tuple(shape_of(parameters, f"stages.{i}.0.conv1.0.weight", 4)[0] for i in range(4)),
    }


_TIMM = Table(
    source="timm",
    markers=("stem.conv.weight", "s1.b1.se.fc1.weight"),
    rules=(
        Rule("s{i+1}.b{j+1}.{rest}", "stages.{i}.{j}.{rest}"),
        *conv_norm("{path}", "{path}"),
        TIMM_HEAD,
    ),
    norms=r"stem\.1|.*\.(conv\d|downsample)\.1",
)
register_variants(RegNet, VARIANTS, Formats(tables=(_TIMM,), stems=("stem.0.weight",), variant=variant_of))
