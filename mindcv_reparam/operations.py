"""Operations as Cells, so that :mod:`cpu` can put others in their place; what is exported keeps these."""

from mindspore import nn, ops

from mindcv_reparam.private import Float32


class Sigmoid(Float32):
    """In float32 in any precision, for what is multiplied by the width of a map."""

    def construct(self, x):
        return ops.sigmoid(x)


class Inside(Float32):
    """Whole numbers, each the nearest of 0 to ``last``, which broadcasts: places within a map."""

    def construct(self, x, last):
        return ops.minimum(ops.maximum(x, 0.0), last)


class Apart(Float32):
    """The last axis as tensors: (…, k) → k of (…)."""

    def construct(self, x):
        parts = ()
        for i in range(x.shape[-1]):
            parts += (x[..., i],)
        return parts


class Together(Float32):
    """Tensors of one shape as a new last axis: k of (…) → (…, k)."""

    def construct(self, tensors):
        return ops.stack(tensors, -1)


class Upsample(nn.Cell):
    """The nearest pixels: (N, C, H, W) → (N, C, height, width)."""

    def construct(self, x, height, width):
        return ops.ResizeNearestNeighbor((height, width))(x)


class Softmax(nn.Cell):
    """Over the last axis."""

    def construct(self, x):
        return ops.softmax(x, -1)


class Float32Softmax(Float32, Softmax):
    """The same in float32 in any precision."""


class LayerNorm(Float32, nn.LayerNorm):
    """Layer normalisation over the last axis, float32 in any mixed precision, by default with PyTorch's epsilon."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__(
            (dim,), begin_norm_axis=-1, begin_params_axis=-1, gamma_init="ones", beta_init="zeros", epsilon=eps
        )
