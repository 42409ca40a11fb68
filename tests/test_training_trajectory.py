"""Five training steps against the reference implementations: same weights, batch and optimizer, same numbers."""

import mindspore as ms
import numpy as np
import pytest
from goldens import Golden, names
from mindspore import Tensor

from mindcv_reparam import create_model
from mindcv_reparam.checkpoint import load_arrays
from mindcv_reparam.convert import convert
from mindcv_reparam.training.losses import create_loss
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.step import TrainStep, gradients_by_name


def torch_norm(gradient: np.ndarray) -> float:
    """The norm as the reference added it up, in eight float32 sums; that of a long gradient is off by 1e-4."""
    squares = np.square(gradient.ravel())
    squares = np.pad(squares, (0, -squares.size % 8)).reshape(-1, 8)
    return float(np.sqrt(np.add.reduce(squares, axis=0).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("name", names("train-*"))
def test_training_is_that_of_the_reference(name):
    golden = Golden(name)
    conversion = convert(golden.state)
    net = create_model(conversion.model, drop_path_rate=0.0, **conversion.hparams)
    load_arrays(net, conversion.parameters, name)
    images, labels = golden.images, np.arange(8, dtype=np.int32) % 10
    loss = create_loss("CE", label_smoothing=golden.spec["label_smoothing"])

    gradients = gradients_by_name(net, loss, images, labels)
    ours = [conversion.table.to_ours(str(theirs)) for theirs in golden.results["grad_norm_names"]]
    assert sorted(ours) == sorted(gradients)
    norms = np.array([torch_norm(gradients[name]) for name in ours])
    expected = golden.results["grad_norms"]
    # A bias in front of a batch norm has no gradient but rounding errors.
    np.testing.assert_allclose(norms, expected, rtol=1e-4, atol=5e-8 * expected.max())

    load_arrays(net, conversion.parameters, name)  # the statistics of the norms have moved
    optimizer = create_optimizer(net, "adamw", weight_decay=0.05, weight_decay_filter="1d", eps=1e-8)
    step = TrainStep(net, loss, optimizer)
    arguments = (Tensor(images), Tensor(labels), Tensor(1e-4, ms.float32), Tensor(True))
    losses = np.array([step(*arguments)[0].asnumpy() for _ in range(golden.spec["steps"])])
    np.testing.assert_allclose(losses[0], golden.results["losses"][0], rtol=1e-4)
    np.testing.assert_allclose(losses, golden.results["losses"], rtol=1e-3)

    logits, expected = net.set_train(False)(Tensor(images)).asnumpy(), golden.results["eval_logits"]
    assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
