"""RIFormer: what is particular to its folds; what holds for every family is in test_reparam.py."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from networks import arrays, cells, difference, random_images, randomise, small_network

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.complexity import cost, count_parameters
from mindcv_reparam.layers import DropPath, GroupNorm, LayerScale
from mindcv_reparam.models.metaformer import Block, FusedBlock
from mindcv_reparam.models.riformer import AffineMixer, RIFormer

# test_reparam.py compiles.
pytestmark = pytest.mark.usefixtures("pynative")
LARGE = (pytest.mark.slow, pytest.mark.exhaustive)


def parametrized(*rows):
    """Creating the large models takes seconds; test_complexity.py compares what is on file of them."""
    return [pytest.param(*row, marks=() if row[0].endswith("s12") else LARGE) for row in rows]


@pytest.mark.parametrize(
    ("name", "train", "deploy"),
    parametrized(
        ("riformer_s12", 11_921_832, 11_915_176),
        ("riformer_s24", 21_402_280, 21_388_968),
        ("riformer_s36", 30_882_728, 30_862_760),
        ("riformer_m36", 56_199_016, 56_172_520),
        ("riformer_m48", 73_508_776, 73_473_448),
    ),
)
def test_parameter_counts_are_the_published_ones(name, train, deploy):
    """Those of mmpretrain's classifiers, before and after ``switch_to_deploy``."""
    net = create_model(name)
    assert count_parameters(net) == train
    assert count_parameters(reparameterize(net, "branches")) == deploy


def test_initialisation_is_the_reference_s():
    net = create_model("riformer_s12")
    mixer, mlp = net.stages[2].blocks[5].token_mixer, net.stages[2].blocks[5].mlp
    assert abs(mlp.fc2.weight.asnumpy().std() / 0.02 - 1) < 0.05
    assert abs(mixer.affine.weight.asnumpy().std() / 0.02 - 1) < 0.2
    assert abs(net.head.weight.asnumpy().std() / 0.01 - 1) < 0.05
    for name, array in arrays(net).items():
        if name.endswith(("bias", "beta")):
            assert not array.any(), name
        elif "layer_scale" in name:
            assert np.array_equal(array, np.full_like(array, 1e-5)), name


def test_stochastic_depth_grows_linearly_over_all_blocks():
    net = RIFormer((1, 2, 1, 1), (8, 8, 8, 8), 1e-5, drop_path_rate=0.4)
    rates = [cell.rate for _, cell in net.cells_and_names() if isinstance(cell, DropPath)]
    assert np.allclose(rates, [0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("pixels", [(5, 3), (1, 1)])
def test_group_norm_is_normalisation_over_channels_and_pixels(pixels):
    rng = np.random.default_rng(0)
    norm = randomise(GroupNorm(6, eps=1e-3))
    x = rng.normal(3.0, 0.1, (2, 6, *pixels))
    normed = (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-3)
    expected = normed * norm.gamma.asnumpy()[:, None, None] + norm.beta.asnumpy()[:, None, None]
    assert difference(norm(Tensor(x, ms.float32)), expected) <= 1e-5
    assert difference(norm.with_affine(None, None)(Tensor(x, ms.float32)), normed) <= 1e-5


def test_group_norm_stays_float32_in_mixed_precision():
    """The squares of its inputs, of 300², are beyond float16."""
    x = np.random.default_rng(0).normal(0.0, 300.0, (2, 4, 8, 8))
    exact = (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)
    assert difference(GroupNorm(4).to_float(ms.float16)(Tensor(x, ms.float32)), exact) <= 1e-6
    within = nn.SequentialCell(GroupNorm(4)).to_float(ms.float16)  # which hands it rounded inputs
    assert difference(within(Tensor(x, ms.float32)), exact) <= 1e-3


def test_the_mixer_fuses_to_a_norm():
    """Equation 5, in float64 and against the Cell itself."""
    mixer = randomise(AffineMixer(8))
    fused = mixer.fuse()
    scale, shift = mixer.affine.weight.asnumpy().astype(np.float64).ravel(), mixer.affine.bias.asnumpy()
    gamma, beta = (p.asnumpy().astype(np.float64) for p in (mixer.norm.gamma, mixer.norm.beta))
    assert isinstance(fused, GroupNorm)
    assert np.abs(fused.gamma.asnumpy() - gamma * (scale - 1)).max() <= 1e-12
    assert np.abs(fused.beta.asnumpy() - (beta * (scale - 1) + shift)).max() <= 1e-12
    x = Tensor(np.random.default_rng(0).standard_normal((2, 8, 5, 3)), ms.float32)
    assert difference(reparameterize(mixer, "branches")(x), mixer(x)) <= 1e-6


def test_branches_fuses_the_mixers_alone():
    net = small_network("riformer")
    branches = reparameterize(net, "branches")
    assert len(cells(net, AffineMixer)) == len(cells(net, Block))
    assert not cells(branches, AffineMixer)
    assert cells(branches, Block, LayerScale) == cells(net, Block, LayerScale)
    names = [name for name in arrays(net) if ".affine." not in name]
    assert list(arrays(branches)) == [name.replace(".token_mixer.norm.", ".token_mixer.") for name in names]


def test_full_leaves_the_norms_statistics_and_the_mixers_scale_and_shift():
    full = reparameterize(small_network("riformer"))
    blocks = cells(full, FusedBlock)
    assert not cells(full, Block, LayerScale, AffineMixer)
    parts = (
        "token_mixer.gamma",
        "token_mixer.beta",
        "mlp.fc1.weight",
        "mlp.fc1.bias",
        "mlp.fc2.weight",
        "mlp.fc2.bias",
    )
    stages = [f"stages.{i}.patch_embed.{leaf}" for i in range(4) for leaf in ("weight", "bias")]
    expected = [f"{block}.{part}" for block in blocks for part in parts] + stages + ["head.weight", "head.bias"]
    assert sorted(arrays(full)) == sorted(expected)


def test_full_leaves_no_affine_operator_in_the_exported_graph():
    """Per block a shift of the mixer, two residual sums, two epsilons; two factors of the mixer and one of norm2; the
    GELU adds one sum and two factors."""
    net = small_network("riformer")
    blocks = len(cells(net, Block))
    operators = cost(reparameterize(net), (1, 3, 64, 64)).operators
    assert operators["Add"] == blocks * (1 + 2 + 2 + 1) + 1
    assert operators["Mul"] == blocks * (2 + 1 + 2) + 1
    assert operators["Conv2D"] == 4 + 2 * blocks
    assert cost(net, (1, 3, 64, 64)).operators["Conv2D"] == 4 + 3 * blocks


def test_the_deployed_weights_of_another_code_base_fit_branches():
    """What mmpretrain stores of a deployed block: a norm_reparam, and the layer scales as they are."""
    block = reparameterize(small_network("riformer"), "branches").stages[0].blocks[0]
    assert {name: array.shape for name, array in arrays(block).items() if "mlp" not in name} == {
        "token_mixer.gamma": (8,),
        "token_mixer.beta": (8,),
        "layer_scale1.gamma": (8,),
        "norm2.gamma": (8,),
        "norm2.beta": (8,),
        "layer_scale2.gamma": (8,),
    }


def test_a_poolformer_donates_every_weight_but_the_affine_operators():
    student, teacher = arrays(small_network("riformer")), arrays(small_network("poolformer"))
    assert {name: student[name].shape for name in teacher} == {name: array.shape for name, array in teacher.items()}
    assert all(".token_mixer.affine." in name for name in student.keys() - teacher.keys())


@pytest.mark.slow
def test_a_gradient_reaches_every_parameter():
    net = small_network("riformer")  # in evaluation mode: stochastic depth could drop a block for the whole batch
    weights = net.trainable_params()

    def energy(x):
        return ops.square(net(x)).mean()

    _, gradients = ms.value_and_grad(energy, None, weights)(random_images())
    for weight, gradient in zip(weights, gradients):
        assert np.abs(gradient.asnumpy()).max() > 0, weight.name
