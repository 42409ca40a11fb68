"""One run per folder: who owns it, held by a lock that a dead process does not hold.

The lock file ``.NAME.lock`` lies beside the folder, which may be moved or deleted meanwhile, or in it where it is a
mount point or its parent cannot be written. POSIX record locks end with their process, are not inherited by a fork,
and hold over NFS and, where they are mounted so, over Lustre, GPFS and CephFS. Where a file system keeps none, or keeps
them on each host alone, the owner's sign of life in the file tells: it is renewed every few seconds, and an owner of
another host that gives none for a minute is dead.
"""

import atexit
import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from mindcv_reparam.distributed import launched
from mindcv_reparam.errors import UserError

_BEAT = 10.0  # seconds between two signs of life; compiling a network keeps Python's lock for as long
_SILENT = 60.0  # seconds without one after which an owner is dead
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same for all containers of a host: they share its locks

_log = logging.getLogger(__name__)


def own(folder: Path) -> None:
    """Make this process the folder's owner until it ends; to be called before anything in the folder is touched.

    Of several ranks, rank 0 owns.

    Raises:
        UserError: another run owns it, which is named, or the file system refuses.
    """
    launch = launched()
    if launch.rank or launch.is_scheduler:
        return
    path = lock_path(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = _Owner(path, folder)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    atexit.register(owner.release)


def lock_path(folder: Path) -> Path:
    """The lock file of a folder, the same by whatever path one gets there."""
    real = Path(os.path.realpath(folder))
    parent = real.parent
    inside = os.path.ismount(real) or (parent.exists() and not os.access(parent, os.W_OK))
    return real / ".lock" if inside else parent / f".{real.name}.lock"


class _Owner:
    """Holds the lock from its creation to ``release``."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._folder = folder
        self._file, locked = self._take()
        earlier = self._record()
        if earlier and not (locked and earlier.get("boot") == _boot()):
            locked = self._wait_for_a_sign(earlier)
        self._own_record = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now(), "boot": _boot()}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(self._own_record).encode(), 0)
        if not locked:  # two that found the same dead owner: the last one to write stays
            time.sleep(1.0)
            if self._record() != self._own_record:
                self._refuse()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="owner", daemon=True).start()

    def release(self) -> None:
        self._ended.set()
        self._path.unlink(missing_ok=True)  # first, so that nobody locks a file that is about to go
        os.close(self._file)

    def _take(self) -> tuple[int, bool]:
        """The opened lock file, and whether this process holds its lock: else the file system has none."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    self._file = file
                    self._refuse()
                locked = False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self._path)):
                    return file, locked
            os.close(file)  # its owner has just deleted it

    def _record(self) -> dict[str, Any]:
        """What the owner has written about itself; empty where there is nothing or not yet all of it."""
        try:
            record = json.loads(os.pread(self._file, 1000, 0))
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}

    def _wait_for_a_sign(self, earlier: dict[str, Any]) -> bool:
        """Return once the earlier owner is known to be dead, with the lock if there are locks."""
        _log.info(
            "%s was left by a run on host %s, process %s: seeing for %d s whether it lives",
            *(self._folder, earlier.get("host"), earlier.get("pid"), _SILENT),
        )
        before, start = os.fstat(self._file).st_mtime_ns, time.monotonic()
        while True:
            # Opened anew: only this, and taking a lock, asks a file server for what others have changed.
            os.close(self._file)
            self._file, locked = self._take()
            if os.fstat(self._file).st_mtime_ns != before:
                self._refuse()
            if time.monotonic() - start > _SILENT:
                return locked
            time.sleep(1.0)

    def _refuse(self) -> None:
        record = self._record()
        os.close(self._file)
        raise UserError(
            f"{self._folder} belongs to a run on host {record.get('host', 'unknown')}, process "
            f"{record.get('pid', 'unknown')}, since {record.get('since', 'just now')}: wait for its end, stop it, or "
            "name another ckpt_save_dir"
        )

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._file)


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
