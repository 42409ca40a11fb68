"""The training loop: epochs, steps, log lines, validation and what follows an epoch."""

import datetime
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mindcv_reparam.errors import Interrupted, UserError

from .evaluate import Ranks
from .interruption import Interruption
from .resume import Progress, TrainingState
from .statistics import average_statistics
from .step import TrainStep

log = logging.getLogger(__name__)

_SHOWN = 4  # images named in a message
SKIPPED_IN_A_ROW = 100  # a dynamic scale reaches 1 from 2^24 in 24 skips; more than this is no warm-up


class TrainLoader(Protocol):
    """Yields images (B, C, H, W) float32 and labels, (B, classes) float32 or (B,) int32; the same B on every rank."""

    steps_per_epoch: int
    skipped: int  # how often an image could not be read so far on this rank, and was replaced
    bad_files: Mapping[int, str]  # message by index of every such image; on one rank the loader itself has logged it

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...

    def names(self, epoch: int, step: int, rank: int) -> list[str]: ...


@dataclass
class _Interval:
    """What happened since the last log line."""

    losses: list[Tensor] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)
    images: int = 0  # without those of the step that compiles, as the seconds below
    timed: int = 0  # steps
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
        on_interval: called in order with what a log line tells, on rank 0.
        on_epoch_end: called in order with the epoch's record, on rank 0.
        teacher: images → logits, a graph that cannot be part of the step; its answers go with the labels.
        state: saved at the end of epochs and when a signal interrupts the run.
        save_interval: epochs between saved states.
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
        on_interval: Sequence[Callable[[dict[str, float]], None]] = (),
        on_epoch_end: Sequence[Callable[[dict[str, float]], None]] = (),
        teacher: Callable[[Tensor], Tensor] | None = None,
        state: TrainingState | None = None,
        save_interval: int = 1,
    ) -> None:
        self.step = step
        self.loader = loader
        self.rates = rates
        self.ranks = ranks
        self.log_interval = log_interval
        self.validate = validate
        self.val_interval = val_interval
        self.on_epoch_start = on_epoch_start
        self.on_interval = on_interval
        self.on_epoch_end = on_epoch_end
        self.teacher = teacher
        self.state = state
        self.save_interval = save_interval
        self.steps_per_epoch = loader.steps_per_epoch
        self.epochs = len(rates) // self.steps_per_epoch
        self._skipped_in_a_row = 0
        self._compiled = False
        self._named: set[int] = set()

    def run(self, start: Progress | None = None) -> dict[str, float]:
        """Train from where an interrupted run was, or from the beginning, to the end; returns the last epoch's record.

        Raises:
            UserError: the loss or a gradient is not finite, every update overflows, or initial weights differ.
            Interrupted: a signal has stopped the run, and `state` is saved.
        """
        start = start or Progress()
        self._skipped_in_a_row = start.skipped_in_a_row
        self.ranks.check_identical((p.name, p.asnumpy()) for p in self.step.network.trainable_params())
        self.step.set_train(True)
        record: dict[str, float] = {}
        with Interruption(self.ranks) as interruption:
            for epoch in range(start.epoch, self.epochs):
                for hook in self.on_epoch_start:
                    hook(epoch)
                record, done = self._train_epoch(start if epoch == start.epoch else Progress(epoch), interruption)
                average_statistics(self.step.get_parameters(), self.ranks)
                if self.state and (epoch + 1) % self.save_interval == 0:
                    self.state.save(done)
                self._end_epoch(record)
        return record

    def _end_epoch(self, record: dict[str, float]) -> None:
        epoch = int(record["epoch"])
        if self.validate and (epoch % self.val_interval == 0 or epoch == self.epochs):
            record.update(self.validate())
            self.step.set_train(True)
        if self.ranks.is_main:
            log.info("%s", _epoch_line(record, self.epochs))
            for hook in self.on_epoch_end:
                hook(record)

    def _train_epoch(self, start: Progress, interruption: Interruption) -> tuple[dict[str, float], Progress]:
        """The rest of an epoch: its record and the progress at its end."""
        done, epoch = start, start.epoch
        unreadable = self.loader.skipped
        interval = _Interval()
        batches = self.loader.epoch(epoch, start.step)
        terminal = self.ranks.is_main and sys.stderr.isatty()
        with (
            logging_redirect_tqdm(),
            tqdm(
                total=self.steps_per_epoch, initial=start.step, desc=f"epoch {epoch + 1}", disable=not terminal
            ) as bar,
        ):
            for step in range(start.step, self.steps_per_epoch):
                asked = time.perf_counter()
                images, labels = next(batches)
                interval.waited += time.perf_counter() - asked
                index = epoch * self.steps_per_epoch + step
                self._run_step(index, images, labels, interval)
                bar.update()
                stop = interruption.agreed(index)
                if stop or (step + 1) % self.log_interval == 0 or step + 1 == self.steps_per_epoch:
                    means, measured, seconds = self._measure(interval, epoch, step)
                    interruption.measured(seconds / len(means))
                    if self.ranks.is_main:
                        self._report(index, means, measured, interval.timed)
                    done = Progress(
                        epoch,
                        step + 1,
                        losses=(*done.losses, *means.tolist()),
                        measured=tuple(np.add(done.measured, measured).tolist()),
                        skipped_in_a_row=self._skipped_in_a_row,
                    )
                    interval = _Interval()
                if stop:
                    self._stop(stop, done)
        last = (epoch + 1) * self.steps_per_epoch
        images, seconds, waited = done.measured
        record = {
            "epoch": epoch + 1,
            "step": last,
            "train_loss": _mean(np.array(done.losses)),
            "lr": float(self.rates[last - 1]),
            "skipped_updates": int(self.step.skipped.asnumpy()),
            "unreadable_images": int(self.ranks.sum([self.loader.skipped - unreadable])[0]),
        }
        if images:  # else the epoch was the step that compiles
            record |= {"img_per_s": images * self.ranks.size / seconds, "data_wait": waited / seconds}
        return record, done

    def _stop(self, number: signal.Signals, done: Progress) -> NoReturn:
        if self.state:
            self.state.save(done)
        place = f"epoch {done.epoch + 1}, step {done.step} of {self.steps_per_epoch}"
        advice = f"; to go on from {self.state.path}, add --resume auto" if self.state else ""
        raise Interrupted(f"stopped by {number.name} after {place}{advice}", number)

    def _run_step(self, index: int, images: np.ndarray, labels: np.ndarray, interval: _Interval) -> None:
        update = (index + 1) % self.step.accumulation_steps == 0
        inputs, targets = Tensor(images), Tensor(labels)
        if self.teacher:
            targets = ms.mutable((targets, self.teacher(inputs)))
        loss, _, finite = self.step(inputs, targets, Tensor(self.rates[index], ms.float32), Tensor(update, ms.bool_))
        interval.losses.append(loss)
        interval.finite.append(finite)
        interval.images += len(images)
        interval.timed += 1
        if not self._compiled:  # outside the clock of img/s and eta
            loss.asnumpy()
            if self.ranks.is_main:
                log.info("first step, compilation included: %.1f s", time.perf_counter() - interval.start)
            self._compiled = True
            interval.images, interval.timed, interval.waited, interval.start = 0, 0, 0.0, time.perf_counter()

    def _measure(self, interval: _Interval, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Loss of every step of the interval, mean over ranks; this rank's images, seconds and seconds waited; seconds,
        mean over ranks. Raises if training has failed."""
        losses = [float(loss.asnumpy()) for loss in interval.losses]
        measured = np.array([interval.images, time.perf_counter() - interval.start, interval.waited])
        bad = sorted(self.loader.bad_files.keys() - self._named) if self.ranks.size > 1 else []
        by_rank = np.zeros((self.ranks.size, len(losses) + 2))
        by_rank[self.ranks.rank] = [*losses, measured[1], len(bad)]
        by_rank = self.ranks.sum(by_rank)
        if most := int(by_rank[:, -1].max()):
            self._name_bad_files(bad, most)
        *means, seconds = by_rank[:, :-1].sum(0) / self.ranks.size
        first = step + 1 - len(means)
        for offset, finite in enumerate(interval.finite):
            self._check(by_rank[:, offset], bool(finite.asnumpy()), epoch, first + offset)
        return np.array(means), measured, float(seconds)

    def _name_bad_files(self, bad: Sequence[int], most: int) -> None:
        """Log once per job what no rank has named: `bad` of this rank, at most `most` per rank. Collective."""
        by_rank = np.zeros((self.ranks.size, most))
        by_rank[self.ranks.rank, : len(bad)] = np.add(bad, 1)  # 0 pads
        for rank, row in enumerate(self.ranks.sum(by_rank)):
            for index in {int(number) - 1 for number in row if number} - self._named:
                self._named.add(index)
                if rank == self.ranks.rank:
                    log.warning("%s; replaced", self.loader.bad_files[index])

    def _check(self, losses: np.ndarray, finite: bool, epoch: int, step: int) -> None:
        """Raise if the losses of a step, one per rank, or its gradients are no ground to go on."""
        place = f"at epoch {epoch + 1}, step {step + 1} of {self.steps_per_epoch}"
        if not finite and self.step.checks_overflow:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= SKIPPED_IN_A_ROW:
                raise UserError(
                    f"the gradients overflowed in {SKIPPED_IN_A_ROW} updates in a row, last {place}; "
                    f"lower loss_scale or lr, or use amp_level O0; {self._last_good()}"
                )
            return
        self._skipped_in_a_row = 0
        if not np.isfinite(losses).all():
            rank = int(np.argmin(np.isfinite(losses)))
            self._fail(f"the loss is {losses[rank]} {place}, rank {rank}", epoch, [(step, rank)])
        if not finite:  # what all ranks have gathered since the last update of this epoch
            steps = range(max(0, step + 1 - self.step.accumulation_steps), step + 1)
            batches = [(earlier, rank) for earlier in steps for rank in range(self.ranks.size)]
            self._fail(f"the gradients are not finite {place}", epoch, batches)

    def _fail(self, what: str, epoch: int, batches: Sequence[tuple[int, int]]) -> NoReturn:
        """Raise an error that names some images of the (step, rank) it may come from, after a line that names all."""
        names = [name for step, rank in batches for name in self.loader.names(epoch, step, rank)]
        if self.ranks.is_main:
            log.error("%s: images %s", what, ", ".join(names))
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        raise UserError(
            f"{what}, images {shown}; {self._last_good()}; lower lr or loss_scale, clip the gradient (clip_grad) "
            "or use amp_level O0"
        )

    def _last_good(self) -> str:
        return self.state.last_good() if self.state else "no state is saved"

    def _report(self, index: int, means: np.ndarray, measured: np.ndarray, timed: int) -> None:
        """Log an interval that ends with step `index` and hand its record on; without rates if it only compiled."""
        record = {"step": index + 1, "loss": _mean(means), "lr": float(self.rates[index])}
        epoch, step = divmod(index, self.steps_per_epoch)
        line = (
            f"epoch {epoch + 1}/{self.epochs} step {step + 1}/{self.steps_per_epoch} loss {record['loss']:.4f} "
            f"lr {record['lr']:.3e}"
        )
        if timed:
            images, seconds, waited = measured
            record |= {"img_per_s": images * self.ranks.size / seconds, "data_wait": waited / seconds}
            left = datetime.timedelta(seconds=round((len(self.rates) - index - 1) * seconds / timed))
            line += f" {record['img_per_s']:.1f} img/s data wait {100 * record['data_wait']:.0f} % eta {left}"
        log.info("%s", line)
        for hook in self.on_interval:
            hook(record)


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
    if record.get("unreadable_images"):
        line += f", {record['unreadable_images']} unreadable images replaced"
    return line
