"""The benchmarks of the input pipeline's steps and storages: what they compare is the same work."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))


def test_ways_to_mix_agree(pictures):
    from input_mixing import mixing

    firsts = {}
    for way in mixing(pictures):
        mixed = np.array(way.run(0))
        assert way.run(1) is None  # the batch is the work of image 0
        first = firsts.setdefault(way.step, mixed)
        rounding = 0.02 if way.name.startswith("uint8") and "mixup" in way.step else 1e-6
        np.testing.assert_allclose(mixed, first, rtol=0, atol=rounding, err_msg=f"{way.step}: {way.name}")
    plain, mixup, cutmix = firsts.values()
    assert np.abs(plain - mixup).max() > 1.0
    assert 0.0 < np.mean(plain != cutmix) < 0.5


def test_rows_compare_with_the_first_way_of_the_step():
    from input_steps import rows
    from way import Way

    black, grey = np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8)
    some = [
        Way("decode", "one", lambda index: black),
        Way("decode", "other", lambda index: grey),
        Way("decode", "elsewhere", lambda index: grey, compared=False),
        Way("resize", "one", lambda index: grey),
        Way("resize", "smaller", lambda index: grey[:1]),
    ]
    assert rows(some, dict(zip(some, [2.0, 1.0, 3.0, 4.0, 1.0]))) == [
        ["decode", "one", "2.000", "1.00", "0"],
        ["decode", "other", "1.000", "0.50", "7"],
        ["decode", "elsewhere", "3.000", "1.50", "–"],  # noqa: RUF001
        ["resize", "one", "4.000", "1.00", "0"],
        ["resize", "smaller", "1.000", "0.25", "–"],  # noqa: RUF001
    ]


def test_every_storage_gives_all_images(tmp_path):
    from input_pipeline import write_images
    from input_storage import pixels_of, storages

    write_images(tmp_path, 0)
    files = sorted(tmp_path.rglob("*.jpg"))[:6]
    sums = {one.name: sorted(int(pixels_of(item).sum()) for item in one.read()) for one in storages(files, tmp_path)}
    expected = sums["folder of JPEGs (used)"]
    assert len(set(expected)) == len(sums) == 6
    assert all(found == expected for found in sums.values())
