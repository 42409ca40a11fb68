"""Backbones for dense prediction: the maps of a network's stages instead of its logits.

A classification network becomes a backbone by a transformation, as it does for inference, so that a network with loaded
weights, trained or fused, becomes one with these weights. Every network says what is needed for that:

- ``forward_stages(x)``: the maps of its stages, finest first.
- ``feature_info``: per stage the ``channels`` and ``stride`` of its map, and its ``parts``, the names of the children
  and parameters that make it. What belongs to neither a stage nor the head is the stem.
- ``head_parts``: the names of what the classifier alone uses.
- ``output_norm(channels)``: the normalisation that its users put between a map and a detector.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Literal

from mindspore import nn

from .errors import UserError
from .reparam import Reparameterizable, replace_children
from .stochastic import Stochastic

IndexMode = Literal["stages", "mmpretrain"]


def feature_network(
    net: nn.Cell,
    out_indices: int | Sequence[int] | None = None,
    norm_outputs: bool = False,
    frozen_stages: int = -1,
    index_mode: IndexMode = "stages",
) -> nn.Cell:
    """A network that returns the tuple of maps (N, channels, H / stride, W / stride) of some stages of ``net``.

    The result is independent of ``net``. Its parameters have the names they have there; those of the head are gone,
    those of the output norms are ``norms.<index>.*``. ``feature_info`` tells channels and stride per output.

    Args:
        out_indices: which maps, in this order; negative ones count from the last. All by default.
        norm_outputs: normalise every output by a new ``output_norm`` of the family.
        frozen_stages: the stem and so many stages get no gradient, their norms keep the statistics they have, their
            dropout and stochastic depth are off. -1 freezes nothing, 0 the stem; output norms are never frozen.
        index_mode: what out_indices count. "stages": the stages, from 0. "mmpretrain", for RIFormer and PoolFormer:
            stages and the downsamplings between them, 0 to 6, even numbers being the stages.

    Raises:
        UserError: an index or frozen_stages is out of range.
    """
    stages = net.feature_info
    infos = stages if index_mode == "stages" else [stages[(i + 1) // 2] for i in range(2 * len(stages) - 1)]
    indices = _chosen(out_indices, len(infos))
    if not -1 <= frozen_stages <= len(stages):
        raise UserError(f"frozen_stages {frozen_stages} is out of range: the network has {len(stages)} stages")

    features = replace_children(net)
    if frozen_stages >= 0:
        _freeze(features, trained=[part for stage in stages[frozen_stages:] for part in stage["parts"]])
    for part in net.head_parts:
        delattr(features, part)
    # An instance of a subclass rather than a Cell around the network, which would prefix every parameter's name.
    object.__setattr__(features, "__class__", _feature_class(type(net), _BASES[index_mode]))
    normed = indices if norm_outputs else ()
    features.norms = nn.CellList(
        [net.output_norm(info["channels"]) if i in normed else nn.Identity() for i, info in enumerate(infos)]
    )
    features.out_indices = indices
    features.feature_info = [{key: infos[i][key] for key in ("channels", "stride")} for i in indices]
    return features


class Features(Reparameterizable):
    """What distinguishes a backbone from the network it is made of."""

    def construct(self, x):
        return self.select(self.forward_stages(x))

    def select(self, maps):
        outputs = ()
        for i in self.out_indices:
            outputs = outputs + (self.norms[i](maps[i]),)
        return outputs

    def fuse(self) -> nn.Cell:
        """Nothing folds at the root, where the network would fold its last norm into the head."""
        return replace_children(self)


class InterleavedFeatures(Features):
    """Outputs counted as mmpretrain does, stages and downsamplings alike."""

    def construct(self, x):
        return self.select(self.forward_interleaved(x))


_BASES: dict[str, type[Features]] = {"stages": Features, "mmpretrain": InterleavedFeatures}


@functools.cache
def _feature_class(network: type[nn.Cell], base: type[Features]) -> type[nn.Cell]:
    return type(f"{network.__name__}Features", (base, network), {})


def _chosen(out_indices: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Indices from 0 to count - 1."""
    if out_indices is None:
        return tuple(range(count))
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not indices or not all(-count <= i < count for i in indices):
        raise UserError(f"out_indices {list(indices)}: the network has outputs 0 to {count - 1}")
    return tuple(i % count for i in indices)


def _freeze(net: nn.Cell, trained: Iterable[str]) -> None:
    """Freeze everything but the named parts and the head."""
    free = tuple(f"{part}." for part in (*trained, *net.head_parts))
    for name, parameter in net.parameters_and_names():
        if not f"{name}.".startswith(free):
            parameter.requires_grad = False
    for name, cell in net.cells_and_names():
        if f"{name}.".startswith(free):
            continue
        # Not by set_train: the caller's own set_train(True) would undo it.
        if isinstance(cell, nn.BatchNorm2d):
            cell.use_batch_statistics = False
        elif isinstance(cell, Stochastic):
            cell.rate = 0.0
