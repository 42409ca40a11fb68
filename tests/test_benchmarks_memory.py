"""The table of memory, from processes that are never started."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_peaks_are_compared_with_and_without_the_frameworks():
    from memory import compared
    from peers import Contender

    def peaks(*sizes: float) -> list[Contender]:
        return [Contender("", "", "", {}, peak=size) for size in sizes]

    assert compared(peaks(900.0, 600.0)) == ["900", "600", "1.50"]
    assert compared(peaks(900.0, 600.0), peaks(400.0, 350.0)) == ["500", "250", "2.00"]


def test_growth_is_what_the_steps_after_the_hundredth_add():
    from memory import growth_of
    from peers import Contender

    class Growing(Contender):
        def __enter__(self) -> Contender:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def turn(self) -> None:  # of two calls
            self.peak += 2.0 if len(self.seconds) < 50 else 1.0
            self.seconds.append(0.0)

    assert growth_of(Growing("", "", "", {}), steps=120) == 10.0
