"""Order, sharding, repetition and padding of samples."""

import numpy as np
import pytest

from mindcv_reparam.data.sampler import EvalSampler, Shard, TrainSampler
from mindcv_reparam.errors import UserError


def train_epoch(epoch=0, size=1, batch_size=4, **kwargs):
    """Indices by rank and step: int (size, steps, batch_size)."""
    samplers = [TrainSampler(shard=Shard(batch_size, rank, size), seed=1, **kwargs) for rank in range(size)]
    return np.array([[s.draw(epoch, step).indices for step in range(s.steps_per_epoch)] for s in samplers])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_is_a_permutation_shared_out_to_the_ranks(size):
    taken = train_epoch(size=size, length=48)
    assert taken.shape == (size, 12 // size, 4)
    assert sorted(taken.ravel()) == list(range(48))


def test_order_depends_on_seed_and_epoch_alone():
    assert (train_epoch(epoch=3, length=40) == train_epoch(epoch=3, length=40)).all()
    assert (train_epoch(epoch=3, length=40) != train_epoch(epoch=4, length=40)).any()
    other = TrainSampler(length=40, shard=Shard(40), seed=2).draw(3, 0).indices
    assert (train_epoch(epoch=3, length=40).ravel() != other).any()


def test_every_place_of_the_order_is_equally_likely_for_a_sample():
    first = [TrainSampler(length=5, shard=Shard(5), seed=7).draw(epoch, 0).indices[0] for epoch in range(2000)]
    counts = np.bincount(first, minlength=5)
    assert np.abs(counts - 400).max() < 80  # 4.5 standard deviations


def test_without_shuffling_the_order_is_the_sources():
    assert train_epoch(length=8, shuffle=False).ravel().tolist() == list(range(8))


def test_a_global_batch_holds_the_same_positions_on_one_rank_and_on_two():
    one = TrainSampler(length=64, shard=Shard(8), seed=0)
    two = [TrainSampler(length=64, shard=Shard(4, rank, 2), seed=0) for rank in range(2)]
    for step in range(one.steps_per_epoch):
        whole, halves = one.draw(5, step), [s.draw(5, step) for s in two]
        by_position = dict(zip(whole.positions.tolist(), whole.indices.tolist()))
        for half in halves:
            assert [by_position.pop(p) for p in half.positions.tolist()] == half.indices.tolist()
        assert not by_position


def test_remainder_is_dropped_or_filled_from_the_start():
    assert train_epoch(length=23, size=2).shape == (2, 2, 4)
    filled = train_epoch(length=23, size=2, drop_remainder=False)
    assert filled.shape == (2, 3, 4)
    counts = np.bincount(filled.ravel(), minlength=23)
    assert counts.min() == 1
    assert counts.sum() == 24


def test_num_samples_takes_the_first_or_a_new_subset_each_epoch():
    assert train_epoch(length=100, num_samples=8, shuffle=False).ravel().tolist() == list(range(8))
    subsets = [set(train_epoch(epoch=epoch, length=100, num_samples=8).ravel().tolist()) for epoch in range(2)]
    assert [len(subset) for subset in subsets] == [8, 8]
    assert subsets[0] != subsets[1]
    assert train_epoch(length=8, num_samples=1000).size == 8


def test_repeated_augmentation_gives_each_sample_to_different_ranks():
    taken = train_epoch(length=48, size=3, repeats=3)
    assert taken.size == 48  # the epoch keeps its length …
    assert (taken[0] == taken[1]).all()
    assert (taken[0] == taken[2]).all()
    assert len(set(taken[0].ravel())) == 16  # … and sees a third of the samples
    sampler = TrainSampler(length=48, shard=Shard(48), seed=1, repeats=3)
    assert len(set(sampler.draw(0, 0).positions)) == 48  # each view is augmented in its own way


def test_impossible_epochs_are_refused():
    with pytest.raises(UserError, match=r"10 training samples do not fill one batch of 8 on each of 2 ranks"):
        TrainSampler(length=10, shard=Shard(8, 0, 2), seed=0)
    with pytest.raises(UserError, match="aug_repeats"):
        TrainSampler(length=10, shard=Shard(2), seed=0, num_samples=4, repeats=3)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("length", [1, 7, 28, 29])
def test_validation_counts_each_sample_once(length, batch_size, size):
    samplers = [EvalSampler(length, Shard(batch_size, rank, size), seed=0) for rank in range(size)]
    assert len({sampler.steps_per_epoch for sampler in samplers}) == 1
    draws = [s.draw(0, step) for s in samplers for step in range(s.steps_per_epoch)]
    assert all(draw.indices.shape == (batch_size,) and draw.indices.max() < length for draw in draws)
    assert sorted(np.concatenate([draw.indices[draw.valid] for draw in draws])) == list(range(length))


def test_part_of_a_validation_set_is_evenly_spaced_or_random_but_fixed():
    assert EvalSampler(100, Shard(5), seed=0, num_samples=5).draw(0, 0).indices.tolist() == [0, 20, 40, 60, 80]
    shuffled = EvalSampler(100, Shard(50), seed=0, shuffle=True, num_samples=50)
    indices = shuffled.draw(0, 0).indices
    assert len(set(indices)) == 50
    assert indices.tolist() != sorted(indices)
    assert (indices == shuffled.draw(9, 0).indices).all()
