"""Ending a training that gets no better."""

import logging

from mindcv_reparam.distributed import Ranks
from mindcv_reparam.training.keeper import CheckpointKeeper

_log = logging.getLogger(__name__)


class EarlyStopping:
    """Called after every epoch on all ranks; True once so many validations in a row have found nothing better.

    Rank 0 counts, from the run's metrics, so that a run that is resumed goes on counting; the ranks agree.

    Args:
        patience: that many validations; 0 never ends a training.
        keeper: which knows what was best, on rank 0.
    """

    def __init__(self, patience: int, ranks: Ranks, keeper: CheckpointKeeper | None) -> None:
        self.patience = patience
        self.ranks = ranks
        self.keeper = keeper

    def __call__(self) -> bool:
        if not self.patience:
            return False
        stale = int(self.ranks.sum([self.keeper.stale if self.keeper else 0])[0])
        if stale < self.patience:
            return False
        if self.keeper:
            best = f"the best {self.keeper.metric} is {self.keeper.best:.6g}"
            _log.info("early_stopping: %d validations have found nothing better; %s", stale, best)
        return True
