"""Classes of different sizes: as many images of each in an epoch, or the same weight of each in the loss."""

import dataclasses

import numpy as np
import pytest
from here import parse
from mindspore import Tensor

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.data.sampler import Balance, Shard, TrainSampler
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.tasks.classification.batches import balanced_weights
from mindcv_reparam.tasks.classification.losses import create_loss

LABELS = np.repeat(np.array([0, 2, 3], dtype=np.int32), (30, 8, 2))


def sampler(rank=0, size=1, batch=4, **options):
    return TrainSampler(len(LABELS), Shard(batch, rank, size), seed=5, balance=Balance(LABELS), **options)


def epoch(epoch, **options):
    one = sampler(**options)
    return np.concatenate([one.draw(epoch, step).indices for step in range(one.steps_per_epoch)])


def test_every_class_comes_equally_often_and_of_each_every_image():
    drawn = np.bincount(epoch(0), minlength=len(LABELS))
    assert drawn.sum() == len(LABELS) == 40
    by_class = [drawn[label == LABELS] for label in (0, 2, 3)]
    assert sorted(counts.sum() for counts in by_class) == [13, 13, 14]
    assert max(np.ptp(counts) for counts in by_class) <= 1
    assert max(by_class[0]) == 1


def test_what_is_left_over_goes_round_and_every_epoch_is_another():
    more = [
        int(np.argmax([np.isin(epoch(e), np.flatnonzero(label == LABELS)).sum() for label in (0, 2, 3)]))
        for e in range(20)
    ]
    assert set(more) == {0, 1, 2}
    assert (epoch(1) == epoch(1)).all()
    assert (epoch(1) != epoch(2)).any()


def test_ranks_share_an_epoch_out_as_one_alone_would_have_it():
    one, two = sampler(batch=8), [sampler(rank, 2, 4) for rank in range(2)]
    for step in range(one.steps_per_epoch):
        halves = [half.draw(3, step) for half in two]
        joined = dict(zip(np.concatenate([h.positions for h in halves]), np.concatenate([h.indices for h in halves])))
        whole = one.draw(3, step)
        assert [joined[position] for position in whole.positions] == whole.indices.tolist()


def test_an_order_that_is_not_shuffled_cannot_be_balanced():
    with pytest.raises(UserError, match="balanced_sampling draws every epoch anew: it needs shuffle True"):
        sampler(shuffle=False)


def test_weights_make_classes_equal_and_an_image_one_on_average():
    counts = np.array([30, 0, 8, 2])
    weights = balanced_weights(counts, 5)
    np.testing.assert_allclose(weights * [30, 0, 8, 2, 0], [40 / 3, 0, 40 / 3, 40 / 3, 0], rtol=1e-6)
    assert weights[[1, 4]].tolist() == [1, 1]


def test_the_loss_is_that_of_weighted_classes():
    """Against the sum over classes with the weights written out, with mixed and smoothed labels."""
    settings = dict(dataset="digits", batch_size=8, image_resize=8, mixup=0.4, label_smoothing=0.1, num_samples=64)
    config = Config(**settings)
    source = create_dataset(config, True)
    plain, weighted = (
        TASKS["classification"].batches(one, source, True, Shard(8))
        for one in (config, dataclasses.replace(config, class_weights="balanced"))
    )
    images = np.empty(plain.image_shape, np.float32)
    (labels,), (scaled,) = plain.make(0, 1, images).arrays, weighted.make(0, 1, images).arrays
    logits = np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    weights = len(source) / (10 * source.class_counts)
    expected = -(weights * labels * log_p).sum(1).mean()
    assert create_loss("CE")(Tensor(logits), Tensor(scaled)).asnumpy() == pytest.approx(expected, rel=1e-5)
    assert abs(expected + (labels * log_p).sum(1).mean()) > 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class_weights", "balanced", "--loss", "BCE"], "class_weights balanced is for the loss CE, not BCE"),
        (["--class_weights", "even"], "class_weights must be"),
    ],
)
def test_what_weighs_nothing_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        parse(["--model", "visformer_tiny", *words], "train")


def test_detectors_do_without():
    config = Config(model="rtdetr_riformer_xs", balanced_sampling=True, given=frozenset({"balanced_sampling"}))
    with pytest.raises(UserError, match="balanced_sampling is for classification"):
        TASKS["detection"].check(config)
