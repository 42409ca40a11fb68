"""Random weights for the tables of what holds for any weights."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mindspore import nn


def randomise(net: "nn.Cell") -> "nn.Cell":
    """Give every parameter random numbers under which no fold is an identity, and activations neither vanish nor
    explode; returns the network."""
    import mindspore as ms

    rng = np.random.default_rng(0)
    for parameter in net.get_parameters():
        leaf, shape = parameter.name.rsplit(".", 1)[-1], parameter.shape
        if leaf == "moving_variance":
            value = rng.uniform(0.5, 1.5, shape)
        elif leaf == "gamma":
            value = rng.uniform(0.1, 0.5, shape) * rng.choice([-1.0, 1.0], shape)
        elif leaf in ("moving_mean", "beta", "bias"):
            value = rng.normal(0.0, 0.1, shape)
        else:
            value = rng.normal(0.0, np.prod(shape[1:]) ** -0.5, shape)
        parameter.set_data(ms.Tensor(value, ms.float32))
    return net
