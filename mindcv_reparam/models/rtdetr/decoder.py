"""RT-DETR's query selection and decoder (Zhao et al., arXiv 2304.08069, section 4.3; arXiv 2203.03605 for the boxes).

The positions with the best scores become queries, which a decoder refines layer by layer. Names and numbers as in the
reference implementation (lyuwenyu/RT-DETR, rtdetr_pytorch). Scores, anchors and boxes are float32 in any precision.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Constant, XavierUniform, Zero

from mindcv_reparam.errors import UserError
from mindcv_reparam.layers import dense, initialize, initialize_as_torch
from mindcv_reparam.models.resnet_vd import ConvNormLayer
from mindcv_reparam.models.rtdetr.deformable import DeformableAttention, Sampling, Shapes
from mindcv_reparam.models.rtdetr.layers import (
    Dense,
    Embedding,
    MultiheadAttention,
)
from mindcv_reparam.operations import LayerNorm, Sigmoid
from mindcv_reparam.private import Float32
from mindcv_reparam.reparam import Reparameterizable
from mindcv_reparam.tree import copy_of

BORDER = 1e4  # logit of a box nobody wants: its sigmoid is 1 in any precision, where the reference's is of infinity
_LARGEST = 65504.0  # of float16
_CAP = math.log(1e5)


def check_queries(queries: int, shapes: Shapes) -> None:
    """Refuse more queries than the maps have pixels.

    Raises:
        UserError: there are more.
    """
    pixels = sum(height * width for height, width in shapes)
    if queries > pixels:
        sizes = ", ".join(f"{height}x{width}" for height, width in shapes)
        raise UserError(f"num_queries {queries}: maps of {sizes} have {pixels} pixels; take fewer, or larger images")


@ops.constexpr
def anchors_of(shapes: Shapes, queries: int) -> tuple[Tensor, Tensor]:
    """A box around every pixel, as logits of cx cy w h (1, S, 4), and 1 where it is well inside, 0 where not (1, S, 1).

    The sides are 0.05 of the image on the finest map and double from map to map.

    Raises:
        UserError: there are fewer than ``queries``.
    """
    check_queries(queries, shapes)
    levels = []
    for level, (height, width) in enumerate(shapes):
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        side = np.full_like(x, 0.05 * 2**level)
        levels.append(np.stack([x, y, side, side], -1).reshape(-1, 4))
    boxes = np.concatenate(levels)[None]
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdims=True)
    logits = np.where(valid, np.log(boxes / (1 - boxes)), BORDER)
    return Tensor(logits.astype(np.float32)), Tensor(valid.astype(np.float32))


class Mlp(nn.Cell):
    """Dense layers with ReLU between them."""

    dense: Callable[..., nn.Cell] = staticmethod(dense)

    def __init__(self, in_channels: int, hidden: int, out_channels: int, num_layers: int):
        super().__init__()
        sizes = (in_channels, *[hidden] * (num_layers - 1), out_channels)
        self.layers = nn.CellList([self.dense(*pair) for pair in itertools.pairwise(sizes)])
        self.act = nn.ReLU()

    def construct(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == len(self.layers) - 1 else self.act(layer(x))
        return x


class BoxHead(Float32, Mlp):
    """Queries (N, Q, dim) → by how much the logits of their boxes are off, (N, Q, 4)."""

    dense = Dense

    def __init__(self, dim: int):
        super().__init__(dim, dim, 4, 3)


class Moved(Float32):
    """Logits of boxes (N, Q, 4), moved by ``delta`` from where they are, but at most log(1e5) from zero.

    The reference goes from box to logit by an inverse sigmoid that cuts at 1e-5. Staying with logits is the same but
    for the rounding, and needs no logarithm, of which MindSpore's CPU kernel is off by 2e-6.
    """

    def construct(self, logits, delta):
        return ops.minimum(ops.maximum(logits, -_CAP), _CAP) + delta


class Placed(Float32):
    """Logits of boxes (N, Q, 4) around anchors."""

    def construct(self, anchors, delta):
        return anchors + delta


class Joined(Float32):
    """Two groups of queries (N, D, …) and (N, Q, …) as one."""

    def construct(self, first, second):
        return ops.cat((first, second), 1)


class Stacked(Float32):
    """What the layers say, as one tensor with the layers first."""

    def construct(self, tensors):
        return ops.stack(tensors)


class BestQueries(Float32):
    """The pixels with the best scores, best first: their scores, features, anchors and numbers.

    The score of a pixel is its largest logit. Ties go to the lower number.
    """

    def __init__(self, num_queries: int):
        super().__init__()
        self.num_queries = num_queries

    def construct(self, scores, features, anchors):
        """(N, S, classes), (N, S, dim), (1, S, 4) → (N, Q, classes), (N, Q, dim), (N, Q, 4), (N, Q) int32."""
        _, best = ops.topk(ops.amax(scores, -1), self.num_queries)
        return ops.gather(scores, best, 1, 1), ops.gather(features, best, 1, 1), ops.gather(anchors[0], best, 0), best


class TransformerDecoderLayer(nn.Cell):
    """Attention among the queries, from the queries to the maps, and an MLP, each followed by its normalisation."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, levels: int, points: int, sampling: Sampling):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.norm1 = LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, num_heads, levels, points, sampling)
        self.norm2 = LayerNorm(dim)
        self.linear1 = dense(dim, dim_feedforward)
        self.act = nn.ReLU()
        self.linear2 = dense(dim_feedforward, dim)
        self.norm3 = LayerNorm(dim)

    def construct(self, x, positions, boxes, memory, shapes, blocked=None):
        """Queries and positions (N, Q, dim), boxes (N, Q, 4), memory (N, S, dim), blocked (Q, Q) → (N, Q, dim)."""
        x = self.norm1(x + self.self_attn(x, positions, blocked))
        x = self.norm2(x + self.cross_attn(x + positions, boxes, memory, shapes))
        x = x + self.linear2(self.act(self.linear1(x)))
        return self.norm3(ops.minimum(ops.maximum(x, -_LARGEST), _LARGEST))  # which float16 would make infinite


class TransformerDecoder(nn.Cell):
    """The layers; RTDETRTransformer runs them, since the heads between them are its own."""

    def __init__(self, layers: list[TransformerDecoderLayer]):
        super().__init__()
        self.layers = nn.CellList(layers)


class RTDETRTransformer(Reparameterizable, nn.Cell):
    """Maps → scores and boxes of the queries.

    Args:
        in_channels: of the maps, finest first, each of half the rows and columns of the one before.
        num_layers: of the decoder.
        eval_idx: the layer whose outputs are the result, where inference stops; negative ones count from the last.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        num_classes: int,
        hidden_dim: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        num_queries: int,
        num_points: int = 4,
        eval_idx: int = -1,
        sampling: Sampling = "gather",
    ):
        super().__init__()
        if not -num_layers <= eval_idx < num_layers:
            raise UserError(f"eval_idx {eval_idx} is out of range: the decoder has {num_layers} layers")
        dim = hidden_dim
        self.num_queries = num_queries
        self.eval_idx = eval_idx % num_layers
        self.input_proj = nn.CellList([ConvNormLayer(channels, dim, 1) for channels in in_channels])
        arguments = (dim, num_heads, dim_feedforward, len(in_channels), num_points, sampling)
        self.decoder = TransformerDecoder([TransformerDecoderLayer(*arguments) for _ in range(num_layers)])
        self.denoising_class_embed = Embedding(num_classes, dim)
        self.query_pos_head = Mlp(4, 2 * dim, dim, 2)
        self.enc_output = nn.SequentialCell(Dense(dim, dim), LayerNorm(dim))
        self.enc_score_head = Dense(dim, num_classes)
        self.enc_bbox_head = BoxHead(dim)
        self.dec_score_head = nn.CellList([Dense(dim, num_classes) for _ in range(num_layers)])
        self.dec_bbox_head = nn.CellList([BoxHead(dim) for _ in range(num_layers)])
        self.best_queries = BestQueries(num_queries)
        self.placed = Placed()
        self.moved = Moved()
        self.joined = Joined()
        self.stacked = Stacked()
        self.boxes = Sigmoid()  # logits → cx cy w h in 0 to 1
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """As the reference: scores start at 1 %, boxes at their anchors, sampling points on a star around them."""
        initialize_as_torch(self)
        for head in (self.enc_score_head, *self.dec_score_head):
            initialize(head.bias, Constant(-math.log(99)))
        for head in (self.enc_bbox_head, *self.dec_bbox_head):
            initialize(head.layers[-1].weight, Zero())
            initialize(head.layers[-1].bias, Zero())
        for layer in (self.enc_output[0], *self.query_pos_head.layers):
            initialize(layer.weight, XavierUniform())
        for layer in self.decoder.layers:
            initialize(layer.self_attn.out_proj.bias, Zero())
            attention = layer.cross_attn
            for part in (attention.value_proj, attention.output_proj):
                initialize(part.weight, XavierUniform())
                initialize(part.bias, Zero())
            for part in (attention.sampling_offsets, attention.attention_weights):
                initialize(part.weight, Zero())
                initialize(part.bias, Zero())
            attention.sampling_offsets.bias.set_data(Tensor(_star(attention)))

    def encode(self, maps):
        """Maps → memory (N, S, dim), S the pixels of all maps, finest first, and the sizes of the maps."""
        memory, shapes = (), ()
        for i, projection in enumerate(self.input_proj):
            x = projection(maps[i])
            # Not unpacked into `_`: in a loop's graph MindSpore warns of what it drops.
            dim, height, width = x.shape[1], x.shape[2], x.shape[3]
            memory += (x.reshape((-1, dim, height * width)).transpose((0, 2, 1)),)
            shapes += ((height, width),)
        return ops.cat(memory, 1), shapes

    def select(self, memory, shapes):
        """The queries' scores (N, Q, classes), logits of boxes (N, Q, 4), features (N, Q, dim) and pixels (N, Q).

        Boxes are computed for what is selected alone; the decoder attends to memory as it is.
        """
        anchors, valid = anchors_of(shapes, self.num_queries)
        features = self.enc_output(memory * valid)
        scores, features, anchors, best = self.best_queries(self.enc_score_head(features), features, anchors)
        return scores, self.placed(anchors, self.enc_bbox_head(features)), features, best

    def refine(self, i, x, box_logits, memory, shapes, blocked=None):
        """Layer i on queries (N, Q, dim) and logits of boxes (N, Q, 4) → queries, and by how much these are off."""
        boxes = self.boxes(box_logits)
        x = self.decoder.layers[i](x, self.query_pos_head(boxes), boxes, memory, shapes, blocked)
        return x, self.dec_bbox_head[i](x)

    def construct(self, maps):
        """→ logits (N, Q, classes) and boxes (N, Q, 4), cx cy w h in 0 to 1, of layer ``eval_idx``."""
        memory, shapes = self.encode(maps)
        selected = self.select(memory, shapes)
        box_logits, x = selected[1], selected[2]
        for i in range(self.eval_idx + 1):
            x, delta = self.refine(i, x, box_logits, memory, shapes)
            box_logits = self.moved(box_logits, delta)
        return self.dec_score_head[self.eval_idx](x), self.boxes(box_logits)

    def forward_training(self, maps, dn_labels, dn_references, dn_blocked):
        """What all layers and the query selection say, with D denoising queries in front of the Q selected ones.

        A layer is taught by boxes that build on those of the layer before it, whose gradient they reach, whereas it
        attends to boxes without gradient ("look forward twice", arXiv 2203.03605, section 3.4).

        Args:
            dn_labels: (N, D) int32, noisy classes; num_classes for padding.
            dn_references: (N, D, 4), logits of noisy boxes.
            dn_blocked: (D + Q, D + Q) bool, True where the query of a row must not see that of a column.

        Returns:
            Logits (layers, N, D + Q, classes), boxes (layers, N, D + Q, 4), and those of the selection, (N, Q, …).
        """
        memory, shapes = self.encode(maps)
        selected = self.select(memory, shapes)
        encoder_logits, box_logits, features = selected[0], selected[1], selected[2]
        x = ops.cat((self.denoising_class_embed(dn_labels), ops.stop_gradient(features)), 1)
        attended = self.joined(dn_references, ops.stop_gradient(box_logits))
        before = attended
        logits, boxes = (), ()
        for i in range(len(self.decoder.layers)):
            x, delta = self.refine(i, x, attended, memory, shapes, dn_blocked)
            logits += (self.dec_score_head[i](x),)
            boxes += (self.boxes(self.moved(before, delta)),)
            before = self.moved(attended, delta)
            attended = ops.stop_gradient(before)
        return self.stacked(logits), self.stacked(boxes), encoder_logits, self.boxes(box_logits)

    def fuse(self) -> nn.Cell:
        """What training alone needs goes: denoising's classes, other layers' scores, layers behind ``eval_idx``."""
        new = copy_of(self)
        new.denoising_class_embed = nn.Identity()
        last = self.eval_idx + 1
        new.decoder = TransformerDecoder(list(new.decoder.layers)[:last])
        new.dec_bbox_head = nn.CellList(list(new.dec_bbox_head)[:last])
        scores = [nn.Identity() for _ in range(last)]
        scores[-1] = new.dec_score_head[self.eval_idx]
        new.dec_score_head = nn.CellList(scores)
        return new


def _star(attention: DeformableAttention) -> np.ndarray:
    """Offsets (heads · levels · points · 2,): every head has a direction, every point its distance along it."""
    angles = np.arange(attention.num_heads) * 2 * np.pi / attention.num_heads
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    directions /= np.abs(directions).max(-1, keepdims=True)
    points = np.arange(1, attention.num_points + 1).reshape(-1, 1)
    star = directions[:, None, None] * points * np.ones((attention.num_levels, 1, 1))
    return star.reshape(-1).astype(np.float32)
