"""The loader: batches of a source, in order, made ahead by workers."""

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np

from mindcv_reparam.config import Config
from mindcv_reparam.data.batches import Batch, Batches
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.data.workers import ProcessWorkers, ThreadWorkers
from mindcv_reparam.errors import UserError

# Two threads feed as fast as two processes and start at once; more would wait for each other (Python's lock).
_MOST_THREADS = 2

_log = logging.getLogger(__name__)


class Loader:
    """Batches of one rank, in the order of their steps.

    ``for batch in loader.epoch(e)`` yields tuples of NumPy arrays that belong to the caller: images
    (B, 3, H, W), float32 or, where the device normalises, uint8, then what the task's batches hold beside them.

    B is the same in every batch and the number of steps the same on every rank. The batch of (epoch, step) depends on
    the config's seed, on the rank and on the number of ranks, and on nothing else: not on workers, not on what was
    drawn before. Workers start with the first epoch and live until ``close``; towards the end of an epoch they begin
    the next one.

    Attributes:
        batches: what the workers run; ``batches.sampler.draw(epoch, step)`` names the samples of a batch.
        steps_per_epoch: batches of an epoch on this rank (the same on all).
        num_classes: that the targets tell apart.
        skipped: how often a sample could not be read so far on this rank (training replaces it, validation leaves it
            out).
        bad_files: message by index of every sample that could not be read so far on this rank.
    """

    def __init__(
        self,
        batches: Batches,
        workers: int,
        last_epoch: int,
        allow_unreadable: bool,
        announce: bool = True,
    ) -> None:
        self.steps_per_epoch = batches.sampler.steps_per_epoch
        self.num_classes = batches.num_classes
        self.skipped = 0
        self.bad_files: dict[int, str] = {}
        self.batches = batches
        self._worker_count = workers
        self._last_epoch = last_epoch
        self._allow_unreadable = allow_unreadable
        self._announce = announce
        self._workers: ThreadWorkers | ProcessWorkers | None = None
        self._ahead: deque[tuple[tuple[int, int], Future[tuple[np.ndarray, Batch]]]] = deque()

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches ``start_step`` … of ``epoch`` (from 0). Raises UserError on what cannot be read or left out."""
        for step in range(start_step, self.steps_per_epoch):
            images, rest = self._take(epoch, step).result()
            for index, message in rest.unreadable:
                self._note(index, message)
            yield (images, *rest.arrays)

    def ready(self) -> tuple[np.ndarray, ...] | None:
        """The batch that comes next, if it is made. It is not taken by this, and nothing is told or counted of it."""
        if self._ahead and (future := self._ahead[0][1]).done() and not future.cancelled() and not future.exception():
            images, rest = future.result()
            return (images, *rest.arrays)
        return None

    def names(self, epoch: int, step: int, rank: int) -> list[str]:
        """What messages call the samples of any rank's batch."""
        sampler = self.batches.sampler
        shard = dataclasses.replace(sampler.shard, rank=rank)
        indices = dataclasses.replace(sampler, shard=shard).draw(epoch, step).indices
        return [self.batches.source.name(index) for index in indices.tolist()]

    def close(self) -> None:
        """End the workers. The loader can be used again: it starts new ones."""
        self._drop_ahead()
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take(self, epoch: int, step: int) -> Future[tuple[np.ndarray, Batch]]:
        """The batch of (epoch, step), with as many of its successors under way as keep the workers busy."""
        if self._workers is None:
            kind = ThreadWorkers if self._worker_count <= _MOST_THREADS else ProcessWorkers
            self._workers = kind(self.batches, self._worker_count)
        if self._ahead and self._ahead[0][0] != (epoch, step):
            self._drop_ahead()
        if not self._ahead:
            self._ahead.append(((epoch, step), self._workers.submit(epoch, step)))
        _, future = self._ahead.popleft()
        last = self._ahead[-1][0] if self._ahead else (epoch, step)
        while len(self._ahead) <= self._workers.count and (after := self._after(*last)) is not None:
            last = after
            self._ahead.append((last, self._workers.submit(*last)))
        return future

    def _drop_ahead(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _after(self, epoch: int, step: int) -> tuple[int, int] | None:
        if step + 1 < self.steps_per_epoch:
            return epoch, step + 1
        return (epoch + 1, 0) if epoch < self._last_epoch else None

    def _note(self, index: int, message: str) -> None:
        if not self._allow_unreadable:
            self.close()
            raise UserError(f"{message}; mend or remove the file, or leave it out with --allow_bad_images True")
        self.skipped += 1
        if index not in self.bad_files:
            self.bad_files[index] = message
            if self._announce:
                _log.warning("%s; skipped", message)


def create_loader(batches: Batches, config: Config, train: bool) -> Loader:
    """A Loader of the batches of one rank.

    ``config.num_parallel_workers`` is capped at the cores this process may use; up to two workers are threads, more
    are processes, and a source held in memory gets one thread. Files found bad while listing are reported here, once,
    by rank 0.

    Raises:
        UserError: the configuration wants other than RGB images; in validation, without ``config.allow_bad_images``,
            files found bad while listing.
    """
    if config.in_channels != 3 or len(config.mean) != 3:
        raise UserError("the data sets give RGB images: in_channels must be 3, mean and std three numbers each")
    source, shard = batches.source, batches.sampler.shard
    allow_unreadable = train or config.allow_bad_images
    _report(source, allow_unreadable, shard.rank)
    workers = 1 if source.in_memory else min(config.num_parallel_workers, _usable_cores())
    # Validation ends with its epoch; training goes on to the next one.
    last_epoch = config.epoch_size - 1 if train else 0
    # Ranks meet the same training images in different epochs: the trainer names a bad one once for all of them.
    return Loader(batches, workers, last_epoch, allow_unreadable, announce=shard.size == 1 or not train)


def _report(source: ImageSource, allowed: bool, rank: int) -> None:
    problems = source.problems
    if problems and not allowed:
        raise UserError(
            f"{problems[0]} ({len(problems)} such): remove or mend it, or leave it out with --allow_bad_images True"
        )
    if rank == 0:
        for problem in problems:
            _log.warning("%s; left out", problem)
        for note in source.notes:
            _log.info("%s", note)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
