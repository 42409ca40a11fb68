"""What a server has done for a model since it started, as Triton's statistics extension tells it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Duration:
    """How often something was done, and how long that took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """It was done ``times`` times, in ``seconds`` each."""
        self.count += times
        self.seconds += seconds * times

    def record(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(1e9 * self.seconds)}


@dataclass
class _Compute:
    """Of a batch: putting requests together, running the model, giving every request its part."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def add(self, seconds: Sequence[float], times: int = 1) -> None:
        for duration, one in zip((self.input, self.infer, self.output), seconds, strict=True):
            duration.add(one, times)

    def record(self) -> dict[str, Any]:
        parts = {"input": self.input, "infer": self.infer, "output": self.output}
        return {f"compute_{name}": duration.record() for name, duration in parts.items()}


class Statistics:
    """Of one model; requests for classes or objects of an image file are inferences like others."""

    def __init__(self) -> None:
        self._last = self._images = self._executions = 0
        self._success, self._fail, self._queue = Duration(), Duration(), Duration()
        self._requests = _Compute()
        self._batches: dict[int, _Compute] = {}

    def arrived(self) -> None:
        """A request has begun."""
        self._last = round(1000 * time.time())

    def answered(self, seconds: float, success: bool) -> None:
        """A request has been answered, ``seconds`` after its header."""
        (self._success if success else self._fail).add(seconds)

    def ran(self, images: int, waits: Sequence[float], seconds: Sequence[float]) -> None:
        """A batch has run.

        Args:
            images: of clients, without filling.
            waits: seconds that every request of it had waited.
            seconds: for its input, for the model, for its output. A request takes as long as its batch.
        """
        self._images += images
        self._executions += 1
        for wait in waits:
            self._queue.add(wait)
        self._requests.add(seconds, len(waits))
        self._batches.setdefault(images, _Compute()).add(seconds)

    def record(self, name: str, version: str) -> dict[str, Any]:
        """The object ``model_stat`` of the extension."""
        durations = {"success": self._success, "fail": self._fail, "queue": self._queue}
        return {
            "name": name,
            "version": version,
            "last_inference": self._last,
            "inference_count": self._images,
            "execution_count": self._executions,
            "inference_stats": {
                **{key: duration.record() for key, duration in durations.items()},
                **self._requests.record(),
                "cache_hit": Duration().record(),  # there is no cache
            },
            "batch_stats": [{"batch_size": size, **batch.record()} for size, batch in sorted(self._batches.items())],
        }
