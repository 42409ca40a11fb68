"""The benchmark of what the loop costs the host: its device, and a job of one rank from end to end."""

import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_device_is_waited_for_and_told_how_far_the_host_is_ahead():
    from host_cost import Device

    device = Device(0.1)
    start = time.perf_counter()
    for _ in range(4):
        device.work()
    assert time.perf_counter() - start < 0.1
    assert device.ahead == pytest.approx(3.0, abs=0.5)
    device.wait()
    device.wait()
    assert time.perf_counter() - start == pytest.approx(0.4, abs=0.1)
    assert device.waited == pytest.approx(time.perf_counter() - start, abs=0.1)
    assert device.values == 2


def test_figures_become_a_row():
    from host_cost import COLUMNS, row

    figures = dict.fromkeys(COLUMNS[1:], 0.0) | {"MB per step": 77.57, "values per log line": 1.0}
    assert row(2, figures) == ["2", "0", "0", "77.6", "0", "1", "0", "0", "0"]
    assert row("1, MindCV", figures | {COLUMNS[-1]: float("nan")})[::8] == ["1, MindCV", ""]


@pytest.mark.slow
def test_a_small_job_waits_for_nothing_between_two_log_lines():
    from types import SimpleNamespace

    from host_cost import of_job

    args = SimpleNamespace(
        model="visformer_tiny_v2", batch=4, image_size=32, step_ms=20.0, steps=20, normalize_on_device=False
    )
    figures = of_job(args, 1)
    assert (figures["values per step"], figures["values per log line"]) == (0.0, 1.0)
    assert figures["ahead (steps)"] >= 5
    assert figures["MB per step"] == pytest.approx((4 * 3 * 32 * 32 + 4 * 1000) * 4 / 1e6)
