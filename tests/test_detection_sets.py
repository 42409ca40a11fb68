"""Sets of a user's own through train.py: other classes than a detector was trained on, and few, many or no objects."""

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from here import restored, run_here
from networks import SMALL_DETECTOR, arrays, randomise
from PIL import Image

import train
from mindcv_reparam import zoo
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.training import assembly

MODEL, SIDE = "rtdetr_riformer_xs", 64
BOXES = [[4.0, 4.0, 20.0, 30.0], [30.0, 10.0, 24.0, 24.0]]
PER_CLASS = ("decoder.enc_score_head.", "decoder.dec_score_head.", "decoder.denoising_class_embed.")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The model's small variant, and the process as it was before train.py ran in it."""
    monkeypatch.setattr(assembly, "create_model", functools.partial(zoo.create_model, **SMALL_DETECTOR))
    with restored():
        yield


def annotate(folder: Path, names: list[str], objects: list[int]) -> Path:
    """A folder in COCO's layout with an image per entry of ``objects``, which says how many it shows."""
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for number, count in enumerate(objects, 1):
        images.append(dict(id=number, file_name=f"{number}.png", width=SIDE, height=SIDE))
        for place in range(count):
            category = 10 * (1 + place % len(names))
            annotations.append(dict(image_id=number, category_id=category, bbox=BOXES[place % 2]))
    for split in ("train2017", "val2017"):
        (folder / split).mkdir(parents=True)
        for image in images:
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / image["file_name"])
    categories = [dict(id=10 * place, name=name) for place, name in enumerate(names, 1)]
    content = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    (folder / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (folder / "annotations" / f"instances_{split}.json").write_text(content)
    return folder


def run_train(data: Path, run: Path, **settings: object) -> dict[str, str]:
    """The last row of metrics.csv of an epoch on a folder of COCO's form."""
    values = dict(
        **dict(model=MODEL, mode=1, device_target="CPU", dataset="coco", data_dir=data, ckpt_save_dir=run),
        **dict(image_resize=SIDE, batch_size=2, epoch_size=1, warmup_epochs=0, num_parallel_workers=1, log_interval=1),
        **dict(drop_path_rate=0, opt="sgd", momentum=0, weight_decay=0, denoising_queries=20),
        **settings,
    )
    run_here(train, *(word for name, value in values.items() for word in (f"--{name}", value)))
    *_, row = csv.DictReader((run / "metrics.csv").open())
    return row


def test_from_ten_classes_to_three(tmp_path, capfd):
    """Of which two are known, under other numbers; a rate of next to nothing leaves what training began with."""
    ten = randomise(zoo.create_model(MODEL, num_classes=10, img_size=SIDE, **SMALL_DETECTOR))
    info = CheckpointInfo(MODEL, {}, classes=[f"digit {i}" for i in range(10)])
    save_checkpoint(tmp_path / "ten.ckpt", ten, info)
    data = annotate(tmp_path / "data", ["digit 7", "letter", "digit 2"], [3, 2])
    run_train(data, tmp_path / "run", ckpt_path=tmp_path / "ten.ckpt", lr=1e-20, min_lr=0)

    told, given = capfd.readouterr().err, arrays(ten)
    found, info = read_checkpoint(tmp_path / "run" / f"{MODEL}_final.ckpt")
    assert info.classes == ["digit 7", "letter", "digit 2"]
    assert "ten.ckpt knows 2 of 3 classes, digit 7, digit 2" in told
    renewed = {name for name in found if name.startswith(PER_CLASS)}
    assert len(renewed) == 5
    for name, value in found.items():
        if name in renewed:
            assert f"new {name}, {given[name].shape} in the file, {value.shape} here" in told
            np.testing.assert_array_equal(value[[0, 2]], given[name][[7, 2]], err_msg=name)
            assert not any(np.array_equal(value[1], row) for row in given[name]), name
        elif "moving_" not in name:
            np.testing.assert_array_equal(value, given[name], err_msg=name)


@pytest.mark.parametrize(
    "objects",
    [
        # test_detection_resume.py trains on many.
        pytest.param([100, 0], id="one full, one empty", marks=pytest.mark.exhaustive),
        pytest.param([0], id="one image, no object"),
    ],
)
def test_many_or_no_objects(tmp_path, capfd, objects):
    """More than there are queries in an image, beside one without; a set of one image, in which there is nothing."""
    data = annotate(tmp_path / "data", ["cat", "dog"], objects)
    row = run_train(data, tmp_path / "run", lr=0.01, drop_remainder=False, val_while_train=True)
    told = capfd.readouterr().err
    assert f"1 of {len(objects)} images have no objects; they stay as background" in told
    losses = {name: float(value) for name, value in row.items() if name.startswith("train_loss")}
    assert len(losses) == 1 + 9
    assert all(np.isfinite(list(losses.values())))
    assert {name for name, value in losses.items() if value > 0 and "vfl" not in name} == {
        name for name in losses if "vfl" not in name and (any(objects) or name == "train_loss")
    }
    assert np.isnan(float(row["AP"])) == (not any(objects))
    # Where there is nothing to find, no weights are the best.
    assert (tmp_path / "run" / f"{MODEL}_best.ckpt").is_file() == any(objects)
    assert (tmp_path / "run" / f"{MODEL}_final.ckpt").is_file()
