"""Batch-normalisation statistics of several ranks."""

from collections.abc import Iterable

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.errors import UserError

from .evaluate import Ranks

_LEAVES = ("moving_mean", "moving_variance")


def average_statistics(parameters: Iterable[Parameter], ranks: Ranks) -> None:
    """Set every running mean and variance among `parameters` to its mean over the ranks, which then agree bit for bit.

    Each rank tracks the statistics of its own data; without this, ranks would evaluate different networks and the
    checkpoint would hold rank 0's alone. Collective; nothing happens on one rank.
    """
    statistics = [parameter for parameter in parameters if parameter.name.rpartition(".")[2] in _LEAVES]
    if ranks.size == 1 or not statistics:
        return
    local = np.concatenate([parameter.asnumpy().ravel() for parameter in statistics])
    means = (ranks.sum(local) / ranks.size).astype(np.float32)
    ends = np.cumsum([parameter.size for parameter in statistics])
    for parameter, mean in zip(statistics, np.split(means, ends[:-1])):
        ops.assign(parameter, Tensor(mean.reshape(parameter.shape)))  # in place, see WeightAverage


def synchronize(network: nn.Cell, device_target: str) -> None:
    """Have every batch normalisation of `network` use the batches of all ranks, in place and under the same names.

    Not run on Ascend here.

    Raises:
        UserError: the device has no such operator.
    """
    if device_target != "Ascend":
        raise UserError(
            f"sync_bn needs Ascend: on a {device_target} every rank normalises its own batch, and the statistics "
            "are averaged before validation and saving; leave sync_bn out"
        )
    for _, cell in list(network.cells_and_names()):
        for name, child in cell.name_cells().items():
            if isinstance(child, nn.BatchNorm2d):
                synchronous = nn.SyncBatchNorm(child.num_features, eps=child.eps, momentum=1.0 - child.momentum)
                setattr(cell, name, synchronous)  # which prefixes its parameters' names once more
                for leaf in ("moving_mean", "moving_variance", "gamma", "beta"):
                    setattr(synchronous, leaf, getattr(child, leaf))
