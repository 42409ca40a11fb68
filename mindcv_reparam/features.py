"""Backbones for dense prediction: the maps of a network's stages instead of its logits.

A classification network becomes a backbone by a transformation, as it does for inference, so that a network with loaded
weights, trained or fused, becomes one with these weights. Every network says what is needed for that:

- ``forward_stages(x)``: the maps of its stages, finest first.
- ``feature_info``: per stage the ``channels`` and ``stride`` of its map, and its ``parts``, the names of the children
  and parameters that make it. What belongs to neither a stage nor the head is the stem.
- ``head_parts``: the names of what the classifier alone uses.
- ``output_norm(channels)``: the normalisation that its users put between a map and a detector.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from mindspore import nn

from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.network import Network
from mindcv_reparam.reparam import Reparameterizable
from mindcv_reparam.stochastic import Stochastic
from mindcv_reparam.suggestions import suggestion
from mindcv_reparam.tree import copy_of

IndexMode = Literal["stages", "mmpretrain"]
_BACKBONE = "backbone"  # what a detector calls its own


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
        UserError: an index or frozen_stages is out of range, or the network is no classifier.
    """
    _check_stages(net)
    stages = net.feature_info
    infos = stages if index_mode == "stages" else [stages[(i + 1) // 2] for i in range(2 * len(stages) - 1)]
    indices = _chosen(out_indices, len(infos))
    _check_frozen(frozen_stages, len(stages))
    features = copy_of(net)
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
    features.stage_parts = tuple(tuple(stage["parts"]) for stage in stages)
    features.feature_info = [{key: infos[i][key] for key in ("channels", "stride")} for i in indices]
    return features


def lacking_parts(net: nn.Cell) -> list[str]:
    """What a network that has ``forward_stages`` lacks of the above, as it was built."""
    if not hasattr(net, "forward_stages"):
        return []
    infos = getattr(net, "feature_info", None)
    if not infos:
        return ["feature_info"]
    keys = ("channels", "stride", "parts")
    lacking = [f"{key} in feature_info[{i}]" for i, info in enumerate(infos) for key in keys if key not in info]
    return lacking + [f"the part {part!r}" for part in (net.classifier, *net.head_parts) if not hasattr(net, part)]


def _check_stages(net: nn.Cell) -> None:
    if not hasattr(net, "forward_stages"):
        raise UserError(f"{type(net).__name__} is no classifier: neither features_only nor num_classes 0 is for it")


def pooled_network(net: Network) -> Network:
    """A network that returns what the classifier of ``net`` sees, (N, channels). The result is independent of it; its
    parameters have the names they have there, those of the classifier are gone.

    Raises:
        UserError: the network is no classifier, or is fused, so that its classifier has more than its own work.
    """
    _check_stages(net)
    pooled = copy_of(net)
    pooled.reset_classifier(0)
    return pooled


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
        return copy_of(self)


class InterleavedFeatures(Features):
    """Outputs counted as mmpretrain does, stages and downsamplings alike."""

    def construct(self, x):
        return self.select(self.forward_interleaved(x))


_BASES: dict[str, type[Features]] = {"stages": Features, "mmpretrain": InterleavedFeatures}


_CLASSES: dict[tuple[type, type], type[nn.Cell]] = {}


def _feature_class(network: type[nn.Cell], base: type[Reparameterizable]) -> type[nn.Cell]:
    if (network, base) not in _CLASSES:
        _CLASSES[network, base] = type(f"{network.__name__}{base.__name__}", (base, network), {})
    return _CLASSES[network, base]


def _chosen(out_indices: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Indices from 0 to count - 1."""
    if out_indices is None:
        return tuple(range(count))
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not indices or not all(-count <= i < count for i in indices):
        raise UserError(f"out_indices {list(indices)}: the network has outputs 0 to {count - 1}")
    return tuple(i % count for i in indices)


def in_backbone(name: str) -> bool:
    """Whether a parameter of this name is one of a detector's backbone."""
    return name.startswith(name_in_backbone(""))


def name_in_backbone(name: str) -> str:
    """What a detector calls the parameter that its backbone alone calls ``name``."""
    return f"{_BACKBONE}.{name}"


def backbone_of(net: nn.Cell, setting: str, instead: str) -> nn.Cell:
    """The backbone of a detector. Raises UserError, with what is for it and what to do, where there is none."""
    backbone = getattr(net, _BACKBONE, None)
    if backbone is None:
        raise UserError(f"{setting} for a detector's backbone, and this model has none: {instead}")
    return backbone


def freeze(net: nn.Cell, frozen_stages: int = -1, norms: bool = False, names: Sequence[str] = ()) -> None:
    """Freeze parts of a network, in place and before its first call: no gradient, the norms keep the statistics that
    they have, dropout and stochastic depth are off.

    Args:
        frozen_stages: as in `feature_network`, of what a detector calls its ``backbone``, or else of the network.
        norms: every batch normalisation there keeps its statistics, its scale and its shift, as is usual with few
            images per device.
        names: what the names of parameters begin with, up to a dot: ``stages.0`` is not ``stages.01``. ``backbone`` is
            a detector's, of another network everything but the classifier.

    Raises:
        UserError: the network has no such stages or names, or nothing is left that learns.
    """
    body = getattr(net, _BACKBONE, net)
    parts = getattr(body, "stage_parts", None) or [stage["parts"] for stage in getattr(body, "feature_info", ())]
    _check_frozen(frozen_stages, len(parts))
    if frozen_stages >= 0:
        _freeze(body, ["norms", *(part for stage in parts[frozen_stages:] for part in stage)])
    if norms:
        for _, cell in body.cells_and_names():
            if isinstance(cell, nn.BatchNorm2d):
                cell.use_batch_statistics = False
                cell.gamma.requires_grad = cell.beta.requires_grad = False
    for name in names:
        if name == _BACKBONE and body is net:
            _freeze_where(net, lambda one: not f"{one}.".startswith(f"{net.classifier}."))
        else:
            _freeze_named(net, name)
    if not net.trainable_params():
        raise UserError("everything is frozen, so that nothing would learn: leave something out of freeze")


def _freeze_named(net: nn.Cell, name: str) -> None:
    known = [parameter.name for parameter in net.get_parameters()]
    if not any(f"{one}.".startswith(f"{name}.") for one in known):
        parts = {".".join(one.split(".")[:depth]) for one in known for depth in range(1, one.count(".") + 2)}
        raise UserError(f"freeze: the network has nothing called {shortened(name)}{suggestion(name, sorted(parts))}")
    _freeze_where(net, lambda one: f"{one}.".startswith(f"{name}."))


def _check_frozen(frozen_stages: int, stages: int) -> None:
    if not -1 <= frozen_stages <= stages:
        raise UserError(f"frozen_stages {frozen_stages} is out of range: the network has {stages} stages")


def _freeze(net: nn.Cell, trained: Iterable[str]) -> None:
    """Freeze everything but the named parts and the head."""
    free = tuple(f"{part}." for part in (*trained, *net.head_parts))
    _freeze_where(net, lambda name: not f"{name}.".startswith(free))


def _freeze_where(net: nn.Cell, frozen: Callable[[str], bool]) -> None:
    """Freeze the parameters and cells whose names are ``frozen``."""
    for name, parameter in net.parameters_and_names():
        if frozen(name):
            parameter.requires_grad = False
    for name, cell in net.cells_and_names():
        if not frozen(name):
            continue
        # Not by set_train: the caller's own set_train(True) would undo it.
        if isinstance(cell, nn.BatchNorm2d):
            cell.use_batch_statistics = False
        elif isinstance(cell, Stochastic):
            cell.rate = 0.0
