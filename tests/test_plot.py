import pytest
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
    assert Image.open(output).size == (1200, 480)


def test_plot_names_a_folder_without_metrics(tmp_path):
    with pytest.raises(UserError, match="no metrics at"):
        main(["plot", str(tmp_path)])
