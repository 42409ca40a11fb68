"""Workers that make batches ahead of their use: threads, or processes that each serve one thread.

A worker process is a fresh interpreter, never a fork: the parent runs MindSpore and MPI threads, whose locks a fork
would copy in whatever state they are. Images come back through a memory file that belongs to the two processes alone
and vanishes with them (no name in /dev/shm, and no limit of its size); everything else through pipes. A worker whose
parent is gone, however it went, reads the end of its pipe and exits.
"""

import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from mindcv_reparam.data.batches import Batch, Batches
from mindcv_reparam.errors import UserError

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class _Buffers:
    """Memory for the images of the largest batch, used again once nobody holds an array of it: fresh memory costs a
    page fault every few kilobytes, a tenth of the time that an image takes."""

    def __init__(self, batches: Batches) -> None:
        self._shape, self._type = batches.image_shape, batches.image_type
        self._free: deque[np.ndarray] = deque()

    def take(self) -> np.ndarray:
        """An array that belongs to the caller, with any content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._shape, self._type)
        # NumPy makes a view of a view refer to the owner of the memory, but not past a buffer that is no array:
        # whatever the caller derives from this array keeps it alive.
        array = np.frombuffer(memory.data, self._type)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(self._shape)


class ThreadWorkers:
    """``count`` threads of this process: Pillow and NumPy let them run side by side for most of the work."""

    def __init__(self, batches: Batches, count: int) -> None:
        self.count = count
        self._batches = batches
        self._buffers = _Buffers(batches)
        self._executor = ThreadPoolExecutor(max_workers=count, thread_name_prefix="data")

    def submit(self, epoch: int, step: int) -> Future[tuple[np.ndarray, Batch]]:
        """The batch of ``step`` of ``epoch``, as (images, rest)."""
        return self._executor.submit(self._make, epoch, step)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _make(self, epoch: int, step: int) -> tuple[np.ndarray, Batch]:
        images = _front(self._buffers.take(), self._batches.shape(epoch, step))
        return images, self._batches.make(epoch, step, images)


class ProcessWorkers:
    """``count`` processes; each batch is made by one of them."""

    def __init__(self, batches: Batches, count: int) -> None:
        self.count = count
        buffers = _Buffers(batches)
        self._workers = [_Worker(batches, buffers) for _ in range(count)]
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._executor = ThreadPoolExecutor(max_workers=count, thread_name_prefix="data")

    def submit(self, epoch: int, step: int) -> Future[tuple[np.ndarray, Batch]]:
        """The batch of ``step`` of ``epoch``, as (images, rest)."""
        return self._executor.submit(self._make, epoch, step)

    def close(self) -> None:
        """End the processes; batches under way are thrown away."""
        for worker in self._workers:
            worker.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _make(self, epoch: int, step: int) -> tuple[np.ndarray, Batch]:
        worker = self._free.get()
        try:
            return worker.make(epoch, step)
        finally:
            self._free.put(worker)


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, batches: Batches, buffers: _Buffers) -> None:
        self._buffers = buffers
        descriptor = _memory_file(_size(batches))
        try:
            self._images = _mapped(descriptor, batches)
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({descriptor})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
                env=_environment(),
            )
        finally:
            os.close(descriptor)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked, self._answers = self._process.stdin, self._process.stdout
        self._batches = batches
        self._recipe: Batches | None = batches

    def make(self, epoch: int, step: int) -> tuple[np.ndarray, Batch]:
        """Called by one thread at a time."""
        if self._recipe is not None:  # only now, so that the processes start side by side
            self._send(self._recipe)
            self._recipe = None
        self._send((epoch, step))
        try:
            result = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError):
            raise UserError(self._obituary()) from None
        if isinstance(result, Exception):
            raise result
        shape = self._batches.shape(epoch, step)
        images = _front(self._buffers.take(), shape)
        np.copyto(images, _front(self._images, shape))
        return images, result

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _send(self, message: object) -> None:
        try:
            pickle.dump(message, self._asked, protocol=pickle.HIGHEST_PROTOCOL)
            self._asked.flush()
        except BrokenPipeError:
            raise UserError(self._obituary()) from None

    def _obituary(self) -> str:
        status = self._process.wait()
        cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"a data worker died ({cause}): if memory ran out, lower --num_parallel_workers or --batch_size"


def _size(batches: Batches) -> int:
    """Bytes of the images of the largest batch."""
    return math.prod(batches.image_shape) * np.dtype(batches.image_type).itemsize


def _mapped(descriptor: int, batches: Batches) -> np.ndarray:
    """The images of the largest batch, in a file's memory."""
    memory = mmap.mmap(descriptor, _size(batches))
    return np.frombuffer(memory, batches.image_type).reshape(batches.image_shape)


def _front(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A smaller batch in the memory of the largest, from its beginning."""
    return images.reshape(-1)[: math.prod(shape)].reshape(shape)


def _memory_file(size: int) -> int:
    """Descriptor of an anonymous file of ``size`` bytes, in memory where the system offers it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mindcv_reparam_batch", 0)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _environment() -> dict[str, str]:
    """This process's environment, the package importable, no thread pools beside the workers."""
    path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def serve(descriptor: int) -> None:
    """The worker process: receive the batches' recipe, then make the batch of every (epoch, step) received."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # often sent to the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up among the replies
    try:
        batches: Batches = pickle.load(requests)
        images = _mapped(descriptor, batches)
        while True:
            epoch, step = pickle.load(requests)
            try:
                reply: Batch | Exception = batches.make(epoch, step, _front(images, batches.shape(epoch, step)))
            except UserError as error:
                reply = error
            except Exception:
                reply = RuntimeError(f"data worker failed:\n{traceback.format_exc()}")
            pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
            replies.flush()
    except (EOFError, BrokenPipeError):
        return  # the parent has closed its end or is gone
