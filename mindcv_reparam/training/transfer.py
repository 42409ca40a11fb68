"""How a batch reaches the device: when its step is queued, or while the step before it runs."""

import logging
import time
from collections import deque
from typing import Any, NamedTuple, Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor

log = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, ...]
_UNFINISHED = 2  # steps that the device may have before it while the host goes on; with the next one, three batches
_PAUSE = 1e-3  # seconds between two questions whether a step has ended


class Ready(Protocol):
    def ready(self) -> Arrays | None: ...  # the batch that comes next, if it is made


class Transfer:
    """Arrays become Tensors without a copy.

    The Tensors keep the arrays, whose memory the loader uses again once nobody has them. Another device than a CPU gets
    them when the step is queued; on Ascend the host waits for that copy, since the memory is not pinned.
    """

    def take(self, arrays: Arrays) -> tuple[Tensor, ...]:
        """The Tensors of a batch; its step is queued next."""
        return tuple(map(ms.from_numpy, arrays))

    def queued(self) -> None:
        """To be called when the step of the batch that was taken is queued, before the host waits for it."""


class _Sent(NamedTuple):
    """A batch of which the copy to the device has begun."""

    pinned: tuple[Tensor, ...]  # what is copied
    tensors: tuple[Tensor, ...]  # on the device
    copied: Any  # event after the copy


class Ahead(Transfer):
    """Copies the next batch from pinned memory, on a stream of its own, while a step runs.

    It does so where workers have made that batch, and leaves it to the loader: order, counts of unreadable images,
    waiting times and the place to resume from are those without it.

    A copy may lie before the device long after Python has asked for it, and so may the step that reads it. So the
    memory of both ends is kept until the device has ended that step. For this the host waits, but never for the last
    two steps, so that the device always has something to do.

    Args:
        device: the target, "Ascend".
        loader: of the batches.
    """

    def __init__(self, device: str, loader: Ready) -> None:
        self._device = device
        self._loader = loader
        self._copies = ms.runtime.Stream()
        self._steps = ms.runtime.default_stream()
        self._next: tuple[np.ndarray, _Sent] | None = None  # with the images that it was made of
        self._taken: _Sent | None = None
        self._unfinished: deque[tuple[_Sent | None, Any]] = deque()  # with the event after the step

    def take(self, arrays: Arrays) -> tuple[Tensor, ...]:
        following, self._next = self._next, None
        sent = following[1] if following and following[0] is arrays[0] else self._send(arrays)
        self._steps.wait_event(sent.copied)  # the device waits, not the host
        self._taken = sent
        return sent.tensors

    def queued(self) -> None:
        self._unfinished.append((self._taken, self._steps.record_event()))
        self._taken = None
        while len(self._unfinished) > _UNFINISHED:
            # Asked again and again, since `synchronize` may keep Python's lock, which the makers of batches need.
            while not self._unfinished[0][1].query():
                time.sleep(_PAUSE)
            self._unfinished.popleft()
        self._next = (arrays[0], self._send(arrays)) if (arrays := self._loader.ready()) else None

    def _send(self, arrays: Arrays) -> _Sent:
        pinned = tuple(ms.from_numpy(array).pin_memory() for array in arrays)
        with ms.runtime.StreamCtx(self._copies):
            tensors = tuple(tensor.move_to(self._device, blocking=False) for tensor in pinned)
        return _Sent(pinned, tensors, self._copies.record_event())


def open_transfer(ahead: bool, loader: Ready) -> Transfer:
    """How a run's batches travel. Where none can be sent ahead, as without `ahead`, and a line of the log says why."""
    device = ms.get_context("device_target")
    if not ahead:
        return Transfer()
    try:
        if not (lacking := _lacking(device)):
            return _tried(Ahead(device, loader))
        log.info("transfer_ahead is not used: %s", lacking)  # on all ranks, of which rank 0 shows it
    except (RuntimeError, TypeError, ValueError) as error:
        log.warning("transfer_ahead is not used: %s", str(error).strip().partition("\n")[0])
    return Transfer()


def _lacking(device: str) -> str:
    if device == "CPU":
        return "a CPU computes on a batch where it lies"
    return "" if hasattr(Tensor, "pin_memory") else f"MindSpore {ms.__version__} has no Tensor.pin_memory"


def _tried(transfer: Ahead) -> Ahead:
    """Raises RuntimeError, or what MindSpore raises, unless some numbers arrive at the device."""
    given = np.arange(8, dtype=np.float32)
    if not np.array_equal(transfer.take((given,))[0].asnumpy(), given):
        raise RuntimeError("other numbers arrived at the device than were sent")
    return transfer
