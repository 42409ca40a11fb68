"""Counts and loss over every sample once, whatever the batches and ranks."""

import numpy as np
import pytest
from alone import Alone
from mindspore import nn

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.classification.evaluation import AccuracyEvaluator, ranks_and_losses
from mindcv_reparam.tasks.evaluate import announce_compilation
from mindcv_reparam.tasks.evaluate import evaluate as evaluate_task

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(23, 6)).astype(np.float32)
LABELS = RNG.integers(6, size=23).astype(np.int32)


def evaluate(network, loader, ranks, latencies=None):
    return evaluate_task(network, loader, AccuracyEvaluator(), ranks, latencies)


class Loader:
    """Batches of one rank out of `size`, the last ones padded."""

    def __init__(self, batch_size: int, rank: int = 0, size: int = 1) -> None:
        self.batch_size, self.rank, self.size = batch_size, rank, size

    def epoch(self, epoch: int, start_step: int = 0):
        indices = np.arange(self.rank, len(IMAGES), self.size)
        for start in range(0, len(indices), self.batch_size):
            chosen = indices[start : start + self.batch_size]
            padded = np.resize(chosen, self.batch_size)
            yield IMAGES[padded], LABELS[padded], (np.arange(self.batch_size) < len(chosen)).astype(np.float32)


class Doubled(nn.Cell):
    def construct(self, x):
        return x * 2.0 if self.training else x


def test_every_sample_counts_once_whatever_the_batch_size():
    network = Doubled()
    network.set_train(True)
    order = np.argsort(-IMAGES, axis=1)
    logits = IMAGES.astype(np.float64)
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(23), LABELS]).mean()
    for batch_size in (1, 4, 23, 32):
        result = evaluate(network, Loader(batch_size), Alone())
        assert result.samples == 23
        assert result.correct1 == (order[:, 0] == LABELS).sum()
        assert result.correct5 == (order[:, :5] == LABELS[:, None]).any(1).sum()
        assert result.loss == pytest.approx(loss, rel=1e-6)
    assert network.training
    assert result.top1 == pytest.approx(100 * result.correct1 / 23)
    assert set(result.metrics("ema_")) == {"ema_val_loss", "ema_top1", "ema_top5"}


@pytest.mark.parametrize(("batch_size", "timed"), [(4, 5), (12, 1), (23, 1)])
def test_every_batch_but_the_first_is_timed_and_a_single_one_again(batch_size, timed):
    latencies = []
    evaluate(Doubled(), Loader(batch_size), Alone(), latencies)
    assert len(latencies) == timed
    assert min(latencies) > 0


def test_two_ranks_give_the_counts_of_one():
    parts = [evaluate(Doubled(), Loader(4, rank, 2), Alone()) for rank in range(2)]
    whole = evaluate(Doubled(), Loader(7), Alone())
    assert sum(part.samples for part in parts) == whole.samples
    assert sum(part.correct1 for part in parts) == whole.correct1
    assert sum(part.correct5 for part in parts) == whole.correct5


def test_ties_rank_by_index_and_broken_rows_last():
    logits = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [np.nan, 0.0, 0.0], [0.0, np.inf, 0.0]])
    rank, loss = ranks_and_losses(logits, np.array([0, 1, 0, 1]))
    assert rank.tolist() == [0, 1, 5, 5]
    assert np.isnan(loss[2:]).all()
    assert loss[0] == loss[1] == pytest.approx(np.log(2 + np.exp(-1)))


def test_fewer_than_five_classes_are_all_in_the_top_five():
    rank, _ = ranks_and_losses(RNG.normal(size=(8, 3)), np.arange(8) % 3)
    assert (rank < 5).all()


def test_nothing_to_evaluate_is_an_error():
    class Empty:
        def epoch(self, epoch, start_step=0):
            yield np.zeros((2, 6), np.float32), np.zeros(2, np.int32), np.zeros(2, np.float32)

    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(Doubled(), Empty(), Alone())


@pytest.mark.parametrize(
    ("cells", "training", "seconds"), [(238, True, 6), (238, False, 1), (999, True, 24), (9, True, 1)]
)
def test_the_time_of_a_compilation_is_told_by_the_number_of_cells(cells, training, seconds, graph_mode, caplog):
    network = nn.SequentialCell([nn.ReLU() for _ in range(cells)])  # and itself
    with caplog.at_level("INFO", logger="mindcv_reparam"):
        announce_compilation("step", network, training)
    expected = f"compiling the step, once: about {seconds} s on an idle machine, more beside other work"
    assert caplog.messages == [expected]


def test_without_graphs_no_compilation_is_announced(pynative, caplog):
    with caplog.at_level("INFO", logger="mindcv_reparam"):
        announce_compilation("step", nn.ReLU())
    assert caplog.messages == []
