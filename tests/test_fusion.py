"""The fold algebra against a convolution written out in loops, in float64."""

import numpy as np
import pytest

from mindcv_reparam import fusion
from mindcv_reparam.fusion import Affine, Linear

TOLERANCE = 1e-12
# in channels, out channels, kernel, stride, groups
GEOMETRIES = [
    (4, 6, (1, 1), 1, 1),
    (4, 6, (3, 3), 1, 1),
    (4, 6, (3, 3), 2, 2),
    (4, 4, (3, 3), 2, 4),  # depthwise
    (3, 6, (7, 7), 2, 3),  # depthwise with two filters per channel
    (4, 6, (1, 5), 1, 2),
]


def convolve(x: np.ndarray, linear: Linear, stride: int = 1, groups: int = 1) -> np.ndarray:
    """(N, C, H, W) → (N, out, H', W') by the definition, with zero padding of (kernel - 1) // 2."""
    weight, bias = linear
    out, in_per_group, height, width = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (height // 2, height // 2), (width // 2, width // 2)))
    rows, columns = (x.shape[2] - height) // stride + 1, (x.shape[3] - width) // stride + 1
    y = np.empty((len(x), out, rows, columns))
    for o, i, j in np.ndindex(out, rows, columns):
        first = o // (out // groups) * in_per_group
        top, left = i * stride, j * stride
        window = x[:, first : first + in_per_group, top : top + height, left : left + width]
        y[:, o, i, j] = (window * weight[o]).sum((1, 2, 3)) + bias[o]
    return y


def apply(affine: Affine, x: np.ndarray) -> np.ndarray:
    """The affine map on axis 1 of x."""
    shape = (-1, *[1] * (x.ndim - 2))
    return x * affine.scale.reshape(shape) + affine.shift.reshape(shape)


def random_linear(rng: np.random.Generator, *shape: int) -> Linear:
    return Linear(rng.standard_normal(shape), rng.standard_normal(shape[0]))


def random_affine(rng: np.random.Generator, channels: int) -> Affine:
    return Affine(rng.standard_normal(channels), rng.standard_normal(channels))


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    return lambda channels: rng.standard_normal((2, channels, 9, 8))


def test_the_direct_convolution_is_one():
    x, kernel = np.arange(9.0).reshape(1, 1, 3, 3), np.zeros((1, 1, 3, 3))
    kernel[0, 0, 0, 2] = 1.0  # the upper right neighbour
    y = convolve(x, Linear(kernel, np.array([10.0])))
    assert y[0, 0].tolist() == [[10, 10, 10], [11, 12, 10], [14, 15, 10]]


def test_linear_is_float64_and_a_missing_bias_is_zero():
    linear = fusion.linear(np.ones((2, 3), np.float32))
    assert linear.weight.dtype == linear.bias.dtype == np.float64
    assert linear.bias.tolist() == [0.0, 0.0]
    assert fusion.linear(np.ones((2, 3)), np.array([1, 2], np.float32)).bias.tolist() == [1.0, 2.0]


def test_affine_takes_one_entry_per_channel_in_any_shape():
    affine = fusion.affine(np.full((3, 1, 1), 2.0, np.float32))
    assert affine.scale.tolist() == [2.0, 2.0, 2.0]
    assert affine.shift.tolist() == [0.0, 0.0, 0.0]
    assert fusion.affine(np.ones(2), np.array([[1], [2]])).shift.tolist() == [1.0, 2.0]


def test_batch_norm(rng, images):
    x = images(5)
    gamma, beta, mean = rng.standard_normal((3, 5))
    variance, eps = rng.uniform(0.0, 0.1, 5), 1e-2
    centred = x - mean.reshape(-1, 1, 1)
    expected = centred / np.sqrt(variance + eps).reshape(-1, 1, 1) * gamma.reshape(-1, 1, 1) + beta.reshape(-1, 1, 1)
    assert_equal(apply(fusion.batch_norm(gamma, beta, mean, variance, eps), x), expected)


def test_compose(rng, images):
    x, outer, inner = images(4), random_affine(rng, 4), random_affine(rng, 4)
    assert_equal(apply(fusion.compose(outer, inner), x), apply(outer, apply(inner, x)))


@pytest.mark.parametrize(("channels", "out", "kernel", "stride", "groups"), GEOMETRIES)
def test_affine_after_a_convolution(rng, images, channels, out, kernel, stride, groups):
    x, linear, affine = images(channels), random_linear(rng, out, channels // groups, *kernel), random_affine(rng, out)
    expected = apply(affine, convolve(x, linear, stride, groups))
    assert_equal(convolve(x, fusion.affine_after(affine, linear), stride, groups), expected)


def test_affine_after_a_dense_layer(rng):
    x, linear, affine = rng.standard_normal((3, 4)), random_linear(rng, 5, 4), random_affine(rng, 5)
    fused = fusion.affine_after(affine, linear)
    assert_equal(x @ fused.weight.T + fused.bias, apply(affine, x @ linear.weight.T + linear.bias))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "out", "groups"), [(4, 6, 1), (6, 4, 2), (4, 4, 4), (3, 6, 3)])
def test_affine_before_a_pointwise_convolution(rng, images, channels, out, groups, stride):
    x, affine = images(channels), random_affine(rng, channels)
    linear = random_linear(rng, out, channels // groups, 1, 1)
    expected = convolve(apply(affine, x), linear, stride, groups)
    assert_equal(convolve(x, fusion.affine_before(linear, affine, groups), stride, groups), expected)


def test_affine_before_a_dense_layer(rng):
    x, linear, affine = rng.standard_normal((3, 4)), random_linear(rng, 5, 4), random_affine(rng, 4)
    fused = fusion.affine_before(linear, affine)
    assert_equal(x @ fused.weight.T + fused.bias, apply(affine, x) @ linear.weight.T + linear.bias)


def test_affine_before_a_padded_kernel_is_refused(rng):
    with pytest.raises(ValueError, match="does not fold exactly"):
        fusion.affine_before(random_linear(rng, 4, 4, 3, 3), random_affine(rng, 4))


@pytest.mark.parametrize("size", [(3, 3), (5, 3), (7, 7)])
@pytest.mark.parametrize(("channels", "out", "kernel", "stride", "groups"), [g for g in GEOMETRIES if max(g[2]) <= 3])
def test_a_padded_kernel_is_the_same_map(rng, images, channels, out, kernel, stride, groups, size):
    x, linear = images(channels), random_linear(rng, out, channels // groups, *kernel)
    padded = fusion.pad_kernel(linear, size)
    assert padded.weight.shape[2:] == size
    assert_equal(convolve(x, padded, stride, groups), convolve(x, linear, stride, groups))


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (5, 6)])
def test_a_kernel_without_a_centred_place_is_refused(rng, size):
    with pytest.raises(ValueError, match="no centred place"):
        fusion.pad_kernel(random_linear(rng, 2, 2, 5, 5), size)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 5)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_identity(images, groups, size):
    x = images(6)
    assert np.array_equal(convolve(x, fusion.identity(6, groups, size), groups=groups), x)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_parallel_branches(rng, images, stride, groups):
    x = images(4)
    branches = [random_linear(rng, 4, 4 // groups, *size) for size in [(3, 3), (1, 1), (5, 3), (3, 7)]]
    fused = fusion.parallel(*branches)
    assert fused.weight.shape[2:] == (5, 7)
    expected = sum(convolve(x, branch, stride, groups) for branch in branches)
    assert_equal(convolve(x, fused, stride, groups), expected)


def test_inputs_stay_as_they_are(rng):
    linear, affine = random_linear(rng, 4, 4, 1, 1), random_affine(rng, 4)
    copies = [array.copy() for array in (*linear, *affine)]
    fusion.affine_after(affine, linear)
    fusion.affine_before(linear, affine)
    fusion.parallel(linear, fusion.identity(4, size=(3, 3)))
    fusion.compose(affine, affine)
    assert all(np.array_equal(array, copy) for array, copy in zip((*linear, *affine), copies, strict=True))
