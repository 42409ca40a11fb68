"""Mixed precision by casting cells in place: parameters stay float32 masters and keep their names."""

import logging

import mindspore as ms
from mindspore import nn

log = logging.getLogger(__name__)

LEVELS = ("O0", "O1", "O2", "O3")
_MATRIX_CELLS = (nn.Conv2d, nn.Conv2dTranspose, nn.Dense)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
# Their float16 gradients are wrong by large factors for ordinary inputs, so no level casts them.
_LAYER_STATISTICS = (nn.GroupNorm, nn.LayerNorm)


def supported_level(level: str, device_target: str) -> str:
    """The level to use on a device: CPUs have no float16 arithmetic, so they train in float32 and say so."""
    if device_target == "CPU" and level != "O0":
        log.info("amp_level %s needs float16 arithmetic, which the CPU only emulates: computing in float32 (O0)", level)
        return "O0"
    return level


def mixed_precision(network: nn.Cell, level: str) -> nn.Cell:
    """Cast the computation of `network` to float16, in place, before its first call; returns it.

    - `O0`: nothing; `O1`: convolutions and dense layers;
    - `O2`: everything except normalisation;
    - `O3`: batch normalisation too; only group and layer normalisation stay float32.

    Unlike `mindspore.amp.auto_mixed_precision` nothing is wrapped, so parameter names are those of the float32 network.
    """
    if level == "O0":
        return network
    if level == "O1":
        return _cast(network, _MATRIX_CELLS, ms.float16)
    network.to_float(ms.float16)
    return _cast(network, _LAYER_STATISTICS + (_BATCH_NORMS if level == "O2" else ()), ms.float32)


def _cast(network: nn.Cell, kinds: tuple[type[nn.Cell], ...], dtype: ms.Type) -> nn.Cell:
    for _, cell in network.cells_and_names():
        if isinstance(cell, kinds):
            cell.to_float(dtype)
    return network
