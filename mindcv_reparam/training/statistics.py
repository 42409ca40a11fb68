"""Batch-normalisation statistics of several ranks."""

from collections.abc import Iterable

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam import tree
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.errors import UserError

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


def synchronize(network: nn.Cell, device_target: str) -> nn.Cell:
    """Have every batch normalisation of `network` use the batches of all ranks, in place and under the same names.

    Returns the network. Not run on Ascend here.

    Raises:
        UserError: the device has no such operator.
    """
    if device_target != "Ascend":
        raise UserError(
            f"sync_bn needs Ascend: on a {device_target} every rank normalises its own batch, and the statistics "
            "are averaged before validation and saving; leave sync_bn out"
        )
    return tree.replace(network, _synchronous)


def _synchronous(norm: nn.Cell) -> nn.Cell | None:
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return None
    new = nn.SyncBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=1.0 - norm.momentum,
        use_batch_statistics=norm.use_batch_statistics,  # False where the norm is frozen
    )
    for leaf in (*_LEAVES, "gamma", "beta"):
        setattr(new, leaf, getattr(norm, leaf))
    return new
