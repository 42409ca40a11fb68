"""The training loop: epochs, steps, log lines, validation and what follows an epoch."""

import contextlib
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
from mindspore import Tensor, ops
from tqdm import tqdm

from mindcv_reparam import watch
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.errors import Interrupted, UserError
from mindcv_reparam.meeting import impatient
from mindcv_reparam.tasks.evaluate import announce_compilation
from mindcv_reparam.tasks.task import Metric
from mindcv_reparam.training.interruption import Interruption
from mindcv_reparam.training.metrics import AVERAGED
from mindcv_reparam.training.profile import Profile
from mindcv_reparam.training.resume import Progress, TrainingState
from mindcv_reparam.training.statistics import average_statistics
from mindcv_reparam.training.step import TrainStep
from mindcv_reparam.training.transfer import Transfer
from mindcv_reparam.training.writer import Writer

log = logging.getLogger(__name__)

_SHOWN = 4  # images named in a message
SKIPPED_IN_A_ROW = 100  # a dynamic scale reaches 1 from 2^24 in 24 skips; more than this is no warm-up


class TrainLoader(Protocol):
    """Yields images (B, C, H, W), as the step takes them, and the objective's targets; the same B on every rank."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def skipped(self) -> int: ...  # how often an image could not be read so far on this rank, and was replaced

    @property
    def bad_files(self) -> Mapping[int, str]: ...  # message by index of every such image; logged already on one rank

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, ...]]: ...

    def names(self, epoch: int, step: int, rank: int) -> list[str]: ...


@dataclass
class _Interval:
    """What happened since the last log line."""

    told: list[Tensor] = field(default_factory=list)  # by step
    images: int = 0  # without those of the step that compiles, as the seconds below
    timed: int = 0  # steps
    waited: float = 0.0
    start: float = field(default_factory=time.perf_counter)


class Trainer:
    """Runs a `TrainStep` over a loader, with one learning rate per step.

    Between two log lines no value comes from the device, so that steps are queued without waiting: what they tell stays
    there until a line is due, and ranks agree on signals by `votes.py`. Log lines and hooks are rank 0's; everything
    that involves all ranks (validation, losses) runs on all.

    Args:
        step: the compiled step.
        loader: this rank's training batches.
        rates: learning rate of every step, shape (epochs · steps per epoch,).
        ranks: the ranks of this job.
        metrics: of the task, for the epoch's line.
        log_interval: steps between log lines.
        validate: returns metrics to add to the epoch's record; called on every rank.
        val_interval: epochs between validations; the last epoch is always validated.
        on_interval: called in order with what a log line tells, on rank 0.
        on_epoch_end: called in order with the epoch's record, on rank 0.
        enough: whether the epoch that has ended was the last one; called on every rank.
        state: saved at the end of epochs and when a signal interrupts the run.
        save_interval: epochs between saved states.
        writer: of the states, and of what hooks write.
        profile: told of every step.
        transfer: brings the batches to the device.
    """

    def __init__(
        self,
        step: TrainStep,
        loader: TrainLoader,
        rates: np.ndarray,
        ranks: Ranks,
        *,
        metrics: Sequence[Metric] = (),
        log_interval: int = 100,
        validate: Callable[[], dict[str, float]] | None = None,
        val_interval: int = 1,
        on_interval: Sequence[Callable[[dict[str, float]], None]] = (),
        on_epoch_end: Sequence[Callable[[dict[str, float]], None]] = (),
        enough: Callable[[], bool] = lambda: False,
        state: TrainingState | None = None,
        save_interval: int = 1,
        writer: Writer | None = None,
        profile: Profile | None = None,
        transfer: Transfer | None = None,
    ) -> None:
        self.step = step
        self.loader = loader
        self.rates = rates
        self.ranks = ranks
        self.parts = step.objective.parts if len(step.objective.parts) > 1 else ()
        self.metrics = metrics
        self.log_interval = log_interval
        self.validate = validate
        self.val_interval = val_interval
        self.on_interval = on_interval
        self.on_epoch_end = on_epoch_end
        self.enough = enough
        self.state = state
        self.save_interval = save_interval
        self.writer = writer or Writer()
        self.profile = profile
        self.transfer = transfer or Transfer()
        self.steps_per_epoch = loader.steps_per_epoch
        self.epochs = len(rates) // self.steps_per_epoch
        self._skipped_in_a_row = 0
        self._on_device = Tensor(rates, ms.float32)  # there once, so that no step sends its own
        self._compiled: set[tuple[tuple[int, ...], int, bool]] = set()
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
        with Interruption(self.ranks) as interruption, self.writer, self.profile or contextlib.nullcontext():
            for epoch in range(start.epoch, self.epochs):
                self.step.objective.start_epoch(epoch)
                record, done = self._train_epoch(start if epoch == start.epoch else Progress(epoch), interruption)
                average_statistics(self.step.get_parameters(), self.ranks)
                watch.at(f"the saving of the state after epoch {epoch + 1}", saves=True)
                if self.state and (epoch + 1) % self.save_interval == 0:
                    self.writer.submit(self.state.prepared(done))
                self._end_epoch(record)
                if self.enough():
                    break
        return record

    def _end_epoch(self, record: dict[str, float]) -> None:
        epoch = int(record["epoch"])
        if self.validate and (epoch % self.val_interval == 0 or epoch == self.epochs):
            record.update(self.validate())
            self.step.set_train(True)
        watch.at(f"the writing of metrics and checkpoints of epoch {epoch}", saves=True)
        if self.ranks.is_main:
            log.info("%s", _epoch_line(record, self.epochs, self.metrics))
            for hook in self.on_epoch_end:
                hook(record)

    def _train_epoch(self, start: Progress, interruption: Interruption) -> tuple[dict[str, float], Progress]:
        """The rest of an epoch: its record and the progress at its end."""
        done, epoch = start, start.epoch
        unreadable = self.loader.skipped
        if start.step == 0:
            ops.assign(self.step.skipped, Tensor(0, ms.int32))  # counts per epoch, in the state too
        interval = _Interval()
        batches = self.loader.epoch(epoch, start.step)
        with contextlib.ExitStack() as bars:
            bar = bars.enter_context(self._bar(start)) if self._compiled else None
            for step in range(start.step, self.steps_per_epoch):
                place = f"epoch {epoch + 1}, step {step + 1} of {self.steps_per_epoch}"
                watch.at(f"the reading of the images of {place}", compiles=not self._compiled)
                asked = time.perf_counter()
                images, *targets = next(batches)
                interval.waited += time.perf_counter() - asked
                index = epoch * self.steps_per_epoch + step
                if self._graph(index, images) in self._compiled:
                    watch.at(place)
                else:
                    watch.at("the compilation of the training step", compiles=True, disposable=not self._compiled)
                if step == start.step:  # one rank may have written checkpoints or opened files for long
                    self.ranks.barrier()
                self._run_step(index, images, targets, interval)
                if bar is not None:
                    bar.update()
                else:  # only now, so that its clock does not count the compilation
                    bar = bars.enter_context(self._bar(Progress(epoch, step + 1)))
                due = (step + 1) % self.log_interval == 0 or step + 1 == self.steps_per_epoch
                stop = interruption.agreed(index, due)
                if stop or due:
                    means, measured = self._measure(interval, epoch, step)
                    if self.ranks.is_main:
                        self._report(index, means, measured, interval.timed)
                    done = Progress(
                        epoch,
                        step + 1,
                        losses=(*done.losses, *means[:, 0].tolist()),
                        parts=(*done.parts, *map(tuple, means[:, 1:].tolist())) if self.parts else (),
                        measured=tuple(np.add(done.measured, measured).tolist()),
                        skipped_in_a_row=self._skipped_in_a_row,
                    )
                    interval = _Interval()
                if stop:
                    self._stop(stop, done)
        last = (epoch + 1) * self.steps_per_epoch
        count, seconds, waited = done.measured
        record = {
            "epoch": epoch + 1,
            "step": last,
            "train_loss": _mean(np.array(done.losses)),
            **{f"train_{part}": _mean(np.array(values)) for part, values in zip(self.parts, zip(*done.parts))},
            "lr": float(self.rates[last - 1]),
            "skipped_updates": int(self.step.skipped.asnumpy()),
            "unreadable_images": int(self.ranks.sum([self.loader.skipped - unreadable])[0]),
        }
        if count:  # else the epoch was the step that compiles
            record |= {"img_per_s": count * self.ranks.size / seconds, "data_wait": waited / seconds}
        return record, done

    def _bar(self, at: Progress) -> tqdm:
        """Shown by rank 0 on a terminal."""
        return tqdm(
            total=self.steps_per_epoch,
            initial=at.step,
            desc=f"epoch {at.epoch + 1}",
            dynamic_ncols=True,
            disable=not (self.ranks.is_main and sys.stderr.isatty()),
        )

    def _stop(self, number: signal.Signals, done: Progress) -> NoReturn:
        watch.at("the saving of the state", saves=True)
        self.writer.finish()  # before the ranks meet, since the end of one ends the others
        if self.state:
            self.state.save(done)
        place = f"epoch {done.epoch + 1}, step {done.step} of {self.steps_per_epoch}"
        advice = f"; to go on from {self.state.path}, add --resume auto" if self.state else ""
        raise Interrupted(f"stopped by {number.name} after {place}{advice}", number)

    def _graph(self, index: int, images: np.ndarray) -> tuple[tuple[int, ...], int, bool]:
        """What the step is compiled for: the images' shape, the objective's variant, and whether it updates."""
        return images.shape, self.step.objective.variant, (index + 1) % self.step.accumulation_steps == 0

    def _compile(self, arguments: tuple) -> None:
        """Compile before the call, in whose collectives the other ranks would wait."""
        if ms.get_context("mode") == ms.GRAPH_MODE:
            self.step.compile_graphs(*arguments)
        self.ranks.barrier()

    def _run_step(self, index: int, images: np.ndarray, arrays: Sequence[np.ndarray], interval: _Interval) -> None:
        self.writer.check()
        graph = self._graph(index, images)
        inputs, *tensors = self.transfer.take((images, *arrays))
        targets = self.step.objective.complete(inputs, tensors[0] if len(tensors) == 1 else ms.mutable(tuple(tensors)))
        started = time.perf_counter() if self._compiled else interval.start
        new_size = images.shape not in {shape for shape, _, _ in self._compiled}
        size = f" on images of {images.shape[-2]}x{images.shape[-1]}" if self._compiled else ""
        if new_size and self.ranks.is_main:
            announce_compilation(f"training step{size}", self.step.network, training=True)
        arguments = inputs, targets, self._on_device[index], graph[-1]
        if graph not in self._compiled:
            self._compile(arguments)
        if self.profile:
            self.profile.before(index + 1)
        with impatient():
            *_, told = self.step(*arguments)
        self.transfer.queued()
        if self.profile:
            self.profile.after(index + 1)
        interval.told.append(told)
        interval.images += len(images)
        interval.timed += 1
        if graph not in self._compiled:  # outside the clock of img/s and eta
            told.asnumpy()
            if new_size and self.ranks.is_main:
                log.info("first step%s, compilation included: %.1f s", size, time.perf_counter() - started)
            self._compiled.add(graph)
            interval.images, interval.timed, interval.waited, interval.start = 0, 0, 0.0, time.perf_counter()

    def _measure(self, interval: _Interval, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Loss and parts of every step of the interval (steps, 1 + parts), mean over ranks; this rank's images, seconds
        and seconds waited. Raises if training has failed."""
        told = ops.stack(interval.told).asnumpy().astype(np.float64)  # the one value that the host waits for
        measured = np.array([interval.images, time.perf_counter() - interval.start, interval.waited])
        bad = sorted(self.loader.bad_files.keys() - self._named) if self.ranks.size > 1 else []
        by_rank = np.zeros((self.ranks.size, told[:, :-1].size + 1))
        by_rank[self.ranks.rank] = [*told[:, :-1].ravel(), len(bad)]
        by_rank = self.ranks.sum(by_rank)
        if most := int(by_rank[:, -1].max()):
            self._name_bad_files(bad, most)
        by_step = by_rank[:, :-1].reshape(self.ranks.size, len(told), -1)
        first = step + 1 - len(told)
        try:
            for offset, finite in enumerate(told[:, -1]):
                self._check(by_step[:, offset], bool(finite), epoch, first + offset)
        except UserError:  # on all ranks, and when the first one ends, it ends rank 0, which has waited for its files
            self.ranks.barrier()
            raise
        return by_step.sum(0) / self.ranks.size, measured

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
        """Raise if the losses of a step (ranks, 1 + parts), or its gradients are no ground to go on."""
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
            rank = int(np.argmin(np.isfinite(losses).all(1)))
            broken = [part for part, value in zip(self.parts, losses[rank, 1:]) if not np.isfinite(value)]
            others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            terms = f" ({broken[0]}{others})" if broken else ""
            self._fail(f"the loss is {losses[rank, 0]}{terms} {place}, rank {rank}", epoch, [(step, rank)])
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
        self.writer.wait()  # the last one may be on its way to the disk
        return self.state.last_good() if self.state else "no state is saved"

    def _report(self, index: int, means: np.ndarray, measured: np.ndarray, timed: int) -> None:
        """Log an interval that ends with step `index` and hand its record on; without rates if it only compiled."""
        record = {"step": index + 1, "loss": _mean(means[:, 0]), "lr": float(self.rates[index])}
        record |= {part: _mean(values) for part, values in zip(self.parts, means[:, 1:].T)}
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
        if self.parts:
            log.info("    %s", ", ".join(f"{part} {record[part]:.4f}" for part in self.parts))
        for hook in self.on_interval:
            hook(record)


def _mean(losses: np.ndarray) -> float:
    """Over the finite losses; the others belong to skipped updates."""
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if finite.size else float("nan")


def _epoch_line(record: Mapping[str, float], epochs: int, metrics: Sequence[Metric]) -> str:
    line = f"epoch {record['epoch']}/{epochs} done: train loss {record['train_loss']:.4f}"
    for prefix in ("", AVERAGED):
        for metric in metrics:
            if prefix + metric.name in record:
                value = metric.form.format(record[prefix + metric.name])
                line += f", {prefix.replace('_', ' ')}{metric.title} {value}"
    if record.get("skipped_updates"):
        line += f", {record['skipped_updates']} updates skipped"
    if record.get("unreadable_images"):
        line += f", {record['unreadable_images']} unreadable images replaced"
    return line
