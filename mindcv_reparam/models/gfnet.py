"""GFNet: Global Filter Networks for Image Classification (Rao et al., arXiv 2107.00645), the hierarchical variants.

GFNet-H-B is RIFormer's teacher of logits. The network is the authors' ``GFNetPyramid``; its Fourier transforms are
products with constant matrices, since FFT operators run on the host of an NPU or not at all. Within a stage the maps
are (N, H, W, C).
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

from mindcv_reparam import fusion
from mindcv_reparam.formats import Formats, Rule, Table, tokens
from mindcv_reparam.layers import (
    Float32,
    Gelu,
    GlobalAvgPool,
    GroupNorm,
    check_map_size,
    conv2d,
    dense,
    drop_path,
    drop_path_rates,
    dropout,
    gelu,
    initialize,
    linear_of,
    with_linear,
)
from mindcv_reparam.models.metaformer import STEMS, variant_of
from mindcv_reparam.models.positions import resize_position_embedding
from mindcv_reparam.operations import LayerNorm
from mindcv_reparam.registry import register_variants
from mindcv_reparam.reparam import Reparameterizable, replace_children

FAMILY = {
    "place": 5,
    "input_size": 224,
    "crop_pct": 0.9,
    "blocks": r"stages\.\d+\.blocks\.\d+\.",
    "models": {
        "gfnet_h_ti": {},
        "gfnet_h_s": {},
        "gfnet_h_b": {},
    },
    "published": {
        "GFNet's authors": {
            224: {
                "gfnet_h_ti": (80.1, 95.1),
                "gfnet_h_s": (81.5, 95.6),
                "gfnet_h_b": (82.9, 96.2),
            },
        },
    },
}


def half_spectrum(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of the orthonormal real transforms of length ``size``, with F = size // 2 + 1 frequencies.

    Returns:
        (2F, size) from a signal to the real parts of its spectrum, then the imaginary ones, like NumPy's ``rfft``.
        (size, 2F) back, like ``irfft``: the frequencies that stand for two count twice, and the imaginary parts of the
        others, at 0 and at size / 2, do not count.
    """
    frequencies = np.arange(size // 2 + 1)
    angles = 2 * np.pi * np.outer(frequencies, np.arange(size)) / size
    forward = np.concatenate([np.cos(angles), -np.sin(angles)]) / np.sqrt(size)
    counts = np.where((frequencies == 0) | (2 * frequencies == size), 1.0, 2.0)
    return forward, (forward * np.tile(counts, 2)[:, None]).T


def full_spectrum(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices (2·size, 2·size) of the orthonormal complex transform and of its inverse, real parts before
    imaginary ones on both sides."""
    angles = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
    cos, sin = np.cos(angles) / np.sqrt(size), np.sin(angles) / np.sqrt(size)
    forward = np.block([[cos, sin], [-sin, cos]])
    return forward, forward.T


class GlobalFilter(Float32):
    """Multiplication with a learned filter per channel in the frequency domain (section 3.2).

    Equal to ``irfft2(rfft2(x, norm="ortho") * filter, norm="ortho")`` over the pixels, for any height and width.
    """

    def __init__(self, dim: int, size: tuple[int, int]):
        super().__init__()
        height, width = size
        shape = (height, width // 2 + 1, dim, 2)  # real and imaginary part last
        self.width = width
        self.complex_weight = Parameter(initializer("zeros", shape, ms.float32), name="complex_weight")
        self.rows, self.rows_back = (_kernel(matrix) for matrix in half_spectrum(width))
        self.columns, self.columns_back = (_kernel(matrix) for matrix in full_spectrum(height))

    def construct(self, x):
        height, frequencies, channels, _ = self.complex_weight.shape
        weight = self.complex_weight.reshape((height, frequencies * channels, 2))
        weight_real, weight_imaginary = weight[..., 0], weight[..., 1]

        x = self.transform(self.rows, x.reshape((-1, self.width, channels)))  # (N·H, 2F, C)
        x = x.reshape((-1, height, 2, frequencies * channels)).transpose((0, 2, 1, 3))
        x = self.transform(self.columns, x.reshape((-1, 2 * height, frequencies * channels)))

        real, imaginary = ops.split(x, height, axis=1)  # each (N, H, F·C)
        product = (real * weight_real - imaginary * weight_imaginary, real * weight_imaginary + imaginary * weight_real)

        x = self.transform(self.columns_back, ops.concat(product, axis=1))
        x = x.reshape((-1, 2, height, frequencies * channels)).transpose((0, 2, 1, 3))
        x = self.transform(self.rows_back, x.reshape((-1, 2 * frequencies, channels)))
        return x.reshape((-1, height, self.width, channels))

    def transform(self, kernel, x):
        """A constant matrix times (N, K, M) along K, as a 1×1 convolution: no copy of the matrix for every sample."""
        return ops.conv2d(x.expand_dims(-1), kernel).squeeze(-1)


def _kernel(matrix: np.ndarray) -> Tensor:
    return Tensor(matrix[:, :, None, None], ms.float32)


class Mlp(nn.Cell):
    """Dense → GELU → dense on every pixel."""

    def __init__(self, dim: int, hidden: int, gelu_kind: Gelu, drop_rate: float):
        super().__init__()
        self.fc1 = dense(dim, hidden)
        self.act = gelu(gelu_kind)
        self.fc2 = dense(hidden, dim)
        self.drop = dropout(drop_rate)

    def construct(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class ChannelScale(Float32):
    """A layer scale (see layers.LayerScale) on maps (N, H, W, C)."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = Parameter(Tensor(np.full(dim, value), ms.float32), name="gamma")

    def construct(self, x):
        return x * self.gamma


class Block(Reparameterizable, nn.Cell):
    """``x + gamma · mlp(norm2(filter(norm1(x))))``."""

    def __init__(
        self,
        dim: int,
        size: tuple[int, int],
        mlp_ratio: float,
        layer_scale_init_value: float,
        gelu_kind: Gelu,
        drop_rate: float,
        drop_path_rate: float,
    ):
        super().__init__()
        self.norm1 = LayerNorm(dim, 1e-6)
        self.filter = GlobalFilter(dim, size)
        self.norm2 = LayerNorm(dim, 1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu_kind, drop_rate)
        self.scale = ChannelScale(dim, layer_scale_init_value)
        self.gamma = self.scale.gamma  # which is its name in the authors' weights
        self.drop_path = drop_path(drop_path_rate)

    def construct(self, x):
        return x + self.drop_path(self.scale(self.mlp(self.norm2(self.filter(self.norm1(x))))))

    def fuse(self) -> nn.Cell:
        """The layer scale goes into the dense layer before it. The norms keep their scale and shift, which a layer
        normalisation applies in any case."""
        scaled = fusion.affine_after(fusion.affine(self.gamma.asnumpy()), linear_of(self.mlp.fc2))
        fc2 = with_linear(self.mlp.fc2, scaled)
        return FusedBlock(self.norm1, self.filter, self.norm2, replace_children(self.mlp, fc2=fc2))


class FusedBlock(nn.Cell):
    """``x + mlp(norm2(filter(norm1(x))))``: a Block in evaluation mode."""

    def __init__(self, norm1: LayerNorm, global_filter: GlobalFilter, norm2: LayerNorm, mlp: Mlp):
        super().__init__()
        self.norm1 = norm1
        self.filter = global_filter
        self.norm2 = norm2
        self.mlp = mlp

    def construct(self, x):
        return x + self.mlp(self.norm2(self.filter(self.norm1(x))))


class Stage(nn.Cell):
    """Non-overlapping patches by a strided convolution, then blocks with the channels last."""

    def __init__(self, patch_embed: nn.Conv2d, blocks: list[Block]):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.SequentialCell(blocks)

    def construct(self, x, position=None):
        x = self.patch_embed(x)
        if position is not None:
            x = x + position
        return self.blocks(x.transpose((0, 2, 3, 1))).transpose((0, 3, 1, 2))


def resize_filter(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Global filters (h, w // 2 + 1, C, 2) for another map, by bicubic interpolation from corner to corner as GFNet's
    authors do it."""
    if value.ndim != 4 or value.shape[2:] != shape[2:]:
        return value
    rows, columns = (_cubic_interpolation(value.shape[axis], shape[axis]) for axis in (0, 1))
    return np.einsum("ih,jw,hwcp->ijcp", rows, columns, value, optimize=True).astype(np.float32)


def _cubic_interpolation(source: int, target: int) -> np.ndarray:
    """The matrix (target, source) of cubic convolution with PyTorch's coefficient -0.75; the ends stay the ends."""
    a, matrix = -0.75, np.zeros((target, source))
    for row, position in zip(matrix, np.linspace(0.0, source - 1.0, target)):
        for neighbour in range(int(position) - 1, int(position) + 3):
            t = abs(position - neighbour)
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
            row[min(max(neighbour, 0), source - 1)] += near if t <= 1 else far if t < 2 else 0.0
    return matrix


class GFNet(nn.Cell):
    """Hierarchical GFNet.

    Args:
        depths: blocks per stage.
        embed_dims: channels per stage.
        layer_scale_init_value: initial value of the layer scale of every block.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        mlp_ratio: hidden channels of the MLPs per channel.
        img_size: (height, width) of the input, for the position embedding and the filters.
        drop_rate: dropout in the MLPs.
    """

    classifier = "head"
    head_parts = ("norm", "pool", "head")
    output_norm = GroupNorm
    resized = {"pos_embed": resize_position_embedding, "complex_weight": resize_filter}

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        embed_dims: tuple[int, int, int, int],
        layer_scale_init_value: float,
        drop_path_rate: float,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        img_size: tuple[int, int] = (224, 224),
        drop_rate: float = 0.0,
        gelu: Gelu = "exact",
    ):
        super().__init__()
        stages, channels, stride = [], in_channels, 1
        self.feature_info = []
        for i, (dim, rates) in enumerate(zip(embed_dims, drop_path_rates(drop_path_rate, depths))):
            patch_size = 2 if i else 4
            stride *= patch_size
            size = (img_size[0] // stride, img_size[1] // stride)
            check_map_size(size, img_size, stride)
            patch_embed = conv2d(channels, dim, patch_size, stride=patch_size, padding=0, bias=True)
            arguments = (dim, size, mlp_ratio, layer_scale_init_value, gelu, drop_rate)
            stages.append(Stage(patch_embed, [Block(*arguments, rate) for rate in rates]))
            parts = (f"stages.{i}",) if i else ("stages.0", "pos_embed")
            self.feature_info.append({"channels": dim, "stride": stride, "parts": parts})
            channels = dim
        self.stages = nn.CellList(stages)
        shape = (1, embed_dims[0], img_size[0] // 4, img_size[1] // 4)
        self.pos_embed = Parameter(initializer("zeros", shape, ms.float32), name="pos_embed")
        self.norm = LayerNorm(channels, 1e-6)
        self.pool = GlobalAvgPool()
        self.head = dense(channels, num_classes)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """As the authors do, who leave the convolutions to PyTorch: uniform within ±1/sqrt(inputs).

        (Their truncated normals are cut at ±2, a hundred deviations out.)
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, nn.Dense):
                initialize(cell.weight, Normal(0.02))
            elif isinstance(cell, GlobalFilter):
                initialize(cell.complex_weight, Normal(0.02))
            elif isinstance(cell, nn.Conv2d):
                bound = float(np.prod(cell.weight.shape[1:])) ** -0.5
                initialize(cell.weight, Uniform(bound))
                initialize(cell.bias, Uniform(bound))
        initialize(self.pos_embed, Normal(0.02))

    def forward_stages(self, x):
        """(N, in_channels, H, W) → the output of each stage, as many as feature_info says."""
        first, second, third, last = self.stages
        x1 = first(x, self.pos_embed)
        x2 = second(x1)
        x3 = third(x2)
        return (x1, x2, x3, last(x3))

    def forward_features(self, x):
        """(N, in_channels, H, W) → (N, channels, H / 32, W / 32)."""
        x = self.forward_stages(x)[-1]
        return self.norm(x.transpose((0, 2, 3, 1))).transpose((0, 3, 1, 2))

    def forward_head(self, x):
        """(N, channels, h, w) → (N, num_classes)."""
        return self.head(self.pool(x))

    def construct(self, x):
        return self.forward_head(self.forward_features(x))


_TI_DIMS, _S_DIMS = (64, 128, 256, 512), (96, 192, 384, 768)
VARIANTS = {
    "gfnet_h_ti": dict(depths=(3, 3, 10, 3), embed_dims=_TI_DIMS, layer_scale_init_value=1e-3, drop_path_rate=0.1),
    "gfnet_h_s": dict(depths=(3, 3, 10, 3), embed_dims=_S_DIMS, layer_scale_init_value=1e-5, drop_path_rate=0.2),
    "gfnet_h_b": dict(depths=(3, 3, 27, 3), embed_dims=_S_DIMS, layer_scale_init_value=1e-6, drop_path_rate=0.4),
}
_AUTHORS = Table(
    source="gfnet",
    markers=("patch_embed.0.proj.weight", "blocks.0.0.filter.complex_weight"),
    rules=(
        Rule("patch_embed.{i}.proj.{leaf}", "stages.{i}.patch_embed.{leaf}"),
        Rule("blocks.{i}.{j}.{rest}", "stages.{i}.blocks.{j}.{rest}"),
    ),
    norms=r"norm|.*\.norm[12]",
    layouts=(tokens("pos_embed"),),
    written=False,
)
# The stages have the names of a MetaFormer's.
FORMATS = Formats(tables=(_AUTHORS,), stems=STEMS, variant=variant_of, positions=(("pos_embed", 4),))
register_variants(GFNet, VARIANTS, FORMATS)
