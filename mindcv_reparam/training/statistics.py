"""Batch-normalisation statistics of several ranks."""

from collections.abc import Iterable

import numpy as np
from mindspore import Parameter, Tensor, ops

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
