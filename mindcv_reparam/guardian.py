"""Whether msrun's scheduler is still there: a worker that has lost it ends, and its msrun with it.

msrun looks after its own host alone. When a rank dies on another one, the scheduler gives the job up some 20 s later
and leaves; nobody tells the ranks of this host, which wait in a collective. Every worker connects to the scheduler
every few seconds, and ends once it could not for LOST seconds: the scheduler is gone, or the link to its host. msrun
ends as soon as one of its workers does.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mindcv_reparam import watch
from mindcv_reparam.hosts import is_msrun

LOST = 20.0  # seconds without a scheduler
_PERIOD = 4.0  # seconds between two looks, and for one


class Guardian:
    """Looks for the scheduler at once, and in a thread from then to ``end``.

    Until ``joined`` it is expected only as a process of this host, if it is one: connections come later. MindSpore's
    ``init``, which waits for it, keeps the interpreter to itself: no thread looks as long as that takes.

    Args:
        address: of the scheduler.
        scheduler: its process here; None on other hosts.
        lose: called once it is lost, with a line that says so.
    """

    def __init__(
        self, address: tuple[str, int], scheduler: int | None, lose: Callable[[str], None], lost: float = LOST
    ) -> None:
        self._address = address
        self._where = "{}:{}".format(*address)
        self._scheduler = scheduler
        self._lose = lose
        self._lost = lost
        self._period = min(_PERIOD, lost / 5)
        self._joined = False
        self._ended = threading.Event()
        if self._is_gone():
            return
        threading.Thread(target=self._run, name="guardian", daemon=True).start()

    def joined(self) -> None:
        """This process and the scheduler have met."""
        self._joined = True

    def end(self) -> None:
        """To be called before this process leaves the cluster, which the scheduler does not outlive."""
        self._ended.set()

    def _run(self) -> None:
        misses, since = 0, time.time()
        while not self._ended.wait(self._period):
            if self._is_gone():
                return
            if not self._joined or self._answers():
                misses, since = 0, time.time()
                continue
            misses += 1  # counted, since a process that was stopped itself has no reason to complain
            if misses * self._period >= self._lost and not self._ended.is_set():
                clock = time.strftime("%H:%M:%S", time.localtime(since))
                self._lose(
                    f"msrun's scheduler at {self._where} does not answer since {clock}: a rank has died on another "
                    "host, or the link to it is lost; the other hosts' logs may tell; start again with --resume auto"
                )
                return

    def _is_gone(self) -> bool:
        """Whether it was a process of this host and has ended, which is told."""
        if not self._scheduler or _lives(self._scheduler):
            return False
        self._lose(f"msrun's scheduler at {self._where} has ended: its error is in scheduler.log")
        return True

    def _answers(self) -> bool:
        try:
            with socket.create_connection(self._address, timeout=self._period):
                return True
        except OSError:
            return False


def guard(environ: Mapping[str, str], rank: int) -> Guardian:
    """Of this process, a worker of msrun: without a scheduler it ends with the status of a job that stands still."""
    address = environ.get("MS_SCHED_HOST", "127.0.0.1"), int(environ.get("MS_SCHED_PORT", 8118))

    def lose(line: str) -> None:
        silent = watch.hopeless(LOST / 2)
        told = f"{line}; {silent}" if silent else line
        watch.leave(watch.STALLED, f"rank {rank} on {socket.gethostname()}: error: {told}")

    return Guardian(address, _scheduler_beside(os.getppid()), lose)


def _scheduler_beside(parent: int) -> int | None:
    """The scheduler that this process's msrun has started, if it has; it may have ended before a worker looks."""
    ended = None
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, of = _status(folder).split()[:2]
            if int(of) != parent:
                continue
            if state == "Z":  # what it was cannot be read; msrun looks at its workers alone as long as they run
                ended = int(folder.name)
            elif b"MS_ROLE=MS_SCHED" in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:  # it has ended, or is another user's
            continue
    return ended if is_msrun(parent) else None


def _lives(process: int) -> bool:
    try:
        return _status(Path(f"/proc/{process}")).split()[0] != "Z"
    except OSError:
        return False


def _status(folder: Path) -> str:
    """Its state, parent and more, after a name that may hold anything."""
    return (folder / "stat").read_text().rpartition(")")[2]
