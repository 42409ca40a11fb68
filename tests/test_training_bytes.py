"""Batches of bytes, normalised on the device: the same bits as batches of normalised floats, also where the graph
erases and mixes what it has normalised."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from alone import Alone
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, loader
from mindcv_reparam.data.transforms import Normalize
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS, open_loader
from mindcv_reparam.tasks.classification.device import augmentation
from mindcv_reparam.tasks.classification.distillation import Distillation, DistillationLoss, freeze
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.tasks.evaluate import evaluate
from mindcv_reparam.tasks.normalization import Normalization, normalization
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.step import TrainStep

TASK = TASKS["classification"]
FLOATS = Config(
    **dict(model="visformer_tiny", dataset="digits", image_resize=32, batch_size=8, num_classes=10),
    **dict(auto_augment="rand-m9-mstd0.5-inc1", cutmix=1.0, label_smoothing=0.1, epoch_size=2),
)
BYTES = dataclasses.replace(FLOATS, normalize_on_device=True)
# What a graph erases and mixes. Half of the images are erased, a third of each, so that every batch mixes boxes.
ERASING = dict(cutmix=0.0, re_prob=0.5, re_scale=(0.3, 0.3))
IN_GRAPH = {
    "mixup": dict(mixup=0.8, cutmix=0.0),
    "mixup, an odd batch": dict(mixup=0.8, cutmix=0.0, batch_size=7),
    "mixup or cutmix or neither": dict(mixup=0.8, cutmix_prob=0.7),
    "const": ERASING | dict(re_value=(1.0, -2.0, 0.3)),
    "rand": ERASING | dict(re_mode="rand"),
    "pixel": ERASING | dict(re_mode="pixel"),
    "rand, cutmix": ERASING | dict(re_mode="rand", cutmix=1.0),
    "pixel, mixup": ERASING | dict(re_mode="pixel", mixup=0.8),
}
ALL = ERASING | dict(re_mode="pixel", mixup=0.8, cutmix=1.0)


def batches_of(config, train, count=3, task=TASK):
    with open_loader(task, create_dataset(config, train), config, train) as batches:
        return [batch for batch, _ in zip(batches.epoch(0), range(count))]


class Linear(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        weight = np.random.default_rng(0).normal(size=(3 * 32 * 32, 10)) * 0.01
        self.weight = Parameter(Tensor(weight, ms.float32), name="weight")

    def construct(self, images):
        return ops.matmul(images.reshape(images.shape[0], -1), self.weight)


def test_a_graph_gives_every_value_the_bits_that_the_host_gives_it():
    normalize = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    values = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, 3, 16, 16))
    normalized = Normalization(normalize)(Tensor(values.copy())).asnumpy()
    assert normalized.dtype == np.float32
    np.testing.assert_array_equal(normalized, np.broadcast_to(normalize.table.reshape(1, 3, 16, 16), (2, 3, 16, 16)))


@pytest.mark.parametrize("train", [True, False], ids=["training", "validation"])
def test_batches_are_those_of_floats_before_the_normalisation(train):
    normalize = normalization(BYTES)
    for floats, raw in zip(batches_of(FLOATS, train), batches_of(BYTES, train), strict=True):
        assert (raw[0].dtype, raw[0].nbytes) == (np.uint8, floats[0].nbytes // 4)
        np.testing.assert_array_equal(normalize(Tensor(raw[0])).asnumpy(), floats[0])
        for one, other in zip(raw[1:], floats[1:], strict=True):
            np.testing.assert_array_equal(one, other)


def in_graph(config, batch):
    """What the objective's augmentation makes of a batch of bytes: images and labels."""
    images, labels = augmentation(config)(normalization(config)(Tensor(batch[0])), tuple(map(Tensor, batch[1:])))
    return images.asnumpy(), labels.asnumpy()


@pytest.mark.parametrize("settings", IN_GRAPH.values(), ids=IN_GRAPH)
def test_a_graph_erases_and_mixes_to_the_bits_of_floats(settings, by_operator):
    """In the host's order: a box is erased of an image before it meets another one."""
    floats, raw = (dataclasses.replace(config, **settings) for config in (FLOATS, BYTES))
    plain = dataclasses.replace(raw, mixup=0.0, cutmix=0.0, re_prob=0.0)
    changed = 0
    for expected, batch, untouched in zip(*(batches_of(config, True, 6) for config in (floats, raw, plain))):
        assert batch[0].dtype == np.uint8
        images, labels = in_graph(raw, batch)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
        changed += (images != normalization(raw)(Tensor(untouched[0])).asnumpy()).any()
    assert changed >= 4


@pytest.mark.parametrize(
    ("settings", "arrays"),
    [
        ({}, []),
        ({"cutmix": 0.0}, []),
        ({"mixup": 0.2}, [((5,), np.float32)]),
        ({"re_prob": 0.25, "cutmix": 0.0}, [((8, 4), np.int32), ((8, 3), np.float32)]),
        (ALL, [((8, 4), np.int32), ((8,), np.int32), ((5,), np.float32)]),
    ],
)
def test_a_batch_brings_only_what_the_settings_need(settings, arrays):
    config = dataclasses.replace(BYTES, **settings)
    (batch,) = batches_of(config, True, 1)
    assert [(array.shape, array.dtype) for array in batch[2:]] == arrays
    assert (augmentation(config) is None) == (not arrays)
    assert augmentation(dataclasses.replace(config, normalize_on_device=False)) is None


def test_every_box_has_noise_of_its_own_and_a_run_that_goes_on_the_same():
    config = dataclasses.replace(BYTES, **ALL, epoch_size=3)
    with open_loader(TASK, create_dataset(config, True), config, True) as loader:
        epochs = [[batch for batch, _ in zip(loader.epoch(epoch), range(4))] for epoch in range(2)]
        again = next(loader.epoch(1, 3))
    boxes, keys = (np.concatenate([batch[index] for batches in epochs for batch in batches]) for index in (2, 3))
    erased = boxes[:, 1] > boxes[:, 0]
    assert erased.mean() == pytest.approx(0.5, abs=0.2)
    assert len(np.unique(keys[erased])) == erased.sum()
    assert not keys[~erased].any()
    for one, other in zip(again, epochs[1][3], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("train", [True, False], ids=["training", "validation"])
def test_so_are_a_detector_s(train):
    shared = dict(dataset="scenes", image_resize=64, batch_size=4, num_classes=10, model="rtdetr_r18vd", epoch_size=200)
    floats, raw = (
        batches_of(Config(**shared, normalize_on_device=on), train, 2, TASKS["detection"]) for on in (False, True)
    )
    for one, other in zip(floats, raw, strict=True):
        assert other[0].dtype == np.uint8
        values = Normalization(Normalize(FLOATS.mean, FLOATS.std))(Tensor(other[0])).asnumpy()
        np.testing.assert_array_equal(values, one[0])


@pytest.mark.parametrize("settings", [{}, ALL], ids=["cutmix", "all"])
def test_weights_after_some_steps_have_the_same_bits(settings):
    """With a teacher, which sees the images that the network sees."""
    weights = []
    for config in (dataclasses.replace(config, **settings) for config in (FLOATS, BYTES)):
        network, teacher = Linear(), freeze(Linear(), "teacher")
        loss = create_loss("CE")
        distillation = Distillation(DistillationLoss(loss, "soft"), teacher)
        objective = ClassificationObjective(network, loss, distillation, augmentation=augmentation(config))
        step = TrainStep(objective, create_optimizer(network, "adamw"), normalize=normalization(config))
        for images, *arrays in batches_of(config, True):
            tensors = tuple(map(Tensor, arrays))
            step(Tensor(images), tensors[0] if len(tensors) == 1 else ms.mutable(tensors), Tensor(0.01, ms.float32))
        weights.append(network.weight.asnumpy().copy())
    assert (weights[0] != Linear().weight.asnumpy()).any()
    np.testing.assert_array_equal(*weights)


def test_a_validation_finds_the_same():
    found = []
    for config in (FLOATS, BYTES):
        source = create_dataset(config, train=False)
        with open_loader(TASK, source, dataclasses.replace(config, num_samples=50), False) as batches:
            result = evaluate(Linear(), batches, TASK.evaluator(source), Alone(), normalize=normalization(config))
        found.append((result.samples, result.correct1, result.loss))
    assert found[0][0] == 50
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_worker_process_hands_bytes_over(monkeypatch):
    one_thread = batches_of(BYTES, True)
    monkeypatch.setattr(loader, "_MOST_THREADS", 0)
    for one, other in zip(one_thread, batches_of(BYTES, True), strict=True):
        assert other[0].dtype == np.uint8
        np.testing.assert_array_equal(one[0], other[0])


def test_what_needs_floats_in_front_of_the_step_is_named():
    settings = {"teacher": "t.mindir", "distill": "hard"}
    TASK.check(dataclasses.replace(FLOATS, **settings))
    TASK.check(dataclasses.replace(BYTES, **ALL))
    with pytest.raises(UserError) as error:
        TASK.check(dataclasses.replace(BYTES, **settings))
    assert str(error.value).startswith(
        "normalize_on_device sends bytes, and a .mindir teacher works on normalised images"
    )
