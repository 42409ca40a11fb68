"""GFNet-H: its transforms against NumPy's FFT, its counts and its fold."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from networks import arrays, cells, difference, random_images, randomise

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.checkpoint import load_arrays
from mindcv_reparam.complexity import cost, count_parameters
from mindcv_reparam.features import feature_network
from mindcv_reparam.layers import Dropout, DropPath
from mindcv_reparam.models.gfnet import (
    Block,
    FusedBlock,
    GFNet,
    GlobalFilter,
    full_spectrum,
    half_spectrum,
    resize_filter,
)

# test_features_are_channels_first compiles.
pytestmark = pytest.mark.usefixtures("pynative")
SIZES = [(8, 6), (7, 5), (6, 7), (9, 4), (1, 2)]


@pytest.fixture(scope="module")
def network():
    """A small network for inputs of 64 by 96 pixels, with dropout and stochastic depth to take out."""
    net = GFNet((1, 1, 2, 1), (8, 16, 24, 32), 1.0, 0.2, mlp_ratio=2.0, num_classes=5, img_size=(64, 96), drop_rate=0.1)
    return randomise(net).set_train(False)


@pytest.mark.parametrize("size", [1, 2, 5, 6, 56])
def test_half_spectrum_is_numpy_s(size):
    rng, frequencies = np.random.default_rng(0), size // 2 + 1
    forward, backward = half_spectrum(size)
    x = rng.standard_normal(size)
    expected = np.fft.rfft(x, norm="ortho")
    assert np.abs(forward @ x - np.concatenate([expected.real, expected.imag])).max() <= 1e-12
    # Any spectrum: no signal has imaginary parts at frequencies 0 and size / 2, and irfft does not look at them.
    spectrum = rng.standard_normal(frequencies) + 1j * rng.standard_normal(frequencies)
    expected = np.fft.irfft(spectrum, size, norm="ortho")
    assert np.abs(backward @ np.concatenate([spectrum.real, spectrum.imag]) - expected).max() <= 1e-12


@pytest.mark.parametrize("size", [1, 2, 5, 6, 56])
def test_full_spectrum_is_numpy_s(size):
    x = np.random.default_rng(0).standard_normal((2, size))
    for matrix, transform in zip(full_spectrum(size), (np.fft.fft, np.fft.ifft)):
        expected = transform(x[0] + 1j * x[1], norm="ortho")
        assert np.abs(matrix @ x.ravel() - np.concatenate([expected.real, expected.imag])).max() <= 1e-12


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_filter_is_a_product_of_spectra(height, width):
    rng, layer = np.random.default_rng(0), GlobalFilter(3, (height, width))
    weight, x = rng.standard_normal(layer.complex_weight.shape), rng.standard_normal((2, height, width, 3))
    layer.complex_weight.set_data(Tensor(weight, ms.float32))
    spectrum = np.fft.rfft2(x, axes=(1, 2), norm="ortho") * (weight[..., 0] + 1j * weight[..., 1])
    expected = np.fft.irfft2(spectrum, s=(height, width), axes=(1, 2), norm="ortho")
    assert difference(layer(Tensor(x, ms.float32)), expected) <= 1e-6


def test_the_filter_stays_float32_in_mixed_precision():
    layer, half = randomise(GlobalFilter(3, (6, 4))), randomise(GlobalFilter(3, (6, 4))).to_float(ms.float16)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 6, 4, 3)), ms.float32)
    assert np.array_equal(half(x).asnumpy(), layer(x).asnumpy())


def test_the_graph_has_no_fourier_transform(network):
    operators = cost(network, (1, 3, 64, 96)).operators
    assert not [name for name in operators if "fft" in name.lower()]
    assert operators["Conv2D"] == 4 + 4 * len(cells(network, GlobalFilter))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gfnet_h_ti", 15_085_096),
        pytest.param("gfnet_h_s", 32_162_632, marks=pytest.mark.slow),
        pytest.param("gfnet_h_b", 53_744_200, marks=(pytest.mark.slow, pytest.mark.exhaustive)),
    ],
)
def test_parameter_counts_are_the_authors(name, count):
    assert count_parameters(create_model(name)) == count


@pytest.mark.slow
def test_features_are_channels_first(graph_mode, network):
    expected = [(2, channels, 64 // stride, 96 // stride) for channels, stride in zip((8, 16, 24, 32), (4, 8, 16, 32))]
    assert [
        (2, info["channels"], 64 // info["stride"], 96 // info["stride"]) for info in network.feature_info
    ] == expected
    assert [output.shape for output in feature_network(network)(random_images())] == expected


@pytest.mark.exhaustive
def test_full_leaves_no_layer_scale(network):
    full, images = reparameterize(network), random_images(seed=1)
    assert cells(full, FusedBlock) == cells(network, Block)
    assert not cells(full, Block, Dropout, DropPath, nn.Dropout)
    layer_scales = {f"{block}.gamma" for block in cells(network, Block)}
    assert list(arrays(full)) == [name for name in arrays(network) if name not in layer_scales]
    assert difference(full(images), network(images)) <= 1e-5


def test_branches_is_the_network(network):
    assert list(arrays(reparameterize(network, "branches"))) == list(arrays(network))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_gradient_reaches_every_parameter(network):
    """Imaginary parts at the frequencies 0 and size / 2 of both axes alone have none; no whole parameter does."""
    weights = network.trainable_params()

    def energy(x):
        return ops.square(network(x)).mean()

    _, gradients = ms.value_and_grad(energy, None, weights)(random_images())
    for weight, gradient in zip(weights, gradients):
        assert np.abs(gradient.asnumpy()).max() > 0, weight.name


def test_filters_of_another_image_size_are_interpolated_on_loading(network, caplog):
    larger = GFNet((1, 1, 2, 1), (8, 16, 24, 32), 1.0, 0.2, mlp_ratio=2.0, num_classes=5, img_size=(96, 128))
    with caplog.at_level("INFO"):
        load_arrays(larger, arrays(network), "file")
    assert "stages.3.blocks.0.filter.complex_weight interpolated from (2, 2, 32, 2) to (3, 3, 32, 2)" in caplog.text
    old, new = (net.stages[3].blocks[0].filter.complex_weight.asnumpy() for net in (network, larger))
    assert np.abs(new[::2, ::2] - old).max() <= 1e-7  # from corner to corner
    assert np.abs(new[1, 1] - old.mean((0, 1))).max() <= 1e-7


def test_interpolation_of_filters_is_pytorch_s_bicubic():
    """Half-way between two of four entries: cubic convolution with the coefficient -0.75."""
    old = np.random.default_rng(0).standard_normal((4, 1, 2, 2))
    new = resize_filter(old, (7, 1, 2, 2))
    expected = np.tensordot([-0.09375, 0.59375, 0.59375, -0.09375], old, axes=1)
    assert np.abs(new[3] - expected).max() <= 1e-6
    assert np.abs(new[::2] - old).max() <= 1e-6
