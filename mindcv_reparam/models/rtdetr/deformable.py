"""Multi-scale deformable attention (Zhu et al., arXiv 2010.04159, equation 3), as RT-DETR's decoder uses it.

Bilinear sampling with zeros outside, pixel centres at halves (``align_corners`` False). By default it is one gather of
the rows of all levels and corners and one batched product: Ascend 310P and 910A and MindSpore Lite have no GridSample,
and on CPU it takes a fifth of its time.
"""

from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindcv_reparam.layers import dense
from mindcv_reparam.operations import Apart, Float32Softmax, Inside, Together
from mindcv_reparam.private import Float32

Sampling = Literal["gather", "grid_sample"]
Shapes = tuple[tuple[int, int], ...]  # (height, width) of every level, finest first


@ops.constexpr
def _grid(shapes: Shapes, heads: int) -> tuple[Tensor, ...]:
    """Width, height, rows from one pixel to the next and from one below it, per level (levels, 1), in a memory with a
    row for every pixel and head; and the first of these for every head and level (heads, levels, 1)."""
    height, width = np.array(shapes, np.float32).T.reshape(2, -1, 1)
    first = np.cumsum([0, *(h * w for h, w in shapes[:-1])]).reshape(-1, 1)
    rows = first * heads + np.arange(heads).reshape(-1, 1, 1)
    # Tensors, though some are one number: MindSpore Lite has no product with a number.
    grid = width, height, np.full_like(width, heads), width * heads, rows
    return tuple(Tensor(np.asarray(one, np.float32)) for one in grid)


@ops.constexpr
def _half_of(points: int) -> Tensor:
    return Tensor([0.5 / points], ms.float32)


class Corners(Float32):
    """The four pixels around every sampling point, by the row they have in (S · heads, channels), and their weights."""

    def __init__(self):
        super().__init__()
        self.inside = Inside()
        self.together = Together()

    def construct(self, x, y, weights, shapes):
        """``x``, ``y`` in 0 to 1 of the image and ``weights``, all (N, Q, heads, levels, points) → rows int32
        (N, Q · heads · levels · points · 4) and factors (N, Q, heads, 1, levels · points · 4)."""
        queries, heads, levels, points = x.shape[1], x.shape[2], x.shape[3], x.shape[4]
        width, height, across, down, first = _grid(shapes, heads)
        x, y = x * width - 0.5, y * height - 0.5
        left, top = ops.floor(x), ops.floor(y)
        columns, horizontal = self.pair(left, x - left, width)
        lines, vertical = self.pair(top, y - top, height)
        rows, factors = (), ()
        for i in (0, 1):
            row = first + lines[i] * down
            share = weights * vertical[i]
            for j in (0, 1):
                rows += (row + columns[j] * across,)
                factors += (share * horizontal[j],)
        samples = levels * points * 4
        rows = self.together(rows).astype(ms.int32).reshape((-1, queries * heads * samples))
        return rows, self.together(factors).reshape((-1, queries, heads, 1, samples))

    def pair(self, low, share, size):
        """Of a pixel and the next, ``share`` of the way between them: their places within the map, and what they count,
        which is nothing outside of it."""
        places, shares = (), ()
        for step in (0, 1):
            place = ops.stop_gradient(low + step)
            nearest = self.inside(place, size - 1)
            places += (nearest,)
            shares += ((share if step else 1 - share) * (place == nearest).astype(share.dtype),)
        return places, shares


class GatherSampling(nn.Cell):
    """Σ over levels and points of weight · bilinear(value, location), by one gather."""

    def __init__(self):
        super().__init__()
        self.corners = Corners()
        self.weigh = ops.BatchMatMul()

    def construct(self, value, x, y, weights, shapes):
        """``value`` (N, S, heads, channels), S the pixels of all levels; the others as `Corners` → (N, Q, C)."""
        _, pixels, heads, channels = value.shape
        rows, factors = self.corners(x, y, weights, shapes)
        _, queries, _, _, samples = factors.shape
        gathered = ops.gather(value.reshape((-1, pixels * heads, channels)), rows, 1, 1)
        gathered = gathered.reshape((-1, queries, heads, samples, channels))
        return self.weigh(factors.astype(value.dtype), gathered).reshape((-1, queries, heads * channels))


class GridSampling(Float32):
    """The same by ``grid_sample``, one call per level."""

    def construct(self, value, x, y, weights, shapes):
        heads, channels = value.shape[2], value.shape[3]
        queries, points = x.shape[1], x.shape[4]
        total, first = 0.0, 0
        for level in range(len(shapes)):
            height, width = shapes[level]
            image = value[:, first : first + height * width].transpose((0, 2, 3, 1))  # (N, heads, channels, pixels)
            grid = ops.stack((x[:, :, :, level], y[:, :, :, level]), -1) * 2 - 1  # (N, Q, heads, points, 2)
            sampled = ops.grid_sample(
                image.reshape((-1, channels, height, width)),
                grid.transpose((0, 2, 1, 3, 4)).reshape((-1, queries, points, 2)),
                align_corners=False,
            )  # (N · heads, channels, Q, points)
            weight = weights[:, :, :, level].transpose((0, 2, 1, 3)).reshape((-1, 1, queries, points))
            total = total + (sampled * weight).sum(-1)
            first += height * width
        return total.reshape((-1, heads * channels, queries)).transpose((0, 2, 1))


_SAMPLINGS = {"gather": GatherSampling, "grid_sample": GridSampling}


class Locations(Float32):
    """Where to look: the centre of the reference box, plus offsets in halves of its sides over the points."""

    def __init__(self):
        super().__init__()
        self.apart = Apart()

    def construct(self, boxes, offsets):
        """Boxes (N, Q, 4) as cx cy w h in 0 to 1, offsets (N, Q, heads, levels, points, 2) → x and y without the 2."""
        cx, cy, width, height = self.apart(boxes.reshape((-1, boxes.shape[1], 1, 1, 1, 4)))
        across, down = self.apart(offsets)
        factor = _half_of(offsets.shape[4])
        return cx + across * width * factor, cy + down * height * factor


class DeformableAttention(nn.Cell):
    """Every query looks at a few points per head and level around its reference box.

    Args:
        dim: channels, a multiple of num_heads.
        sampling: "gather", or "grid_sample", which is for comparison and for devices where it is faster.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, sampling: Sampling = "gather"):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = dense(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = dense(dim, num_heads * num_levels * num_points)
        self.value_proj = dense(dim, dim)
        self.output_proj = dense(dim, dim)
        self.softmax = Float32Softmax()
        self.locations = Locations()
        self.sample = _SAMPLINGS[sampling]()

    def construct(self, query, boxes, memory, shapes):
        """Queries (N, Q, dim), reference boxes (N, Q, 4) as cx cy w h in 0 to 1, memory (N, S, dim) → (N, Q, dim)."""
        _, queries, dim = query.shape
        points = (-1, queries, self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(memory).reshape((-1, memory.shape[1], self.num_heads, dim // self.num_heads))
        offsets = self.sampling_offsets(query).reshape((*points, 2))
        weights = self.attention_weights(query).reshape(
            (-1, queries, self.num_heads, self.num_levels * self.num_points)
        )
        x, y = self.locations(boxes, offsets)
        return self.output_proj(self.sample(value, x, y, self.softmax(weights).reshape(points), shapes))
