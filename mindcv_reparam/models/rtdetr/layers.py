"""What the encoder and the decoder of RT-DETR share, named and initialised as in the reference implementation."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, XavierUniform, initializer

from mindcv_reparam import fusion
from mindcv_reparam.layers import dense, with_linear
from mindcv_reparam.operations import Float32Softmax
from mindcv_reparam.private import Float32
from mindcv_reparam.reparam import Reparameterizable


class Dense(Float32, nn.Dense):
    """A fully connected layer that stays float32 in any mixed precision, for scores and boxes."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, weight_init="zeros", bias_init="zeros", has_bias=True)


class MultiheadAttention(Reparameterizable, nn.Cell):
    """Softmax attention among tokens with q = k = x + positions and v = x, the projections packed as in PyTorch."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = Parameter(initializer(XavierUniform(), (3 * dim, dim)), name="in_proj_weight")
        self.in_proj_bias = Parameter(Tensor(np.zeros(3 * dim), ms.float32), name="in_proj_bias")
        self.out_proj = dense(dim, dim)
        self.attend = Attend(num_heads, (dim // num_heads) ** -0.5)

    def construct(self, x, positions, blocked=None):
        """Tokens (N, T, dim), positions that broadcast to them, blocked (T, T), True where row must not see column."""
        dim, tokens = x.shape[2], x + positions
        weight, bias = self.in_proj_weight.astype(tokens.dtype), self.in_proj_bias.astype(tokens.dtype)
        qk = ops.dense(tokens, weight[: 2 * dim], bias[: 2 * dim])
        v = ops.dense(x.astype(tokens.dtype), weight[2 * dim :], bias[2 * dim :])
        return self.out_proj(self.attend(qk, v, blocked))

    def fuse(self) -> nn.Cell:
        """The scale goes into the rows of q. The bias of k adds the same to every score of a softmax and drops out;
        that of v passes through the rows of attention, which sum to one, into the output's."""
        weight, bias = (each.asnumpy().astype(np.float64) for each in (self.in_proj_weight, self.in_proj_bias))
        dim = weight.shape[1]
        qk_weight, qk_bias = weight[: 2 * dim].copy(), np.zeros(2 * dim)
        qk_weight[:dim] *= self.attend.scale
        qk_bias[:dim] = bias[:dim] * self.attend.scale
        out = fusion.linear(self.out_proj.weight.asnumpy(), self.out_proj.bias.asnumpy())
        out = fusion.affine_before(out, fusion.affine(np.ones(dim), bias[2 * dim :]))
        return FusedAttention(
            with_linear(dense(dim, 2 * dim), fusion.Linear(qk_weight, qk_bias)),
            with_linear(dense(dim, dim, bias=False), fusion.linear(weight[2 * dim :]), bias=False),
            with_linear(self.out_proj, out),
            Attend(self.num_heads),
        )


class FusedAttention(nn.Cell):
    """MultiheadAttention for inference: two projections without a scale, and no biases that can do without."""

    def __init__(self, qk: nn.Dense, v: nn.Dense, out_proj: nn.Dense, attend: "Attend"):
        super().__init__()
        self.qk = qk
        self.v = v
        self.out_proj = out_proj
        self.attend = attend

    def construct(self, x, positions, blocked=None):
        return self.out_proj(self.attend(self.qk(x + positions), self.v(x), blocked))


class Attend(nn.Cell):
    """softmax(scale · qkᵀ) v by head: qk (N, T, 2 dim), v (N, T, dim) → (N, T, dim)."""

    def __init__(self, num_heads: int, scale: float = 1.0):
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.gather = ops.BatchMatMul()
        self.probabilities = MaskedSoftmax()

    def construct(self, qk, v, blocked):
        _, tokens, dim = v.shape
        q, k, v = self.by_head(qk[:, :, :dim]), self.by_head(qk[:, :, dim:]), self.by_head(v)
        if self.scale != 1.0:
            q = q * self.scale
        attention = self.probabilities(self.scores(q, k), blocked).astype(v.dtype)
        return self.gather(attention, v).transpose((0, 2, 1, 3)).reshape((-1, tokens, dim))

    def by_head(self, x):
        """(N, T, dim) → (N, heads, T, dim / heads)."""
        return x.reshape((-1, x.shape[1], self.num_heads, x.shape[2] // self.num_heads)).transpose((0, 2, 1, 3))


class MaskedSoftmax(Float32):
    """Over the last axis, without what is blocked. A row that is blocked altogether gives numbers, not NaN."""

    def __init__(self):
        super().__init__()
        self.softmax = Float32Softmax()

    def construct(self, scores, blocked):
        if blocked is not None:
            scores = scores - blocked.astype(scores.dtype) * 65504.0
        return self.softmax(scores)


class Embedding(nn.Cell):
    """A row per class; the index behind the last class gives zeros and gets no gradient."""

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.classes = classes
        rows = initializer(Normal(1.0), (classes, dim), ms.float32).init_data().asnumpy()
        self.weight = Parameter(Tensor(np.pad(rows, ((0, 1), (0, 0)))), name="weight")

    def construct(self, index):
        rows = ops.gather(self.weight, index, 0)
        return rows * (index < self.classes).astype(rows.dtype).expand_dims(-1)
