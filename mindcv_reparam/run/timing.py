"""How long a bundle's model takes by batch size and threads, and which of them to choose."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindcv_reparam.run.runners import Program

CLOSE = 0.05  # part by which two timings differ on a machine that does other things, too
_TURNS = 3
_CALLS = 3  # of a turn, at least


@dataclass(frozen=True)
class Setting:
    """What a model runs by and on how many images together."""

    backend: str
    threads: int
    batch: int


@dataclass(frozen=True)
class Timing(Setting):
    """What it took.

    Attributes:
        calls: that were timed.
        p50, p95: percentiles of a call in milliseconds.
        images_per_second: over all calls.
    """

    calls: int
    p50: float
    p95: float
    images_per_second: float


@dataclass(frozen=True)
class Recommendation:
    """For a client that waits for one answer, and for as many images as possible."""

    latency: Timing
    throughput: Timing


def measure(
    programs: Mapping[tuple[str, int], Program], inputs: Mapping[int, Sequence[np.ndarray]], seconds: float
) -> list[Timing]:
    """Time every program on every batch, by turns, so that other work on the machine disturbs all of them alike.

    Args:
        programs: by backend and threads.
        inputs: by batch size.
        seconds: for each setting, at least nine calls. Before every turn one is not counted.
    """
    settings = [Setting(*program, batch) for program in programs for batch in inputs]
    taken: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for turn in range(_TURNS):
        for setting in settings[turn % len(settings) :] + settings[: turn % len(settings)]:
            program = programs[setting.backend, setting.threads]
            taken[setting] += _turn(program, inputs[setting.batch], seconds / _TURNS)
    return [timing(setting, taken[setting]) for setting in settings]


def _turn(program: Program, inputs: Sequence[np.ndarray], seconds: float) -> list[float]:
    program(*inputs)
    taken: list[float] = []
    while len(taken) < _CALLS or sum(taken) < seconds:
        start = time.perf_counter()
        program(*inputs)
        taken.append(time.perf_counter() - start)
    return taken


def timing(setting: Setting, seconds: Sequence[float]) -> Timing:
    """What the calls of a setting come to, that took ``seconds`` each."""
    p50, p95 = (1000 * float(value) for value in np.percentile(seconds, (50, 95)))
    return Timing(**vars(setting), calls=len(seconds), p50=p50, p95=p95, images_per_second=_rate(setting, seconds))


def _rate(setting: Setting, seconds: Sequence[float]) -> float:
    return setting.batch * len(seconds) / sum(seconds)


def recommend(timings: Sequence[Timing]) -> Recommendation:
    """Which settings to take, where those are equal that differ by less than CLOSE.

    For latency, of the smallest batch the shortest median; of equal ones the fewest threads, which leaves processors to
    decoding and to others. For throughput the most images per second; of equal ones the shortest p95.
    """
    smallest = min(one.batch for one in timings)
    single = [one for one in timings if one.batch == smallest]
    shortest = min(one.p50 for one in single)
    quick = [one for one in single if one.p50 <= (1 + CLOSE) * shortest]
    most = max(one.images_per_second for one in timings)
    busy = [one for one in timings if one.images_per_second >= (1 - CLOSE) * most]
    return Recommendation(
        latency=min(quick, key=lambda one: (one.threads, one.p50)),
        throughput=min(busy, key=lambda one: (one.p95, one.threads)),
    )
