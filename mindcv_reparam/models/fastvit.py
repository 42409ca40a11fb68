"""FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization (Vasu et al., arXiv 2303.14189).

Parallel branches in training become one convolution for inference. Apple's release (ml-fastvit) and timm's
``fastvit_*`` are the same networks; names follow timm's.
"""

import math

from mindspore import nn
from mindspore.common.initializer import Normal, Uniform, Zero

from mindcv_reparam import fusion
from mindcv_reparam.layers import (
    Attention,
    ConvNorm,
    Gelu,
    GlobalAvgPool,
    LayerScale,
    affine_of,
    batch_norm,
    conv2d,
    dense,
    drop_path,
    drop_path_rates,
    dropout,
    fold_after,
    fold_before,
    gelu,
    initialize,
    linear_of,
    move_bias,
    with_linear,
)
from mindcv_reparam.models.fastvit_formats import FORMATS
from mindcv_reparam.models.mobileone import LargeKernelConv, MobileOneBlock, MobileOneConv
from mindcv_reparam.registry import register_variants
from mindcv_reparam.reparam import Reparameterizable, fused, replace_children

FAMILY = {
    "place": 3,
    "input_size": 256,
    "crop_pct": 0.9,
    "blocks": r"stages\.\d+\.blocks\.\d+\.",
    "models": {
        "fastvit_t8": {},
        "fastvit_t12": {},
        "fastvit_s12": {},
        "fastvit_sa12": {"crop_pct": 0.95},
        "fastvit_sa24": {"crop_pct": 0.95},
        "fastvit_sa36": {"crop_pct": 0.95},
        "fastvit_ma36": {"crop_pct": 0.95},
    },
    "published": {
        "Apple, FastViT paper": {
            256: {
                "fastvit_t8": (76.2, None),
                "fastvit_t12": (79.3, None),
                "fastvit_s12": (79.9, None),
                "fastvit_sa12": (80.9, None),
                "fastvit_sa24": (82.7, None),
                "fastvit_sa36": (83.6, None),
                "fastvit_ma36": (83.9, None),
            },
        },
        "Apple, FastViT paper, distilled": {
            256: {
                "fastvit_t8": (77.2, None),
                "fastvit_t12": (80.3, None),
                "fastvit_s12": (81.1, None),
                "fastvit_sa12": (81.9, None),
                "fastvit_sa24": (83.4, None),
                "fastvit_sa36": (84.2, None),
                "fastvit_ma36": (84.6, None),
            },
        },
    },
}

HEAD_DIM = 32


class PatchEmbed(Reparameterizable, nn.Cell):
    """Depthwise large-kernel convolution at stride 2, two filters per channel, then a 1×1 block.

    There is no activation between the two: the released code discards its result, and the weights expect that.
    """

    def __init__(self, in_channels: int, dim: int, gelu_kind: Gelu):
        super().__init__()
        self.spatial = LargeKernelConv(in_channels, dim, stride=2)
        self.pointwise = MobileOneBlock(dim, dim, 1, gelu_kind=gelu_kind)

    def construct(self, x):
        return self.pointwise(self.spatial(x))

    def fuse(self) -> nn.Cell:
        spatial, conv = move_bias(self.spatial, self.pointwise.conv)
        return replace_children(self, spatial=spatial, pointwise=replace_children(self.pointwise, conv=conv))


class PositionalEncoding(Reparameterizable, nn.Cell):
    """``x + conv(x)`` with a depthwise 7×7: conditional positional encoding (Chu et al., arXiv 2102.10882)."""

    level = "branches"

    def __init__(self, dim: int):
        super().__init__()
        self.conv = conv2d(dim, dim, 7, groups=dim, bias=True)

    def construct(self, x):
        return x + self.conv(x)

    def fuse(self) -> nn.Cell:
        conv = linear_of(self.conv)
        return with_linear(self.conv, fusion.parallel(fusion.identity(len(conv.bias), groups=len(conv.bias)), conv))


class RepMixer(Reparameterizable, nn.Cell):
    """``x + layer_scale · (mixer(x) − norm(x))``, at inference one depthwise 3×3 (equations 1-3)."""

    level = "branches"

    def __init__(self, dim: int, layer_scale: float):
        super().__init__()
        self.mixer = MobileOneConv(dim, dim, 3, groups=dim)
        self.norm = batch_norm(dim)
        self.layer_scale = LayerScale((dim, 1, 1), layer_scale)

    def construct(self, x):
        return x + self.layer_scale(self.mixer(x) - self.norm(x))

    def fuse(self) -> nn.Cell:
        conv, norm = fused(self.mixer), affine_of(self.norm)
        identity = fusion.identity(conv.out_channels, groups=conv.group)
        minus_norm = fusion.affine_after(fusion.Affine(-norm.scale, -norm.shift), identity)
        branch = fusion.affine_after(affine_of(self.layer_scale), fusion.parallel(linear_of(conv), minus_norm))
        return with_linear(conv, fusion.parallel(identity, branch))


class ConvFFN(Reparameterizable, nn.Cell):
    """Depthwise 7×7 with norm → 1×1 → GELU → 1×1 (section 3.3)."""

    def __init__(self, dim: int, hidden: int, gelu_kind: Gelu, drop_rate: float):
        super().__init__()
        self.conv = ConvNorm(conv2d(dim, dim, 7, groups=dim), batch_norm(dim))
        self.fc1 = conv2d(dim, hidden, bias=True)
        self.act = gelu(gelu_kind)
        self.fc2 = conv2d(hidden, dim, bias=True)
        self.drop = dropout(drop_rate)

    def construct(self, x):
        x = self.drop(self.act(self.fc1(self.conv(x))))
        return self.drop(self.fc2(x))

    def fuse(self) -> nn.Cell:
        conv, fc1 = move_bias(self.conv, self.fc1)
        return replace_children(self, conv=conv, fc1=fc1)


class RepMixerBlock(Reparameterizable, nn.Cell):
    """``x = token_mixer(x)``, then ``x + layer_scale · mlp(x)``."""

    def __init__(
        self, dim: int, mlp_ratio: int, layer_scale: float, gelu_kind: Gelu, drop_rate: float, drop_path_rate: float
    ):
        super().__init__()
        self.token_mixer = RepMixer(dim, layer_scale)
        self.mlp = ConvFFN(dim, mlp_ratio * dim, gelu_kind, drop_rate)
        self.layer_scale = LayerScale((dim, 1, 1), layer_scale)
        self.drop_path = drop_path(drop_path_rate)

    def construct(self, x):
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale(self.mlp(x)))

    def fuse(self) -> nn.Cell:
        mlp = replace_children(self.mlp, fc2=fold_after(self.mlp.fc2, self.layer_scale))
        return replace_children(self, mlp=mlp, layer_scale=nn.Identity())


class AttentionBlock(Reparameterizable, nn.Cell):
    """``x + layer_scale_1 · token_mixer(norm(x))``, then ``x + layer_scale_2 · mlp(x)``."""

    def __init__(
        self, dim: int, mlp_ratio: int, layer_scale: float, gelu_kind: Gelu, drop_rate: float, drop_path_rate: float
    ):
        super().__init__()
        self.norm = batch_norm(dim)
        self.token_mixer = Attention(dim, dim // HEAD_DIM, HEAD_DIM**-0.5, bias=True, drop_rate=0.0)
        self.layer_scale_1 = LayerScale((dim, 1, 1), layer_scale)
        self.mlp = ConvFFN(dim, mlp_ratio * dim, gelu_kind, drop_rate)
        self.layer_scale_2 = LayerScale((dim, 1, 1), layer_scale)
        self.drop_path = drop_path(drop_path_rate)

    def construct(self, x):
        x = x + self.drop_path(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path(self.layer_scale_2(self.mlp(x)))

    def fuse(self) -> nn.Cell:
        # The attention is fused once more, for the biases of k and v that the norm has just given it.
        mixer = replace_children(self.token_mixer, qkv=fold_before(self.norm, self.token_mixer.qkv)).fuse()
        mixer = replace_children(mixer, proj=fold_after(mixer.proj, self.layer_scale_1))
        mlp = replace_children(self.mlp, fc2=fold_after(self.mlp.fc2, self.layer_scale_2))
        layer_scales = dict(layer_scale_1=nn.Identity(), layer_scale_2=nn.Identity())
        return replace_children(self, norm=nn.Identity(), token_mixer=mixer, mlp=mlp, **layer_scales)


BLOCKS = {"repmixer": RepMixerBlock, "attention": AttentionBlock}


class Stage(nn.Cell):
    """Downsampling except in the first stage, positional encoding in front of attention, blocks."""

    def __init__(
        self,
        in_channels: int,
        dim: int,
        token_mixer: str,
        mlp_ratio: int,
        layer_scale: float,
        gelu_kind: Gelu,
        drop_rate: float,
        drop_path_rates: list[float],
    ):
        super().__init__()
        self.downsample = PatchEmbed(in_channels, dim, gelu_kind) if in_channels != dim else None
        self.pos_emb = PositionalEncoding(dim) if token_mixer == "attention" else None
        block = BLOCKS[token_mixer]
        self.blocks = nn.SequentialCell(
            [block(dim, mlp_ratio, layer_scale, gelu_kind, drop_rate, rate) for rate in drop_path_rates]
        )

    def construct(self, x):
        if self.downsample is not None:
            x = self.downsample(x)
        if self.pos_emb is not None:
            x = self.pos_emb(x)
        return self.blocks(x)


class FastViT(nn.Cell):
    """FastViT.

    Args:
        depths: blocks per stage.
        dims: channels per stage; attention takes heads of 32.
        token_mixers: "repmixer" or "attention" per stage.
        mlp_ratio: hidden channels of the ConvFFN over dim.
        layer_scale: initial value of the layer scales.
        img_size: not used; the network is fully convolutional and takes any size.
        drop_rate: dropout in the MLPs.
        gelu: "exact" as Apple and timm have it, "tanh" for the approximation.
    """

    classifier = "head"
    head_parts = ("final_conv", "pool", "head")
    output_norm = staticmethod(batch_norm)

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        dims: tuple[int, int, int, int],
        token_mixers: tuple[str, str, str, str],
        mlp_ratio: int,
        layer_scale: float,
        drop_path_rate: float,
        num_classes: int = 1000,
        in_channels: int = 3,
        img_size: tuple[int, int] = (256, 256),
        drop_rate: float = 0.0,
        gelu: Gelu = "exact",
    ):
        super().__init__()
        rates = drop_path_rates(drop_path_rate, depths)
        self.stem = nn.SequentialCell(
            MobileOneBlock(in_channels, dims[0], 3, stride=2, gelu_kind=gelu),
            MobileOneBlock(dims[0], dims[0], 3, stride=2, groups=dims[0], gelu_kind=gelu),
            MobileOneBlock(dims[0], dims[0], 1, gelu_kind=gelu),
        )
        previous = (dims[0], *dims[:-1])
        self.stages = nn.CellList(
            [
                Stage(previous[i], dims[i], token_mixers[i], mlp_ratio, layer_scale, gelu, drop_rate, rates[i])
                for i in range(len(depths))
            ]
        )
        self.feature_info = [
            {"channels": dim, "stride": 4 * 2**i, "parts": (f"stages.{i}",)} for i, dim in enumerate(dims)
        ]
        channels = 2 * dims[-1]
        self.final_conv = MobileOneBlock(dims[-1], channels, 3, groups=dims[-1], squeeze_excite=True, gelu_kind=gelu)
        self.pool = GlobalAvgPool()
        self.head = dense(channels, num_classes)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """As Apple and timm do: PyTorch's default, but a normal of 0.02 in the ConvFFNs, the attentions and the head.

        (They call it a truncated normal; it is cut at ±2, a hundred deviations out.)
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, nn.Conv2d):
                bound = 1 / math.sqrt(math.prod(cell.weight.shape[1:]))  # of the fan-in: the same for weight and bias
                initialize(cell.weight, Uniform(bound))
                if cell.has_bias:
                    initialize(cell.bias, Uniform(bound))
        for _, cell in self.cells_and_names():
            if isinstance(cell, ConvFFN | Attention):
                for _, layer in cell.cells_and_names():
                    if isinstance(layer, nn.Conv2d):
                        initialize(layer.weight, Normal(0.02))
                        if layer.has_bias:
                            initialize(layer.bias, Zero())
        initialize(self.head.weight, Normal(0.02))

    def forward_stages(self, x):
        """(N, in_channels, H, W) → the outputs of the four stages, at strides 4, 8, 16 and 32."""
        x = self.stem(x)
        outputs = ()
        for stage in self.stages:
            x = stage(x)
            outputs = outputs + (x,)
        return outputs

    def forward_features(self, x):
        """(N, in_channels, H, W) → (N, 2 · dims[-1], H / 32, W / 32)."""
        return self.final_conv(self.forward_stages(x)[-1])

    def forward_head(self, x):
        """(N, channels, h, w) → (N, num_classes)."""
        return self.head(self.pool(x))

    def construct(self, x):
        return self.forward_head(self.forward_features(x))


REPMIXER = ("repmixer", "repmixer", "repmixer", "repmixer")
HYBRID = ("repmixer", "repmixer", "repmixer", "attention")
T8 = dict(depths=(2, 2, 4, 2), dims=(48, 96, 192, 384), mlp_ratio=3, layer_scale=1e-5)
T12 = dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), mlp_ratio=3, layer_scale=1e-5)
S12 = dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), mlp_ratio=4, layer_scale=1e-5)
S24 = dict(depths=(4, 4, 12, 4), dims=(64, 128, 256, 512), mlp_ratio=4, layer_scale=1e-5)
S36 = dict(depths=(6, 6, 18, 6), dims=(64, 128, 256, 512), mlp_ratio=4, layer_scale=1e-6)
M36 = dict(depths=(6, 6, 18, 6), dims=(76, 152, 304, 608), mlp_ratio=4, layer_scale=1e-6)

VARIANTS = {
    "fastvit_t8": dict(T8, token_mixers=REPMIXER, drop_path_rate=0.0),
    "fastvit_t12": dict(T12, token_mixers=REPMIXER, drop_path_rate=0.0),
    "fastvit_s12": dict(S12, token_mixers=REPMIXER, drop_path_rate=0.0),
    "fastvit_sa12": dict(S12, token_mixers=HYBRID, drop_path_rate=0.1),
    "fastvit_sa24": dict(S24, token_mixers=HYBRID, drop_path_rate=0.1),
    "fastvit_sa36": dict(S36, token_mixers=HYBRID, drop_path_rate=0.2),
    "fastvit_ma36": dict(M36, token_mixers=HYBRID, drop_path_rate=0.35),
}
register_variants(FastViT, VARIANTS, FORMATS)
