"""MetaFormer (Yu et al., arXiv 2111.11418): the skeleton that RIFormer and PoolFormer share.

Four stages of residual blocks, each a token mixer and a channel MLP behind a group normalisation, each residual branch
with a layer scale and stochastic depth. The families differ in the token mixer alone, and their parameters have the
same names, so that the weights of a PoolFormer initialise the RIFormer of its size (arXiv 2304.05659, section 3.4).
"""

from typing import Any, ClassVar

from mindspore import nn
from mindspore.common.initializer import Normal

from mindcv_reparam.formats import Parameters, count, shape_of
from mindcv_reparam.layers import (
    Gelu,
    GlobalAvgPool,
    GroupNorm,
    LayerScale,
    affine_of,
    conv2d,
    dense,
    drop_path,
    drop_path_rates,
    dropout,
    fold_after,
    fold_norm,
    gelu,
    initialize,
)
from mindcv_reparam.reparam import Reparameterizable, replace_children


class Mlp(nn.Cell):
    """1×1 → GELU → 1×1 on every pixel."""

    def __init__(self, dim: int, hidden: int, gelu_kind: Gelu, drop_rate: float):
        super().__init__()
        self.fc1 = conv2d(dim, hidden, bias=True)
        self.act = gelu(gelu_kind)
        self.fc2 = conv2d(hidden, dim, bias=True)
        self.drop = dropout(drop_rate)

    def construct(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(Reparameterizable, nn.Cell):
    """``x + ls1 · token_mixer(x)``, then ``x + ls2 · mlp(norm2(x))``.

    Args:
        token_mixer: a Cell with its own normalisation, or what it fuses to, with a method ``scaled(factors)``.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: nn.Cell,
        mlp_ratio: float,
        layer_scale_init_value: float,
        gelu_kind: Gelu,
        drop_rate: float,
        drop_path_rate: float,
    ):
        super().__init__()
        self.token_mixer = token_mixer
        self.layer_scale1 = LayerScale((dim,), layer_scale_init_value)
        self.norm2 = GroupNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu_kind, drop_rate)
        self.layer_scale2 = LayerScale((dim,), layer_scale_init_value)
        self.drop_path = drop_path(drop_path_rate)

    def construct(self, x):
        return self.residuals(x, self.token_mixer(x))

    def residuals(self, x, mixed):
        x = x + self.drop_path(self.layer_scale1(mixed))
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))

    def observed(self, x):
        """The token mixer's normed input, its output and the output of the block, all (N, dim, H, W)."""
        normed = self.token_mixer.norm(x)
        mixed = self.token_mixer.mix(normed)
        return normed, mixed, self.residuals(x, mixed)

    def fuse(self) -> nn.Cell:
        """The layer scales go into what is before them, the second norm's scale and shift into what is behind it."""
        norm2, fc1 = fold_norm(self.norm2, self.mlp.fc1)
        fc2 = fold_after(self.mlp.fc2, self.layer_scale2)
        token_mixer = self.token_mixer.scaled(affine_of(self.layer_scale1).scale)
        return FusedBlock(token_mixer, norm2, replace_children(self.mlp, fc1=fc1, fc2=fc2))


class FusedBlock(nn.Cell):
    """``x + token_mixer(x)``, then ``x + mlp(norm2(x))``: a Block in evaluation mode."""

    def __init__(self, token_mixer: nn.Cell, norm2: GroupNorm, mlp: Mlp):
        super().__init__()
        self.token_mixer = token_mixer
        self.norm2 = norm2
        self.mlp = mlp

    def construct(self, x):
        x = x + self.token_mixer(x)
        return x + self.mlp(self.norm2(x))


class Stage(nn.Cell):
    """A strided convolution, then blocks."""

    def __init__(self, patch_embed: nn.Conv2d, blocks: list[Block]):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.SequentialCell(blocks)

    def construct(self, x):
        return self.blocks(self.patch_embed(x))


class MetaFormer(Reparameterizable, nn.Cell):
    """The skeleton; a family says its token mixer.

    Args:
        depths: blocks per stage.
        embed_dims: channels per stage.
        layer_scale_init_value: initial value of both layer scales of every block.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        mlp_ratio: hidden channels of the MLPs per channel.
        img_size: not needed, the network takes maps of any size.
        drop_rate: dropout in the MLPs.
    """

    classifier = "head"
    head_parts = ("norm", "pool", "head")
    output_norm = GroupNorm
    token_mixer: ClassVar[type[nn.Cell]]
    norm_eps: ClassVar[float] = 1e-5

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        embed_dims: tuple[int, int, int, int],
        layer_scale_init_value: float,
        drop_path_rate: float = 0.1,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        img_size: tuple[int, int] = (224, 224),
        drop_rate: float = 0.0,
        gelu: Gelu = "exact",
    ):
        super().__init__()
        stages, channels = [], in_channels
        for i, (dim, rates) in enumerate(zip(embed_dims, drop_path_rates(drop_path_rate, depths))):
            kernel_size, stride, padding = (3, 2, 1) if i else (7, 4, 2)
            patch_embed = conv2d(channels, dim, kernel_size, stride, padding, bias=True)
            arguments = (mlp_ratio, layer_scale_init_value, gelu, drop_rate)
            stages.append(Stage(patch_embed, [Block(dim, self.token_mixer(dim), *arguments, rate) for rate in rates]))
            channels = dim
        self.stages = nn.CellList(stages)
        self.feature_info = [
            {"channels": dim, "stride": 2 ** (i + 2), "parts": (f"stages.{i}",)} for i, dim in enumerate(embed_dims)
        ]
        self.norm = GroupNorm(channels, self.norm_eps)
        self.pool = GlobalAvgPool()
        self.head = dense(channels, num_classes)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """As mmpretrain's configurations: normal for every convolution, a smaller one for the head.

        (They call it a truncated normal; it is cut at ±2, a hundred deviations out.)
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, nn.Conv2d):
                initialize(cell.weight, Normal(0.02))
        initialize(self.head.weight, Normal(0.01))

    def forward_stages(self, x):
        """(N, in_channels, H, W) → the output of each stage, as many as feature_info says."""
        outputs = ()
        for stage in self.stages:
            x = stage(x)
            outputs += (x,)
        return outputs

    def forward_interleaved(self, x):
        """The maps behind every stage and every downsampling between two, in mmpretrain's numbering."""
        outputs = ()
        for stage in self.stages:
            x = stage.patch_embed(x)
            downsampled = x
            x = stage.blocks(x)
            outputs += (downsampled, x)
        return outputs[1:]

    def forward_observed(self, x):
        """The logits, and of the last block of each stage what module imitation matches, see Block.observed."""
        observed = ()
        for stage in self.stages:
            x = stage.patch_embed(x)
            last = ()
            for block in stage.blocks:
                last = block.observed(x)
                x = last[2]
            observed += (last,)
        return self.forward_head(self.final_norm(x)), observed

    def mix_tokens(self, normed):
        """What the token mixers of the last block of each stage, without their norms, make of these four maps."""
        mixed = ()
        for stage, y in zip(self.stages, normed):
            mixed += (stage.blocks[-1].token_mixer.mix(y),)
        return mixed

    def final_norm(self, x):
        return self.norm(x)

    def forward_features(self, x):
        """(N, in_channels, H, W) → (N, channels, H / 32, W / 32)."""
        return self.final_norm(self.forward_stages(x)[-1])

    def forward_head(self, x):
        """(N, channels, h, w) → (N, num_classes)."""
        return self.head(self.pool(x))

    def construct(self, x):
        return self.forward_head(self.forward_features(x))

    def fuse(self) -> nn.Cell:
        """The scale and shift of the last norm commute with the mean over pixels, into the head."""
        norm, head = fold_norm(self.norm, self.head)
        return replace_children(self, norm=norm, head=head)


_S_DIMS = (64, 128, 320, 512)
_M_DIMS = (96, 192, 384, 768)
SIZES = {
    "s12": dict(depths=(2, 2, 6, 2), embed_dims=_S_DIMS, layer_scale_init_value=1e-5),
    "s24": dict(depths=(4, 4, 12, 4), embed_dims=_S_DIMS, layer_scale_init_value=1e-5),
    "s36": dict(depths=(6, 6, 18, 6), embed_dims=_S_DIMS, layer_scale_init_value=1e-6),
    "m36": dict(depths=(6, 6, 18, 6), embed_dims=_M_DIMS, layer_scale_init_value=1e-6),
    "m48": dict(depths=(8, 8, 24, 8), embed_dims=_M_DIMS, layer_scale_init_value=1e-6),
}
STEMS = ("stages.0.patch_embed.weight",)


def variant_of(parameters: Parameters) -> dict[str, Any]:
    """The hyper-parameters that tell the sizes apart, see Formats."""
    return {
        "depths": tuple(count(parameters, rf"stages\.{i}\.blocks\.(\d+)\..*") for i in range(4)),
        "embed_dims": tuple(shape_of(parameters, f"stages.{i}.patch_embed.weight", 4)[0] for i in range(4)),
    }
