"""Parameters, MACs and operators: against the published numbers, a calculation by hand, and what is kept on file."""

import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam import complexity, create_model, list_models, reparameterize
from mindcv_reparam.complexity import Measured, cost, count_parameters, measured, record
from mindcv_reparam.layers import batch_norm, conv2d, dense
from mindcv_reparam.registry import model_info

# Trainable parameters, as it trains and with fused branches, and GMACs (fused, at the model's input size).
# Visformer: MindCV's checkpoints, arXiv 2104.12533. FastViT: Apple's code, arXiv 2303.14189, table 1.
EXACT = {
    "visformer_tiny": (10_321_368, 10_321_368, 1.3),
    "visformer_tiny_v2": (9_371_056, 9_371_056, None),
    "visformer_small": (40_219_592, 40_219_592, 4.9),
    "visformer_small_v2": (23_492_168, 23_492_168, None),
    "fastvit_t8": (4_026_232, 3_996_040, 0.69),
    "fastvit_t12": (7_553_704, 7_508_840, 1.39),
    "fastvit_s12": (9_473_576, 9_428_712, 1.80),
    "fastvit_sa12": (11_580_968, 11_545_320, 1.94),
    "fastvit_sa24": (21_554_216, 21_501_288, 3.77),
    "fastvit_sa36": (31_527_464, 31_457_256, 5.59),
    "fastvit_ma36": (44_068_004, 43_984_632, 7.82),
}
# Millions, as published. RIFormer: mmpretrain, arXiv 2304.05659. GFNet: arXiv 2107.00645. RegNetY: timm.
ROUNDED = {
    "riformer_s12": (11.922, 11.915, 1.82),
    "riformer_s24": (21.402, 21.389, 3.41),
    "riformer_s36": (30.883, 30.863, 5.00),
    "riformer_m36": (56.199, 56.173, 8.80),
    "riformer_m48": (73.509, 73.473, 11.59),
    "gfnet_h_ti": (15.085, None, None),
    "gfnet_h_s": (32.163, None, None),
    "gfnet_h_b": (53.744, None, None),
    "regnety_160": (83.59, None, None),
}


class Product(nn.Cell):
    """Layers and products whose cost is known: x (2, 6, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.conv = conv2d(6, 12, 3, stride=2, groups=3, bias=True)
        self.norm = batch_norm(12)
        self.scores = ops.BatchMatMul(transpose_a=True)
        self.head = dense(16, 5)
        self.weight = Parameter(Tensor(np.ones((3, 5)), ms.float32))

    def construct(self, x):
        x = self.norm(self.conv(x)).reshape((-1, 12, 16))
        return ops.dense(self.head(self.scores(x, x)), self.weight)


def test_costs_are_those_counted_by_hand():
    net = Product().set_train(False)
    convolution = 2 * (12 * 4 * 4) * (2 * 3 * 3)
    product = 2 * 16 * 16 * 12
    head = 2 * 16 * 5 * 16 + 2 * 16 * 3 * 5
    found = cost(net, (2, 6, 8, 8))
    assert found.macs == convolution + product + head
    kinds = ("Conv2D", "BiasAdd", "BatchNorm", "BatchMatMul", "MatMul", "Dense")
    assert [found.operators[kind] for kind in kinds] == [1, 2, 1, 1, 1, 1]
    assert count_parameters(net) == (12 * 2 * 9 + 12) + 2 * 12 + (16 * 5 + 5) + 3 * 5


def test_a_product_without_a_rule_is_an_error():
    class Volume(nn.Cell):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 1, 3, pad_mode="pad", padding=1, has_bias=False)

        def construct(self, x):
            return self.conv(x.reshape((1, 1, 4, 4, 4)))

    with pytest.raises(NotImplementedError, match="no rule for the multiply-accumulates of Conv3D"):
        cost(Volume().set_train(False), (1, 4, 4, 4))


def test_every_model_is_on_file():
    assert list(measured()) == list_models()


@pytest.mark.parametrize("name", EXACT)
def test_parameters_on_file_are_the_published_ones(name):
    train, branches, gmacs = EXACT[name]
    row = measured()[name]
    assert (row.params["train"], row.params["branches"]) == (train, branches)
    if gmacs is not None:
        assert row.macs / 1e9 == pytest.approx(gmacs, rel=0.01, abs=0.05 if name.startswith("visformer") else 0)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_parameters_on_file_are_the_published_ones(name):
    train, branches, gmacs = ROUNDED[name]
    row = measured()[name]
    digits = 2 if name == "regnety_160" else 3
    assert round(row.params["train"] / 1e6, digits) == train
    if branches is not None:
        assert round(row.params["branches"] / 1e6, 3) == branches
    if gmacs is not None:
        assert row.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


SMALLEST = (
    "visformer_tiny",
    "fastvit_t8",
    "riformer_s12",
    "gfnet_h_ti",
)  # RegNetY is large, PoolFormer has RIFormer's layers


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",  # of riformer_s12, those at another size are counted below
    [
        pytest.param(name, marks=pytest.mark.exhaustive if name in ("gfnet_h_ti", "riformer_s12") else ())
        for name in SMALLEST
    ],
)
def test_what_is_on_file_is_what_the_networks_cost(name):
    """The parity tests, which build every network, hold the parameters of the others to the file."""
    net = create_model(name).set_train(False)
    states = {"train": net, "branches": reparameterize(net, "branches"), "full": reparameterize(net, "full")}
    size = model_info(name).input_size
    row = Measured({state: count_parameters(net) for state, net in states.items()}, 0)
    assert dataclasses.replace(row, macs=cost(states["full"], (1, 3, size, size)).macs) == measured()[name]


@pytest.mark.slow
def test_macs_grow_with_the_image_as_published():
    """RIFormer-S12 at 384 pixels: 5.36 GMACs (arXiv 2304.05659, table 7)."""
    net = reparameterize(create_model("riformer_s12", img_size=384))
    assert cost(net, (1, 3, 384, 384)).macs / 1e9 == pytest.approx(5.36, rel=0.01)


def test_recording_one_model_keeps_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(complexity, "MEASURED", tmp_path / "complexity.json")
    complexity.MEASURED.write_text("{}")
    rows = {"riformer_s12": Measured({"train": 2, "branches": 1, "full": 1}, 5), "visformer_tiny": Measured({}, 7)}
    record({"riformer_s12": rows["riformer_s12"]})
    record({"visformer_tiny": Measured({}, 6)})
    record({"visformer_tiny": rows["visformer_tiny"]})
    assert measured() == rows
    assert list(json.loads(complexity.MEASURED.read_text())) == ["visformer_tiny", "riformer_s12"]
