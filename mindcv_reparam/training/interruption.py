"""Signals that ask a training run to stop, heard by all ranks between the same two steps."""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from mindcv_reparam import watch
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.votes import Ballot

log = logging.getLogger(__name__)

# SIGUSR1 because mpirun hands it on to the ranks; what it does on SIGTERM and SIGINT leaves them 0.1 s to live.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PATIENCE = 20.0  # seconds that the step under way may take; what sends SIGTERM often waits 30 before it kills


class Interruption:
    """Within the block `SIGNALS` are noted instead of ending the process; `agreed` tells when to stop.

    One rank may hear a signal earlier than another, or alone, and the host of one may be ahead of another's, so they
    agree by messages (`votes.py`), which keeps no host waiting for its device. Where the ranks cannot connect, they ask
    each other by a collective where the host waits anyway, at a line of the log. Outside the main thread nothing is
    installed.

    Python's own handlers run when the main thread comes back from MindSpore, which it may not: it compiles for minutes,
    or waits for a rank that is frozen. So a thread hears of the signal, too. It ends the process at once where nothing
    is lost by that, and without saving where the step under way does not end.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._received: signal.Signals | None = None
        self._at_once = False  # it came where nothing is lost by ending
        self._ballot: Ballot | None = None
        self._replaced: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._left = threading.Event()
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> "Interruption":
        self._ballot = self.ranks.ballot()
        if self._ballot:
            self._ending.callback(self._ballot.leave)
        if threading.current_thread() is threading.main_thread():
            self._replaced = {number: signal.signal(number, self._note) for number in SIGNALS}
            ear, mouth = socket.socketpair()
            mouth.setblocking(False)
            listener = threading.Thread(target=self._listen, args=(ear,), name="signals", daemon=True)
            before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
            listener.start()
            for last in (ear.close, listener.join, mouth.close, self._left.set):  # in reverse order
                self._ending.callback(last)
            self._ending.callback(signal.set_wakeup_fd, before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._ending.close()

    def _listen(self, ear: socket.socket) -> None:
        """Follow the first signal to its end, in a thread."""
        while heard := ear.recv(1):
            if heard[0] not in SIGNALS:
                continue
            number = signal.Signals(heard[0])
            self._note(number, None)
            if self._ballot:
                self._ballot.call(number)
            heard_at = time.monotonic()
            if not self._at_once:
                log.info("%s: the run stops after the next step; now it is at %s", number.name, watch.here().text)
            while not self._left.wait(0.1):
                if watch.here().disposable and (self._at_once or time.monotonic() - heard_at > _PATIENCE):
                    reason = f"during {watch.here().text}: nothing was trained since the last saved state"
                    watch.leave(128 + number, f"stopped by {number.name} {reason}")
                if silent := watch.hopeless(_PATIENCE):
                    watch.leave(128 + number, f"stopped by {number.name} without saving: {silent}")
            return

    def _note(self, number: int, frame: FrameType | None) -> None:
        """By the main thread where it runs Python, else by the listener: whoever comes first sees where that was."""
        if self._received is None:
            self._at_once = watch.here().disposable
            self._received = signal.Signals(number)

    def agreed(self, step: int, waited: bool) -> signal.Signals | None:
        """The signal that any rank has received, the same on all ranks; to be called after every step.

        Args:
            step: its number, one more from call to call.
            waited: whether the host waits for the device here anyway.
        """
        if self.ranks.size == 1:
            return self._received
        if self._ballot:
            number = self._ballot.passed(step)
            return None if number is None else signal.Signals(number)
        if not waited:
            return None
        votes = self.ranks.sum(np.array([float(number is self._received) for number in SIGNALS]))
        return next((number for number, count in zip(SIGNALS, votes) if count), None)
