"""Visformer: The Vision-friendly Transformer (Chen et al., arXiv 2104.12533).

Convolutional blocks in the first stages, self-attention in the last two, batch normalisation throughout. Parameter
names are MindCV's, whose checkpoints load as they are; timm's ``visformer_tiny`` and ``visformer_small`` are the same
networks with the exact GELU.
"""

from typing import Any

import mindspore as ms
from mindspore import Parameter, nn
from mindspore.common.initializer import HeNormal, TruncatedNormal, initializer

from mindcv_reparam.formats import Formats, Parameters, Table, count, shape_of
from mindcv_reparam.layers import (
    Attention,
    ConvNorm,
    Gelu,
    GlobalAvgPool,
    batch_norm,
    check_map_size,
    conv2d,
    dense,
    drop_path,
    drop_path_rates,
    dropout,
    fold_after,
    fold_before,
    gelu,
    initialize,
)
from mindcv_reparam.models.positions import resize_position_embedding
from mindcv_reparam.registry import register_variants
from mindcv_reparam.reparam import Reparameterizable, replace_children

FAMILY = {
    "place": 1,
    "input_size": 224,
    "crop_pct": 0.875,
    "blocks": r"stage\d\.\d+\.",
    "models": {
        "visformer_tiny": {},
        "visformer_tiny_v2": {},
        "visformer_small": {},
        "visformer_small_v2": {},
    },
    "published": {
        "MindCV, D910x8-G": {
            224: {
                "visformer_tiny": (78.28, 94.15),
                "visformer_tiny_v2": (78.82, 94.41),
                "visformer_small": (81.73, 95.88),
                "visformer_small_v2": (82.17, 95.9),
            },
        },
    },
}


class Mlp(nn.Cell):
    """1×1 → GELU (→ grouped 3×3 → GELU) → 1×1; the 3×3 makes the convolutional blocks of the first stages."""

    def __init__(self, dim: int, hidden: int, spatial_groups: int | None, gelu_kind: Gelu, drop_rate: float):
        super().__init__()
        self.conv1 = conv2d(dim, hidden)
        self.act1 = gelu(gelu_kind)
        self.conv2 = conv2d(hidden, hidden, 3, groups=spatial_groups) if spatial_groups else None
        self.act2 = gelu(gelu_kind) if spatial_groups else None
        self.conv3 = conv2d(hidden, dim)
        self.drop = dropout(drop_rate)

    def construct(self, x):
        x = self.drop(self.act1(self.conv1(x)))
        if self.conv2 is not None:
            x = self.act2(self.conv2(x))
        return self.drop(self.conv3(x))


class Block(Reparameterizable, nn.Cell):
    """``x + attn(norm(x))``, then ``x + mlp(norm(x))``; the convolutional blocks have no attention."""

    def __init__(
        self,
        dim: int,
        num_heads: int | None,
        qk_scale: float,
        gelu_kind: Gelu,
        drop_rate: float,
        drop_path_rate: float,
    ):
        super().__init__()
        self.norm1 = batch_norm(dim) if num_heads else None
        self.attn = (
            Attention(dim, num_heads, (dim // num_heads) ** (2 * qk_scale), False, drop_rate) if num_heads else None
        )
        self.norm2 = batch_norm(dim)
        hidden, groups = (4 * dim, None) if num_heads else (2 * dim, 8)
        self.mlp = Mlp(dim, hidden, groups, gelu_kind, drop_rate)
        self.drop_path = drop_path(drop_path_rate)

    def construct(self, x):
        if self.attn is not None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def fuse(self) -> nn.Cell:
        mlp = replace_children(self.mlp, conv1=fold_before(self.norm2, self.mlp.conv1))
        if self.attn is None:
            return replace_children(self, norm2=nn.Identity(), mlp=mlp)
        # The attention is fused once more, for the biases of k and v that the norm has just given it.
        attn = replace_children(self.attn, qkv=fold_before(self.norm1, self.attn.qkv)).fuse()
        return replace_children(self, norm1=nn.Identity(), attn=attn, norm2=nn.Identity(), mlp=mlp)


class PatchEmbed(Reparameterizable, nn.Cell):
    """Non-overlapping patches by a strided convolution, then batch normalisation."""

    def __init__(self, in_channels: int, dim: int, patch_size: int):
        super().__init__()
        self.proj = conv2d(in_channels, dim, patch_size, stride=patch_size, padding=0, bias=True)
        self.norm = batch_norm(dim)

    def construct(self, x):
        return self.norm(self.proj(x))

    def fuse(self) -> nn.Cell:
        return fold_after(self.proj, self.norm)


class Visformer(Reparameterizable, nn.Cell):
    """Visformer.

    Args:
        init_channels: channels of the stem.
        embed_dim: channels of the third stage; the stages have 1/4, 1/2, 1 and 2 times as many.
        depths: blocks per stage; without a first stage the second begins at stride 8.
        num_heads: heads of the third and fourth stage.
        qk_scale: exponent e of the factor ``head_dim ** e`` on q and on k.
        img_size: (height, width) of the input, for the position embeddings.
        drop_rate: dropout in the MLPs, behind attention and behind positions.
        gelu: "tanh" as MindCV trains it, "exact" as timm and the paper do.
    """

    classifier = "head"
    head_parts = ("norm", "pool", "head")
    output_norm = staticmethod(batch_norm)
    resized = {"pos_embed": resize_position_embedding}

    def __init__(
        self,
        init_channels: int,
        embed_dim: int,
        depths: tuple[int, int, int, int],
        num_heads: tuple[int, int],
        qk_scale: float,
        drop_path_rate: float,
        num_classes: int = 1000,
        in_channels: int = 3,
        img_size: tuple[int, int] = (224, 224),
        drop_rate: float = 0.0,
        gelu: Gelu = "tanh",
    ):
        super().__init__()
        dims = (embed_dim // 4, embed_dim // 2, embed_dim, 2 * embed_dim)
        heads = (None, None, *num_heads)
        rates = drop_path_rates(drop_path_rate, depths)

        self.stem = ConvNorm(conv2d(in_channels, init_channels, 7, stride=2), batch_norm(init_channels), nn.ReLU())
        self.pos_drop = dropout(drop_rate)
        self.patch_embed0 = self.pos_embed0 = self.stage0 = None
        channels, stride, size = init_channels, 2, [(side + 1) // 2 for side in img_size]
        self.feature_info = []
        for i, depth in enumerate(depths):
            if depth == 0:
                continue
            patch_size = 2 ** (i + 2) // stride
            stride, size = stride * patch_size, [side // patch_size for side in size]
            check_map_size(size, img_size, stride)
            setattr(self, f"patch_embed{i}", PatchEmbed(channels, dims[i], patch_size))
            position = initializer("zeros", (1, dims[i], *size), ms.float32)
            setattr(self, f"pos_embed{i}", Parameter(position, name=f"pos_embed{i}"))
            blocks = [Block(dims[i], heads[i], qk_scale, gelu, drop_rate, rate) for rate in rates[i]]
            setattr(self, f"stage{i}", nn.SequentialCell(blocks))
            parts = (f"patch_embed{i}", f"pos_embed{i}", f"stage{i}")
            self.feature_info.append({"channels": dims[i], "stride": stride, "parts": parts})
            channels = dims[i]

        self.norm = batch_norm(channels)
        self.pool = GlobalAvgPool()
        self.head = dense(channels, num_classes)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """As the authors and timm do: He over the fan-out for convolutions, truncated normal for the rest."""
        for _, cell in self.cells_and_names():
            if isinstance(cell, nn.Conv2d):
                initialize(cell.weight, HeNormal(mode="fan_out", nonlinearity="relu"))
            elif isinstance(cell, nn.Dense):
                initialize(cell.weight, TruncatedNormal(0.02))
        for parameter in (self.pos_embed0, self.pos_embed1, self.pos_embed2, self.pos_embed3):
            if parameter is not None:
                initialize(parameter, TruncatedNormal(0.02))

    def forward_stages(self, x):
        """(N, in_channels, H, W) → the output of each stage, as many as feature_info says."""
        x = self.stem(x)
        stages = ()
        if self.stage0 is not None:
            x = self.stage0(self.pos_drop(self.patch_embed0(x) + self.pos_embed0))
            stages = (x,)
        x1 = self.stage1(self.pos_drop(self.patch_embed1(x) + self.pos_embed1))
        x2 = self.stage2(self.pos_drop(self.patch_embed2(x1) + self.pos_embed2))
        x3 = self.stage3(self.pos_drop(self.patch_embed3(x2) + self.pos_embed3))
        return stages + (x1, x2, x3)

    def forward_features(self, x):
        """(N, in_channels, H, W) → (N, channels, H / 32, W / 32)."""
        return self.norm(self.forward_stages(x)[-1])

    def forward_head(self, x):
        """(N, channels, h, w) → (N, num_classes)."""
        return self.head(self.pool(x))

    def construct(self, x):
        return self.forward_head(self.forward_features(x))

    def fuse(self) -> nn.Cell:
        """The last norm commutes with the mean over pixels, into the head."""
        return replace_children(self, norm=nn.Identity(), head=fold_before(self.norm, self.head))


VARIANTS = {
    "visformer_tiny": dict(
        init_channels=16, embed_dim=192, depths=(0, 7, 4, 4), num_heads=(3, 3), qk_scale=-0.25, drop_path_rate=0.03
    ),
    "visformer_small": dict(
        init_channels=32, embed_dim=384, depths=(0, 7, 4, 4), num_heads=(6, 6), qk_scale=-0.25, drop_path_rate=0.1
    ),
    "visformer_tiny_v2": dict(
        init_channels=24, embed_dim=192, depths=(1, 4, 6, 3), num_heads=(6, 12), qk_scale=-0.5, drop_path_rate=0.03
    ),
    "visformer_small_v2": dict(
        init_channels=32, embed_dim=256, depths=(1, 10, 14, 3), num_heads=(8, 16), qk_scale=-0.5, drop_path_rate=0.1
    ),
}


def variant_of(parameters: Parameters) -> dict[str, Any]:
    """The hyper-parameters that tell the models apart, see Formats."""
    return {
        "init_channels": shape_of(parameters, "stem.0.weight", 4)[0],
        "embed_dim": shape_of(parameters, "pos_embed2", 4)[1],
        "depths": tuple(count(parameters, rf"stage{i}\.(\d+)\..*") for i in range(4)),
    }


FORMATS = Formats(
    tables=(
        Table(
            source="timm",
            markers=("stem.1.running_mean", "patch_embed3.proj.weight", "stage3.0.attn.qkv.weight"),
            norms=r"(.*\.)?norm\d?|stem\.1",
            hparams=(("gelu", "exact"),),
            lacks="visformer_.*_v2",
        ),
        Table(
            source="mindcv",
            markers=("stem.1.moving_mean", "patch_embed3.proj.weight", "stage3.0.attn.qkv.weight"),
            hparams=(("gelu", "tanh"),),
            written=False,
        ),
    ),
    stems=("stem.0.weight",),
    variant=variant_of,
    positions=(("pos_embed0", 4), ("pos_embed1", 8)),
)
register_variants(Visformer, VARIANTS, FORMATS)
