"""A checkpoint that was trained in mixed precision fuses like any other: its weights are float32 masters."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from networks import IMAGE_SIZE, NUM_CLASSES, SMALL, arrays, difference, random_images, small_network

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from mindcv_reparam.precision import mixed_precision
from mindcv_reparam.reparam import LEVELS
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.step import TrainStep

TOLERANCE = 2e-5  # of the largest logit


pytestmark = pytest.mark.usefixtures("pynative")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "amp_level"),
    [
        ("fastvit", "O3"),
        *(pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in (("visformer", "O3"), ("riformer", "O3"))),
    ],
)
def test_a_checkpoint_of_mixed_precision_fuses(family, amp_level, tmp_path):
    trained = small_network(family)
    before, path = arrays(trained), tmp_path / "trained.ckpt"
    train(mixed_precision(trained, amp_level))
    after = arrays(trained)
    assert sum(not np.array_equal(after[name], before[name]) for name in before) > 0.9 * len(before)
    name, hyper_parameters = SMALL[family]
    save_checkpoint(path, trained, CheckpointInfo(model=name, hparams=hyper_parameters))

    net = create_model(name, num_classes=NUM_CLASSES, img_size=IMAGE_SIZE, **hyper_parameters).set_train(False)
    load_checkpoint(net, path)
    images = random_images(seed=1)
    expected = net(images)
    for level in LEVELS:
        assert difference(reparameterize(net, level)(images), expected) <= TOLERANCE, level


def train(net: ms.nn.Cell, steps: int = 2) -> None:
    step = TrainStep(
        ClassificationObjective(net, create_loss("CE")), create_optimizer(net, "adamw"), loss_scale=LossScale(1024.0)
    )
    labels = Tensor(np.eye(NUM_CLASSES, dtype=np.float32)[:2])
    for seed in range(steps):
        loss, _, finite, *_ = step(random_images(seed=seed), labels, Tensor(1e-3, ms.float32))
        assert np.isfinite(loss.asnumpy())
        assert finite.asnumpy()
