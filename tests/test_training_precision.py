"""Which cells compute in float16, and that parameters stay float32 under their own names."""

import logging

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.losses import create_loss
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.precision import mixed_precision, supported_level
from mindcv_reparam.training.step import TrainStep, gradients_by_name


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
    return gradients_by_name(Network(), create_loss("CE"), IMAGES, LABELS)


@pytest.mark.parametrize(
    ("level", "half"),
    [
        ("O0", set()),
        ("O1", {"Conv2d", "Dense"}),
        ("O2", {"Conv2d", "Dense", "GELU"}),
        ("O3", {"Conv2d", "Dense", "GELU", "BatchNorm2d"}),
    ],
)
def test_cells_gradients_and_training(level, half, exact):
    network = mixed_precision(Network(), level)
    kinds = {type(cell).__name__ for _, cell in network.cells_and_names() if cell.get_flags().get("fp16")}
    assert kinds & {"Conv2d", "Dense", "GELU", "BatchNorm2d", "GroupNorm"} == half
    assert {p.name: p.dtype for p in network.get_parameters()} == {
        p.name: ms.float32 for p in Network().get_parameters()
    }

    found = gradients_by_name(network, create_loss("CE"), IMAGES, LABELS)
    for name, expected in exact.items():
        if name != "body.0.bias":  # its gradient is zero: batch normalisation follows
            assert np.linalg.norm(found[name] - expected) <= 0.02 * np.linalg.norm(expected), name
    differs = any(np.any(found[name] != exact[name]) for name in exact)
    assert differs == (level != "O0")

    step = TrainStep(network, create_loss("CE"), create_optimizer(network, "adamw"), loss_scale=LossScale(1024.0))
    outputs = (Tensor(IMAGES), Tensor(LABELS), Tensor(0.05, ms.float32), Tensor(True))
    losses = [float(step(*outputs)[0].asnumpy()) for _ in range(8)]
    assert losses[-1] < 0.95 * losses[0]


def test_a_cpu_falls_back_with_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        assert supported_level("O3", "CPU") == "O0"
        assert supported_level("O0", "CPU") == "O0"
        assert supported_level("O3", "Ascend") == "O3"
    assert [record.getMessage() for record in caplog.records] == [
        "amp_level O3 needs float16 arithmetic, which the CPU only emulates: computing in float32 (O0)"
    ]
