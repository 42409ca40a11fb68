"""Which checkpoints of a run stay on the disk."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mindcv_reparam.checkpoint_info import Weights
from mindcv_reparam.training.metrics import Record, counted, metrics_of


class CheckpointKeeper:
    """Saves every `interval` epochs, keeps `keep` of those files, and beside them the best and the final one.

    Files are `{prefix}-{epoch:04d}.ckpt`, `{prefix}_best.ckpt` and `{prefix}_final.ckpt`; where there are two sets of
    weights, best and final have the other set of the same epoch beside them, as `{prefix}_best_online.ckpt`. What is
    deleted was written by this run, or recalled from it on resuming.

    Args:
        directory: made when missing.
        prefix: usually the model's name.
        save: writes a checkpoint to a path, whole or not at all; it gets the epoch's record and which weights.
        delete: a file, after what was saved so far is on the disk.
        metric: of the record, by which weights are better the more it is.
        keep: number of files the policy keeps.
        policy: `latest_k`, `top_k` (by the metric) or None, which keeps all.
        interval: epochs between files.
        weights: "online" or "ema", whose metric says what is best; then the other, if there are two.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str,
        save: Callable[[Path, Record, Weights], None],
        metric: str,
        *,
        keep: int = 10,
        policy: str | None = "latest_k",
        interval: int = 1,
        weights: Sequence[Weights] = ("online",),
        delete: Callable[[Path], None] = lambda path: path.unlink(missing_ok=True),
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self.save = save
        self.metric = metric
        self.keep = keep
        self.policy = policy
        self.interval = interval
        self.selected, *self.others = weights
        self.delete = delete
        self.best = float("-inf")
        self.stale = 0  # validations since the best
        self._kept: dict[int, float] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, epoch: int) -> Path:
        return self.directory / f"{self.prefix}-{epoch:04d}.ckpt"

    @property
    def best_path(self) -> Path:
        return self.directory / f"{self.prefix}_best.ckpt"

    @property
    def final_path(self) -> Path:
        return self.directory / f"{self.prefix}_final.ckpt"

    def recall(self, records: Iterable[Record]) -> None:
        """Take over from an interrupted run: its best score, and those of its files that still exist."""
        for record in records:
            self._improved(record)
            epoch = counted("epoch", record)
            if self.path(epoch).exists():
                self._kept[epoch] = self._score(record)

    def epoch_end(self, record: Record) -> None:
        """Save what the epoch deserves; `record` holds `epoch`, counted from 1, and after a validation the metric."""
        epoch, score = counted("epoch", record), self._score(record)
        if self._improved(record):
            self._save_all(self.best_path, record)
        if epoch % self.interval == 0:
            self.save(self.path(epoch), record, self.selected)
            self._kept[epoch] = score
            self._prune()

    def train_end(self, record: Record) -> None:
        """Save the final checkpoint."""
        self._save_all(self.final_path, record)

    def _save_all(self, path: Path, record: Record) -> None:
        self.save(path, record, self.selected)
        for weights in self.others:
            self.save(path.with_stem(f"{path.stem}_{weights}"), record, weights)

    def _improved(self, record: Record) -> bool:
        """Whether a record is the best so far; one without a validation says nothing."""
        score = self._score(record)
        if score > self.best:
            self.best, self.stale = score, 0
            return True
        self.stale += metrics_of(self.selected, record).get(self.metric) is not None
        return False

    def _score(self, record: Record) -> float:
        value = metrics_of(self.selected, record).get(self.metric)
        return float("-inf") if value is None or math.isnan(value) else float(value)

    def _prune(self) -> None:
        if self.policy is None:
            return
        order = (lambda epoch: (self._kept[epoch], epoch)) if self.policy == "top_k" else (lambda epoch: epoch)
        for epoch in sorted(self._kept, key=order)[: -self.keep]:
            self.delete(self.path(epoch))
            del self._kept[epoch]
