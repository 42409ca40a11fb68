"""The parts of the server without a server: dynamic batching, and reading what clients send."""

import asyncio
import threading
import time

import numpy as np
import pytest

from mindcv_reparam.serving.batcher import Batcher
from mindcv_reparam.serving.metrics import Metrics
from mindcv_reparam.serving.statistics import Statistics

FOREVER = 3600.0


class Doubler:
    """A program that doubles its images and remembers the batches; it waits for ``go`` before it runs."""

    def __init__(self):
        self.batches = []
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self, images):
        self.started.set()
        assert self.go.wait(30)
        self.batches.append(images.shape)
        if np.isnan(images).any():
            raise ArithmeticError("no number")
        return images * 2, -images


def images(*values, size=2):
    """One image of ``size`` pixels for every value."""
    return np.repeat(np.array(values, np.float32)[:, None], size, axis=1)


def run(scenario, *, max_images, max_delay):
    """Run ``scenario(batcher, program)`` beside the batcher's work; returns the program."""

    async def main():
        program = Doubler()
        batcher = Batcher("model", program, max_images, max_delay, Metrics())
        work = asyncio.create_task(batcher.work())
        try:
            async with asyncio.timeout(30):
                await scenario(batcher, program)
        finally:
            program.go.set()
            work.cancel()
        return program

    return asyncio.run(main())


async def submit(batcher, *requests):
    """Tasks of requests that wait in the batcher's queue, in this order."""
    tasks = [asyncio.create_task(batcher.run(request)) for request in requests]
    await asyncio.sleep(0)
    return tasks


async def doubled(tasks, *requests):
    for task, request in zip(tasks, requests, strict=True):
        twice, minus = await task
        np.testing.assert_array_equal(twice, request * 2)
        np.testing.assert_array_equal(minus, -request)


def test_a_full_batch_runs_at_once_and_everybody_gets_their_rows():
    requests = [images(1, 2), images(3), images(4)]

    async def scenario(batcher, program):
        program.go.set()
        await doubled(await submit(batcher, *requests), *requests)

    assert run(scenario, max_images=4, max_delay=FOREVER).batches == [(4, 2)]


def test_the_first_request_waits_no_longer_than_the_delay():
    async def scenario(batcher, program):
        program.go.set()
        await doubled(await submit(batcher, images(1)), images(1))

    assert run(scenario, max_images=4, max_delay=0.01).batches == [(1, 2)]


def test_without_a_delay_only_those_that_wait_already_run_together():
    requests = [images(n) for n in range(6)]

    async def scenario(batcher, program):
        first = await submit(batcher, requests[0])
        await asyncio.to_thread(program.started.wait)
        others = await submit(batcher, *requests[1:])  # they arrive while the first one runs
        program.go.set()
        await doubled(first + others, *requests)

    assert run(scenario, max_images=4, max_delay=0).batches == [(1, 2), (4, 2), (1, 2)]


def test_batches_of_one_are_no_batching():
    requests = [images(n) for n in range(3)]

    async def scenario(batcher, program):
        program.go.set()
        await doubled(await submit(batcher, *requests), *requests)

    assert run(scenario, max_images=1, max_delay=FOREVER).batches == [(1, 2)] * 3


def test_what_does_not_fit_waits_for_the_next_batch():
    requests = [images(1, 2, 3), images(4, 5), images(6, 7), images(1, 2, 3, 4, 5)]

    async def scenario(batcher, program):
        program.go.set()
        await doubled(await submit(batcher, *requests), *requests)

    assert run(scenario, max_images=4, max_delay=FOREVER).batches == [(3, 2), (4, 2), (5, 2)]


def test_images_of_different_sizes_run_apart():
    requests = [images(1), images(2), images(3, size=5), images(4)]

    async def scenario(batcher, program):
        program.go.set()
        tasks = await submit(batcher, *requests)
        await doubled(tasks[:3], *requests[:3])
        tasks += await submit(batcher, images(5, 6, 7))
        await doubled(tasks, *requests, images(5, 6, 7))

    assert run(scenario, max_images=4, max_delay=FOREVER).batches == [(2, 2), (1, 5), (4, 2)]


def test_a_failing_batch_fails_its_requests_and_no_others():
    async def scenario(batcher, program):
        program.go.set()
        for task in await submit(batcher, images(1), images(np.nan)):
            with pytest.raises(ArithmeticError, match="no number"):
                await task
        await doubled(await submit(batcher, images(3, 4)), images(3, 4))

    assert run(scenario, max_images=2, max_delay=FOREVER).batches == [(2, 2), (2, 2)]


def test_a_request_given_up_does_not_disturb_the_others():
    async def scenario(batcher, program):
        first, second = await submit(batcher, images(1), images(2))
        await asyncio.to_thread(program.started.wait)
        first.cancel()
        program.go.set()
        await doubled([second], images(2))

    run(scenario, max_images=2, max_delay=FOREVER)


def test_statistics_add_up():
    statistics, begun = Statistics(), time.time()
    statistics.arrived()
    statistics.ran(4, [0.5, 0.25], (0.001, 0.01, 0.002))  # two requests of two images
    statistics.ran(4, [0.0], (0.0, 0.02, 0.0))
    statistics.ran(1, [0.0], (0.0, 0.005, 0.0))
    for seconds, success in ((0.75, True), (0.5, True), (0.25, True), (0.125, True), (2.0, False)):
        statistics.answered(seconds, success)
    found = statistics.record("colours", "1")
    assert begun - 0.001 <= found.pop("last_inference") / 1000 <= time.time() + 0.001
    stats, batches = found.pop("inference_stats"), found.pop("batch_stats")
    assert found == {"name": "colours", "version": "1", "inference_count": 9, "execution_count": 3}
    assert {name: (one["count"], one["ns"] / 1e6) for name, one in stats.items()} == {
        "success": (4, 1625),
        "fail": (1, 2000),
        "queue": (4, 750),
        "compute_input": (4, 2),
        "compute_infer": (4, 45),
        "compute_output": (4, 4),
        "cache_hit": (0, 0),
    }
    assert [(one["batch_size"], one["compute_infer"]) for one in batches] == [
        (1, {"count": 1, "ns": 5_000_000}),
        (4, {"count": 2, "ns": 30_000_000}),
    ]
