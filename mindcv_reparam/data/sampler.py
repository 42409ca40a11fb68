"""Which samples make up a batch: order, sharding over ranks, repetition and padding."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mindcv_reparam.config import Config
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.errors import UserError


@dataclass(frozen=True)
class Draw:
    """The samples of one batch, each array of shape (batch_size,).

    ``positions`` are places in the epoch's global order (before sharding): they key the augmentation, so that a global
    batch holds the same images on one rank as on many. ``indices`` are samples of the source. ``valid`` is False for
    the padding at the end of a validation run.
    """

    positions: np.ndarray
    indices: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Shard:
    """One rank of ``size``: step s of the epoch covers the global positions [s·B·size, (s+1)·B·size), interleaved."""

    batch_size: int
    rank: int = 0
    size: int = 1

    def positions(self, step: int) -> np.ndarray:
        """Global positions of this rank's batch at ``step``, int64 (batch_size,)."""
        return (step * self.batch_size + np.arange(self.batch_size)) * self.size + self.rank

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take in one step."""
        return self.batch_size * self.size


@dataclass(frozen=True, eq=False)  # by identity, which a cache can take
class Balance:
    """The class of every sample, int32 (length,), where an epoch shall hold as many of the one as of the other."""

    labels: np.ndarray


@dataclass(frozen=True)
class TrainSampler:
    """Every epoch in a new order that depends on (seed, epoch) alone; every rank makes the same number of steps.

    Args:
        length: samples in the source.
        shard: this rank's part.
        seed: of the run.
        shuffle: False keeps the source's order.
        num_samples: samples of an epoch over all ranks: the first ones, or with ``shuffle`` a new random subset in
            each epoch (None: all).
        drop_remainder: drop the last incomplete global batch. Otherwise it is filled from the start of the order, so
            that a compiled graph meets one shape.
        repeats: repeated augmentation (Hoffer et al. 2019; MindCV's ``aug_repeats``, timm's RepeatAugSampler): each
            sample stands ``repeats`` times in a row in the global order, hence on different ranks where there are
            several, and the epoch keeps its length: it sees 1/repeats of the samples.
        balance: every class that has samples comes equally often; the epoch keeps its length, samples of small classes
            come repeatedly, and not all of large ones.
    """

    length: int
    shard: Shard
    seed: int
    shuffle: bool = True
    num_samples: int | None = None
    drop_remainder: bool = True
    repeats: int = 1
    balance: Balance | None = None

    def __post_init__(self) -> None:
        if self.balance is not None and not self.shuffle:
            raise UserError("balanced_sampling draws every epoch anew: it needs shuffle True")
        if self.num_samples is not None and self.repeats > 1:
            raise UserError("num_samples and aug_repeats exclude each other: give one of them")
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{self.epoch_length} training samples do not fill one batch of {self.shard.batch_size} on each of "
                f"{self.shard.size} ranks: lower --batch_size or set --drop_remainder False"
            )

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch over all ranks, before dropping or padding."""
        return self.length if self.num_samples is None else min(self.num_samples, self.length)

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.epoch_length, self.shard.global_batch)
        return full + (rest > 0 and not self.drop_remainder)

    def draw(self, epoch: int, step: int) -> Draw:
        """The samples of this rank's batch at ``step`` of ``epoch``."""
        positions = self.shard.positions(step)
        places = positions % self.epoch_length // self.repeats
        if self.balance is not None:
            indices = _balanced_order(self.balance, self.seed, epoch)[places]
        else:
            indices = _order(self.length, self.seed, epoch)[places] if self.shuffle else places
        return Draw(positions, indices, np.ones(len(positions), dtype=bool))


@dataclass(frozen=True)
class EvalSampler:
    """Each sample exactly once over all ranks; every batch full, the rest marked invalid.

    ``num_samples`` takes that many of the ``length`` samples, evenly spaced so that a source sorted by class keeps its
    classes, or with ``shuffle`` at random; the same in every epoch.
    """

    length: int
    shard: Shard
    seed: int
    shuffle: bool = False
    num_samples: int | None = None

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch over all ranks, without padding."""
        return self.length if self.num_samples is None else min(self.num_samples, self.length)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.epoch_length // self.shard.global_batch)

    def draw(self, epoch: int, step: int) -> Draw:
        """The samples of this rank's batch at ``step``; the same in every epoch."""
        positions = self.shard.positions(step)
        valid = positions < self.epoch_length
        places = np.where(valid, positions, 0)
        if self.shuffle:
            indices = _order(self.length, self.seed, 0)[places]
        else:
            indices = places * self.length // self.epoch_length
        return Draw(positions, indices, valid)


def train_sampler(config: Config, length: int, shard: Shard, balance: Balance | None = None) -> TrainSampler:
    """Of a source of that length, as the configuration says. Raises UserError for an empty epoch."""
    return TrainSampler(
        length=length,
        shard=shard,
        seed=config.seed,
        shuffle=config.shuffle,
        num_samples=config.num_samples,
        drop_remainder=config.drop_remainder,
        repeats=max(1, config.aug_repeats),
        balance=balance,
    )


def eval_sampler(config: Config, length: int, shard: Shard) -> EvalSampler:
    """Of a source of that length, as the configuration says."""
    return EvalSampler(length, shard, config.seed, config.eval_shuffle, config.num_samples)


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    order = stream(seed, Purpose.ORDER, epoch).permutation(length)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2)
def _balanced_order(balance: Balance, seed: int, epoch: int) -> np.ndarray:
    """As many samples as there are, of every class equally many but for one; of a class, one sample comes at most once
    more than another."""
    rng = stream(seed, Purpose.ORDER, epoch)
    labels = balance.labels
    present = rng.permutation(np.unique(labels))
    share, rest = divmod(len(labels), len(present))
    chosen = []
    for place, label in enumerate(present.tolist()):
        rows, wanted = np.flatnonzero(labels == label), share + (place < rest)
        rounds = [rng.permutation(rows) for _ in range(-(-wanted // len(rows)))]
        chosen.append(np.concatenate([rows[:0], *rounds])[:wanted])
    order = np.concatenate(chosen)[rng.permutation(len(labels))]
    order.flags.writeable = False
    return order
