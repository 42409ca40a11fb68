"""Running statistics agree after averaging; nothing else moves."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindcv_reparam.errors import UserError
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.statistics import average_statistics, synchronize

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


def test_synchronous_norms_take_the_place_of_the_others():
    """On one rank, where MindSpore's SyncBatchNorm computes what BatchNorm2d does."""
    network = nn.SequentialCell(randomized()[0], randomized()[0])
    before = {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}
    x = Tensor(RNG.normal(size=(4, 3, 2, 2)).astype(np.float32))
    expected = network[0].set_train()(x).asnumpy()
    for name, value in before.items():  # the first call has moved the statistics
        dict(network.parameters_and_names())[name].set_data(Tensor(value))

    synchronize(network, "Ascend")
    norms = [network[index].second for index in (0, 1)] + [network[0].first]
    assert all(type(norm) is nn.SyncBatchNorm for norm in norms)
    after = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    assert list(after) == list(before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert (norms[0].eps, norms[0].momentum) == (1e-5, pytest.approx(0.1))
    np.testing.assert_array_equal(norms[2].set_train()(x).asnumpy(), expected)


def test_synchronous_norms_are_refused_on_a_cpu():
    with pytest.raises(UserError, match="statistics are averaged before validation"):
        synchronize(Network(), "CPU")
