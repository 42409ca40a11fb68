"""Every optimizer against its published formula in float64, several steps with changing rates."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from networks import small_network

from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import families
from mindcv_reparam.training.optimizer import OPTIMIZERS, Optimizer, create_optimizer, layer_factors, weight_decays

RATES = (1e-2, 3e-3, 1e-2, 2e-2, 5e-3)
SHAPES = ((4, 3), (7,), (2, 3, 2, 2), (5,))
DECAY = 0.05
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Weights(nn.Cell):
    def __init__(self, shapes=SHAPES) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        for i, shape in enumerate(shapes):
            self.insert_param_to_cell(f"p{i}", Parameter(Tensor(rng.normal(size=shape), ms.float32), name=f"p{i}"))

    def construct(self):
        return self.p0


def run(optimizer: Optimizer, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    for rate in RATES:
        gradients = tuple(Tensor(scale * rng.normal(size=p.shape), ms.float32) for p in optimizer.parameters)
        optimizer(Tensor(rate, ms.float32), ms.mutable(gradients))
    return [p.asnumpy().copy() for p in optimizer.parameters]


def reference(update, scale: float = 1.0, decays=None) -> list[np.ndarray]:
    """`update(w, g, state, t, lr, decay) → w` in float64 on the same weights and gradients."""
    rng = np.random.default_rng(1)
    weights = [p.asnumpy().astype(np.float64) for p in Weights().trainable_params()]
    states = [{"m": np.zeros_like(w), "v": np.zeros_like(w)} for w in weights]
    decays = decays or [DECAY] * len(weights)
    for t, rate in enumerate(RATES, 1):
        for i, w in enumerate(weights):
            g = (scale * rng.normal(size=w.shape)).astype(np.float32).astype(np.float64)
            weights[i] = update(w, g, states[i], t, rate, decays[i])
    return weights


def moments(g, state, t):
    state["m"] = BETA1 * state["m"] + (1 - BETA1) * g
    state["v"] = BETA2 * state["v"] + (1 - BETA2) * g * g
    return state["m"] / (1 - BETA1**t), state["v"] / (1 - BETA2**t)


def adamw(w, g, state, t, lr, decay):
    m, v = moments(g, state, t)
    return w * (1 - lr * decay) - lr * m / (np.sqrt(v) + EPS)


def adam(w, g, state, t, lr, decay):
    m, v = moments(g + decay * w, state, t)
    return w - lr * m / (np.sqrt(v) + EPS)


def lamb(w, g, state, t, lr, decay):
    m, v = moments(g, state, t)
    update = m / (np.sqrt(v) + EPS) + decay * w
    return w - lr * np.linalg.norm(w) / np.linalg.norm(update) * update


def sgd(nesterov):
    def update(w, g, state, t, lr, decay):
        g = g + decay * w
        state["m"] = 0.9 * state["m"] + g
        return w - lr * (g + 0.9 * state["m"] if nesterov else state["m"])

    return update


@pytest.mark.parametrize(
    ("name", "options", "update"),
    [
        ("adamw", {}, adamw),
        ("adam", {}, adam),
        ("lamb", {}, lamb),
        ("sgd", {}, sgd(nesterov=False)),
        ("momentum", {"nesterov": True}, sgd(nesterov=True)),
    ],
)
def test_five_steps_match_the_formula(name, options, update):
    found = run(create_optimizer(Weights(), name, weight_decay=DECAY, **options))
    for mine, theirs in zip(found, reference(update)):
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_eps_counts_after_bias_correction(name):
    """Gradients as small as ε: the update depends on where ε is added."""
    update = {"adamw": adamw, "adam": adam}[name]
    found = run(create_optimizer(Weights(), name, weight_decay=0.0), scale=1e-8)
    for mine, theirs in zip(found, reference(update, scale=1e-8, decays=[0.0] * len(SHAPES))):
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-7)


def test_decay_is_per_parameter():
    found = run(create_optimizer(Weights(), "adamw", weight_decay=2.0, weight_decay_filter="1d"))
    for mine, theirs in zip(found, reference(adamw, decays=[2.0, 0.0, 2.0, 0.0])):
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-7)


def test_lamb_moves_weights_that_are_zero():
    network = Weights()
    network.p1.set_data(Tensor(np.zeros(7), ms.float32))
    run(create_optimizer(network, "lamb"))
    assert np.all(np.isfinite(network.p1.asnumpy()))
    assert np.all(network.p1.asnumpy() != 0.0)


class Named(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1, pad_mode="valid", has_bias=True)
        self.norm = nn.BatchNorm2d(3)
        self.scale = Parameter(Tensor(np.ones((3, 1, 1)), ms.float32), name="scale")
        self.position = Parameter(Tensor(np.ones((1, 3, 2, 2)), ms.float32), name="position")


@pytest.mark.parametrize(
    ("rule", "decaying"),
    [
        ("disable", {"scale", "position", "conv.weight", "conv.bias", "norm.gamma", "norm.beta"}),
        ("auto", {"scale", "position", "conv.weight", "conv.bias"}),
        ("norm_and_bias", {"scale", "position", "conv.weight"}),
        ("1d", {"scale", "position", "conv.weight"}),
    ],
)
def test_decay_groups(rule, decaying):
    network = Named()
    decays = dict(zip([p.name for p in network.trainable_params()], weight_decays(network, 0.1, rule)))
    assert {name for name, decay in decays.items() if decay == 0.1} == decaying
    assert {name for name, decay in decays.items() if decay == 0.0} == decays.keys() - decaying


class Encoder(Named):
    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.SequentialCell(nn.Conv2d(2, 3, 1, pad_mode="valid"), nn.BatchNorm2d(3))


class Detector(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Named()
        self.encoder = Encoder()


def test_decay_by_the_names_of_rtdetr():
    """Its patterns find norms by their name, and biases outside of the backbone."""
    decays = weight_decays(Detector(), 0.1, "by_name")
    names = [p.name for p in Detector().trainable_params()]
    assert {name for name, decay in zip(names, decays) if decay == 0.0} == {
        *("backbone.norm.gamma", "backbone.norm.beta"),
        *("encoder.norm.gamma", "encoder.norm.beta", "encoder.conv.bias", "encoder.input_proj.1.beta"),
    }
    assert set(decays) == {0.0, 0.1}


def test_a_backbone_may_have_a_rate_of_its_own():
    optimizer = create_optimizer(Detector(), "adamw", backbone_lr_factor=0.1)
    for parameter, factor in zip(optimizer.parameters, optimizer.lr_factors):
        assert factor == (0.1 if parameter.name.startswith("backbone.") else 1.0)
    with pytest.raises(UserError, match="backbone_lr_factor"):
        create_optimizer(Named(), "adamw", backbone_lr_factor=0.1)


@pytest.mark.parametrize(
    ("name", "update"), [("adamw", adamw), ("adam", adam), ("lamb", lamb), ("sgd", sgd(nesterov=False))]
)
def test_rate_is_per_parameter(name, update, monkeypatch):
    factors = [0.25, 1.0, 0.5, 2.0]
    monkeypatch.setattr("mindcv_reparam.training.optimizer.layer_factors", lambda names, layer_decay, blocks: factors)
    found = run(create_optimizer(Weights(), name, weight_decay=DECAY, layer_decay=0.5))
    for i, mine in enumerate(found):

        def scaled(w, g, state, t, lr, decay, factor=factors[i]):
            return update(w, g, state, t, factor * lr, decay)

        np.testing.assert_allclose(mine, reference(scaled)[i], rtol=2e-6, atol=2e-7)


def test_layer_decay_counts_blocks_from_the_head():
    names = {
        "stem.0.weight": 0.0625,
        "stages.0.patch_embed.weight": 0.0625,
        "stages.0.blocks.0.mlp.fc1.weight": 0.125,
        "stages.0.blocks.0.mlp.fc2.weight": 0.125,
        "stages.1.patch_embed.weight": 0.25,  # leads to the next block
        "stages.1.blocks.0.mlp.fc1.weight": 0.25,
        "stages.1.blocks.1.mlp.fc1.weight": 0.5,
        "norm.gamma": 1.0,
        "head.bias": 1.0,
    }
    assert layer_factors([*names], 0.5) == [*names.values()]
    with pytest.raises(UserError, match="layer_decay"):
        layer_factors(["weight", "bias"], 0.5)


@pytest.mark.parametrize(
    ("family", "blocks"),
    [("visformer", 4), ("fastvit", 4), ("riformer", 4), ("poolformer", 4), ("gfnet", 4), ("regnet", 5)],
)
def test_layer_decay_finds_the_layers_of_every_family(family, blocks):
    network = small_network(family)
    names = [p.name for p in network.trainable_params()]
    factors = dict(zip(names, layer_factors(names, 0.5, families()[family].blocks)))
    assert set(factors.values()) == {0.5**distance for distance in range(blocks + 2)}
    heads = {name for name, factor in factors.items() if factor == 1.0}
    assert {name.split(".")[0] for name in heads} <= {"norm", "head", "final_conv"}
    assert f"{network.classifier}.weight" in heads
    assert factors[names[0]] == 0.5 ** (blocks + 1)


def test_layer_scales_of_fastvit_decay_and_those_of_riformer_do_not():
    """timm's rule goes by the number of dimensions: FastViT's layer scales are (C, 1, 1), RIFormer's (C,)."""
    for family, decaying in (("fastvit", True), ("riformer", False)):
        network = small_network(family)
        decays = dict(zip([p.name for p in network.trainable_params()], weight_decays(network, 0.05, "1d")))
        scales = {name for name in decays if "layer_scale" in name}
        assert {decays[name] for name in scales} == {0.05 if decaying else 0.0}
        assert {decays[name] for name in decays if name.endswith(".weight")} == {0.05}
        flat = {name for name in decays if name.endswith((".bias", ".gamma", ".beta"))} - scales
        assert {decays[name] for name in flat} == {0.0}


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=", ".join(OPTIMIZERS)):
        create_optimizer(Weights(), "lion")
    with pytest.raises(UserError, match="norm_and_bias"):
        create_optimizer(Weights(), "adamw", weight_decay_filter="biases")
