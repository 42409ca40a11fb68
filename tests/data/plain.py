"""A family from outside the package, which tests/test_new_family.py brings.

RepVGG's block (Ding et al., arXiv 2101.03697) in two stages. The larger model adds an embedding to the second.
"""

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import HeNormal, initializer

from mindcv_reparam import fusion
from mindcv_reparam.formats import Formats, Rule, Table, conv_norm, count
from mindcv_reparam.layers import (
    ConvNorm,
    GlobalAvgPool,
    affine_of,
    batch_norm,
    conv2d,
    dense,
    dropout,
    initialize,
    linear_of,
    with_linear,
)
from mindcv_reparam.models.positions import resize_position_embedding
from mindcv_reparam.registry import register_variants
from mindcv_reparam.reparam import Reparameterizable, fused

FAMILY = {
    "input_size": 16,
    "crop_pct": 1.0,
    "blocks": r"stages\.\d+\.\d+\.",
    "models": {"plain_a": {}, "plain_b": {"crop_pct": 0.9}},
    "published": {"nobody": {16: {"plain_b": (12.3, None)}}},
}


class Block(Reparameterizable, nn.Cell):
    level = "branches"

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.dense = ConvNorm(conv2d(in_channels, channels, 3, stride), batch_norm(channels))
        self.point = ConvNorm(conv2d(in_channels, channels, 1, stride), batch_norm(channels))
        self.identity = batch_norm(channels) if (in_channels, stride) == (channels, 1) else None

    def construct(self, x):
        y = self.dense(x) + self.point(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return ops.relu(y)

    def fuse(self):
        conv = fused(self.dense)
        branches = [linear_of(conv), linear_of(fused(self.point))]
        if self.identity is not None:
            branches.append(fusion.affine_after(affine_of(self.identity), fusion.identity(conv.out_channels, 1)))
        return FusedBlock(with_linear(conv, fusion.parallel(*branches)))


class FusedBlock(nn.Cell):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def construct(self, x):
        return ops.relu(self.conv(x))


class Plain(nn.Cell):
    classifier = "linear"
    head_parts = ("pool", "drop", "linear")
    output_norm = staticmethod(batch_norm)
    resized = {"embedding": resize_position_embedding}

    def __init__(
        self, depths, embedded, num_classes=1000, in_channels=3, img_size=(16, 16), drop_rate=0.0, drop_path_rate=0.0
    ):
        super().__init__()
        channels, stages = in_channels, []
        self.feature_info = []
        for i, depth in enumerate(depths):
            blocks = [Block(channels if j == 0 else 4 << i, 4 << i, 2 if j == 0 else 1) for j in range(depth)]
            stages.append(nn.SequentialCell(blocks))
            channels = 4 << i
            parts = (f"stages.{i}", "embedding") if i else ("stages.0",)
            self.feature_info.append({"channels": channels, "stride": 2 << i, "parts": parts})
        self.stages = nn.CellList(stages)
        shape = (1, channels, img_size[0] // 4, img_size[1] // 4)
        self.embedding = Parameter(initializer("zeros", shape, ms.float32), name="embedding") if embedded else None
        self.pool, self.drop, self.linear = GlobalAvgPool(), dropout(drop_rate), dense(channels, num_classes)
        for _, cell in self.cells_and_names():
            if isinstance(cell, (nn.Conv2d, nn.Dense)):
                initialize(cell.weight, HeNormal())

    def forward_stages(self, x):
        first, second = self.stages
        x1 = first(x)
        x2 = second(x1)
        return (x1, x2 if self.embedding is None else x2 + self.embedding)

    def forward_features(self, x):
        return self.forward_stages(x)[-1]

    def forward_head(self, x):
        return self.linear(self.drop(self.pool(x)))

    def construct(self, x):
        return self.forward_head(self.forward_features(x))


VARIANTS = {"plain_a": dict(depths=(1, 1), embedded=False), "plain_b": dict(depths=(1, 2), embedded=True)}


def variant_of(parameters):
    depths = tuple(count(parameters, rf"stages\.{i}\.(\d+)\..*") for i in range(2))
    return {"depths": depths, "embedded": "embedding" in parameters}


TABLE = Table(
    source="plainvgg",
    markers=("stage1.0.rbr_dense.conv.weight", "linear.weight"),
    rules=(
        Rule("stage{i+1}.{j}.{rest}", "stages.{i}.{j}.{rest}"),
        *conv_norm("{path}.rbr_dense", "{path}.dense"),
        *conv_norm("{path}.rbr_1x1", "{path}.point"),
        Rule("{path}.rbr_identity.{leaf}", "{path}.identity.{leaf}"),
    ),
    norms=r".*\.(1|identity)",
)
FORMATS = Formats(
    tables=(TABLE,), stems=("stages.0.0.dense.0.weight",), variant=variant_of, positions=(("embedding", 4),)
)
register_variants(Plain, VARIANTS, FORMATS)
