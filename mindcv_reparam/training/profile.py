"""MindSpore's profiler around some steps of a run."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mindspore as ms
from mindspore import profiler

log = logging.getLogger(__name__)


class Profile:
    """Told of every step, it records from the first to the last of some, on this rank.

    A context manager: what is being recorded when a run ends early is written all the same.

    Args:
        steps: first and last, counted from 1 over the whole run, as in metrics and logs.
        folder: what it writes goes into; a folder of its own for each process.
    """

    def __init__(self, steps: tuple[int, int], folder: Path) -> None:
        self.first, self.last = steps
        self.folder = folder
        self._recording: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """To be called before a step, counted from 1."""
        if self._recording is None and step == self.first:
            kinds = profiler.ProfilerActivity
            self._recording = profiler.profile(
                activities=[kinds.CPU, *([kinds.NPU] if ms.get_context("device_target") == "Ascend" else [])],
                start_profile=False,
                on_trace_ready=profiler.tensorboard_trace_handler(str(self.folder)),
            )
            self._recording.start()

    def after(self, step: int) -> None:
        """To be called when a step is queued."""
        if step == self.last:
            self._stop()

    def _stop(self) -> None:
        if self._recording is not None:
            recording, self._recording = self._recording, None
            recording.stop()
            log.info("profile of steps %d to %d: %s", self.first, self.last, self.folder)
