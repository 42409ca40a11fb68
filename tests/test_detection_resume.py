"""Detectors through the trainer: interrupted and resumed to the bit, and sets with few, many or no objects at all."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from alone import Alone
from mindspore import Tensor, nn, ops
from networks import SMALL_DETECTOR
from processes import ENVIRONMENT, mpirun_command

from mindcv_reparam import create_model
from mindcv_reparam.ckpt_format import read_contents
from mindcv_reparam.config import Config
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.errors import Interrupted
from mindcv_reparam.registry import VARIABLE
from mindcv_reparam.stochastic import DropPath, mask_states, seed_masks
from mindcv_reparam.tasks import TASKS, Task
from mindcv_reparam.tasks.detection.denoising import Noise, denoise
from mindcv_reparam.tasks.objective import Objective
from mindcv_reparam.training import assembly, interruption
from mindcv_reparam.training.data import open_data
from mindcv_reparam.training.resume import TrainingState
from mindcv_reparam.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
TASK = TASKS["detection"]
STEPS, EPOCHS, DENOISING, MOST = 3, 2, 20, 100
QUERIES = SMALL_DETECTOR["num_queries"]
SETTINGS = dict(
    **dict(model="rtdetr_riformer_xs", dataset="scenes", image_resize=64, num_classes=10, batch_size=2, lr=0.01),
    **dict(num_samples=2 * STEPS, epoch_size=EPOCHS, warmup_epochs=0, num_parallel_workers=1, max_boxes=MOST),
    **dict(denoising_queries=DENOISING, opt="adamw", clip_grad=True, clip_value=0.1, ema=True, ema_warmup=2.0),
)


class Glance(Objective):
    """How dark images of any size are, and how many objects they show: quick to compile."""

    def construct(self, images, targets):
        seen = self.network(images.mean((2, 3)))
        return (ops.square(seen - targets[2].astype(ms.float32).sum(1, keepdims=True)).mean(),)


class Glances(type(TASK)):
    """The task with that objective."""

    def objective(self, config, network, *more):
        return Glance(network)


def small_detector() -> nn.Cell:
    return create_model("rtdetr_riformer_xs", num_classes=10, img_size=64, **SMALL_DETECTOR)


class Small:
    """A small detector and its compiled step, put back to its first state by ``reset``."""

    def __init__(self, task: Task = TASK, build: Callable[[], nn.Cell] = small_detector) -> None:
        self.config = Config(**SETTINGS)
        ms.set_seed(3)
        network = build()
        seed_masks(network, seed=0, rank=0)
        with self.data() as data:
            self.step = assembly.build_step(self.config, task, network, "CPU", Alone(), data)
            self.rates = assembly.build_rates(self.config, data.train.steps_per_epoch, Alone())
        self.parameters = {p.name: p for p in self.step.get_parameters()} | mask_states(network)
        self.first = self.values()

    def data(self, **settings: object):
        return open_data(Config(**SETTINGS | settings), TASK, Alone())

    def values(self) -> dict[str, np.ndarray]:
        return {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}

    def reset(self, values: dict[str, np.ndarray] | None = None) -> None:
        for name, value in (values or self.first).items():
            ops.assign(self.parameters[name], Tensor(value))

    def train(self, folder: Path, signal_at: int | None = None, resume: bool = False) -> list[dict[str, float]]:
        """Records of the epochs; a signal arrives while batch number ``signal_at`` is made."""
        state = TrainingState(folder / "state.npz", self.parameters, Alone(), self.config, STEPS)
        records: list[dict[str, float]] = []
        with self.data() as data:
            loader = data.train
            if signal_at is not None:
                whole = loader.epoch
                loader.epoch = lambda epoch, start=0: signalled(whole(epoch, start), signal_at - epoch * STEPS - start)
            options = dict(log_interval=2, state=state, on_epoch_end=[records.append])
            trainer = Trainer(self.step, loader, self.rates, Alone(), **options)
            trainer.run(state.restore(state.path) if resume else None)
        return [{k: v for k, v in record.items() if k not in ("img_per_s", "data_wait")} for record in records]

    def update(self, arrays: list[np.ndarray], images: np.ndarray) -> dict[str, float]:
        """The terms of a step."""
        targets = ms.mutable(tuple(map(Tensor, arrays)))
        loss, norm, finite, parts, _ = self.step(Tensor(images), targets, Tensor(0.01, ms.float32))
        assert bool(finite)
        assert np.isfinite(float(norm.asnumpy()))
        found = {name: float(part.asnumpy()) for name, part in zip(self.step.objective.parts, parts, strict=True)}
        assert float(loss.asnumpy()) == pytest.approx(sum(found.values()), rel=1e-5)
        return found


def signalled(batches, at: int):
    for step, batch in enumerate(batches):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


def test_a_detector_resumes_to_the_bit(small, tmp_path, monkeypatch):
    """Weights, average, optimizer, masks, and the terms of the loss; stopped within an epoch."""
    monkeypatch.setattr(interruption, "_PATIENCE", 600.0)
    small.reset()
    records = small.train(tmp_path / "whole")
    whole = small.values()
    small.reset()
    with pytest.raises(Interrupted, match="SIGTERM after epoch 2, step 2 of 3"):
        small.train(tmp_path / "parts", signal_at=STEPS + 1)
    stopped = small.values()
    assert any(np.any(whole[name] != value) for name, value in stopped.items())
    small.reset({name: np.zeros_like(value) for name, value in whole.items()})
    resumed = small.train(tmp_path / "parts", resume=True)
    assert resumed == records[1:]
    assert len([key for key in records[1] if key.startswith("train_loss_")]) == 9
    for name, value in small.values().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_training_on_several_sizes_compiles_each_once_and_resumes_to_the_bit(tmp_path, monkeypatch, caplog):
    small = Small(Glances(), lambda: nn.SequentialCell(nn.Dense(3, 8), DropPath(0.5), nn.Dense(8, 1)))
    monkeypatch.setattr(interruption, "_PATIENCE", 600.0)
    with caplog.at_level("INFO"), small.data(multi_scale=(64, 96), seed=9) as data:
        sizes = [data.train.batches.shape(epoch, step)[2] for epoch in range(EPOCHS) for step in range(STEPS)]
        assert set(sizes[:STEPS]) == set(sizes[STEPS:]) == {64, 96}
        monkeypatch.setattr(small, "data", lambda: contextlib.nullcontext(data))
        small.reset()
        records = small.train(tmp_path / "whole")
        whole = small.values()
        assert len([line for line in caplog.messages if line.startswith("first step")]) == 2
        small.reset()
        with pytest.raises(Interrupted):
            small.train(tmp_path / "parts", signal_at=STEPS + 1)
        assert small.train(tmp_path / "parts", resume=True) == records[1:]
    assert all(np.isfinite(value).all() for value in records[1].values())
    for name, value in small.values().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def batch_of(counts: tuple[int, int]) -> list[np.ndarray]:
    """Targets of two images with so many objects."""
    rng = np.random.default_rng(0)
    valid = np.arange(MOST) < np.array(counts)[:, None]
    labels = (rng.integers(0, 10, (2, MOST)) * valid).astype(np.int32)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (2, MOST, 2)), rng.uniform(0.05, 0.5, (2, MOST, 2))], -1)
    boxes = (boxes * valid[..., None]).astype(np.float32)
    noise = Noise.draw(stream(0, Purpose.DENOISE, 0, 0), 2, DENOISING, 10)
    made = denoise(
        labels, boxes, valid, noise, num_classes=10, num_queries=QUERIES, label_noise_ratio=0.5, box_noise_scale=1.0
    )
    return [labels, boxes, valid, *made.arrays()]


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (100, 0), (100, 100)])
def test_any_number_of_objects_is_trained_on(small, counts):
    """More than there are queries, an image of them beside one without, none at all."""
    small.reset()
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 64)).astype(np.float32)
    found = small.update(batch_of(counts), images)
    assert all(np.isfinite(value) for value in found.values())
    located = {name for name, value in found.items() if "vfl" not in name and value > 0}
    expected = {name for name in found if "vfl" not in name and any(counts)}
    assert located == expected
    assert found["loss_vfl"] > 0
    moved = small.values()
    assert any(np.any(moved[name] != value) for name, value in small.first.items() if name.startswith("backbone"))
    assert all(np.isfinite(value).all() for value in moved.values())


def test_a_set_of_one_image_is_trained_on(small):
    small.reset()
    with small.data(num_samples=1, drop_remainder=False) as data:
        assert data.train.steps_per_epoch == 1
        images, *arrays = next(data.train.epoch(0))
        assert not np.array_equal(images[0], images[1])  # augmented twice
        found = small.update(list(arrays), images)
    assert found["loss_bbox"] > 0


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_ranks_resume_to_the_bit(tmp_path):
    """Through train.py, from what it would have left if it had been killed in its second epoch."""
    small = dict(model="rtdetr_small", image_resize=64, num_samples=64, epoch_size=2, drop_path_rate=0.2)
    small |= dict(val_while_train=False, ckpt_save_policy="latest_k", log_interval=1)
    words = [str(word) for name, value in small.items() for word in (f"--{name}", value)]
    recipe = ROOT / "configs" / "rtdetr" / "rtdetr_riformer_xs_scenes_cpu.yaml"
    environ = os.environ | ENVIRONMENT | {VARIABLE: str(ROOT / "tests/data/small_detector.py")}
    environ["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"

    def job(folder: Path, *more: str, copy: Path | None = None) -> None:
        command = mpirun_command(2, "train.py", "--config", recipe, "--ckpt_save_dir", folder, *words, *more)
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT, env=environ
        ) as process:
            said = []
            for line in process.stderr:
                said.append(line)
                if copy and "epoch 2/2 step 2/4" in line:
                    shutil.copytree(folder, copy)
        assert process.returncode == 0, "".join(said)[-3000:]

    job(tmp_path / "whole", copy=tmp_path / "parts")
    assert not (tmp_path / "parts" / "rtdetr_small_final.ckpt").exists()
    job(tmp_path / "parts", "--resume", "auto")
    for kind in ("final", "final_online"):
        whole, parts = (  # not by the zoo, which lacks the family here
            read_contents(tmp_path / at / f"rtdetr_small_{kind}.ckpt").arrays for at in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(parts[name], value, err_msg=name)
