"""Names in drawings are written in a font that has their characters."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from mindcv_reparam import fonts
from mindcv_reparam.fonts import font_for
from mindcv_reparam.run.contact_sheet import write_contact_sheet
from mindcv_reparam.run.prediction import Prediction
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tasks.classification.results import Found
from mindcv_reparam.tasks.detection.drawing import marked


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["cat 0.93", "dog…"], ImageFont.load_default(16).getname()[0]),
        ([], ImageFont.load_default(16).getname()[0]),
        (["Fußgänger", "пешеход"], "DejaVu Sans"),
        (["cat", "红绿灯"], "Noto Sans CJK SC"),
        (["直角", "ねこ"], "Noto Sans CJK JP"),
        (["자전거"], "Noto Sans CJK KR"),
    ],
)
def test_a_font_has_what_is_written(texts, name):
    assert font_for(texts, 16).getname()[0] == name


def test_without_the_font_a_line_says_how_to_get_it(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "is_installed", lambda module: module == "matplotlib")
    fonts._tell.cache_clear()
    for _ in range(2):
        assert font_for(["猫"], 16).getname() == ImageFont.load_default(16).getname()
    (line,) = caplog.messages
    assert line.startswith("no font here has '猫', which is drawn as a box: ")
    assert "pip install noto-cjk-sans-otc" in line


def test_names_of_other_characters_are_other_pictures(tmp_path):
    def drawn(name: str) -> np.ndarray:
        return np.asarray(marked(Image.new("RGB", (90, 60)), np.array([[5, 25, 60, 50]]), [0], [name]))

    def sheet(name: str) -> np.ndarray:
        found = Prediction(Path("a.png"), Found((0,), (0.9,)), Image.new("RGB", (20, 20)))
        write_contact_sheet(tmp_path / "sheet.png", task_named("classification").results, [found], lambda index: name)
        return np.asarray(Image.open(tmp_path / "sheet.png"))

    for picture in (drawn, sheet):
        assert (picture("猫") != picture("狗")).any()
        assert (picture("cat") == picture("cat")).all()
