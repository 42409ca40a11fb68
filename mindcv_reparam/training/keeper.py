"""Which checkpoints of a run stay on the disk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

Record = Mapping[str, float | None]
_ACCURACY = {"online": "top1", "ema": "ema_top1"}  # the record's field


class CheckpointKeeper:
    """Saves every `interval` epochs, keeps `keep` of those files, and beside them the best and the final one.

    Files are `{prefix}-{epoch:04d}.ckpt`, `{prefix}_best.ckpt` and `{prefix}_final.ckpt`; where there are two sets of
    weights, best and final have the other set of the same epoch beside them, as `{prefix}_best_online.ckpt`. What is
    deleted was written by this run, or recalled from it on resuming.

    Args:
        directory: made when missing.
        prefix: usually the model's name.
        save: writes a checkpoint to a path, whole or not at all; it gets the epoch's record and which weights.
        keep: number of files the policy keeps.
        policy: `latest_k`, `top_k` (by accuracy) or None, which keeps all.
        interval: epochs between files.
        weights: "online" or "ema", whose accuracy says what is best; then the other, if there are two.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str,
        save: Callable[[Path, Record, str], None],
        *,
        keep: int = 10,
        policy: str | None = "latest_k",
        interval: int = 1,
        weights: Sequence[str] = ("online",),
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self.save = save
        self.keep = keep
        self.policy = policy
        self.interval = interval
        self.selected, *self.others = weights
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

    def _score(self, record: Record) -> float:
        value = record.get(_ACCURACY[self.selected])
        return float("-inf") if value is None else float(value)

    def _prune(self) -> None:
        if self.policy is None:
            return
        order = (lambda epoch: (self._kept[epoch], epoch)) if self.policy == "top_k" else (lambda epoch: epoch)
        for epoch in sorted(self._kept, key=order)[: -self.keep]:
            self.path(epoch).unlink(missing_ok=True)
            del self._kept[epoch]
