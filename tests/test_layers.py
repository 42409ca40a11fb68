"""The shared Cells against their formulas in NumPy, and their folds."""

import inspect

import numpy as np
import pytest
from mindspore import Tensor, nn
from networks import SMALL, arrays, difference, random_images, randomise

from mindcv_reparam import create_model
from mindcv_reparam.errors import UserError
from mindcv_reparam.layers import (
    Attention,
    ConvNorm,
    LayerScale,
    SqueezeExcite,
    affine_of,
    batch_norm,
    conv2d,
    dense,
    drop_path_rates,
    fold_after,
    fold_before,
    linear_of,
    move_bias,
)
from mindcv_reparam.reparam import reparameterize

TOLERANCE = 2e-6


@pytest.fixture
def images():
    return random_images((9, 10), channels=6)


def conv(out: int, kernel_size: int = 1, seed: int = 0, **options) -> nn.Conv2d:
    return randomise(conv2d(6, out, kernel_size, **options), seed)


def norm(channels: int = 6) -> nn.BatchNorm2d:
    return randomise(batch_norm(channels), seed=1).set_train(False)


def pixels(x: Tensor, channels_out: int, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """A 1×1 convolution, (N, C, ...) → (N, out, pixels)."""
    flat = x.asnumpy().reshape(*x.shape[:2], -1)
    return np.einsum("oc,ncp->nop", weight.reshape(channels_out, -1), flat) + np.reshape(bias, (-1, 1))


@pytest.mark.parametrize("shape", [(6,), (6, 1, 1)])
def test_layer_scale(images, shape):
    cell = LayerScale(shape, 1e-5)
    assert cell.gamma.shape == shape
    assert np.array_equal(cell.gamma.asnumpy(), np.full(shape, 1e-5, np.float32))
    gamma = randomise(cell).gamma.asnumpy().reshape(6, 1, 1)
    assert np.array_equal(cell(images).asnumpy(), images.asnumpy() * gamma)


def test_squeeze_excite(images):
    cell = randomise(SqueezeExcite(6, 4))
    pooled = Tensor(images.asnumpy().mean((2, 3)))
    hidden = Tensor(np.maximum(pixels(pooled, 4, cell.fc1.weight.asnumpy(), cell.fc1.bias.asnumpy()), 0))
    logits = pixels(hidden, 6, cell.fc2.weight.asnumpy(), cell.fc2.bias.asnumpy())
    gate = 1 / (1 + np.exp(-logits))
    assert difference(cell(images), images.asnumpy() * gate[..., None]) <= TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_attention(images, bias):
    cell = randomise(Attention(6, 2, 0.3, bias, 0.0)).set_train(False)
    q, k, v = pixels(images, 18, cell.qkv.weight.asnumpy()).reshape(2, 3, 2, 3, 90).transpose(1, 0, 2, 3, 4)
    scores = np.exp(0.3 * np.einsum("nhdp,nhdq->nhpq", q, k))
    scores /= scores.sum(-1, keepdims=True)
    x = Tensor(np.einsum("nhpq,nhdq->nhdp", scores, v).reshape(2, 6, 90))
    expected = pixels(x, 6, cell.proj.weight.asnumpy(), cell.proj.bias.asnumpy() if bias else 0.0)
    assert difference(cell(images), expected.reshape(images.shape)) <= TOLERANCE


@pytest.mark.parametrize("proj_bias", [False, True])
def test_attention_fuses_also_with_biases_of_q_k_and_v(images, proj_bias):
    cell = randomise(Attention(6, 2, 0.3, proj_bias, 0.0)).set_train(False)
    cell.qkv = conv(18, seed=3, bias=True)
    fused = reparameterize(cell)
    assert difference(fused(images), cell(images)) <= TOLERANCE
    assert isinstance(fused.scale, nn.Identity)
    assert not fused.qkv.bias.asnumpy()[6:].any()  # of k and v
    again = reparameterize(fused)  # the scale goes into q once
    assert all(np.array_equal(array, arrays(fused)[name]) for name, array in arrays(again).items())


@pytest.mark.parametrize("activation", [None, nn.ReLU()])
def test_conv_norm(images, activation):
    cells = [conv(8, 3, stride=2, groups=2), norm(8)] + ([activation] if activation else [])
    cell = ConvNorm(*cells).set_train(False)
    fused = cell.fuse()
    kinds = [type(child) for child in fused] if activation else [type(fused)]
    assert kinds == [nn.Conv2d] + ([nn.ReLU] if activation else [])
    assert difference(reparameterize(cell)(images), cell(images)) <= TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_fold_after_a_convolution(images, bias):
    layer, affine = conv(12, 3, stride=2, groups=3, bias=bias), norm(12)
    fused = reparameterize(nn.SequentialCell(fold_after(layer, affine)))
    assert difference(fused(images), affine(layer(images))) <= TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_fold_before_a_pointwise_convolution(images, bias):
    layer, affine = conv(12, groups=3, bias=bias), norm()
    fused = reparameterize(nn.SequentialCell(fold_before(affine, layer)))
    assert difference(fused(images), layer(affine(images))) <= TOLERANCE


def test_fold_before_a_dense_layer(images):
    layer, affine = randomise(dense(6, 5)), norm()
    fused = reparameterize(nn.SequentialCell(fold_before(affine, layer)))
    assert difference(fused(images.mean((2, 3))), layer(affine(images).mean((2, 3)))) <= TOLERANCE


def test_an_identity_folds_to_the_layer_itself():
    layer = conv(6)
    assert fold_after(layer, nn.Identity()) is layer
    assert fold_before(nn.Identity(), layer) is layer


def test_what_is_no_affine_map_is_refused():
    with pytest.raises(TypeError, match="ReLU is no per-channel affine map"):
        affine_of(nn.ReLU())


@pytest.mark.parametrize("second_bias", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_move_bias(images, second_bias, groups):
    first, second = conv(6, 7, groups=6, bias=True), conv(12, seed=1, groups=groups, bias=second_bias)
    moved = move_bias(first, second)
    assert [layer.has_bias for layer in moved] == [False, True]
    assert difference(reparameterize(nn.SequentialCell(*moved))(images), second(first(images))) <= TOLERANCE


def test_the_bridge_reads_what_the_layer_has():
    layer = conv(4, 3, bias=True)
    weight, bias = linear_of(layer)
    assert np.array_equal(weight, layer.weight.asnumpy())
    assert np.array_equal(bias, layer.bias.asnumpy())
    assert not linear_of(conv(4, 3)).bias.any()


def test_stochastic_depth_grows_linearly_over_all_blocks():
    rates = drop_path_rates(0.3, (1, 2, 1))
    assert [len(stage) for stage in rates] == [1, 2, 1]
    assert np.allclose(np.concatenate(rates), [0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("family", SMALL)
def test_every_weight_is_drawn_by_its_family(family):
    name, hyper_parameters = SMALL[family]
    net = create_model(name, **hyper_parameters)
    weights = [parameter for parameter in net.get_parameters() if parameter.ndim >= 2 and parameter.size > 1]
    assert len(weights) > 8
    assert not [weight.name for weight in weights if not weight.asnumpy().any()]


@pytest.mark.parametrize("family", SMALL)
def test_networks_are_created_where_classes_hide_their_arguments(family, monkeypatch):
    """Python 3.11.0 to 3.11.3 show (*args, **kwargs) for a class whose base defines ``__new__``, as Cells' does."""
    seen = inspect.signature

    def hidden(of, **options):
        return seen(lambda *args, **kwargs: None) if isinstance(of, type) else seen(of, **options)

    monkeypatch.setattr(inspect, "signature", hidden)
    name, sizes = SMALL[family]
    assert create_model(name, num_classes=7, **sizes).head.out_channels == 7
    with pytest.raises(UserError, match="no hyper-parameter width"):
        create_model(name, width=3)
