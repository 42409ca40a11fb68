"""Between two log lines nothing makes the host wait for the device.

A call of a graph is synchronous on a CPU, so times tell nothing: what would wait is counted. In Python, every value
comes to the host through a few methods of Tensors. In C++, it is the branches of a graph: the node `Switch` copies its
condition to the host.
"""

import collections
import contextlib

import mindspore as ms
import numpy as np
import pytest
from alone import Alone
from graphs import anf_ir_pb2, graphs_of
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.private import values
from mindcv_reparam.tasks.classification.device import Augmentation, Erasing, Mixing
from mindcv_reparam.tasks.classification.distillation import Distillation, DistillationLoss, freeze
from mindcv_reparam.tasks.classification.imitation import Imitation
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.tasks.detection.denoising import Noise, denoise
from mindcv_reparam.tasks.detection.objective import DetectionObjective
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.step import TrainStep
from mindcv_reparam.training.trainer import Trainer

STEPS, CLASSES, QUERIES, LAYERS = 6, 4, 5, 2
WAYS = ("asnumpy", "_item", "get_bytes", "__repr__", "__getstate__", "_flush_from_cache")


@contextlib.contextmanager
def counted():
    """Calls of what brings a Tensor's value to the host, by name."""
    calls: collections.Counter[str] = collections.Counter()
    with pytest.MonkeyPatch.context() as patch:
        others = ((Tensor, "tolist"), (ms.runtime, "synchronize"), (ms.hal, "synchronize"))
        for owner, name in (*((values(), name) for name in WAYS), *others):
            patch.setattr(owner, name, counting(getattr(owner, name), name, calls))
        yield calls


def counting(function, name, calls):
    def call(*arguments, **options):
        calls[name] += 1
        return function(*arguments, **options)

    return call


class Student(nn.Cell):
    """(N, 3, 4, 4) → (N, CLASSES); shows one block."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.weight = Parameter(Tensor(rng.normal(size=(48, CLASSES)), ms.float32), name="weight")
        self.scale = Parameter(Tensor(np.ones(3), ms.float32), name="scale")

    def construct(self, images):
        return ops.matmul((images * self.scale.reshape(3, 1, 1)).reshape(-1, 48), self.weight)

    def forward_observed(self, images):
        block = images * self.scale.reshape(3, 1, 1)
        return self.construct(images), ((images, block, block),)

    def mix_tokens(self, normed):
        return (normed[0] * 2.0,)


class Detector(nn.Cell):
    """Images are not looked at: what it answers are its parameters."""

    layers = LAYERS

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.logits = Parameter(Tensor(rng.normal(size=(2, QUERIES, CLASSES)), ms.float32), name="logits")
        self.boxes = Parameter(Tensor(rng.uniform(0.2, 0.4, (2, QUERIES, 4)), ms.float32), name="boxes")

    def forward_training(self, images, labels, references, blocked):
        noisy = labels.shape[1]
        logits = ops.concat((ops.tile(self.logits[:, :1], (1, noisy, 1)), self.logits), 1)
        boxes = ops.concat((ops.sigmoid(references), self.boxes), 1)
        return ops.stack((logits, logits)), ops.stack((boxes, boxes)), self.logits, self.boxes


def classifying(network, **options):
    return ClassificationObjective(network, create_loss("CE"), **options)


def distilling(network, **options):
    teacher = freeze(Student(), "teacher")
    return classifying(network, distillation=Distillation(DistillationLoss(create_loss("CE"), "soft"), teacher))


def imitating(network, epochs=(1, 1)):
    return classifying(network, imitation=Imitation(freeze(Student(), "teacher"), (1.0, 1.0, 1.0), epochs))


RUNS = {
    "plain": (classifying, {}),
    "accumulating": (classifying, {"accumulation_steps": 2, "average": True}),
    "dynamic scale": (classifying, {"loss_scale": LossScale(16.0, dynamic=True), "average": True}),
    "accumulating with a dynamic scale": (
        classifying,
        {"loss_scale": LossScale(16.0, dynamic=True), "accumulation_steps": 2, "average": True, "clip_norm": 1.0},
    ),
    "distilling": (distilling, {}),
    "imitating": (imitating, {}),
}


def step_of(objective, options, optimizer="adamw") -> TrainStep:
    options = dict(options)
    if options.pop("average", False):
        options["average"] = WeightAverage(objective.network, 0.9, 0.0)
    return TrainStep(objective, create_optimizer(objective.network, optimizer, weight_decay=0.05), **options)


def images_and_labels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 3, 4, 4)).astype(np.float32), rng.dirichlet(np.ones(CLASSES), 2).astype(np.float32)


class Loader:
    """Notes how many values had come to the host when each batch was asked for."""

    steps_per_epoch = STEPS
    skipped = 0
    bad_files: dict[int, str] = {}

    def __init__(self, calls) -> None:
        self.calls = calls
        self.counts: list[int] = []

    def epoch(self, epoch: int, start_step: int = 0):
        for step in range(start_step, STEPS):
            self.counts.append(self.calls.total())
            yield images_and_labels(epoch * STEPS + step)

    def names(self, epoch, step, rank):
        return []


class Pair(Alone):
    """Rank 0 of two that do the same and agree that nobody has heard a signal."""

    size = 2

    def sum(self, values):
        return 2.0 * np.asarray(values, np.float64)

    def ballot(self):
        return Unanimous()


class Unanimous:
    def passed(self, step):
        return None

    def call(self, number):
        pass

    def leave(self):
        pass


@pytest.mark.parametrize("ranks", [Alone(), Pair()], ids=["one rank", "two ranks"])
@pytest.mark.parametrize("run", ["plain", "accumulating with a dynamic scale"])
def test_no_value_comes_to_the_host_between_two_log_lines(run, ranks):
    make, options = RUNS[run]
    with counted() as calls:
        loader = Loader(calls)
        step = step_of(make(Student()), options)
        Trainer(step, loader, np.full(2 * STEPS, 0.01), ranks, log_interval=3).run()
    by_step = np.diff(loader.counts)
    # Of the first epoch: two graphs may be compiled, each of which is waited for; then a line after every third step,
    # for one value. The end of the epoch brings its number of skipped updates besides.
    assert by_step[2:].tolist() == [1, 0, 0, by_step[5], 0, 0, 1, 0, 0]
    assert by_step[5] <= 2


def test_what_would_wait_is_counted():
    tensor = Tensor([1.0, 2.0])
    uses = (lambda x: x.asnumpy(), lambda x: x.tolist(), str, lambda x: float(x[0]), lambda x: bool(x[0]))
    for use in uses:
        with counted() as calls:
            use(tensor)
        assert calls.total() > 0


def switches(cell: nn.Cell) -> int:
    return sum(operator.lower() in ("switch", "switchlayer") for operator in operators(cell))


def operators(cell: nn.Cell) -> list[str]:
    graph = anf_ir_pb2.ModelProto.FromString(cell.get_func_graph_proto()).graph
    assert len(graph.node) > 10
    return [node.op_type for node in graph.node]


class Branch(nn.Cell):
    def construct(self, x, y):
        for _ in range(8):
            x = x + y
        if x.sum() > 0.0:
            x = x * y
        return x


def test_a_branch_is_found():
    branch = Branch()
    branch(Tensor([1.0]), Tensor([2.0]))
    assert switches(branch) > 0


@pytest.mark.parametrize("run", RUNS)
def test_no_graph_of_a_step_branches(run):
    make, options = RUNS[run]
    step = step_of(make(Student()), options)
    images, labels = images_and_labels()
    step.objective.start_epoch(0)
    step(Tensor(images), Tensor(labels), Tensor(0.1, ms.float32), True)
    assert switches(step) == 0
    if step.accumulated:
        assert switches(step.accumulated) == 0


@pytest.mark.parametrize("run", ["imitating", "accumulating"])
def test_what_is_compiled_ahead_is_what_a_step_runs(run):
    """Else a run would compile twice, which takes minutes for the largest networks."""
    make, options = RUNS[run]
    step = step_of(make(Student()), options)
    batch = (*map(Tensor, images_and_labels()), Tensor(0.1, ms.float32))
    step.objective.start_epoch(0)
    step.compile_graphs(*batch, True)
    cells = [step] + ([step.accumulated] if step.accumulated else [])
    ahead = [set(graphs_of(cell)) for cell in cells]
    assert [len(graphs) for graphs in ahead] == [1] * len(cells)
    step(*batch, True)
    assert [set(graphs_of(cell)) for cell in cells] == ahead


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.exhaustive), "adamw", "lamb"])
def test_a_skipped_update_changes_no_bit_and_neither_does_the_possibility(optimizer):
    """Of weights, moments, average and counters; the other step cannot skip, and gets no NaN."""
    good, broken = [images_and_labels(seed) for seed in (0, 1)], images_and_labels(2)
    broken[0][0, 0, 0, 0] = np.nan
    found = []
    for options, batches in (({}, good), ({"drop_overflow_update": True}, [good[0], broken, good[1]])):
        step = step_of(classifying(Student()), {"average": True, **options}, optimizer)
        told = [step(*map(Tensor, batch), Tensor(0.1, ms.float32))[-1].asnumpy()[-1] for batch in batches]
        found.append({p.name: p.asnumpy().copy() for p in step.get_parameters()})
        assert switches(step) == 0
    assert told == [1.0, 0.0, 1.0]
    assert (found[0].pop("skipped_updates"), found[1].pop("skipped_updates")) == (0, 1)
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


def test_no_graph_of_a_step_branches_that_erases_and_mixes_by_what_the_batch_brings():
    boxes, keys, mix = [[0, 2, 1, 3], [0, 0, 0, 0]], [5, 0], [0.25, 0, 0, 0, 0]
    drawn = (Tensor(boxes, ms.int32), Tensor(keys, ms.int32), Tensor(mix, ms.float32))
    augmentation = Augmentation(Erasing((3, 4, 4), noisy=True), Mixing((4, 4), blends=True, swaps=True))
    step = step_of(classifying(Student(), augmentation=augmentation), {})
    images, labels = map(Tensor, images_and_labels())
    *_, told = step(images, ms.mutable((labels, *drawn)), Tensor(0.1, ms.float32))
    assert np.isfinite(told.asnumpy()).all()
    assert switches(step) == 0


def test_no_graph_of_a_detectors_step_branches():
    objects = (
        np.array([[1, 2], [3, 0]], np.int32),
        np.array([[[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.2, 0.2]], [[0.6, 0.5, 0.3, 0.1], [0, 0, 0, 0]]], np.float32),
        np.array([[True, True], [True, False]]),
    )
    noise = Noise.draw(np.random.default_rng(0), 2, 4 * QUERIES, CLASSES)
    arrays = (*objects, *denoise(*objects, noise, num_classes=CLASSES, num_queries=QUERIES).arrays())
    step = step_of(DetectionObjective(Detector(), LAYERS), {"loss_scale": LossScale(16.0, dynamic=True)})
    *_, told = step(Tensor(images_and_labels()[0]), ms.mutable(tuple(map(Tensor, arrays))), Tensor(0.1, ms.float32))
    assert np.isfinite(told.asnumpy()).all()
    assert told.shape == (2 + len(step.objective.parts),)
    assert switches(step) == 0


class Costly(Student):
    """A teacher that tells of its use: what it shows is infinite once the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = Parameter(Tensor(1.0, ms.float32), name="answer", requires_grad=False)

    def forward_observed(self, images):
        logits, ((normed, mixed, block),) = super().forward_observed(images)
        return logits, ((normed, mixed, block * self.answer),)


def test_the_imitated_network_runs_as_long_as_it_is_imitated():
    """An infinity times zero would be NaN, so a loss that is finite was computed without it."""
    teacher = freeze(Costly(), "teacher")
    objective = classifying(Student(), imitation=Imitation(teacher, (1.0, 1.0, 1.0), (2, 1)))
    step = step_of(objective, {})
    batch = (*map(Tensor, images_and_labels()), Tensor(0.0, ms.float32))
    losses = []
    for epoch, answer in enumerate((1.0, 2.0, np.inf)):
        objective.start_epoch(epoch)
        ops.assign(teacher.answer, Tensor(answer, ms.float32))
        losses.append(float(step(*batch)[0].asnumpy()))
    plain = step_of(classifying(Student()), {})
    assert losses[2] == float(plain(*batch)[0].asnumpy())
    assert losses[0] != losses[1] != losses[2]


def test_where_gradients_are_clipped_no_other_pass_looks_for_overflows():
    """The norm tells: weights, moments and counters have the bits that they had when every gradient was looked at."""
    good, broken = [images_and_labels(seed) for seed in (0, 1)], images_and_labels(2)
    broken[0][0, 0, 0, 0] = np.inf
    found, looked = [], []
    for norm_tells in (True, False):
        step = step_of(classifying(Student()), {"drop_overflow_update": True, "clip_norm": 0.1})
        assert step.norm_tells
        step.norm_tells = norm_tells
        told = [
            step(*map(Tensor, batch), Tensor(0.1, ms.float32))[-1].asnumpy() for batch in (good[0], broken, good[1])
        ]
        found.append([*(p.asnumpy().copy() for p in step.get_parameters()), *told])
        looked.append(collections.Counter(operators(step))["IsFinite"])
    assert [one[-1] for one in told] == [1.0, 0.0, 1.0]
    assert looked == [1, 3], "at the norm, at it and both parameters"
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
