"""Which checkpoints of a run stay on the disk."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Record = Mapping[str, float | None]


class CheckpointKeeper:
    """Saves every `interval` epochs, keeps `keep` of those files, and beside them the best and the final one.

    Files are `{prefix}-{epoch:04d}.ckpt`, `{prefix}_best.ckpt` and `{prefix}_final.ckpt`. What is deleted was written
    by this run, or recalled from it on resuming.

    Args:
        directory: made when missing.
        prefix: usually the model's name.
        save: writes a checkpoint to a path, whole or not at all; it gets the epoch's record.
        keep: number of files the policy keeps.
        policy: `latest_k`, `top_k` (by the record's `metric`) or None, which keeps all.
        interval: epochs between files.
        metric: the record's field that says what is best; larger is better.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str,
        save: Callable[[Path, Record], None],
        *,
        keep: int = 10,
        policy: str | None = "latest_k",
        interval: int = 1,
        metric: str = "top1",
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self.save = save
        self.keep = keep
        self.policy = policy
        self.interval = interval
        self.metric = metric
        self.best = float("-inf")
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
            score = self._score(record)
            self.best = max(self.best, score)
            if self.path(int(record["epoch"])).exists():
                self._kept[int(record["epoch"])] = score

    def epoch_end(self, record: Record) -> None:
        """Save what the epoch deserves; `record` holds `epoch`, counted from 1, and after a validation the metric."""
        epoch, score = int(record["epoch"]), self._score(record)
        if score > self.best:
            self.best = score
            self.save(self.best_path, record)
        if epoch % self.interval == 0:
            self.save(self.path(epoch), record)
            self._kept[epoch] = score
            self._prune()

    def train_end(self, record: Record) -> None:
        """Save the final checkpoint."""
        self.save(self.final_path, record)

    def _score(self, record: Record) -> float:
        value = record.get(self.metric)
        return float("-inf") if value is None else float(value)

    def _prune(self) -> None:
        if self.policy is None:
            return
        order = (lambda epoch: (self._kept[epoch], epoch)) if self.policy == "top_k" else (lambda epoch: epoch)
        for epoch in sorted(self._kept, key=order)[: -self.keep]:
            self.path(epoch).unlink(missing_ok=True)
            del self._kept[epoch]
