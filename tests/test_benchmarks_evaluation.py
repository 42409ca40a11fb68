"""The benchmark of the evaluation of detectors: both sides judge the same detections."""

import contextlib
import io
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_both_sides_have_the_same_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import detection_evaluation

    source = detection_evaluation.annotated(12)
    found = detection_evaluation.detections(source, 40)
    assert [one.boxes.shape for one in found] == [(40, 4)] * 12
    assert all((np.diff(one.scores) <= 0).all() for one in found)
    with contextlib.redirect_stderr(io.StringIO()):
        (*_, judging, mine), (*_, judged, theirs) = (
            detection_evaluation.ours(12, 40),
            detection_evaluation.pycocotools(12, 40),
        )
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)
    assert 0.3 < mine[0] < mine[1] < 0.7  # half of the objects are found
    assert (judging, judged > 0) == (0.0, True)
    assert detection_evaluation.row("ours", (1.25, 2.0, 0.0, mine))[:4] == ["ours", "1.2", "2.0", ""]
    assert detection_evaluation.row("ours", (1.25, 2.0, 0.0, mine))[-1] == f"{mine[11]:.4f}"
