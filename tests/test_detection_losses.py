"""Matching, losses and denoising against RT-DETR's own, and SciPy's assignment."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from recipe_rtdetr import rtdetr_tensor
from scipy.optimize import linear_sum_assignment

from mindcv_reparam.config import Config
from mindcv_reparam.tasks.detection.boxes import corners, overlap
from mindcv_reparam.tasks.detection.denoising import BACKGROUND, IGNORED, Noise, denoise
from mindcv_reparam.tasks.detection.losses import terms
from mindcv_reparam.tasks.detection.matching import costs, match
from mindcv_reparam.tasks.detection.objective import DetectionObjective, as_named, part_names
from mindcv_reparam.tasks.detection.task import Detection

FOLDER = Path(__file__).parent / "data" / "rtdetr"
MOST = 8  # objects that an image has room for
PADDING = 3  # denoising queries that are none


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"rtdetr-{name}.npz") as file:
        return dict(file)


def padded(golden: dict[str, np.ndarray], images: int, most: int = MOST) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, boxes and validity of a fixture's objects."""
    labels, boxes = np.zeros((images, most), np.int32), np.zeros((images, most, 4), np.float32)
    valid = np.zeros((images, most), bool)
    for i in range(images):
        found = golden.get(f"target_labels_{i}", ())
        labels[i, : len(found)] = found
        boxes[i, : len(found)] = golden.get(f"target_boxes_{i}", 0.0)
        valid[i, : len(found)] = True
    return labels, boxes, valid


def by_query(pairs: list[np.ndarray], queries: int) -> np.ndarray:
    """(query, object) pairs per image → (N, Q), BACKGROUND elsewhere."""
    index = np.full((len(pairs), queries), BACKGROUND, np.int32)
    for row, (query, found) in zip(index, pairs):
        row[query] = found
    return index


def close(got: np.ndarray, wanted: np.ndarray, bound: float = 1e-5) -> None:
    """Within ``bound`` of the largest value."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * np.abs(wanted).max())


# --- the criterion ---


class OtherRank(nn.Cell):
    """Stands for the sum over two ranks, the other of which has ``objects``."""

    def __init__(self) -> None:
        super().__init__()
        self.objects = Parameter(Tensor(0.0, ms.float32), requires_grad=False)

    def construct(self, count: Tensor) -> Tensor:
        return count + self.objects


class Criterion(nn.Cell):
    """Outputs → their loss, the terms and the matches, as the training step asks for them."""

    def __init__(self, objective: DetectionObjective, objects, matches, groups) -> None:
        super().__init__()
        self.objective, self.objects = objective, objects
        self.matches, self.groups = matches, groups

    def construct(self, logits, boxes, encoder_logits, encoder_boxes):
        outputs = (logits, boxes, encoder_logits, encoder_boxes)
        parts = self.objective.criterion(outputs, self.objects, self.matches, self.groups)
        return ops.addn(parts), parts


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return arrays("criterion")


@pytest.fixture(scope="module")
def criterion(golden):
    """Runs the compiled criterion with as many objects on another rank: terms by name, gradients of its outputs.

    The fixture has one denoising output, which stands here for those of two layers; behind its queries is padding.
    """
    objects = padded(golden, 3)
    groups = 3
    positives = [np.arange(6 * 2 * groups) % 12 for _ in range(3)]
    counts = objects[2].sum(1)
    matches = np.stack([np.where(p < n, p, BACKGROUND) for p, n in zip(positives, counts)])
    matches = np.pad(matches, ((0, 0), (0, PADDING)), constant_values=IGNORED).astype(np.int32)
    restored = {
        kind: np.pad(golden[f"dn0_{kind}"], ((0, 0), (0, PADDING), (0, 0)), constant_values=0.3)
        for kind in ("logits", "boxes")
    }
    layers = {
        kind: np.stack([np.concatenate([restored[kind], golden[f"{name}_{kind}"]], 1) for name in ("aux0", "main")])
        for kind in ("logits", "boxes")
    }
    objective = DetectionObjective(nn.Identity(), layers=2, size=2)
    objective.sum_over_ranks = OtherRank()
    net = Criterion(objective, tuple(map(Tensor, objects)), Tensor(matches), Tensor(float(groups), ms.float32))
    run = ms.value_and_grad(net, (0, 1, 2, 3), has_aux=True)
    outputs = [Tensor(a) for a in (layers["logits"], layers["boxes"], golden["aux1_logits"], golden["aux1_boxes"])]

    def at(others: int):
        ops.assign(objective.sum_over_ranks.objects, Tensor(float(others), ms.float32))
        (_, parts), gradients = run(*outputs)
        return dict(zip(objective.parts, (float(p.asnumpy()) for p in parts))), [g.asnumpy() for g in gradients]

    return at


def test_every_term_is_the_reference_s(golden, criterion):
    got, _ = criterion(9)
    wanted = dict(zip(golden["loss_names"].tolist(), golden["losses"].tolist()))
    assert len(wanted) == 12
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name
    assert [got[f"loss_{k}_dn_1"] for k in ("vfl", "bbox", "giou")] == [
        got[f"loss_{k}_dn_0"] for k in ("vfl", "bbox", "giou")
    ]


def test_gradients_are_the_reference_s(golden, criterion):
    _, (logits, boxes, *_) = criterion(9)
    split = golden["dn0_logits"].shape[1] + PADDING
    for kind, gradient in (("logits", logits), ("boxes", boxes)):
        close(gradient[1, :, split:], golden[f"main_{kind}_grad"])
        close(gradient[0, :, split:], golden[f"aux0_{kind}_grad"])
        close(gradient[0, :, : split - PADDING], golden[f"dn0_{kind}_grad"])
        assert not gradient[:, :, split - PADDING : split].any()


def test_objects_are_counted_over_the_ranks(golden, criterion):
    got, _ = criterion(4)
    for name, value in zip(golden["two_rank_loss_names"].tolist(), golden["two_rank_losses"].tolist()):
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_two_ranks_with_half_the_images_have_one_s_terms_on_average(by_operator):
    """Where the outputs are the same: they are not behind a batch normalisation. Groups of denoising queries are those
    of the fullest image, which both halves have here; the objects they share are not the same number."""
    rng = np.random.default_rng(0)
    counts, groups = np.array([1, 3, 3, 0]), Tensor(2.0, ms.float32)
    valid = np.arange(3) < counts[:, None]
    labels = np.where(valid, rng.integers(0, 5, valid.shape), 0).astype(np.int32)
    matches = np.tile(np.arange(6) % 3, 2)
    matches = np.where(matches < counts[:, None], matches, IGNORED).astype(np.int32)

    def drawn(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        centre, side = rng.uniform(0.3, 0.7, (*shape, 2)), rng.uniform(0.1, 0.5, (*shape, 2))
        return rng.normal(size=(*shape, 5)).astype(np.float32), np.concatenate([centre, side], -1).astype(np.float32)

    outputs, encoder, boxes = drawn(2, 4, 12 + 7), drawn(4, 7), drawn(4, 3)[1]

    def terms_of(images: slice, size: int) -> np.ndarray:
        objective = DetectionObjective(nn.Identity(), layers=2)
        if size > 1:
            objective.size, objective.sum_over_ranks = size, OtherRank()
            others = float(counts.sum() - counts[images].sum())
            ops.assign(objective.sum_over_ranks.objects, Tensor(others, ms.float32))
        seen = [*(each[:, images] for each in outputs), *(each[images] for each in encoder)]
        objects = tuple(Tensor(each[images]) for each in (labels, boxes, valid))
        parts = objective.criterion(tuple(map(Tensor, seen)), objects, Tensor(matches[images]), groups)
        return np.array([float(part.asnumpy()) for part in parts])

    halves = [terms_of(slice(2 * rank, 2 * rank + 2), 2) for rank in (0, 1)]
    np.testing.assert_allclose(np.mean(halves, axis=0), terms_of(slice(None), 1), rtol=1e-5)
    assert not np.allclose(*halves, rtol=1e-2)


@pytest.mark.parametrize("name", ["main", "aux0", "aux1"])
def test_matches_are_the_reference_s(golden, name):
    labels, boxes, valid = padded(golden, 3)
    cost = costs(*(Tensor(a) for a in (golden[f"{name}_logits"], golden[f"{name}_boxes"], labels, boxes)))
    if name == "main":
        close(cost.asnumpy()[0, :, :6], golden["main_cost_0"])
        close(cost.asnumpy()[2, :, :3], golden["main_cost_2"])
    got = match(cost, Tensor(valid.sum(1).astype(np.int32))).asnumpy()
    np.testing.assert_array_equal(got, by_query([golden[f"{name}_match_{i}"] for i in range(3)], 40))


@pytest.mark.parametrize(("kind", "wanted"), [("focal", "focal_alpha_0_25"), ("bce", "bce")])
def test_other_classification_losses(golden, kind, wanted):
    labels, boxes, valid = padded(golden, 3)
    index = by_query([golden[f"main_match_{i}"] for i in range(3)], 40)
    outputs = (Tensor(golden[f"main_{part}"][None]) for part in ("logits", "boxes"))
    loss, *_ = terms(*outputs, Tensor(labels), Tensor(boxes), Tensor(index[None]), kind=kind)
    assert float(loss.asnumpy()[0]) / valid.sum() == pytest.approx(float(golden[wanted]), rel=1e-5)


@pytest.mark.parametrize("kind", ["vfl", "focal", "bce"])
def test_the_classification_loss_is_a_setting(kind):
    asked = []
    network = nn.Identity()
    network.layers, network.check_sides = 2, asked.append
    config = Config(model="riformer_s12", class_loss=kind, multi_scale=(64, 96))
    objective = Detection().objective(config, network, ("a", "b"), "O0", 1)
    assert asked == [(64, 96)]
    assert objective.kind == kind
    assert objective.parts == part_names(2, kind)
    assert objective.sum_over_ranks is None


@pytest.mark.parametrize("layers", [1, 3])
def test_outputs_come_as_they_are_named(by_operator, layers):
    """Also of one layer, operator by operator, where an empty slice would have no gradient."""
    outputs, encoder = Tensor(np.arange(layers * 2.0).reshape(layers, 2, 1)), Tensor([[7.0], [8.0]], ms.float64)
    weight = Tensor(np.arange(1.0, layers + 2).reshape(-1, 1, 1))

    def weighed(outputs: Tensor, encoder: Tensor) -> Tensor:
        return (as_named(outputs, encoder) * weight).sum()

    assert as_named(outputs, encoder)[:, 0, 0].asnumpy().tolist() == [layers * 2 - 2, *range(0, layers * 2 - 2, 2), 7]
    first, second = ms.grad(weighed, (0, 1))(outputs, encoder)
    assert first[:, 0, 0].asnumpy().tolist() == [*range(2, layers + 1), 1]
    assert second[:, 0].asnumpy().tolist() == [layers + 1] * 2


def test_no_object_counts_as_one():
    objective = DetectionObjective(nn.Identity(), layers=1)
    assert [float(objective.mean_over_ranks(Tensor(n, ms.float32))) for n in (0.0, 1.0, 3.0)] == [1.0, 1.0, 3.0]


def test_names_are_those_of_the_reference():
    assert list(part_names(3)) == arrays("decoder_train")["loss_names"].tolist()


# --- matching ---


class Match(nn.Cell):
    def construct(self, cost, objects):
        return match(cost, objects)


@pytest.mark.parametrize(("queries", "most"), [(120, 100), (30, 100)])
def test_matching_is_scipy_s(queries, most):
    rng = np.random.default_rng(queries)
    objects = np.array([0, 1, 7, 30, 31, 100], np.int32)
    cost = rng.normal(size=(len(objects), queries, most)).astype(np.float32)
    got = Match()(Tensor(cost), Tensor(objects)).asnumpy()
    pairs = [linear_sum_assignment(one[:, :n]) for one, n in zip(cost, objects)]
    np.testing.assert_array_equal(got, by_query(pairs, queries))
    assert (got[1] >= 0).sum() == 1
    assert (got[5] >= 0).sum() == min(queries, 100)


def test_a_prediction_that_is_no_number_does_not_stop_the_matching():
    cost = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
    cost[0, :3] = np.nan
    got = match(Tensor(cost), Tensor([2], ms.int32)).asnumpy()
    assert got[0, :3].tolist() == [BACKGROUND] * 3
    assert sorted(got[0, 3:]) == [0, 1]


# --- boxes ---


def test_overlaps_by_hand():
    first = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1]], np.float32)
    second = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 3, 1]], np.float32)
    iou, giou = overlap(Tensor(first), Tensor(second))
    np.testing.assert_allclose(iou.asnumpy(), [1 / 7, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(giou.asnumpy(), [1 / 7 - 2 / 9, 1, -1 / 3], rtol=1e-6)
    centred = np.array([[2, 2, 2, 2], [1, 1, 2, 2], [2.5, 0.5, 1, 1]], np.float32)
    np.testing.assert_array_equal(corners(Tensor(centred)).asnumpy(), second)


# --- denoising ---


def noise_of(golden: dict[str, np.ndarray]) -> Noise:
    names = ("flip_uniform", "new_label", "box_sign", "box_uniform")
    return Noise(*(golden[f"noise_{name}"] for name in names))


def test_denoising_queries_are_the_reference_s():
    golden = arrays("decoder_train")
    labels, boxes, valid = padded(golden, 3)
    got = denoise(labels, boxes, valid, noise_of(golden), num_classes=80, num_queries=300)
    groups, queries, _ = golden["dn_group_split"].tolist()
    assert got.groups == groups
    assert got.labels.shape == (3, queries)
    close(got.references, golden["dn_boxes_unact"])
    embedding = rtdetr_tensor("decoder.denoising_class_embed.weight", (81, 256))
    embedding[-1] = 0.0
    close(embedding[got.labels].sum(-1), golden["dn_embed_sum"])
    wanted = np.unpackbits(golden["dn_mask_bits"])[: got.blocked.size].reshape(golden["dn_mask_shape"])
    np.testing.assert_array_equal(got.blocked, wanted.astype(bool))
    for i, count in enumerate((5, 0, 2)):
        np.testing.assert_array_equal(np.flatnonzero(got.matches[i] >= 0), golden[f"dn_positive_{i}"])
        np.testing.assert_array_equal(got.matches[i][golden[f"dn_positive_{i}"]], np.tile(np.arange(count), groups))
        assert (got.matches[i] == BACKGROUND).sum() == queries - groups * count  # they aim at nothing, and count


def objects_of(counts: list[int], most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    valid = np.arange(most) < np.array(counts)[:, None]
    sides = rng.uniform(0.1, 0.4, (len(counts), most, 2))
    boxes = np.concatenate([rng.uniform(0.2, 0.8, sides.shape), sides], -1).astype(np.float32) * valid[..., None]
    return rng.integers(0, 5, valid.shape).astype(np.int32) * valid, boxes, valid


def test_what_is_left_over_is_padding_that_nobody_sees():
    noise = Noise.draw(np.random.default_rng(0), 2, 20, 5)
    got = denoise(*objects_of([3, 1], 4), noise, num_classes=5, num_queries=6)
    assert got.groups == 3  # of 2 · 3 queries; 2 are left
    assert (got.matches[:, 18:] == IGNORED).all()
    assert (got.matches[:, :18] != IGNORED).all()
    assert (got.labels[:, 18:] == 5).all()
    assert not got.blocked[18:20, 18:].any()
    assert got.blocked[:18, 18:20].all()
    assert got.blocked[18:20, :18].all()
    assert not got.blocked.all(1).any()  # a softmax over nothing would be NaN


def test_without_objects_all_is_padding():
    noise = Noise.draw(np.random.default_rng(0), 2, 20, 5)
    got = denoise(*objects_of([0, 0], 4), noise, num_classes=5, num_queries=6)
    assert (got.matches == IGNORED).all()
    assert (got.labels == 5).all()
    assert got.groups == 1
    assert got.blocked[20:, :20].all()
    assert not got.blocked[:20].any()


@pytest.mark.parametrize(("counts", "groups"), [([100, 3], 1), ([51, 0], 1), ([50, 1], 2), ([1, 0], 100)])
def test_every_object_is_restored_once_per_group(counts, groups):
    noise = Noise.draw(np.random.default_rng(0), 2, 200, 5)
    labels, boxes, valid = objects_of(counts, 100)
    got = denoise(labels, boxes, valid, noise, num_classes=5, num_queries=6, label_noise_ratio=0.0, box_noise_scale=0.0)
    assert got.groups == groups
    for i, count in enumerate(counts):
        positive = got.matches[i] >= 0
        assert np.bincount(got.matches[i][positive], minlength=count).tolist() == [groups] * count
        np.testing.assert_array_equal(got.labels[i][positive], labels[i][got.matches[i][positive]])
        restored = 1 / (1 + np.exp(-got.references[i][positive].astype(np.float64)))
        np.testing.assert_allclose(restored, boxes[i][got.matches[i][positive]], atol=1e-6)


def test_noise_is_as_far_as_the_settings_say():
    noise = Noise.draw(np.random.default_rng(0), 2, 2000, 5)
    labels, boxes, valid = objects_of([2, 2], 2)
    boxes[:] = (0.5, 0.5, 0.2, 0.1)  # so that nothing is clipped
    got = denoise(labels, boxes, valid, noise, num_classes=5, num_queries=6, label_noise_ratio=0.5)
    centre, side = np.split(1 / (1 + np.exp(-got.references)), 2, axis=-1)
    moved = np.abs(np.concatenate([centre - side / 2, centre + side / 2], -1) - (0.4, 0.45, 0.6, 0.55))
    moved /= (0.1, 0.05, 0.1, 0.05)  # half of the sides
    positive = got.matches >= 0
    outside = got.references[..., 2:].min(-1) < -11  # turned inside out, and cut
    assert 0.99 < moved[positive].max() < 1.0001
    assert moved[~positive & ~outside].min() > 0.9999
    flipped = (got.labels != labels[:, np.arange(2000) % 2]).mean()
    assert flipped == pytest.approx(0.25 * 4 / 5, abs=0.02)  # one new label in five is the old one


def test_an_image_fuller_than_the_queries_has_some_objects_restored():
    noise = Noise.draw(np.random.default_rng(0), 1, 20, 5)
    got = denoise(*objects_of([15], 16), noise, num_classes=5, num_queries=6)
    assert got.matches[0].tolist() == [*range(10), *[BACKGROUND] * 10]


def test_draws_follow_the_generator():
    first, second = (Noise.draw(np.random.default_rng(3), 2, 20, 5) for _ in range(2))
    for name in ("flips", "labels", "signs", "distances"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert set(np.unique(first.signs)) == {0.0, 1.0}
    assert set(np.unique(first.labels)) == set(range(5))
