"""Running statistics agree after averaging; nothing else moves."""

import numpy as np
from mindspore import Tensor, nn

from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.statistics import average_statistics

RNG = np.random.default_rng(0)


class Network(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, eps=1e-5, momentum=0.9)
        self.second = nn.BatchNorm2d(5, eps=1e-5, momentum=0.9)

    def construct(self, x):
        return self.first(x)


class Pair:
    """Rank 0 of two; the other holds `other`."""

    rank, size, is_main = 0, 2, True

    def __init__(self, other: np.ndarray) -> None:
        self.other = other

    def sum(self, values):
        return np.asarray(values, np.float64) + self.other


def randomized() -> tuple[Network, WeightAverage]:
    network = Network()
    average = WeightAverage(network)
    for parameter in (*network.get_parameters(), *average.shadow):
        parameter.set_data(Tensor(RNG.normal(size=parameter.shape).astype(np.float32)))
    return network, average


def test_statistics_of_weights_and_average_become_the_mean():
    network, average = randomized()
    parameters = [*network.get_parameters(), *average.shadow]
    before = {parameter.name: parameter.asnumpy().copy() for parameter in parameters}
    names = [name for name in before if "moving" in name]
    assert len(names) == 8
    other = RNG.normal(size=sum(before[name].size for name in names))
    average_statistics(parameters, Pair(other))
    offset = 0
    for parameter in parameters:
        expected = before[parameter.name]
        if parameter.name in names:
            theirs = other[offset : offset + expected.size]
            offset += expected.size
            expected = ((expected + theirs) / 2).astype(np.float32)
        np.testing.assert_array_equal(parameter.asnumpy(), expected, err_msg=parameter.name)


def test_one_rank_keeps_its_own():
    network, _ = randomized()
    before = network.first.moving_mean.asnumpy().copy()
    alone = Pair(np.float64(7.0))
    alone.size = 1
    average_statistics(network.get_parameters(), alone)
    np.testing.assert_array_equal(network.first.moving_mean.asnumpy(), before)
