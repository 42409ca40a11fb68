"""PoolFormer: MetaFormer Is Actually What You Need for Vision (Yu et al., arXiv 2111.11418).

RIFormer's teacher for module imitation and the donor of its weights. The network is timm's, whose weights load: it
averages over the pixels before the last norm, where the authors' code normalises the map first.
"""

import numpy as np
from mindspore import nn

from ..layers import GroupNorm
from ..registry import register_variants
from .metaformer import SIZES, MetaFormer


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
register_variants(PoolFormer, VARIANTS)
