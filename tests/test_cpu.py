"""The CPU kernels against MindSpore's own operators, forwards and backwards, and what they leave alone."""

import ctypes

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from networks import NUM_CLASSES, SMALL, difference, random_images, randomise, small_network

from mindcv_reparam.cpu import library as kernels
from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.layers import GroupNorm, LayerScale, conv2d, gelu
from mindcv_reparam.reparam import reparameterize
from mindcv_reparam.stochastic import DropPath, seed_masks
from mindcv_reparam.training.step import gradients_by_name

TOLERANCE = 5e-6  # of the largest entry: that of sums in another order

# kernel size, stride, channel multiplier, bias, shape of the input
DEPTHWISE = [
    (3, 1, 1, True, (2, 5, 9, 13)),
    (3, 2, 1, False, (2, 6, 8, 40)),
    (3, 2, 2, True, (1, 6, 1, 1)),
    (7, 1, 1, False, (3, 4, 33, 20)),
    (7, 1, 2, True, (2, 6, 3, 4)),
    (7, 2, 2, True, (2, 3, 17, 16)),
]

# in and out channels, kernel size, stride, padding, groups, bias, batch and image
DENSE = [
    (5, 7, 1, 1, 0, 1, True, (3, 7, 7)),
    (40, 70, 1, 1, 0, 1, False, (2, 14, 13)),
    (6, 4, 1, 2, 0, 2, True, (2, 9, 8)),
    (8, 20, 3, 1, 1, 4, False, (2, 9, 70)),
    (3, 17, 3, 2, 1, 1, True, (3, 17, 16)),
    (4, 9, 2, 2, 0, 1, True, (2, 9, 6)),
    (3, 5, 7, 4, 2, 1, False, (2, 30, 33)),
    (4, 4, 3, 1, 4, 1, True, (1, 1, 2)),
    (600, 33, 1, 1, 0, 1, True, (1, 5, 30)),
    (33, 600, 1, 1, 0, 1, False, (2, 9, 30)),
    (2, 3, 3, 1, 1, 1, True, (2, 40, 41)),
]


class Weighted(nn.Cell):
    """A sum of outputs, each with another weight, so that no gradient cancels."""

    def __init__(self, cell: nn.Cell, weight: Tensor):
        super().__init__()
        self.cell = cell
        self.weight = weight

    def construct(self, x):
        return (self.cell(x) * self.weight).sum()


def results(cell: nn.Cell, x: Tensor) -> list[np.ndarray]:
    """The output and the gradients for the input and every parameter."""
    y = cell(x)
    weighted = Weighted(cell, Tensor(np.random.default_rng(1).normal(size=y.shape), ms.float32))
    parameters = ms.ParameterTuple(cell.get_parameters())
    if not parameters:
        return [y.asnumpy(), ms.jit(ms.grad(weighted, 0))(x).asnumpy()]
    input_gradient, gradients = ms.jit(ms.grad(weighted, 0, parameters))(x)
    return [y.asnumpy(), input_gradient.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]


def assert_same(make, shape: tuple[int, ...]) -> None:
    plain = nn.SequentialCell(randomise(make()))
    fast = use_kernels(nn.SequentialCell(randomise(make())))
    assert type(fast[0]) is not type(plain[0])
    assert [p.name for p in fast.get_parameters()] == [p.name for p in plain.get_parameters()]
    x = Tensor(np.random.default_rng(0).normal(0.3, 2.0, shape), ms.float32)
    for actual, expected in zip(results(fast, x), results(plain, x)):
        assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["exact", "tanh"])
def test_gelu(kind):
    assert_same(lambda: gelu(kind), (3, 5, 7, 9))


@pytest.mark.parametrize("kind", ["exact", "tanh"])
def test_gelu_far_out(kind):
    x = Tensor([-1e30, -100.0, -6.0, 0.0, 6.0, 100.0, 1e30, np.inf, np.nan], ms.float32)
    net = use_kernels(nn.SequentialCell(gelu(kind)))
    y = net(x).asnumpy()
    np.testing.assert_allclose(y[:-1], [0, 0, 0, 0, 6, 100, 1e30, np.inf], rtol=1e-6, atol=1e-6)
    assert np.isnan(y[-1])


@pytest.mark.parametrize(("size", "stride", "multiplier", "bias", "shape"), DEPTHWISE)
def test_depthwise_convolution(size, stride, multiplier, bias, shape):
    channels = shape[1]
    assert_same(lambda: conv2d(channels, multiplier * channels, size, stride, groups=channels, bias=bias), shape)


@pytest.mark.parametrize(("channels", "out", "size", "stride", "padding", "groups", "bias", "shape"), DENSE)
def test_dense_convolution(channels, out, size, stride, padding, groups, bias, shape):
    batch, *image = shape
    assert_same(
        lambda: conv2d(channels, out, size, stride, padding=padding, groups=groups, bias=bias),
        (batch, channels, *image),
    )


def call(name: str, *tensors: np.ndarray) -> None:
    """Call an operator as MindSpore does: inputs, then outputs."""
    shapes = [(ctypes.c_int64 * tensor.ndim)(*tensor.shape) for tensor in tensors]
    pointers = (ctypes.c_void_p * len(tensors))(*(tensor.ctypes.data for tensor in tensors))
    ranks = (ctypes.c_int * len(tensors))(*(tensor.ndim for tensor in tensors))
    rows = (ctypes.c_void_p * len(tensors))(*(ctypes.addressof(shape) for shape in shapes))
    operator = getattr(ctypes.CDLL(str(kernels.library())), name)
    assert operator(len(tensors), pointers, ranks, rows, None, None, None) == 0


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 3)])
def test_convolutions_do_not_depend_on_the_number_of_threads(stride, groups):
    rng = np.random.default_rng(0)
    side = (33 - 3) // stride + 1
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 24, 33, 33), (45, 24 // groups, 3, 3)))
    dy = rng.normal(size=(3, 45, side, side)).astype(np.float32)
    geometry, bias = np.zeros((stride, 1), np.float32), np.ones(45, np.float32)
    results = []
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    for threads in (1, 2, 5):
        openmp.omp_set_num_threads(threads)
        y, dx, dweight, sums = (np.full_like(like, np.nan) for like in (dy, x, weight, bias))
        call("convolution", x, weight, bias, geometry, y)
        call("convolution_input_grad", dy, weight, x, geometry, dx)
        call("convolution_weight_grad", x, dy, weight, geometry, dweight)
        call("channel_sums", dy, sums)
        results.append((y, dx, dweight, sums))
    openmp.omp_set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other):
            np.testing.assert_array_equal(one, two)


def test_other_convolutions_are_left_alone():
    convolutions = [conv2d(4, 4, 5, groups=4), conv2d(4, 4, 3, padding=0, groups=4)]
    net = use_kernels(nn.SequentialCell(convolutions))
    assert {type(cell) for cell in net} == {nn.Conv2d}


@pytest.mark.parametrize(("scale", "shift"), [(True, True), (True, False), (False, False)])
def test_group_norm(scale, shift):
    assert_same(lambda: GroupNorm(6, scale=scale, shift=shift), (3, 6, 5, 7))


@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (1, 5, 1, 1)])
def test_layer_scale(shape):
    assert_same(lambda: LayerScale((5, 1, 1), 1.0), shape)


def test_stochastic_depth():
    plain, fast = (nn.SequentialCell(DropPath(0.4)).set_train() for _ in range(2))
    use_kernels(fast)
    assert type(fast[0]) is not DropPath
    x = random_images((9, 7), channels=5)
    found = []
    for net in (plain, fast):
        seed_masks(net, seed=2)
        found.append([*results(net, x), *(net(x).asnumpy() for _ in range(4))])
        assert difference(net.set_train(False)(x), x) == 0.0
    for actual, expected in zip(*found):
        np.testing.assert_array_equal(actual, expected)
    kept = np.stack([y[:, 0, 0, 0] for y in found[0][2:]]) != 0.0
    assert 0 < kept.sum() < kept.size


@pytest.mark.parametrize("family", SMALL)
def test_networks(family):
    images, expected = random_images(), small_network(family)
    fast = use_kernels(small_network(family))
    assert [p.name for p in fast.get_parameters()] == [p.name for p in expected.get_parameters()]
    assert difference(fast(images), expected(images)) <= TOLERANCE
    assert difference(reparameterize(fast)(images), expected(images)) <= 1e-5
    assert difference(use_kernels(reparameterize(expected))(images), expected(images)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["fastvit", "riformer", "visformer"])
def test_gradients_of_networks(family):
    images = random_images().asnumpy()
    labels = np.arange(len(images), dtype=np.int32) % NUM_CLASSES
    gradients = []
    for prepare in (use_kernels, lambda net: net):
        net = small_network(family)
        seed_masks(net, 0)
        gradients.append(gradients_by_name(prepare(net), nn.CrossEntropyLoss(), images, labels))
    fast, expected = gradients
    assert list(fast) == list(expected)
    # The gradient of a bias in front of a BatchNorm is zero but for rounding, which depends on the others' size.
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name in expected:
        error = np.abs(fast[name] - expected[name]).max()
        assert error <= 1e-4 * np.abs(expected[name]).max() + 1e-6 * largest, name


def test_without_a_compiler_nothing_changes(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernels.library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            net = use_kernels(nn.SequentialCell(gelu("exact")))
        assert type(net[0]) is nn.GELU
        assert "no C++ compiler" in caplog.text
    finally:
        kernels.library.cache_clear()


def test_a_failed_build_is_named_and_leaves_nothing(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "--no-such-flag"))
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None
        assert "no-such-flag" in caplog.text
        assert not list(kernels.cache_folder().iterdir())
    finally:
        kernels.library.cache_clear()
