"""Dynamic batching: requests that arrive close together run together, none waits longer for others than it may."""

import asyncio
import contextlib
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mindcv_reparam.run.runners import Program
from mindcv_reparam.serving.metrics import Metrics


@dataclass(frozen=True)
class _Waiting:
    inputs: tuple[np.ndarray, ...]
    outputs: asyncio.Future[tuple[np.ndarray, ...]]
    since: float  # perf_counter's seconds

    @property
    def images(self) -> np.ndarray:
        return self.inputs[0]


class Batcher:
    """Runs the requests for one model in the order of their arrival, in a thread of its own.

    Requests of one image size run together, up to ``max_images``, once there are that many or the first of them has
    waited ``max_delay`` seconds. While a batch runs, the next one gathers. A request of more images runs alone.
    """

    def __init__(self, name: str, program: Program, max_images: int, max_delay: float, metrics: Metrics) -> None:
        self._program = program
        self._max_images = max_images
        self._max_delay = max_delay
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._wait_seconds = metrics.wait_seconds.labels(name)
        self._batch_seconds = metrics.batch_seconds.labels(name)
        self._batch_images = metrics.batch_images.labels(name)
        self._statistics = metrics.statistics[name]

    async def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs of (N, …) images and what else the program takes of them; raises what the program raises."""
        outputs = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(inputs, outputs, time.perf_counter()))
        self._arrived.set()
        return await outputs

    async def work(self) -> None:
        """Run batches until cancelled."""
        try:
            while True:
                await self._gather()
                await self._run([self._queue.popleft() for _ in range(self._ready())])
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> None:
        """Return when the first requests of the queue shall run."""
        while not self._queue:
            await self._next_arrival()
        while not self._full():
            left = self._queue[0].since + self._max_delay - time.perf_counter()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._next_arrival()

    async def _next_arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _ready(self) -> int:
        """How many requests at the head of the queue go into one batch: at least one."""
        images = 0
        for number, waiting in enumerate(self._queue):
            images += len(waiting.images)
            same_size = waiting.images.shape[1:] == self._queue[0].images.shape[1:]
            if number and (images > self._max_images or not same_size):
                return number
        return len(self._queue)

    def _full(self) -> bool:
        ready = self._ready()
        return ready < len(self._queue) or sum(len(waiting.images) for waiting in self._queue) >= self._max_images

    async def _run(self, batch: list[_Waiting]) -> None:
        start = time.perf_counter()
        waits = [start - waiting.since for waiting in batch]
        for wait in waits:
            self._wait_seconds.observe(wait)
        inputs = [each[0] if len(batch) == 1 else np.concatenate(each) for each in zip(*(one.inputs for one in batch))]
        joined = time.perf_counter()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._program, *inputs)
        except Exception as error:  # whatever a backend raises: these requests fail, the server goes on
            for waiting in batch:
                if not waiting.outputs.done():
                    waiting.outputs.set_exception(error)
            return
        done = time.perf_counter()
        self._batch_seconds.observe(done - start)
        self._batch_images.observe(len(inputs[0]))
        first = 0
        for waiting in batch:
            last = first + len(waiting.images)
            if not waiting.outputs.done():  # cancelled when the server did not wait any longer
                waiting.outputs.set_result(tuple(output[first:last] for output in outputs))
            first = last
        self._statistics.ran(first, waits, (joined - start, done - joined, time.perf_counter() - done))
