"""Which cells compute in float16, and that parameters stay float32 under their own names."""

import logging

import mindspore as ms
import numpy as np
import pytest
from gradients import gradients_by_name
from mindspore import Tensor, nn
from networks import SMALL

from mindcv_reparam import create_model
from mindcv_reparam.layers import Float32
from mindcv_reparam.models import gfnet, metaformer
from mindcv_reparam.models.fastvit import AttentionBlock, RepMixerBlock
from mindcv_reparam.models.riformer import AffineMixer
from mindcv_reparam.precision import mixed_precision, supported_level
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.step import TrainStep


class Network(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.body = nn.SequentialCell(
            nn.Conv2d(3, 8, 3, pad_mode="pad", padding=1, has_bias=True, weight_init="he_normal"),
            nn.BatchNorm2d(8, eps=1e-5, momentum=0.9),
            nn.GELU(approximate=False),
        )
        self.norm = nn.GroupNorm(2, 8, eps=1e-5)
        self.head = nn.Dense(8, 4)
        for parameter in self.trainable_params():
            parameter.set_data(Tensor(rng.normal(scale=0.3, size=parameter.shape), ms.float32))

    def construct(self, x):
        x = self.body(x)
        return self.head((x + self.norm(x)).mean((2, 3)))


IMAGES = np.random.default_rng(1).normal(size=(8, 3, 10, 10)).astype(np.float32)
LABELS = np.eye(4, dtype=np.float32)[np.arange(8) % 4]


@pytest.fixture(scope="module")
def exact() -> dict[str, np.ndarray]:
    """The gradients of the float32 network."""
    return gradients_by_name(Network(), create_loss("CE"), IMAGES, LABELS, compiled=False)


@pytest.mark.parametrize(
    ("level", "half"),
    [
        ("O0", set()),
        ("O1", {"Conv2d", "Dense"}),
        ("O2", {"Conv2d", "Dense", "GELU"}),
        ("O3", {"Conv2d", "Dense", "GELU", "BatchNorm2d"}),
    ],
)
def test_cells(level, half):
    network = mixed_precision(Network(), level)
    kinds = {type(cell).__name__ for _, cell in network.cells_and_names() if cell.get_flags().get("fp16")}
    assert kinds & {"Conv2d", "Dense", "GELU", "BatchNorm2d", "GroupNorm"} == half
    assert {p.name: p.dtype for p in network.get_parameters()} == {
        p.name: ms.float32 for p in Network().get_parameters()
    }


@pytest.mark.parametrize(
    "level", [*(pytest.param(level, marks=pytest.mark.exhaustive) for level in ("O0", "O1", "O2")), "O3"]
)
def test_gradients_and_training(level, exact):
    network = mixed_precision(Network(), level)
    found = gradients_by_name(network, create_loss("CE"), IMAGES, LABELS)
    for name, expected in exact.items():
        if name != "body.0.bias":  # its gradient is zero: batch normalisation follows
            assert np.linalg.norm(found[name] - expected) <= 0.02 * np.linalg.norm(expected), name
    differs = any(np.any(found[name] != exact[name]) for name in exact)
    assert differs == (level != "O0")

    step = TrainStep(
        ClassificationObjective(network, create_loss("CE")),
        create_optimizer(network, "adamw"),
        loss_scale=LossScale(1024.0),
    )
    outputs = (Tensor(IMAGES), Tensor(LABELS), Tensor(0.05, ms.float32))
    losses = [float(step(*outputs)[0].asnumpy()) for _ in range(8)]
    assert losses[-1] < 0.95 * losses[0]


class Weighted(nn.Cell):
    """A sum of outputs, each with another weight."""

    def __init__(self, cell: nn.Cell, weight: Tensor) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.weight = weight

    def construct(self, x):
        return (self.cell(x).astype(ms.float32) * self.weight).sum()


BLOCKS = {
    "riformer": lambda: metaformer.Block(8, AffineMixer(8), 2.0, 1e-6, "exact", 0.0, 0.0),
    "fastvit, mixer": lambda: RepMixerBlock(8, 2, 1e-6, "exact", 0.0, 0.0),
    "fastvit, attention": lambda: AttentionBlock(32, 2, 1e-6, "exact", 0.0, 0.0),
    "gfnet": lambda: gfnet.Block(8, (6, 8), 2.0, 1e-6, "exact", 0.0, 0.0),
}


@pytest.mark.parametrize("level", [pytest.param("O2", marks=pytest.mark.exhaustive), "O3"])
@pytest.mark.parametrize("block", BLOCKS)
def test_small_layer_scales_are_exact(block, level):
    """1e-6 is subnormal in float16: 1.3 % off on a CPU, zero on a device that flushes such numbers."""
    found = []
    for precision in ("O0", level):
        cell, rng = BLOCKS[block](), np.random.default_rng(0)
        channels = 32 if "attention" in block else 8
        for name, parameter in cell.parameters_and_names():
            if name.endswith("weight"):
                parameter.set_data(Tensor(rng.normal(0.0, 0.3, parameter.shape), ms.float32))
        x = Tensor(rng.normal(size=(2, 6, 8, 8) if block == "gfnet" else (2, channels, 6, 8)), ms.float32)
        weight = Tensor(rng.uniform(-1, 1, x.shape) * 2.0**14, ms.float32)  # with the factor of a loss scale
        cell = mixed_precision(cell, precision).set_train()
        weights = ms.ParameterTuple(p for p in cell.trainable_params() if p.name.endswith(("fc2.weight", "gamma")))
        gradients = ms.grad(Weighted(cell, weight), None, weights)(x)
        found.append({p.name: gradient.asnumpy() for p, gradient in zip(weights, gradients)})
    exact, half = found
    (name,) = (name for name in exact if name.endswith("fc2.weight"))
    assert np.linalg.norm(half[name] - exact[name]) <= 3e-3 * np.linalg.norm(exact[name])
    ratio = (half[name] * exact[name]).sum() / np.square(exact[name]).sum()
    assert abs(ratio - 1.0) <= 2e-3


@pytest.mark.parametrize("family", SMALL)
def test_what_float16_cannot_hold_stays_float32(family):
    """Every parameter that starts below float16's normal numbers belongs to a Cell that computes in float32."""
    name, sizes = SMALL[family]
    net = mixed_precision(create_model(name, **sizes), "O3")
    safe = {id(p) for _, cell in net.cells_and_names() if isinstance(cell, Float32) for p in cell.get_parameters()}
    small = [
        name
        for name, parameter in net.parameters_and_names()
        if 0.0 < np.abs(parameter.asnumpy()).max() < np.finfo(np.float16).tiny and id(parameter) not in safe
    ]
    assert small == []
    assert all(cell.get_flags()["fp32"] for _, cell in net.cells_and_names() if isinstance(cell, Float32))


def test_a_cpu_falls_back_with_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        assert supported_level("O3", "CPU") == "O0"
        assert supported_level("O0", "CPU") == "O0"
        assert supported_level("O3", "Ascend") == "O3"
    assert [record.getMessage() for record in caplog.records] == [
        "amp_level O3 needs float16 arithmetic, which the CPU only emulates: computing in float32 (O0)"
    ]
