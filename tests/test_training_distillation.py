"""Distillation and module imitation against the papers' equations in NumPy, and what must not move: the teacher."""

import mindspore as ms
import numpy as np
import pytest
from graphs import graphs_of
from mindspore import Tensor, nn, ops
from networks import IMAGE_SIZE, NUM_CLASSES, SMALL, arrays, random_images, randomise

from mindcv_reparam import create_model
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.classification.distillation import Distillation, DistillationLoss, freeze
from mindcv_reparam.tasks.classification.imitation import Imitation, donate, mean_square, relation_difference
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.mixup import soft_labels
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.step import TrainStep

FACTORS = (0.3, 0.7, 2.0)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def logits_and_labels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(0, 3, (2, 7, 5)).astype(np.float32)
    return student, teacher, rng.dirichlet(np.ones(5), 7).astype(np.float32)


def expected_distillation(kind: str, alpha: float, tau: float) -> float:
    student, teacher, labels = logits_and_labels()
    base = -(labels * log_softmax(student)).sum(1).mean()
    if kind == "hard":
        taught = -log_softmax(student)[np.arange(len(student)), teacher.argmax(1)].mean()
    else:
        p, q = log_softmax(teacher / tau), log_softmax(student / tau)
        taught = tau**2 * (np.exp(p) * (p - q)).sum(1).mean()
    return (1 - alpha) * base + alpha * taught


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 1.0), (0.3, 4.0), (1.0, 2.0)])
def test_distillation_is_its_formula(kind, alpha, tau):
    loss = DistillationLoss(create_loss("CE"), kind, alpha, tau)
    found = loss(*map(Tensor, logits_and_labels()))
    assert float(found.asnumpy()) == pytest.approx(expected_distillation(kind, alpha, tau), rel=1e-5)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="soft"):
        DistillationLoss(create_loss("CE"), "warm")


def relation_difference_in_numpy(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, with the matrices of all pairs of tokens."""
    relations = []
    for x in (a, b):
        tokens = x.astype(np.float64).reshape(*x.shape[:2], -1).transpose(0, 2, 1)  # (N, HW, C)
        tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
        relations.append(tokens @ tokens.transpose(0, 2, 1))
    return np.square(relations[0] - relations[1]).sum() / (len(a) * np.prod(a.shape[2:]) ** 2)


class Pair(nn.Cell):
    """A function of two Tensors as a Cell, to compile it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def construct(self, x, y):
        return self.function(x, y)


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 40, 5, 6), (2, 64, 28, 28)])
@pytest.mark.parametrize("distance", [1.0, 0.03])
def test_relations_are_compared_as_defined(shape, distance):
    rng = np.random.default_rng(2)
    a = rng.normal(0.5, 2.0, shape).astype(np.float32)
    b = (a + distance * rng.normal(0.0, 2.0, shape)).astype(np.float32)
    found = Pair(relation_difference)(Tensor(a), Tensor(b))
    assert float(found.asnumpy()) == pytest.approx(relation_difference_in_numpy(a, b), rel=1e-3, abs=2e-7)


def test_mean_square_is_over_all_elements():
    a, b = np.random.default_rng(3).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    found = Pair(mean_square)(Tensor(a), Tensor(b))
    assert float(found.asnumpy()) == pytest.approx(np.square(a.astype(np.float64) - b).mean(), rel=1e-6)


class FakeTeacher(nn.Cell):
    """Blocks that put out what the test says, and a token mixer `2y + 1`."""

    def __init__(self, outputs: list[np.ndarray]):
        super().__init__()
        self.outputs = tuple(Tensor(output) for output in outputs)

    def forward_observed(self, images):
        observed = ()
        for output in self.outputs:
            observed += ((images, images, output),)
        return images, observed

    def mix_tokens(self, normed):
        mixed = ()
        for y in normed:
            mixed += (2.0 * y + 1.0,)
        return mixed


def fake_blocks() -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """The teacher's outputs, and the student's normed inputs, mixer outputs and outputs of two blocks."""
    rng = np.random.default_rng(4)
    shapes = ((3, 4, 6, 5), (3, 16, 3, 2))
    taught = [rng.normal(0.3, 1.0, shape).astype(np.float32) for shape in shapes]
    return taught, [tuple(rng.normal(0.2, 1.5, (3, *shape)).astype(np.float32)) for shape in shapes]


def expected_terms(taught: list, blocks: list) -> np.ndarray:
    terms = np.zeros(3)
    for target, (normed, mixed, output) in zip(taught, blocks):
        like = 2.0 * normed.astype(np.float64) + 1.0
        terms += [
            np.square(output.astype(np.float64) - target).sum() / target.size,
            np.square(mixed - like).sum() / like.size,
            relation_difference_in_numpy(output, target),
        ]
    return terms


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("factors", [FACTORS, (0.0, 0.7, 0.0), (0.3, 0.0, 0.0), (0.0, 0.0, 2.0), (0.0, 0.0, 0.0)])
def test_imitation_is_the_weighted_sum_of_its_terms(factors):
    taught, blocks = fake_blocks()
    imitation = Imitation(FakeTeacher(taught), factors, epochs=(400, 100))
    found = imitation(random_images(), tuple(tuple(map(Tensor, block)) for block in blocks))
    assert float(found.asnumpy()) == pytest.approx(expected_terms(taught, blocks) @ factors, rel=1e-5)


class OfOutput(nn.Cell):
    """One block's imitation loss as a function of what the student shows of it."""

    def __init__(self, imitation: Imitation):
        super().__init__()
        self.imitation = imitation

    def construct(self, images, normed, mixed, output):
        return self.imitation(images, ((normed, mixed, output),))


def test_a_phase_ends_without_compiling_again():
    (target, _), (block, _) = fake_blocks()
    imitation = Imitation(FakeTeacher([target]), FACTORS, epochs=(4, 2))
    function = OfOutput(imitation)
    for epoch, factors in (
        (0, FACTORS),
        (1, FACTORS),
        (2, (0.3, 0.7, 0.0)),
        (3, (0.3, 0.7, 0.0)),
        (4, (0.0, 0.0, 0.0)),
    ):
        imitation.start_epoch(epoch)
        found = function(random_images(), *map(Tensor, block))
        assert float(found.asnumpy()) == pytest.approx(expected_terms([target], [block]) @ factors, rel=1e-5)
    assert len(graphs_of(function)) == 1


@pytest.mark.usefixtures("by_operator")
def test_gradient_takes_the_teacher_as_constant():
    taught, blocks = fake_blocks()
    for target, block in zip(taught, blocks):
        function = OfOutput(Imitation(FakeTeacher([target]), FACTORS, epochs=(400, 100)))
        gradients = ms.grad(function, (0, 1, 2, 3))(random_images(), *map(Tensor, block))
        of_images, of_normed, of_mixed, of_output = (gradient.asnumpy() for gradient in gradients)
        assert not of_images.any()
        assert not of_normed.any()
        like = 2.0 * block[0] + 1.0
        np.testing.assert_allclose(of_mixed, FACTORS[1] * 2.0 * (block[1] - like) / like.size, rtol=1e-5, atol=1e-8)
        direction = np.random.default_rng(5).normal(size=target.shape)
        ahead, behind = (
            expected_terms([target], [(block[0], block[1], block[2] + sign * 1e-4 * direction)]) @ FACTORS
            for sign in (1, -1)
        )
        assert (of_output * direction).sum() == pytest.approx((ahead - behind) / 2e-4, rel=1e-3)


def build(family: str, seed: int, **options) -> nn.Cell:
    """A small network without randomness in train mode, with a stage of two blocks."""
    name, hyper_parameters = SMALL[family]
    options = {"drop_rate": 0.0, "drop_path_rate": 0.0, "depths": (1, 2, 1, 1), **options}
    network = create_model(name, num_classes=NUM_CLASSES, img_size=IMAGE_SIZE, **{**hyper_parameters, **options})
    return randomise(network, seed).set_train(False)


class Observer(nn.Cell):
    """The network's own account of its last blocks."""

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x):
        return self.network.forward_observed(x)


class Probe(nn.Cell):
    """The same by running block after block: the logits, what was observed, and the token mixers alone once more."""

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x):
        logits = self.network(x)
        observed, normed = (), ()
        for stage in self.network.stages:
            x = stage.patch_embed(x)
            last = stage.blocks[-1]
            if len(stage.blocks) == 2:
                x = stage.blocks[0](x)
            normed += (last.token_mixer.norm(x),)
            observed += ((normed[-1], last.token_mixer(x), last(x)),)
            x = observed[-1][2]
        return logits, observed, self.network.mix_tokens(normed)


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("family", ["riformer", "poolformer"])
def test_a_network_shows_the_last_block_of_each_stage(family):
    network = build(family, seed=1)
    x = random_images()
    logits, observed = Observer(network)(x)
    expected_logits, expected, mixed_again = Probe(network)(x)
    np.testing.assert_allclose(logits.asnumpy(), expected_logits.asnumpy(), rtol=1e-5, atol=1e-5)
    for block, wanted, mixed in zip(observed, expected, mixed_again, strict=True):
        for found, want in zip((*block, block[1]), (*wanted, mixed), strict=True):
            np.testing.assert_allclose(found.asnumpy(), want.asnumpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("by_operator")
def test_a_step_minimises_the_sum_of_both_and_moves_the_student_alone():
    """With everything: a teacher of logits that has batch normalisation, one of blocks, an average of weights."""
    student, loss = build("riformer", seed=1), create_loss("CE")
    names = {parameter.name for parameter in student.get_parameters()}
    asked, imitated = freeze(build("regnet", seed=2), "teacher"), freeze(build("poolformer", seed=3), "imitated")
    compared = DistillationLoss(loss, "soft")
    step = TrainStep(
        ClassificationObjective(
            student, loss, Distillation(compared, asked), Imitation(imitated, FACTORS, epochs=(400, 100))
        ),
        create_optimizer(student, "adamw", weight_decay=0.05),
        average=WeightAverage(student, 0.9),
    )
    assert len(step.optimizer.parameters) == len(names) == len(step.average.shadow)
    held = [arrays(network) for network in (student, asked, imitated)]
    images, labels = random_images(), Tensor(np.eye(NUM_CLASSES, dtype=np.float32)[[1, 3]])
    logits, observed = Observer(student)(images)
    expected = float(compared(logits, asked(images), labels).asnumpy())
    _, targets = Observer(imitated)(images)
    for (normed, mixed, output), (_, _, target) in zip(observed, targets, strict=True):
        normed, mixed, output, target = (x.asnumpy().astype(np.float64) for x in (normed, mixed, output, target))
        expected += FACTORS[0] * np.square(output - target).mean()
        expected += FACTORS[1] * np.square(mixed - (pool_in_numpy(normed) - normed)).mean()
        expected += FACTORS[2] * relation_difference_in_numpy(output, target)

    step.set_train(True)  # as after a validation
    found, *_ = step(images, labels, Tensor(1e-3, ms.float32))

    assert float(found.asnumpy()) == pytest.approx(expected, rel=1e-4)
    moved = [
        {name for name, value in arrays(network).items() if np.any(value != before[name])}
        for network, before in zip((student, asked, imitated), held)
    ]
    assert moved == [set(held[0]), set(), set()]
    assert not any(cell.training for network in (asked, imitated) for _, cell in network.cells_and_names())
    assert {parameter.name for parameter in student.get_parameters()} == names
    everything = [parameter.name for parameter in step.get_parameters()]
    assert not [name for name in everything if name.startswith(("teacher.", "imitated."))]


def pool_in_numpy(x: np.ndarray) -> np.ndarray:
    """The mean over the pixels of a 3×3 window that exist."""
    height, width = x.shape[2:]
    result = np.empty_like(x)
    for i in range(height):
        for j in range(width):
            result[..., i, j] = x[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((-2, -1))
    return result


class Means(nn.Cell):
    """A classifier of the channels' means, quick to compile."""

    def __init__(self, seed: int):
        super().__init__()
        self.head = randomise(nn.Dense(3, NUM_CLASSES, has_bias=True), seed)

    def construct(self, x):
        return self.head(x.mean((2, 3)))


def test_a_teacher_that_runs_before_the_step_gives_the_same_loss():
    student, teacher, loss = Means(seed=1), freeze(Means(seed=2), "teacher"), create_loss("CE")
    labels = Tensor(np.eye(NUM_CLASSES, dtype=np.float32)[[1, 3]])
    losses = []
    for inside in (True, False):
        distillation = Distillation(DistillationLoss(loss, "soft"), teacher if inside else None)
        step = TrainStep(ClassificationObjective(student, loss, distillation), create_optimizer(student, "sgd"))
        for seed in range(2):
            images = random_images(seed=seed)
            given = labels if inside else ms.mutable((labels, teacher(images)))
            found, *_ = step(images, given, Tensor(0.0, ms.float32))
            losses.append(float(found.asnumpy()))
        assert len(graphs_of(step)) == 1
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-6)
    assert losses[0] != losses[1]


def test_everything_but_the_affine_operators_is_donated():
    student, donor = build("riformer", seed=1), build("poolformer", seed=2)
    before, given = arrays(student), arrays(donor)
    donate(donor, student, "donor.ckpt")
    after = arrays(student)
    own = [name for name in after if name not in given]
    assert len(own) == 2 * 5
    assert all(".token_mixer.affine." in name for name in own)
    assert len(given) == len(after) - len(own) == 4 * 2 + 5 * 10 + 4
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name] if name in own else given[name], err_msg=name)


def test_another_number_of_classes_leaves_the_head_to_the_student():
    student, donor = build("riformer", seed=1), build("poolformer", seed=2)
    donor.head = nn.Dense(donor.head.in_channels, 7, has_bias=True)
    donor.update_parameters_name()
    before = arrays(student)
    donate(donor, student, "donor.ckpt")
    after = arrays(student)
    assert {name for name in after if np.array_equal(after[name], before[name]) and "affine" not in name} == {
        "head.weight",
        "head.bias",
    }


def test_a_donor_of_another_size_is_refused():
    with pytest.raises(UserError, match="other shapes"):
        donate(build("poolformer", seed=2, embed_dims=(8, 16, 24, 40)), build("riformer", seed=1), "donor.ckpt")
    with pytest.raises(UserError, match="the file lacks"):
        donate(build("poolformer", seed=2, depths=(1, 1, 1, 1)), build("riformer", seed=1), "donor.ckpt")


def digits(train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, 3, 32, 32) of about zero mean and unit deviation, and labels (B,)."""
    source = Digits(train)
    pixels = np.stack([np.asarray(source.load(index)) for index in range(len(source.labels))])
    images = pixels.transpose(0, 3, 1, 2).repeat(4, axis=2).repeat(4, axis=3)
    return (images.astype(np.float32) - 80.0) / 95.0, source.labels


def fit(network: nn.Cell, steps: int, imitation: Imitation | None = None) -> nn.Cell:
    """Train on batches of 64 digits, the same for every network."""
    images, labels = digits(train=True)
    rng = np.random.default_rng(6)
    optimizer = create_optimizer(network, "adamw", weight_decay=0.05, weight_decay_filter="1d")
    targets, loss = soft_labels(labels, 10, 0.1), create_loss("CE")
    step = TrainStep(ClassificationObjective(network, loss, imitation=imitation), optimizer)
    for index in range(steps):
        rows = rng.choice(len(labels), 64, replace=False)
        rate = 4e-3 * (1.0 - index / steps)
        step(Tensor(images[rows]), Tensor(targets[rows]), Tensor(rate, ms.float32))
    return network.set_train(False)


class Measure(nn.Cell):
    """A student's logits and its three differences from the teacher, unweighted."""

    def __init__(self, student: nn.Cell, teacher: nn.Cell):
        super().__init__(auto_prefix=False)
        self.student = student
        self.imitation = Imitation(teacher, (1.0, 1.0, 1.0), epochs=(1, 1))

    def construct(self, images):
        logits, observed = self.student.forward_observed(images)
        return logits, ops.stack(self.imitation.terms(images, observed))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_imitation_brings_a_student_nearer_to_its_teacher_and_does_no_harm():
    size = {"num_classes": 10, "img_size": 32, "drop_path_rate": 0.0, "layer_scale_init_value": 0.1}
    name, small = SMALL["poolformer"]
    ms.set_seed(0)
    teacher = fit(create_model(name, **small, **size), steps=80)
    donor = arrays(teacher)
    freeze(teacher, "imitated")
    images, labels = digits(train=False)
    accuracy, distance = [], []
    for factors in ((0.0, 0.0, 0.0), (0.3, 0.3, 3.0)):
        student = create_model(SMALL["riformer"][0], **small, **size)
        for parameter in student.get_parameters():
            if parameter.name in donor:
                parameter.set_data(Tensor(donor[parameter.name]))
        imitation = Imitation(teacher, factors, epochs=(400, 100)) if any(factors) else None
        fit(student, steps=60, imitation=imitation)
        logits, terms = Measure(student, teacher)(Tensor(images))
        accuracy.append((logits.asnumpy().argmax(1) == labels).mean())
        distance.append(terms.asnumpy())
    without, within = distance
    assert (within < 0.8 * without).all(), (without, within)
    assert accuracy[1] > accuracy[0] - 0.02
