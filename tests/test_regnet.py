"""RegNetY: published size, structure, initialisation."""

import math

import numpy as np
import pytest
from mindspore import nn, ops
from networks import SMALL, cells, random_images, small_network

from mindcv_reparam import create_model
from mindcv_reparam.reparam import reparameterize

# Its training and its export are compiled by the tests of what holds for every family.
pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def network():
    return small_network("regnet")


@pytest.mark.slow
def test_regnety_160():
    net = create_model("regnety_160")
    assert sum(parameter.size for parameter in net.trainable_params()) == 83_590_140
    assert net.stages[3][0].conv2[0].group == 27
    # He over the fan-out of a group; the last norm of a block starts at zero.
    weight = net.stages[2][1].conv2[0].weight.asnumpy()
    assert weight.std() == pytest.approx(math.sqrt(2 / (9 * 112)), rel=0.01)
    assert not net.stages[2][1].conv3[1].gamma.asnumpy().any()
    assert net.head.weight.asnumpy().std() == pytest.approx(0.01, rel=0.01)


def test_stages(network):
    shapes = [stage.shape for stage in network.forward_stages(random_images((64, 96)))]
    assert shapes == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)]
    assert [info["channels"] for info in network.feature_info] == [8, 16, 24, 32]
    assert [info["stride"] for info in network.feature_info] == [4, 8, 16, 32]


def test_blocks(network):
    first, second = network.stages[1]
    assert (first.conv2[0].stride, second.conv2[0].stride) == ((2, 2), (1, 1))
    assert first.downsample is not None
    assert second.downsample is None
    # Squeeze-and-excitation is a quarter of the block's input, not of its width.
    assert (first.se.fc1.out_channels, second.se.fc1.out_channels) == (2, 4)


def test_blocks_start_as_identities():
    name, hyper_parameters = SMALL["regnet"]
    block = create_model(name, **hyper_parameters).set_train(False).stages[1][1]
    x = ops.relu(random_images((6, 5), channels=16))
    assert np.array_equal(block(x).asnumpy(), x.asnumpy())


def test_full_has_no_norm_and_branches_all(network):
    assert len(cells(reparameterize(network, "branches"), nn.BatchNorm2d)) == len(cells(network, nn.BatchNorm2d))
    assert not cells(reparameterize(network), nn.BatchNorm2d)
