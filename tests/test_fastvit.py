"""FastViT: published sizes, the structure at each level, folds Cell by Cell."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from networks import SMALL, cells, difference, random_images, randomise, small_network

from mindcv_reparam import create_model
from mindcv_reparam.layers import LayerScale
from mindcv_reparam.models.fastvit import (
    VARIANTS,
    AttentionBlock,
    ConvFFN,
    LargeKernelConv,
    MobileOneBlock,
    MobileOneConv,
    PatchEmbed,
    PositionalEncoding,
    RepMixer,
    RepMixerBlock,
)
from mindcv_reparam.reparam import LEVELS, reparameterize
from mindcv_reparam.stochastic import seed_masks

# Trainable parameters in training and in Apple's deploy model, and the batch normalisations that the latter keeps:
# one per ConvFFN and one per attention.
PUBLISHED = {
    "fastvit_t8": (4_026_232, 3_996_040, 10),
    "fastvit_t12": (7_553_704, 7_508_840, 12),
    "fastvit_s12": (9_473_576, 9_428_712, 12),
    "fastvit_sa12": (11_580_968, 11_545_320, 12 + 2),
    "fastvit_sa24": (21_554_216, 21_501_288, 24 + 4),
    "fastvit_sa36": (31_527_464, 31_457_256, 36 + 6),
    "fastvit_ma36": (44_068_004, 43_984_632, 36 + 6),
}
# test_reparam.py compiles.
pytestmark = pytest.mark.usefixtures("pynative")
MIX = dict(mlp_ratio=2, layer_scale=1e-5, gelu_kind="exact", drop_rate=0.1, drop_path_rate=0.1)


def size(net: nn.Cell) -> int:
    return sum(parameter.size for parameter in net.trainable_params())


@pytest.fixture(scope="module")
def network():
    return small_network("fastvit")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(*row, marks=(pytest.mark.slow, pytest.mark.exhaustive) if row[0][-2:] in ("24", "36") else ())
        for row in PUBLISHED.items()
    ],
)
def test_sizes_are_the_published_ones(name, sizes):
    net = create_model(name)
    branches = reparameterize(net, "branches")
    assert (size(net), size(branches), len(cells(branches, nn.BatchNorm2d))) == sizes


def test_branches_is_apples_deploy_structure(network):
    fused = reparameterize(network, "branches")
    assert not cells(fused, MobileOneConv, LargeKernelConv, PositionalEncoding, RepMixer)
    assert len(cells(fused, LayerScale)) == 3 + 2
    mixer, embed = fused.stages[0].blocks[0].token_mixer, fused.stages[1].downsample
    assert (mixer.kernel_size, mixer.group, mixer.has_bias) == ((3, 3), 8, True)
    assert (embed.spatial.kernel_size, embed.spatial.stride, embed.spatial.group) == ((7, 7), (2, 2), 8)
    assert (embed.spatial.has_bias, embed.pointwise.conv.has_bias) == (True, True)
    assert fused.stages[3].pos_emb.kernel_size == (7, 7)


def test_full_is_plain_convolutions(network):
    fused = reparameterize(network)
    assert not cells(fused, nn.BatchNorm2d, LayerScale)
    for stage in fused.stages:
        for block in stage.blocks:
            assert type(block.mlp.conv) is nn.Conv2d
            assert (block.mlp.conv.has_bias, block.mlp.fc1.has_bias, block.mlp.fc2.has_bias) == (False, True, True)
    for stage in fused.stages[1:]:
        assert (stage.downsample.spatial.has_bias, stage.downsample.pointwise.conv.has_bias) == (False, True)
    assert fused.final_conv.conv.has_bias  # squeeze-and-excitation comes after it


CELLS = {
    "stem": (lambda: MobileOneBlock(8, 16, 3, stride=2), 8),
    "depthwise": (lambda: MobileOneBlock(8, 8, 3, groups=8), 8),
    "pointwise": (lambda: MobileOneBlock(8, 8, 1), 8),
    "squeeze-and-excitation": (lambda: MobileOneBlock(8, 16, 3, groups=8, squeeze_excite=True), 8),
    "patch embedding": (lambda: PatchEmbed(8, 16, "exact"), 8),
    "positional encoding": (lambda: PositionalEncoding(8), 8),
    "ConvFFN": (lambda: ConvFFN(8, 16, "exact", 0.1), 8),
    "RepMixer block": (lambda: RepMixerBlock(8, **MIX), 8),
    "attention block": (lambda: AttentionBlock(64, **MIX), 64),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("build", "channels"), CELLS.values(), ids=CELLS)
def test_cells_fuse(build, channels, level):
    cell, x = randomise(build()).set_train(False), random_images((9, 12), channels)
    assert difference(reparameterize(cell, level)(x), cell(x)) <= 2e-6


def test_rep_mixer_is_its_equation():
    mixer, x = randomise(RepMixer(6, 1e-5)).set_train(False), random_images((9, 10), 6)
    scale = mixer.layer_scale.gamma.asnumpy()
    expected = x.asnumpy() + scale * (mixer.mixer(x) - mixer.norm(x)).asnumpy()
    assert difference(mixer(x), expected) <= 2e-6


def test_stages_at_any_input_size(network):
    height, width = 40, 72
    images = random_images((height, width))
    stages = network.forward_stages(images)
    assert [info["stride"] for info in network.feature_info] == [4, 8, 16, 32]
    for stage, info in zip(stages, network.feature_info, strict=True):
        stride = info["stride"]
        assert stage.shape == (2, info["channels"], -(-height // stride), -(-width // stride))
    # The last one is the output of the attention blocks.
    assert difference(network.forward_head(network.final_conv(stages[3])), network(images)) <= 2e-6


@pytest.mark.parametrize(("kind", "approximate"), [(None, "none"), ("exact", "none"), ("tanh", "tanh")])
def test_gelu_is_exact_unless_asked_otherwise(kind, approximate):
    net = create_model(*SMALL["fastvit"][:1], **SMALL["fastvit"][1], gelu=kind)
    kinds = [cell.approximate for _, cell in net.cells_and_names() if isinstance(cell, nn.GELU)]
    assert kinds == [approximate] * len(kinds)
    assert len(kinds) == 3 + 4 + 3 + 1  # stem, ConvFFNs, patch embeddings, final


def test_initialisation():
    net = create_model("fastvit_sa12")
    attention, mlp = net.stages[3].blocks[0], net.stages[2].blocks[0].mlp
    for layer in (mlp.conv[0], mlp.fc1, mlp.fc2, attention.token_mixer.qkv, attention.token_mixer.proj, net.head):
        assert layer.weight.asnumpy().std() == pytest.approx(0.02, rel=0.03)
        assert not layer.has_bias or not layer.bias.asnumpy().any()
    stem = net.stem[0].conv.kxk[0].weight.asnumpy()
    assert np.abs(stem).max() <= 27**-0.5
    assert stem.std() == pytest.approx((27 * 3) ** -0.5, rel=0.05)
    position = net.stages[3].pos_emb.conv
    assert 0.9 / 7 < np.abs(position.bias.asnumpy()).max() <= 1 / 7
    scales = [cell.gamma.asnumpy() for _, cell in net.cells_and_names() if isinstance(cell, LayerScale)]
    assert all(scale.ndim == 3 and np.allclose(scale, 1e-5, rtol=1e-6, atol=0) for scale in scales)
    assert {name: variant["layer_scale"] for name, variant in VARIANTS.items() if variant["layer_scale"] != 1e-5} == {
        "fastvit_sa36": 1e-6,
        "fastvit_ma36": 1e-6,
    }


def test_stochastic_depth_is_on_the_residual_branches():
    net = create_model("fastvit_sa12")
    first, *others = [block.drop_path for stage in net.stages for block in stage.blocks]
    assert isinstance(first, nn.Identity)
    assert np.allclose([cell.rate for cell in others], np.linspace(0, 0.1, 12)[1:])


@pytest.mark.slow
def test_gradients_reach_every_parameter():
    net = small_network("fastvit").set_train(True)
    seed_masks(net, 0)  # under which stochastic depth drops no block for both images

    def loss(x, y):
        return ops.cross_entropy(net(x), y)

    weights = ms.ParameterTuple(net.trainable_params())
    _, gradients = ms.value_and_grad(loss, None, weights)(random_images(), Tensor([0, 1], ms.int32))
    for weight, gradient in zip(weights, gradients, strict=True):
        assert np.isfinite(gradient.asnumpy()).all(), weight.name
        assert gradient.asnumpy().any(), weight.name
