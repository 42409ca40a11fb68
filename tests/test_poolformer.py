"""PoolFormer: what is particular to its operator and folds; what holds for every family is in test_reparam.py."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from networks import arrays, cells, difference, random_images, randomise, small_network

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.complexity import cost, count_parameters
from mindcv_reparam.layers import LayerScale
from mindcv_reparam.models.metaformer import Block, FusedBlock
from mindcv_reparam.models.poolformer import PoolMixer

# test_reparam_graph.py compiles.
pytestmark = pytest.mark.usefixtures("pynative")


def parametrized(*rows):
    """Creating the large models takes seconds."""
    larger = (pytest.mark.slow, pytest.mark.exhaustive)
    return [pytest.param(*row, marks=larger if "36" in row[0] or "48" in row[0] else ()) for row in rows]


@pytest.mark.parametrize(
    ("name", "count"),
    parametrized(
        ("poolformer_s12", 11_915_176),
        ("poolformer_s24", 21_388_968),
        ("poolformer_s36", 30_862_760),
        ("poolformer_m36", 56_172_520),
        ("poolformer_m48", 73_473_448),
    ),
)
def test_parameter_counts_are_timm_s(name, count):
    assert count_parameters(create_model(name)) == count


def window_means(x: np.ndarray) -> np.ndarray:
    """The means over the pixels of the 3×3 windows of (N, C, H, W) that exist."""
    height, width = x.shape[2:]
    means = np.empty_like(x)
    for i in range(height):
        for j in range(width):
            means[:, :, i, j] = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
    return means


@pytest.mark.parametrize("pixels", [(5, 4), (2, 2), (1, 1)])
def test_the_operator_is_the_mean_of_existing_neighbours_less_the_pixel(pixels):
    x = np.random.default_rng(0).normal(1.0, 1.0, (2, 4, *pixels))
    expected = window_means(x) - x
    assert np.abs(PoolMixer(4).mix(Tensor(x, ms.float32)).asnumpy() - expected).max() <= 1e-6


def test_a_scaled_mixer_is_the_mixer_scaled():
    """The shift of its norm cancels, at the borders too."""
    mixer, factors = randomise(PoolMixer(8)), np.random.default_rng(1).uniform(-0.4, 0.4, 8)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 8, 5, 4)), ms.float32)
    scaled = reparameterize(mixer.scaled(factors))
    assert np.abs(mixer.norm.beta.asnumpy()).min() > 0
    assert list(arrays(scaled)) == ["norm.gamma"]
    assert difference(scaled(x), mixer(x).asnumpy() * factors[:, None, None]) <= 1e-6


def test_full_leaves_a_scale_per_mixer():
    full = reparameterize(small_network("poolformer"))
    blocks = cells(full, FusedBlock)
    assert not cells(full, Block, LayerScale)
    parts = ("token_mixer.norm.gamma", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    stages = [f"stages.{i}.patch_embed.{leaf}" for i in range(4) for leaf in ("weight", "bias")]
    expected = [f"{block}.{part}" for block in blocks for part in parts] + stages + ["head.weight", "head.bias"]
    assert sorted(arrays(full)) == sorted(expected)


def test_full_leaves_no_affine_operator_in_the_exported_graph():
    """Per block two residual sums, two epsilons; two factors of the mixer and one of norm2; the GELU adds one sum and
    two factors."""
    net = small_network("poolformer")
    blocks = len(cells(net, Block))
    operators = cost(reparameterize(net), (1, 3, 64, 64)).operators
    assert operators["Add"] == blocks * (2 + 2 + 1) + 1
    assert operators["Mul"] == blocks * (2 + 1 + 2) + 1


def test_the_head_normalises_the_mean_over_pixels():
    """In timm's order, with timm's epsilon for this norm."""
    net = small_network("poolformer")
    x = np.random.default_rng(0).normal(0.0, 0.01, (2, 32, 3, 2))
    pooled = x.mean((2, 3))
    normed = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    normed = normed * net.norm.gamma.asnumpy() + net.norm.beta.asnumpy()
    expected = normed @ net.head.weight.asnumpy().T + net.head.bias.asnumpy()
    assert difference(net.forward_head(Tensor(x, ms.float32)), expected) <= 1e-5


@pytest.mark.slow
def test_a_gradient_reaches_every_parameter():
    """But the shifts before the pooling, which cancels them."""
    net = small_network("poolformer")
    weights = net.trainable_params()

    def energy(x):
        return ops.square(net(x)).mean()

    _, gradients = ms.value_and_grad(energy, None, weights)(random_images())
    for weight, gradient in zip(weights, gradients):
        if not weight.name.endswith("token_mixer.norm.beta"):
            assert np.abs(gradient.asnumpy()).max() > 0, weight.name
