"""The benchmark of scaling: its tables."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_rows_are_relative_to_the_first_point_of_the_curve():
    from scaling import Point, rows

    points = [
        Point("ranks", 1, "batch 8 each", 50.0),
        Point("ranks", 2, "batch 8 each", 80.0),
        Point("data workers", 1, "threads", 400.0),
        Point("data workers", 1, "processes", 500.0),
        Point("data workers", 2, "processes", 250.0),
    ]
    assert [row[-2:] for row in rows(points)] == [
        ["50.0", "1.00"],
        ["80.0", "1.60"],
        ["400.0", "1.00"],
        ["500.0", "1.00"],
        ["250.0", "0.50"],
    ]


def test_ranks_are_counted_together_and_missing_figures_stay_empty():
    from scaling import JOBS, Job, job_row

    start = {"import": 1.0, "join": 4.0, "build": 0.5, "first step": 6.0}
    turns = [start | {"step": seconds, "step, processor": 0.1} for seconds in (0.4, 0.2, 0.1)]
    cells = job_row(Job("2 ranks", 2, "core", turns=turns), batch=16)
    assert cells == ["2 ranks", "1.0", "4.0", "0.5", "6.0", "200", "100", "", "", "", "160"]
    assert len(cells) == len(JOBS)
