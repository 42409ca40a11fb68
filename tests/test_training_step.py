"""The compiled step against the same arithmetic in NumPy and against itself."""

import mindspore as ms
import numpy as np
import pytest
from gradients import gradients_by_name
from mindspore import Tensor, nn, ops

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.step import TrainStep

RATE = 0.1


class Linear(nn.Cell):
    """Softmax regression, whose gradient NumPy can write down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = ms.Parameter(Tensor(np.random.default_rng(0).normal(size=(3, 4)), ms.float32), name="weight")

    def construct(self, x):
        return ops.matmul(x, self.weight)


def batch(seed: int, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.dirichlet(np.ones(4), size=size)
    return rng.normal(size=(size, 3)).astype(np.float32), labels.astype(np.float32)


def gradient(weight: np.ndarray, x: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    logits = x @ weight
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probability = exponentials / exponentials.sum(1, keepdims=True)
    loss = -(labels * np.log(probability)).sum(1).mean()
    return loss, x.T @ (probability * labels.sum(1, keepdims=True) - labels) / len(x)


def weights(network: Linear) -> np.ndarray:
    """A copy: `asnumpy` shares memory with a parameter that later steps change."""
    return network.weight.asnumpy().copy()


def build(**options) -> tuple[Linear, TrainStep]:
    network = Linear()
    optimizer = create_optimizer(network, "sgd", momentum=0.0)
    average = WeightAverage(network, **options.pop("ema")) if "ema" in options else None
    return network, TrainStep(
        ClassificationObjective(network, create_loss("CE")), optimizer, average=average, measures_norm=True, **options
    )


def call(step: TrainStep, x: np.ndarray, labels: np.ndarray, update: bool = True) -> tuple[float, float, bool]:
    outputs = step(Tensor(x), Tensor(labels), Tensor(RATE, ms.float32), update)
    loss, norm, finite = (output.asnumpy() for output in outputs[:3])
    return float(loss), float(norm), bool(finite)


def test_plain_steps_match_numpy():
    network, step = build()
    weight = network.weight.asnumpy().astype(np.float64)
    for seed in range(3):
        expected, slope = gradient(weight, *batch(seed))
        weight -= RATE * slope
        loss, norm, finite = call(step, *batch(seed))
        assert loss == pytest.approx(expected, rel=1e-6)
        assert norm == pytest.approx(np.linalg.norm(slope), rel=1e-5)
        assert finite
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=1e-5, atol=1e-6)


def test_parameters_keep_their_names_inside_the_step():
    network, step = build(ema={"decay": 0.9}, accumulation_steps=2)
    assert [p.name for p in network.get_parameters()] == ["weight"]
    names = [p.name for p in step.get_parameters()]
    assert len(names) == len(set(names))
    assert {"weight", "velocity.weight", "accumulated.weight", "ema.weight"} <= set(names)


def test_clipping_limits_the_global_norm():
    x, labels = batch(0)
    network, step = build(clip_norm=0.05)
    weight = weights(network)
    _, slope = gradient(weight.astype(np.float64), x, labels)
    assert np.linalg.norm(slope) > 0.1
    _, norm, _ = call(step, x, labels)
    assert norm == pytest.approx(np.linalg.norm(slope), rel=1e-5)
    moved = (weight - network.weight.asnumpy()) / RATE
    np.testing.assert_allclose(moved, slope * 0.05 / np.linalg.norm(slope), rtol=1e-3, atol=1e-5)


def test_clipping_leaves_a_small_gradient_alone():
    x, labels = batch(0)
    network, step = build(clip_norm=50.0)
    weight = weights(network)
    call(step, x, labels)
    _, slope = gradient(weight.astype(np.float64), x, labels)
    np.testing.assert_allclose(network.weight.asnumpy(), weight - RATE * slope, rtol=1e-5, atol=1e-6)


def test_accumulation_equals_the_whole_batch():
    whole, whole_step = build()
    parts, parts_step = build(accumulation_steps=3, loss_scale=LossScale(1024.0))
    for seed in range(2):
        x, labels = batch(seed, size=12)
        call(whole_step, x, labels)
        before = weights(parts)
        for part in range(3):
            rows = slice(4 * part, 4 * part + 4)
            np.testing.assert_array_equal(parts.weight.asnumpy(), before)
            call(parts_step, x[rows], labels[rows], update=part == 2)
    np.testing.assert_allclose(parts.weight.asnumpy(), whole.weight.asnumpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_overflow_is_skipped_and_counted(dynamic):
    network, step = build(loss_scale=LossScale(1024.0, dynamic=dynamic), drop_overflow_update=True, ema={"decay": 0.5})
    x, labels = batch(0)
    call(step, x, labels)
    held = {p.name: p.asnumpy().copy() for p in step.get_parameters()}
    x[0, 0] = np.inf
    _, norm, finite = call(step, x, labels)
    assert not finite
    assert not np.isfinite(norm)
    for parameter in step.get_parameters():
        if parameter.name not in ("skipped_updates", "loss_scale.value", "loss_scale.streak"):
            np.testing.assert_array_equal(parameter.asnumpy(), held[parameter.name], err_msg=parameter.name)
    assert step.skipped.asnumpy() == 1
    assert step.loss_scale.value.asnumpy() == (512.0 if dynamic else 1024.0)
    assert call(step, *batch(1))[2]
    assert np.any(network.weight.asnumpy() != held["weight"])
    assert step.skipped.asnumpy() == 1


def test_a_dynamic_scale_doubles_after_its_window_and_never_falls_below_one():
    _, step = build(loss_scale=LossScale(4.0, dynamic=True, window=2))
    scales = []
    broken = batch(0)
    broken[0][0, 0] = np.nan
    for data in (batch(0), batch(1), batch(2), broken, broken, broken, broken, broken, batch(0), batch(1)):
        call(step, *data)
        scales.append(float(step.loss_scale.value.asnumpy()))
    assert scales == [4.0, 8.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0]


def test_a_dynamic_scale_doubles_after_2000_updates():
    """As MindSpore's DynamicLossScaler and PyTorch's GradScaler do; what counts them needs no step."""
    scale = LossScale(4.0, dynamic=True)
    scale.streak.set_data(Tensor(1998, ms.int32))
    for expected in (4.0, 8.0):
        scale(Tensor(True))
        assert scale.value.asnumpy() == expected


def test_a_dynamic_scale_stops_at_its_maximum_and_keeps_a_larger_start():
    for start, expected in ((2.0**22, [2.0**23, 2.0**24, 2.0**24]), (2.0**26, [2.0**26] * 3)):
        scale = LossScale(start, dynamic=True, window=1)
        scales = []
        for _ in range(3):
            scale(Tensor(True))
            scales.append(float(scale.value.asnumpy()))
        assert scales == expected


class Slope(nn.Cell):
    """Its gradient is its input, whatever the weights."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = ms.Parameter(Tensor(np.zeros(size), ms.float32), name="weight")

    def construct(self, x):
        return self.weight * x


class Sum(nn.Cell):
    def construct(self, logits, labels):
        return logits.sum() + 0.0 * labels.sum()


def slope_step(size: int = 8, **options) -> TrainStep:
    network = Slope(size)
    objective = ClassificationObjective(network, Sum())
    optimizer = create_optimizer(network, "sgd", momentum=0.0)
    return TrainStep(objective, optimizer, measures_norm=True, **options)


def test_the_norm_of_a_large_tensor_is_as_exact_as_that_of_a_small_one():
    """ops.L2Loss adds one square after the other on a CPU: it had 2e-3 less here."""
    slope = np.random.default_rng(0).normal(size=2_359_296).astype(np.float32)  # a 3 × 3 convolution of 512 channels
    _, norm, _ = call(slope_step(len(slope)), slope, np.zeros(1, np.float32))
    assert norm == pytest.approx(np.linalg.norm(slope.astype(np.float64)), rel=1e-6)


def test_large_gradients_are_finite_though_their_norm_is_not():
    """The square of 3e19 is beyond float32, the gradient is not."""
    slope, labels = np.full(8, 3e19, np.float32), np.zeros(1, np.float32)
    step = slope_step(drop_overflow_update=True)
    _, norm, finite = call(step, slope, labels)
    assert (norm, finite) == (np.inf, True)
    assert step.skipped.asnumpy() == 0
    np.testing.assert_array_equal(step.network.weight.asnumpy(), np.full(8, np.float32(-RATE) * np.float32(3e19)))

    clipped = slope_step(drop_overflow_update=True, clip_norm=1.0)  # which would be a step of length 0
    assert not call(clipped, slope, labels)[2]
    assert clipped.skipped.asnumpy() == 1


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}], ids=["plain", "clipping"])
def test_one_value_that_is_not_finite_is_seen(options):
    step = slope_step(drop_overflow_update=True, **options)
    for value in (np.nan, np.inf, -np.inf):
        slope = np.ones(8, np.float32)
        slope[5] = value
        assert not call(step, slope, np.zeros(1, np.float32))[2], value
        np.testing.assert_array_equal(step.network.weight.asnumpy(), np.zeros(8))


def test_the_verdict_is_mindspores_which_knows_the_device(monkeypatch):
    """A device that saturates shows finite gradients and an overflow in its status register."""

    def status_of_the_device(gradients):
        return ops.less(ops.zeros_like(gradients[0]).sum(), 0)

    monkeypatch.setattr("mindcv_reparam.multi_tensor.amp.all_finite", status_of_the_device)
    step = slope_step(loss_scale=LossScale(1024.0, dynamic=True))
    assert not call(step, np.ones(8, np.float32), np.zeros(1, np.float32))[2]
    assert (step.skipped.asnumpy(), step.loss_scale.value.asnumpy()) == (1, 512.0)


def test_an_overflow_of_another_rank_is_an_overflow():
    class OneMore(nn.Cell):
        def construct(self, overflows):
            return overflows + 1.0

    step = slope_step(drop_overflow_update=True)
    step.sum_over_ranks = OneMore()
    assert not call(step, np.ones(8, np.float32), np.zeros(1, np.float32))[2]
    np.testing.assert_array_equal(step.network.weight.asnumpy(), np.zeros(8))


@pytest.mark.parametrize("warmup", [0.0, 5.0])
def test_average_follows_its_formula(warmup):
    network, step = build(ema={"decay": 0.9, "warmup": warmup})
    shadow = network.weight.asnumpy().astype(np.float64)
    for t in range(1, 5):
        call(step, *batch(t))
        decay = 0.9 * (1 - np.exp(-t / warmup)) if warmup else 0.9
        shadow = decay * shadow + (1 - decay) * network.weight.asnumpy()
    online = weights(network)
    np.testing.assert_allclose(step.average.shadow[0].asnumpy(), shadow, rtol=1e-5, atol=1e-6)
    with step.average.applied():
        np.testing.assert_allclose(network.weight.asnumpy(), shadow, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(network.weight.asnumpy(), online)
    call(step, *batch(9))
    assert np.any(network.weight.asnumpy() != online)


@pytest.mark.parametrize("kind", ["every batch", "accumulation", "overflow check"])
def test_applying_the_average_does_not_hold_it_up(kind):
    """A compiled branch keeps the memory of the parameters it writes, whatever `set_data` gives them since."""
    found = []
    for applied in (False, True):
        options = {"accumulation": {"accumulation_steps": 2}, "overflow check": {"drop_overflow_update": True}}
        network, step = build(ema={"decay": 0.5, "warmup": 0.0}, **options.get(kind, {}))
        for t in range(6):
            call(step, *batch(t), update=t % step.accumulation_steps == step.accumulation_steps - 1)
            if applied and t in (1, 3):
                with step.average.applied():
                    pass
        found.append((step.average.shadow[0].asnumpy().copy(), weights(network)))
    np.testing.assert_array_equal(found[0], found[1])


def test_gradients_by_name_match_numpy():
    network = Linear()
    x, labels = batch(3)
    _, slope = gradient(network.weight.asnumpy().astype(np.float64), x, labels)
    found = gradients_by_name(network, create_loss("CE"), x, labels)
    np.testing.assert_allclose(found["weight"], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"accumulation_steps": 0}, {"clip_norm": 0.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError):
        build(**options)
