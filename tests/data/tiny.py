"""A network with few Cells of every kind that has a state, for tests that start processes: it compiles in a moment."""

from mindspore import nn, ops
from mindspore.common.initializer import HeNormal

from mindcv_reparam.layers import ConvNorm, GlobalAvgPool, batch_norm, conv2d, dense, drop_path, dropout, initialize
from mindcv_reparam.registry import register_variants

FAMILY = {
    "input_size": 32,
    "crop_pct": 1.0,
    "blocks": r"branch\.",
    "models": {"tiny": {}},
}


class Tiny(nn.Cell):
    """Patches, a strided convolution and a residual branch; 44 steps teach it the digits."""

    classifier = "head"
    head_parts = ("pool", "dropout", "head")
    output_norm = staticmethod(batch_norm)

    def __init__(self, channels, num_classes=1000, in_channels=3, img_size=(32, 32), drop_rate=0.0, drop_path_rate=0.0):
        super().__init__()
        wide = 2 * channels
        self.stem = ConvNorm(conv2d(in_channels, channels, 4, stride=4, padding=0), batch_norm(channels), nn.ReLU())
        self.down = ConvNorm(conv2d(channels, wide, 3, stride=2), batch_norm(wide), nn.ReLU())
        self.branch = conv2d(wide, wide, 3)
        self.drop_path = drop_path(drop_path_rate)
        self.pool, self.dropout, self.head = GlobalAvgPool(), dropout(drop_rate), dense(wide, num_classes)
        self.feature_info = [{"channels": wide, "stride": 8, "parts": ("stem", "down", "branch")}]
        for _, cell in self.cells_and_names():
            if isinstance(cell, (nn.Conv2d, nn.Dense)):
                initialize(cell.weight, HeNormal())

    def forward_stages(self, x):
        return (self.forward_features(x),)

    def forward_features(self, x):
        x = self.down(self.stem(x))
        return ops.relu(x + self.drop_path(self.branch(x)))

    def forward_head(self, x):
        return self.head(self.dropout(self.pool(x)))

    def construct(self, x):
        return self.forward_head(self.forward_features(x))


register_variants(Tiny, {"tiny": {"channels": 48}})
