"""Signals that ask a training run to stop, heard by all ranks between the same two steps."""

import signal
import threading
from types import FrameType, TracebackType

import numpy as np

from .evaluate import Ranks

# SIGUSR1 because mpirun hands it on to the ranks; what it does on SIGTERM and SIGINT leaves them 0.1 s to live.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SECONDS = 0.25  # several ranks ask each other about this often


class Interruption:
    """Within the block `SIGNALS` are noted instead of ending the process; `agreed` tells when to stop.

    One rank may hear a signal earlier than another, or alone, so the ranks ask each other. That is a collective and
    keeps the host from running ahead of the device, so once the speed is known they do it after every step that takes
    at least a quarter of a second, and as often where steps are shorter. A single rank looks after every step, for
    free. Outside the main thread nothing is installed.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._received: signal.Signals | None = None
        self._steps_between = 1
        self._replaced: dict[signal.Signals, signal.Handlers] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._replaced = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)

    def measured(self, seconds_per_step: float) -> None:
        """Say how long a step takes; all ranks must say the same."""
        self._steps_between = max(1, int(_SECONDS / seconds_per_step)) if seconds_per_step > 0 else 1

    def agreed(self, step: int) -> signal.Signals | None:
        """The signal that any rank has received, the same on all ranks; to be called after every step."""
        if self.ranks.size == 1:
            return self._received
        if (step + 1) % self._steps_between:
            return None
        votes = self.ranks.sum(np.array([float(number is self._received) for number in SIGNALS]))
        return next((number for number, count in zip(SIGNALS, votes) if count), None)
