"""The scheduler process of MindSpore's cluster, where no launcher starts one: under mpirun on a CPU, before 2.9.

Run as a program by rank 0, it cannot outlive the job: the kernel kills it with rank 0, however that ends, and mpirun's
end is rank 0's. Signals that ask the job to stop do not reach it, since the ranks need it until they have left, which
they do when their processes end. There a rank ends at once: the clean-up of MindSpore 2.7 and 2.8, which no Python code
can come before, waits for minutes where rank 0 was quicker, and crashes at times.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_")  # whose variables make a process one of their ranks
_IMPORTED = 120.0  # seconds that an import of MindSpore takes at most
_FOREVER = "86400"  # seconds without a rank's heartbeat: mpirun tells who is dead


def start(host: str, port: int, size: int) -> subprocess.Popen:
    """Serve a cluster of ``size`` ranks at an address of this host."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    environ |= variables("MS_SCHED", host, port, size) | {"MS_NODE_TIMEOUT": _FOREVER}
    command = [sys.executable, "-P", __file__, str(os.getpid())]
    return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)


def wait_for(host: str, port: int) -> None:
    """Until a scheduler serves there: who calls before that tries again at MindSpore's times, minutes later."""
    end = time.monotonic() + _IMPORTED
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1.0):
            return
        time.sleep(0.1)


class Scheduled(NamedTuple):
    """A rank's part of a cluster with a scheduler of ours."""

    scheduler: subprocess.Popen | None  # rank 0's

    def leave(self) -> None:
        """To be called on every rank once all of them have done their work."""
        _State.left = True


class _State:
    """Of this process, which has one."""

    left = False  # the job, which went well


@atexit.register  # before those of MindSpore, and so to run after them
def _end() -> None:
    if _State.left and not hasattr(sys, "last_value"):  # of an error nobody caught
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def variables(role: str, host: str, port: int, size: int) -> dict[str, str]:
    """What tells a process of its place in a cluster."""
    return {"MS_ROLE": role, "MS_SCHED_HOST": host, "MS_SCHED_PORT": str(port), "MS_WORKER_NUM": str(size)}


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for a while: later they would tell of a launcher that is not there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(parent: int) -> None:
    die_with_parent()
    if os.getppid() != parent:  # it was quicker
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    from mindspore.communication import init

    init()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
