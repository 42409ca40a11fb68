"""The training loop: epochs, steps, log lines, validation and what follows an epoch."""

import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mindcv_reparam.errors import UserError

from .evaluate import Ranks
from .statistics import average_statistics
from .step import TrainStep

log = logging.getLogger(__name__)

SKIPPED_IN_A_ROW = 100  # a dynamic scale reaches 1 from 2^24 in 24 skips; more than this is no warm-up


class TrainLoader(Protocol):
    """Yields images (B, C, H, W) float32 and labels, (B, classes) float32 or (B,) int32; the same B on every rank."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...


@dataclass
class _Interval:
    """What happened since the last log line."""

    losses: list[Tensor] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)
    images: int = 0
    waited: float = 0.0
    start: float = field(default_factory=time.perf_counter)


class Trainer:
    """Runs a `TrainStep` over a loader, with one learning rate per step.

    Losses stay on the device until a log line is due, so steps are queued without waiting. Log lines and hooks are
    rank 0's; everything that involves all ranks (validation, losses) runs on all.

    Args:
        step: the compiled step.
        loader: this rank's training batches.
        rates: learning rate of every step, shape (epochs · steps per epoch,).
        ranks: the ranks of this job.
        log_interval: steps between log lines.
        validate: returns metrics to add to the epoch's record; called on every rank.
        val_interval: epochs between validations; the last epoch is always validated.
        on_epoch_start: called in order with the epoch, from 0, on every rank.
        on_epoch_end: called in order with the epoch's record, on rank 0.
        teacher: images → logits, a graph that cannot be part of the step; its answers go with the labels.
    """

    def __init__(
        self,
        step: TrainStep,
        loader: TrainLoader,
        rates: np.ndarray,
        ranks: Ranks,
        *,
        log_interval: int = 100,
        validate: Callable[[], dict[str, float]] | None = None,
        val_interval: int = 1,
        on_epoch_start: Sequence[Callable[[int], None]] = (),
        on_epoch_end: Sequence[Callable[[dict[str, float]], None]] = (),
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.step = step
        self.loader = loader
        self.rates = rates
        self.ranks = ranks
        self.log_interval = log_interval
        self.validate = validate
        self.val_interval = val_interval
        self.on_epoch_start = on_epoch_start
        self.on_epoch_end = on_epoch_end
        self.teacher = teacher
        self.steps_per_epoch = loader.steps_per_epoch
        self.epochs = len(rates) // self.steps_per_epoch
        self._skipped_in_a_row = 0
        self._compiled = False

    def run(self, start_epoch: int = 0, start_step: int = 0) -> dict[str, float]:
        """Train from that epoch and step (from 0) to the end; returns the last epoch's record.

        Raises:
            UserError: the loss is not finite, every update overflows, or the ranks' initial weights differ.
        """
        self.ranks.check_identical((p.name, p.asnumpy()) for p in self.step.network.get_parameters())
        self.step.set_train(True)
        record: dict[str, float] = {}
        for epoch in range(start_epoch, self.epochs):
            for hook in self.on_epoch_start:
                hook(epoch)
            record = self._train_epoch(epoch, start_step)
            start_step = 0
            average_statistics(self.step.get_parameters(), self.ranks)
            if self.validate and ((epoch + 1) % self.val_interval == 0 or epoch + 1 == self.epochs):
                record.update(self.validate())
                self.step.set_train(True)
            if self.ranks.is_main:
                log.info("%s", _epoch_line(record, self.epochs))
                for hook in self.on_epoch_end:
                    hook(record)
        return record

    def _train_epoch(self, epoch: int, start_step: int) -> dict[str, float]:
        losses: list[np.ndarray] = []
        totals = np.zeros(3)  # images, seconds, seconds waited for data
        interval = _Interval()
        batches = self.loader.epoch(epoch, start_step)
        terminal = self.ranks.is_main and sys.stderr.isatty()
        with (
            logging_redirect_tqdm(),
            tqdm(
                total=self.steps_per_epoch, initial=start_step, desc=f"epoch {epoch + 1}", disable=not terminal
            ) as bar,
        ):
            for step in range(start_step, self.steps_per_epoch):
                asked = time.perf_counter()
                images, labels = next(batches)
                interval.waited += time.perf_counter() - asked
                self._run_step(epoch * self.steps_per_epoch + step, images, labels, interval)
                bar.update()
                if (step + 1) % self.log_interval == 0 or step + 1 == self.steps_per_epoch:
                    means = self._interval_losses(interval, epoch, step)
                    measured = np.array([interval.images, time.perf_counter() - interval.start, interval.waited])
                    if self.ranks.is_main:
                        log.info("%s", self._line(epoch, step, means, measured))
                    losses.append(means)
                    totals += measured
                    interval = _Interval()
        last = (epoch + 1) * self.steps_per_epoch
        return {
            "epoch": epoch + 1,
            "step": last,
            "train_loss": _mean(np.concatenate(losses)),
            "lr": float(self.rates[last - 1]),
            "img_per_s": float(totals[0] * self.ranks.size / totals[1]),
            "data_wait": float(totals[2] / totals[1]),
            "skipped_updates": int(self.step.skipped.asnumpy()),
        }

    def _run_step(self, index: int, images: np.ndarray, labels: np.ndarray, interval: _Interval) -> None:
        update = (index + 1) % self.step.accumulation_steps == 0
        inputs, targets = Tensor(images), Tensor(labels)
        if self.teacher:
            targets = ms.mutable((targets, self.teacher(inputs)))
        loss, _, finite = self.step(inputs, targets, Tensor(self.rates[index], ms.float32), Tensor(update, ms.bool_))
        interval.losses.append(loss)
        interval.finite.append(finite)
        interval.images += len(images)
        if not self._compiled:  # outside the clock of img/s and eta
            loss.asnumpy()
            if self.ranks.is_main:
                log.info("first step, compilation included: %.1f s", time.perf_counter() - interval.start)
            self._compiled = True
            interval.images, interval.waited, interval.start = 0, 0.0, time.perf_counter()

    def _interval_losses(self, interval: _Interval, epoch: int, step: int) -> np.ndarray:
        """Loss of every step of the interval, mean over ranks, the same on all ranks; raises if training has failed."""
        local = np.array([float(loss.asnumpy()) for loss in interval.losses])
        means = self.ranks.sum(local) / self.ranks.size
        first = step + 1 - len(means)
        for offset, (mean, finite) in enumerate(zip(means, interval.finite)):
            place = f"at epoch {epoch + 1}, step {first + offset + 1} of {self.steps_per_epoch}"
            if bool(finite.asnumpy()):
                self._skipped_in_a_row = 0
                if not np.isfinite(mean):
                    raise UserError(
                        f"the loss is {mean} {place}; lower lr, clip the gradient (clip_grad) or use amp_level O0"
                    )
            else:
                self._skipped_in_a_row += 1
                if self._skipped_in_a_row >= SKIPPED_IN_A_ROW:
                    raise UserError(
                        f"the gradients overflowed in {SKIPPED_IN_A_ROW} updates in a row, last {place}; "
                        "lower loss_scale or lr, or use amp_level O0"
                    )
        return means

    def _line(self, epoch: int, step: int, means: np.ndarray, measured: np.ndarray) -> str:
        images, seconds, waited = measured
        index = epoch * self.steps_per_epoch + step
        left = (len(self.rates) - index - 1) * seconds / len(means)
        return (
            f"epoch {epoch + 1}/{self.epochs} step {step + 1}/{self.steps_per_epoch} loss {_mean(means):.4f} "
            f"lr {self.rates[index]:.3e} {images * self.ranks.size / seconds:.1f} img/s "
            f"data wait {100 * waited / seconds:.0f} % eta {datetime.timedelta(seconds=round(left))}"
        )


def _mean(losses: np.ndarray) -> float:
    """Over the finite losses; the others belong to skipped updates."""
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if finite.size else float("nan")


def _epoch_line(record: dict[str, float], epochs: int) -> str:
    line = f"epoch {record['epoch']}/{epochs} done: train loss {record['train_loss']:.4f}"
    names = {"val_loss": "val loss {:.4f}", "top1": "top-1 {:.2f} %", "top5": "top-5 {:.2f} %"}
    for prefix in ("", "ema_"):
        for name, text in names.items():
            if prefix + name in record:
                line += f", {prefix.replace('_', ' ')}{text.format(record[prefix + name])}"
    return line
