"""A training ends when it gets no better: after how many validations, on all ranks, and when it is resumed."""

import dataclasses

import pytest
from here import parse

from mindcv_reparam.distributed import Distributed
from mindcv_reparam.errors import UserError
from mindcv_reparam.training.early_stopping import EarlyStopping
from mindcv_reparam.training.keeper import CheckpointKeeper

SCORES = (10.0, 30.0, 20.0, None, float("nan"), 30.0, 40.0, 15.0)  # None: no validation after that epoch
STALE = (0, 0, 1, 1, 2, 3, 0, 1)


def keeper(folder):
    return CheckpointKeeper(folder, "net", lambda path, record, weights: None, "top1")


def records():
    return [{"epoch": epoch, "top1": score} for epoch, score in enumerate(SCORES, 1)]


def test_validations_since_the_best_are_counted_and_recalled(tmp_path):
    counting = keeper(tmp_path)
    for index, (record, stale) in enumerate(zip(records(), STALE)):
        counting.epoch_end(record)
        assert counting.stale == stale
        recalled = keeper(tmp_path)
        recalled.recall(records()[: index + 1])
        assert (recalled.stale, recalled.best) == (stale, counting.best)


def test_so_many_end_the_training_and_a_line_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "mindcv_reparam")
    counting = keeper(tmp_path)
    stopping = EarlyStopping(2, Distributed(), counting)
    never = EarlyStopping(0, Distributed(), counting)
    ended = []
    for record in records()[:5]:
        counting.epoch_end(record)
        ended.append(stopping())
        assert not never()
    assert ended == [False, False, False, False, True]
    assert caplog.messages == ["early_stopping: 2 validations have found nothing better; the best top1 is 30"]


def test_rank_0_decides_for_all(monkeypatch):
    class OfRank0(Distributed):
        def sum(self, values):
            assert list(values) == [0]
            return [3.0]

    assert EarlyStopping(3, dataclasses.replace(OfRank0(), rank=1, size=2), None)()
    assert not EarlyStopping(4, dataclasses.replace(OfRank0(), rank=1, size=2), None)()


def test_without_validations_it_is_refused():
    with pytest.raises(UserError, match="early_stopping ends a training by its validations"):
        parse(["--model", "visformer_tiny", "--early_stopping", "3"], "train")
