import pytest
from matplotlib.figure import Figure
from PIL import Image

from mindcv_reparam.__main__ import main
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.training.metrics import MetricsFile, columns


def test_plot_draws_the_runs_it_is_given(tmp_path, capsys):
    for run, accuracy in (("one", 50.0), ("two", 60.0)):
        (tmp_path / run).mkdir()
        metrics = MetricsFile(tmp_path / run / "metrics.csv", columns(TASKS["classification"].metrics))
        metrics.append({"epoch": 1, "step": 5, "train_loss": 2.0, "top1": accuracy})
    output = tmp_path / "compared.png"
    assert main(["plot", str(tmp_path / "one"), str(tmp_path / "two/metrics.csv"), "-o", str(output)]) == 0
    assert "one (1 epochs)" in capsys.readouterr().out
    assert Image.open(output).size == (1800, 480)


def test_plot_names_runs_without_validation(tmp_path, capsys, monkeypatch, recwarn):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda one, *to, **how: figures.append(one) or save(one, *to, **how))
    for run, more in (("one", {"top1": 50.0, "val_loss": 1.0}), ("two", {})):
        (tmp_path / run).mkdir()
        metrics = MetricsFile(tmp_path / run / "metrics.csv", columns(TASKS["classification"].metrics))
        for epoch in (1, 2, 3):
            metrics.append({"epoch": epoch, "step": 5 * epoch, "train_loss": 2.0, "lr": 0.1 / epoch, **more})
    runs = [str(tmp_path / run) for run in ("one", "two")]
    assert main(["plot", *runs, "-o", str(tmp_path / "a.png")]) == 0
    assert main(["plot", runs[1], "-o", str(tmp_path / "b.png"), "--title", "二つ"]) == 0
    assert not [one for one in recwarn if "missing from font" in str(one.message)]
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(f"{runs[0]} (3 epochs), {runs[1]} (3 epochs, without validation)")
    assert second.endswith(f"{runs[1]} (3 epochs, without validation)")
    loss, accuracy, rate = figures[0].axes
    assert [line.get_label() for line in accuracy.lines] == [f"{runs[0]} top-1", f"{runs[1]} without validation"]
    assert [line.get_label() for line in loss.lines][-1] == f"{runs[1]} train"
    assert rate.get_ylabel() == "learning rate"
    assert rate.lines[0].get_ydata().tolist() == [0.1, 0.05, 0.1 / 3]
    assert figures[0].get_suptitle() == ", ".join(runs)
    assert figures[1].get_suptitle() == "二つ"
    assert [line.get_label() for line in figures[1].axes[1].lines] == ["without validation"]
    for axes in (loss, rate):
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1, 2, 3], "epochs are whole"


def test_plot_names_a_folder_without_metrics(tmp_path):
    with pytest.raises(UserError, match="no metrics at"):
        main(["plot", str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n", "is no text in UTF-8"),
        (b"# Title\ntext, more\n", "its first line names no epoch"),
        (b"epoch,step\n1,22\n2,many\n", "line 3 has other things than numbers"),
        (b"epoch,step\n1,22,3\n", "line 2 has other things than numbers"),
        (b"epoch,step\n", "wrong has no finished epoch yet"),
    ],
)
def test_what_is_no_metrics_file_is_one_line(tmp_path, content, message):
    (tmp_path / "wrong").write_bytes(content)
    with pytest.raises(UserError, match=message):
        main(["plot", str(tmp_path / "wrong"), "-o", str(tmp_path / "a.png")])
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]
