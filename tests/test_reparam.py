"""The protocol of re-parameterization, on a small network of every family and on Cells at the root."""

import copy
import functools
import gc

import mindspore as ms
import numpy as np
import pytest
from graphs import graphs_of, is_compiled
from mindspore import Tensor, nn, ops
from networks import (
    SMALL,
    arrays,
    cells,
    difference,
    random_images,
    randomise,
    small_network,
)

from mindcv_reparam.layers import ConvNorm, Dropout, DropPath, LayerScale, Scale, batch_norm, conv2d
from mindcv_reparam.models.fastvit import LargeKernelConv, MobileOneConv, PositionalEncoding, RepMixer
from mindcv_reparam.registry import models
from mindcv_reparam.reparam import LEVELS, Reparameterizable, float64_parameter, reparameterize
from mindcv_reparam.stochastic import seed_masks

# Measured at most 2e-6; an epsilon left out of one norm shows up at about 1e-4.
TOLERANCE = 1e-5


@functools.cache
def train_time(family: str) -> nn.Cell:
    """A train-time network, in evaluation mode, that has been called, and of FastViT compiled."""
    net = small_network(family)
    net(random_images())
    return net


@functools.cache
def fused_at(family: str, level: str) -> nn.Cell:
    return reparameterize(train_time(family), level)


@pytest.fixture(params=SMALL)
def family(request):
    """Compiling would take most of the time; one of them is compiled."""
    ms.set_context(mode=ms.GRAPH_MODE if request.param == "fastvit" else ms.PYNATIVE_MODE)
    yield request.param
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(params=LEVELS)
def level(request):
    return request.param


@pytest.fixture
def network(family):
    return train_time(family)


@pytest.fixture
def fused(family, level):
    return fused_at(family, level)


def test_every_family_is_here():
    assert SMALL.keys() == {info.family for info in models().values() if info.task == "classification"}


def test_the_outputs_are_equal(network, fused):
    images = random_images(seed=1)
    assert difference(fused(images), network(images)) <= TOLERANCE


def test_the_original_stays_as_it_is(network, level):
    images, before = random_images(), arrays(network)
    output, places = network(images).asnumpy(), cells(network, nn.Cell)
    names = [parameter.name for parameter in network.get_parameters()]

    for parameter in reparameterize(network, level).get_parameters():
        parameter.set_data(ops.zeros_like(parameter))

    assert cells(network, nn.Cell) == places
    assert [parameter.name for parameter in network.get_parameters()] == names
    after = arrays(network)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert np.array_equal(network(images).asnumpy(), output)


def test_a_training_network_stays_in_training_mode(level):
    net = small_network("fastvit").set_train(True)
    fused = reparameterize(net, level)
    assert all(cell.training for _, cell in net.cells_and_names())
    assert not any(cell.training for _, cell in fused.cells_and_names())


def test_fusing_twice_changes_nothing(fused, level):
    again, once = arrays(reparameterize(fused, level)), arrays(fused)
    assert list(again) == list(once)
    assert all(np.array_equal(again[name], once[name]) for name in once)


def test_branches_then_full_is_full(family):
    steps, direct = reparameterize(fused_at(family, "branches")), fused_at(family, "full")
    assert cells(steps, nn.Cell) == cells(direct, nn.Cell)
    assert list(arrays(steps)) == list(arrays(direct))
    for name, array in arrays(direct).items():
        # The way through "branches" rounds to float32 once more.
        assert np.abs(arrays(steps)[name] - array).max() <= 1e-6 * np.abs(array).max(), name


def test_full_has_fewer_parameters_than_training(family):
    networks = (fused_at(family, "full"), fused_at(family, "branches"), train_time(family))
    full, branches, training = (sum(p.size for p in net.get_parameters()) for net in networks)
    assert full < training
    assert full <= branches <= training


def test_full_leaves_nothing_to_fold(family):
    assert not cells(
        fused_at(family, "full"), nn.BatchNorm2d, LayerScale, Scale, Dropout, DropPath, nn.Dropout, ConvNorm
    )


def test_parameters_are_float32_and_named_by_their_place(fused):
    for name, parameter in fused.parameters_and_names():
        assert parameter.name == name
        assert parameter.dtype == ms.float32
    names = [parameter.name for parameter in fused.get_parameters()]
    assert len(set(names)) == len(names)


def test_every_parameter_of_full_reaches_the_output(family):
    """Also once the fused network has run: there is no stale graph, no stale list of cells, no parameter left over."""
    fused, images, rng = fused_at(family, "full"), random_images(), np.random.default_rng(0)
    output = fused(images).asnumpy()
    for name, parameter in fused.parameters_and_names():
        value = parameter.asnumpy().copy()
        parameter.set_data(Tensor(value + rng.normal(0.0, 0.3, value.shape), ms.float32))
        assert difference(fused(images), output) > 1e-5, name
        parameter.set_data(Tensor(value))
    assert np.array_equal(fused(images).asnumpy(), output)


def test_the_original_keeps_its_compiled_graphs():
    net = nn.SequentialCell(ConvNorm(conv2d(3, 4, 3), batch_norm(4)), nn.ReLU()).set_train(False)
    net(random_images())
    (graph,) = graphs_of(net)
    fused = reparameterize(net)
    fused(random_images())
    del fused
    gc.collect()
    assert is_compiled(graph)


def test_the_structure_does_not_depend_on_the_weights(family, level):
    """So a fused checkpoint loads strictly into the fused network of a new model."""
    source = reparameterize(small_network(family, seed=1), level)
    target = reparameterize(small_network(family, seed=2), level)
    assert cells(target, nn.Cell) == cells(source, nn.Cell)
    shapes = [{name: array.shape for name, array in arrays(net).items()} for net in (source, target)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["visformer", "fastvit", pytest.param("riformer", marks=pytest.mark.exhaustive)])
def test_equal_after_two_training_steps(family, by_operator):
    net, images, labels = small_network(family).set_train(True), random_images(), Tensor([0, 1], ms.int32)
    # The masks must not depend on the tests before: some leave a network whose logits move by 1e-5 of their size when
    # its input moves by a rounding error.
    seed_masks(net, 0)
    optimizer = nn.SGD(net.trainable_params(), learning_rate=1e-3)

    def loss(x, y):
        return ops.cross_entropy(net(x), y)

    step, before = ms.value_and_grad(loss, None, optimizer.parameters), arrays(net)
    for _ in range(2):
        _, gradients = step(images, labels)
        optimizer(gradients)
    assert sum(not np.array_equal(array, before[name]) for name, array in arrays(net).items()) > 0.9 * len(before)
    net.set_train(False)
    for level in LEVELS:
        assert difference(reparameterize(net, level)(images), net(images)) <= TOLERANCE, level


ROOTS = {
    "ConvNorm": (lambda: ConvNorm(conv2d(6, 6, 3, groups=2), batch_norm(6)), ("full",)),
    "MobileOneConv": (lambda: MobileOneConv(6, 6, 3, groups=6), LEVELS),
    "MobileOneConv, stride 2": (lambda: MobileOneConv(6, 12, 3, stride=2, groups=2), LEVELS),
    "MobileOneConv, 1x1": (lambda: MobileOneConv(6, 6, 1), LEVELS),
    "LargeKernelConv": (lambda: LargeKernelConv(6, 12, stride=2), LEVELS),
    "PositionalEncoding": (lambda: PositionalEncoding(6), LEVELS),
    "RepMixer": (lambda: RepMixer(6, 1e-5), LEVELS),
}


@pytest.mark.parametrize(("root", "at"), [(root, at) for root, (_, levels) in ROOTS.items() for at in levels])
def test_the_root_is_fused_too(root, at):
    net, x = randomise(ROOTS[root][0]()).set_train(False), random_images((9, 10), channels=6)
    fused = reparameterize(net, at)
    assert type(fused) is nn.Conv2d
    assert [parameter.name for parameter in fused.get_parameters()] == ["weight", "bias"]
    assert difference(fused(x), net(x)) <= 1e-6


def test_a_network_without_anything_to_fuse_is_copied():
    net = nn.SequentialCell(conv2d(3, 4, 3), nn.ReLU())
    fused = reparameterize(net)
    assert fused is not net
    assert fused[0] is not net[0]
    assert np.array_equal(fused(random_images()).asnumpy(), net(random_images()).asnumpy())


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="'deploy' is none of branches, full"):
        reparameterize(nn.ReLU(), "deploy")


def test_folds_round_once():
    """Two folds on one weight: float64 in between, float32 at the end."""

    class AddThird(Reparameterizable, nn.SequentialCell):
        def fuse(self) -> nn.Cell:
            new = copy.deepcopy(self[0])
            new.weight = float64_parameter(self[0].weight.asnumpy().astype(np.float64) + 1 / 3 * 2**-23, "weight")
            return new

    conv = conv2d(1, 1)
    conv.weight.set_data(ops.ones((1, 1, 1, 1)))
    fused = reparameterize(AddThird(AddThird(conv)))  # two thirds of the last place round up, one third does not
    assert fused.weight.asnumpy().item() == 1 + 2**-23
