"""Five training steps against the reference implementations: same weights, batch and optimizer, same numbers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from goldens import FOLDER, Golden, names
from gradients import gradients_by_name
from here import parse
from mindspore import Tensor

from mindcv_reparam import create_model
from mindcv_reparam.checkpoint import CheckpointInfo, load_arrays, save_checkpoint
from mindcv_reparam.convert import convert
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.mixup import soft_labels
from mindcv_reparam.training.assembly import train
from mindcv_reparam.training.data import Data
from mindcv_reparam.training.metrics import read_metrics
from mindcv_reparam.training.run_log import RunLog
from mindcv_reparam.zoo import model_from_checkpoint


class OneBatch:
    """A loader whose epochs are the fixture's batch, which no pipeline of pixels could give: it is no image."""

    steps_per_epoch = 1
    skipped = 0
    bad_files: dict[int, str] = {}

    def __init__(self, golden: Golden) -> None:
        self.num_classes = golden.spec["num_classes"]
        labels = np.arange(golden.spec["batch"], dtype=np.int32) % 10
        self.batch = golden.images, soft_labels(labels, self.num_classes, golden.spec["label_smoothing"])

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield self.batch


# The others' networks are those of the goldens, their training is the same code; a step by the trainer is compared in
# test_detection_training.py, what optimizers do in test_training_optimizer.py.
KEPT = "train-timm-fastvit_t8"
TRAJECTORIES = [name if name == KEPT else pytest.param(name, marks=pytest.mark.exhaustive) for name in names("train-*")]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_train_py_and_a_recipe_train_as_the_reference(name, tmp_path):
    golden = Golden(name)
    conversion = convert(golden.state)
    start = tmp_path / "start.ckpt"
    save_checkpoint(start, conversion.parameters, CheckpointInfo(conversion.model, conversion.hparams))
    flags = {"model": conversion.model, "ckpt_path": start, "ckpt_save_dir": tmp_path / "run"}
    if "gelu" in conversion.hparams:
        flags["gelu"] = conversion.hparams["gelu"]
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    config = parse(["--config", str(FOLDER / "train.yaml"), *words], "train")
    data = Data(Digits(train=True), OneBatch(golden), None)
    config = config.with_defaults(num_classes=data.num_classes)
    train(config, TASKS["classification"], "CPU", Distributed(), data, RunLog(active=False))

    losses = [row["train_loss"] for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert len(losses) == golden.spec["steps"]
    np.testing.assert_allclose(losses[0], golden.results["losses"][0], rtol=1e-4)
    np.testing.assert_allclose(losses, golden.results["losses"], rtol=1e-3)

    net, _ = model_from_checkpoint(tmp_path / "run" / f"{conversion.model}_final.ckpt")
    logits, expected = net(Tensor(golden.images)).asnumpy(), golden.results["eval_logits"]
    assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_gradients_are_those_of_the_reference(name):
    golden = Golden(name)
    conversion = convert(golden.state)
    net = create_model(conversion.model, drop_path_rate=0.0, **conversion.hparams)
    load_arrays(net, conversion.parameters, Path(name))
    classes = golden.results["eval_logits"].shape[1]
    labels = soft_labels(np.arange(8) % 10, classes, golden.spec["label_smoothing"])
    gradients = gradients_by_name(net, create_loss("CE"), golden.images, labels)
    ours = [conversion.table.to_ours(str(theirs)) for theirs in golden.results["grad_norm_names"]]
    assert sorted(ours) == sorted(gradients)
    norms = np.array([torch_norm(gradients[name]) for name in ours])
    expected = golden.results["grad_norms"]
    # A bias in front of a batch norm has no gradient but rounding errors.
    np.testing.assert_allclose(norms, expected, rtol=1e-4, atol=5e-8 * expected.max())


def torch_norm(gradient: np.ndarray) -> float:
    """The norm as the reference added it up, in eight float32 sums; that of a long gradient is off by 1e-4."""
    squares = np.square(gradient.ravel())
    squares = np.pad(squares, (0, -squares.size % 8)).reshape(-1, 8)
    return float(np.sqrt(np.add.reduce(squares, axis=0).sum()))
