"""The metrics file survives interruptions; the curves are a readable PNG."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.training import metrics
from mindcv_reparam.training.metrics import columns, metrics_of, read_metrics

METRICS = TASKS["classification"].metrics
COLUMNS = columns(METRICS)


def MetricsFile(path, columns=COLUMNS, **options):
    return metrics.MetricsFile(path, columns, **options)


def plot_curves(runs, path):
    metrics.plot_curves(runs, METRICS, path)


def row(epoch: int, **more: float) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch, "train_loss": 1.0 / epoch, "lr": 1e-3, "img_per_s": 5.5, **more}


def test_rows_come_back_with_their_types(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(row(1))
    file.append(row(2, top1=97.5, other=3.0))
    first, second = read_metrics(file.path)
    assert list(first) == list(COLUMNS)
    assert first["epoch"] == 1
    assert first["lr"] == 1e-3
    assert first["top1"] is None
    assert second["top1"] == 97.5
    assert file.path.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_each_set_of_weights_has_its_own_results():
    record = row(3, top1=90.0, val_loss=0.5, ema_top1=95.0, ema_val_loss=0.25)
    assert metrics_of("online", record) == row(3, top1=90.0, val_loss=0.5)
    assert metrics_of("ema", record) == row(3, top1=95.0, val_loss=0.25)
    assert metrics_of("ema", row(4)) == row(4)  # an epoch without validation


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path):
    whole = MetricsFile(tmp_path / "whole.csv")
    for epoch in range(1, 5):
        whole.append(row(epoch))
    parts = MetricsFile(tmp_path / "parts.csv")
    for epoch in range(1, 4):
        parts.append(row(epoch))
    with open(parts.path, "a") as file:
        file.write("4,40,0.2")  # killed while writing
    resumed = MetricsFile(parts.path, first_epoch=3)
    for epoch in (3, 4):
        resumed.append(row(epoch))
    assert resumed.path.read_text() == whole.path.read_text()


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    MetricsFile(tmp_path / "metrics.csv").append(row(1))
    assert read_metrics(MetricsFile(tmp_path / "metrics.csv").path) == []


def test_other_columns_are_refused(tmp_path):
    MetricsFile(tmp_path / "metrics.csv", columns(METRICS, averaged=True)).append(row(1))
    with pytest.raises(UserError, match="other columns"):
        MetricsFile(tmp_path / "metrics.csv", first_epoch=2)


def test_a_row_without_its_epoch_is_named(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(row(1) | {"epoch": None})
    with pytest.raises(UserError, match="a row of the metrics file lacks the epoch"):
        MetricsFile(file.path, first_epoch=2)


def test_curves(tmp_path):
    rows = [row(epoch, top1=50.0 + epoch) for epoch in range(1, 6)]
    plot_curves({"": rows}, tmp_path / "one.png")
    plot_curves({"a": rows, "b": [row(1)]}, tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.size == two.size == (1800, 480)
        assert one.tobytes() != two.tobytes()


def test_curves_of_the_terms_have_a_panel(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *to, **how: drawn.append(figure) or save(figure, *to, **how))
    rows = [row(epoch, train_vfl=180.0 / epoch, train_bbox=1.0) for epoch in (1, 2)]
    plot_curves({"": rows}, tmp_path / "curves.png")
    panel = drawn[0].axes[-1]
    assert panel.get_ylabel() == "terms of the loss"
    assert {line.get_label(): line.get_ydata().tolist() for line in panel.lines} == {
        "vfl": [180.0, 90.0],
        "bbox": [1.0, 1.0],
    }
    assert [axes.get_ylabel() for axes in drawn[0].axes[:-1]] == ["loss", "accuracy (%)", "learning rate"]
