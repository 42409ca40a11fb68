"""PoolFormer: MetaFormer Is Actually What You Need for Vision (Yu et al., arXiv 2111.11418).

RIFormer's teacher for module imitation and the donor of its weights. The network is timm's, whose weights load: it
averages over the pixels before the last norm, where the authors' code normalises the map first.
"""

import numpy as np
from mindspore import nn

from mindcv_reparam.formats import TIMM_HEAD, Formats, Rule, Table
from mindcv_reparam.layers import GroupNorm
from mindcv_reparam.models.metaformer import SIZES, STEMS, MetaFormer, variant_of
from mindcv_reparam.registry import register_variants

FAMILY = {
    "place": 4,
    "input_size": 224,
    "crop_pct": 0.9,
    "blocks": r"stages\.\d+\.blocks\.\d+\.",
    "index_modes": ("stages", "mmpretrain"),
    "models": {
        "poolformer_s12": {},
        "poolformer_s24": {},
        "poolformer_s36": {},
        "poolformer_m36": {"crop_pct": 0.95},
        "poolformer_m48": {"crop_pct": 0.95},
    },
    "published": {
        "timm, results-imagenet.csv": {
            224: {
                "poolformer_s12": (77.24, 93.54),
                "poolformer_s24": (80.29, 95.06),
                "poolformer_s36": (81.43, 95.44),
                "poolformer_m36": (82.1, 95.7),
                "poolformer_m48": (82.46, 95.97),
            },
        },
    },
}


class PoolMixer(nn.Cell):
    """``pool(y) - y`` of the normed input y, with the mean over the pixels of a 3×3 window that exist (section 3.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = GroupNorm(dim)
        # Of the forms equal to a padded pooling that does not count the padding, the one NPUs accept.
        self.pool = nn.AvgPool2d(kernel_size=3, stride=1, pad_mode="same", padding=0, ceil_mode=False)

    def construct(self, x):
        return self.mix(self.norm(x))

    def mix(self, y):
        """The operator without its norm, which module imitation compares with the student's."""
        return self.pool(y) - y

    def scaled(self, factors: np.ndarray) -> "PoolMixer":
        """A new Cell equal to ``factors · self(x)``: the mean over existing pixels commutes with a factor per channel
        and keeps a constant, so that the shift of the norm cancels."""
        new = PoolMixer(self.norm.channels)
        new.norm = self.norm.with_affine(factors * self.norm.affine().scale, None)
        return new


class PoolFormer(MetaFormer):
    """PoolFormer; see MetaFormer for the arguments."""

    token_mixer = PoolMixer
    norm_eps = 1e-6

    def final_norm(self, x):
        return x  # which forward_head normalises

    def forward_head(self, x):
        """(N, channels, h, w) → (N, num_classes)."""
        x = self.norm(x.mean((2, 3), keep_dims=True))
        return self.head(self.pool(x))


VARIANTS = {f"poolformer_{size}": hyper_parameters for size, hyper_parameters in SIZES.items()}
_TIMM = Table(
    source="timm",
    markers=("stem.conv.weight", "stages.0.blocks.0.layer_scale1.scale"),
    rules=(
        Rule("stages.{i}.downsample.conv.{leaf}", "stages.{i}.patch_embed.{leaf}"),
        Rule("stem.conv.{leaf}", "stages.0.patch_embed.{leaf}"),
        Rule("{path}.norm1.{leaf}", "{path}.token_mixer.norm.{leaf}"),
        Rule("{path}.layer_scale{i}.scale", "{path}.layer_scale{i}.gamma"),
        Rule("head.norm.{leaf}", "norm.{leaf}"),
        TIMM_HEAD,
    ),
    norms=r"norm|.*\.norm2|.*\.token_mixer\.norm",
)
register_variants(PoolFormer, VARIANTS, Formats(tables=(_TIMM,), stems=STEMS, variant=variant_of))
