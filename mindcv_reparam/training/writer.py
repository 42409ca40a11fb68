"""Files written beside the training, which goes on meanwhile."""

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

THREADS = 8  # that copy or read arrays: one moves a few gigabytes a second


class Writer:
    """Runs jobs one after the other in a thread, in the order in which they were given.

    So a process that is killed leaves what one would that had waited for every job, only earlier in the same order.
    After a job that failed, no other is begun, and whoever gives the next one, or asks, gets its error. As a context
    manager it waits at the end for all of them.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._left = 0
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        if error is None:
            self.check()

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job run after those before it. Raises what one of them has raised."""
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
            self._thread.start()
        with self._changed:
            self._left += 1
        self._jobs.put(job)

    def check(self) -> None:
        """Raise what a job has raised, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until every job is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._left == 0)

    def finish(self) -> None:
        """Wait, and raise what a job has raised."""
        self.wait()
        self.check()

    def _run(self) -> None:
        failed = False
        while True:
            job = self._jobs.get()
            try:
                if not failed:
                    job()
            except Exception as error:  # whatever it is, it belongs to the main thread
                self._error, failed = error, True
            with self._changed:
                self._left -= 1
                self._changed.notify_all()


def copies_of(values: Mapping[str, np.ndarray], spare: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Copies that nothing changes any more; in the memory of ``spare``, as fresh memory costs as much again."""
    spare = spare or {}
    copies = {name: spare[name] if name in spare else np.empty_like(value) for name, value in values.items()}
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(np.copyto, copies.values(), values.values()))
    return copies
