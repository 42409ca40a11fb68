"""``compare A B``: which predictions changed between two models, and whether that is more than chance."""

import csv
import dataclasses

import numpy as np
import pytest
from networks import SMALL, randomise
from PIL import Image
from test_infer import COLOURS, write_bundle

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS

TASK = TASKS["classification"]
DARK_RED = {"mean": (400.0, 110.0, 100.0)}  # what is red is then told to be blue


@pytest.fixture
def images(tmp_path):
    """Five red, three green and two blue images, and a red one that is said to be blue."""
    for colour, count in {"red": 5, "green": 3, "blue": 2}.items():
        (tmp_path / "data" / colour).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (30, 20), COLOURS[colour]).save(tmp_path / f"data/{colour}/{number}.png")
    Image.new("RGB", (20, 30), COLOURS["red"]).save(tmp_path / "data/blue/=wrong.png")
    return tmp_path / "data"


def compare(*arguments):
    return main(["compare", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["logits", "softmax", "topk"])
def test_changed_predictions_are_counted_judged_and_listed(tmp_path, images, capsys, kind):
    first = write_bundle(tmp_path / "first", output_kind="logits")
    second = write_bundle(tmp_path / "second", output_kind=kind, batch_sizes=(3,), **DARK_RED)
    assert compare(first, second / "model.onnx", "--data_dir", images, "--output", tmp_path / "changed.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        f"{first}: top-1 90.909 % (10/11)",
        f"{second / 'model.onnx'}: top-1 54.545 % (6/11)",
        "the same prediction for 5 of 11 images (45.455 %)",
        "right: 5 by the first alone, 1 by the second alone; 0 wrong in different ways",
        "McNemar's exact p = 0.2188: chance alone may well do that",  # 2 (C(6, 5) + C(6, 6)) / 2⁶
    ]
    red, dark = ([(255 - mean) / 50, -110 / 60, -100 / 70] for mean in (120, 400))
    shares = [np.exp(logits) / np.exp(logits).sum() for logits in (red, dark)]
    largest = abs(shares[0] - shares[1]).max() if kind != "topk" else abs(shares[0].max() - shares[1].max())
    assert f"differ by at most {largest:.2e}" in lines[5]
    if kind == "logits":
        assert lines[5].endswith(f"logits by {280 / 50 / 2.7:.1e} of the largest")
    rows = list(csv.DictReader((tmp_path / "changed.csv").open()))
    assert [row["file"] for row in rows] == [
        *(str(images / name) for name in ("blue/=wrong.png", *(f"red/{number}.png" for number in range(5))))
    ]
    assert [row["true"] for row in rows] == ["blue"] + 5 * ["red"]
    assert [row["right"] for row in rows] == ["second"] + 5 * ["first"]
    assert {(row["first_label"], row["second_label"]) for row in rows} == {("red", "blue")}
    assert float(rows[0]["first_probability"]) == pytest.approx(shares[0].max(), rel=1e-5)
    assert float(rows[0]["second_probability"]) == pytest.approx(shares[1].max(), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (10, "p = 0.001953: chance alone would hardly do that"),  # 2 / 2¹⁰
        (0, "p = 1: neither is right where the other is not"),
    ],
)
def test_a_difference_beyond_chance_and_one_of_nothing(wrong, said):
    source = Digits(train=False)
    changes = TASK.changes(("logits", "logits"), source, str)
    first = np.eye(10)[source.labels[:40]]
    second = np.concatenate([np.roll(first[:wrong], 1, axis=1), first[wrong:]])
    changes.add([first], [second], np.arange(40), np.arange(40) < 40)
    assert said in "\n".join(changes.lines(("a", "b")))
    assert len(list(changes.table())) == 1 + wrong


def test_padding_counts_nothing_and_what_is_not_finite_is_a_mistake():
    source = Digits(train=False)
    first = np.eye(10)[source.labels[:4]]
    second = first.copy()
    second[1] = np.nan
    changes = TASK.changes(("logits", "logits"), source, str)
    changes.add([first], [second], np.arange(4), np.array([True, True, True, False]))
    lines = list(changes.lines(("a", "b")))
    assert lines[:4] == [
        "a: top-1 100.000 % (3/3)",
        "b: top-1 66.667 % (2/3)",
        "the same prediction for 2 of 3 images (66.667 %)",
        "right: 1 by the first alone, 0 by the second alone; 0 wrong in different ways",
    ]
    (_, row) = changes.table()
    assert row[4:] == ["", "nan", "first"]


def test_a_checkpoint_runs_as_it_is_beside_its_fused_self(tmp_path, capsys, pynative, monkeypatch):
    prepared = []
    monkeypatch.setattr("mindcv_reparam.runtime.prepare", prepared.append)  # would set graph mode
    name, small = SMALL["poolformer"]
    hparams = {**small, "num_classes": 10, "img_size": (32, 32), "in_channels": 3}
    net = randomise(create_model(name, **hparams))
    info = CheckpointInfo(name, hparams, list("0123456789"), {"image_resize": 32})
    save_checkpoint(tmp_path / "a.ckpt", net, info)
    save_checkpoint(tmp_path / "b.ckpt", reparameterize(net), dataclasses.replace(info, state="full"))
    files = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    assert compare(*files, "--dataset", "digits", "--num_samples", 20) == 0
    assert prepared == [None], "once, and before MindSpore is imported"
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "the same prediction for 20 of 20 images (100.000 %)"
    assert 0 < float(lines[5].split("logits by ")[1].split()[0]) < 2e-5, "two programs, which compute the same"


@pytest.mark.parametrize(
    ("second", "more", "message"),
    [
        (
            {"labels": ("red", "blue", "green")},
            (),
            "class 1 is 'green' in .*first, 'blue' in .*: they cannot be compared",
        ),
        ({}, ("--output", "a.txt"), "--output must end with .csv"),
        ({}, ("--data_dir", "none"), "data_dir none is no folder"),
        (None, (), "no checkpoint at .*second"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, images, second, more, message):
    first = write_bundle(tmp_path / "first")
    if second is not None:
        write_bundle(tmp_path / "second", **second)
    with pytest.raises(UserError, match=message):
        compare(first, tmp_path / "second", "--data_dir", images, *more)


def test_an_unreadable_image_is_named(tmp_path, images):
    (images / "red/1.png").write_bytes(b"none")
    bundle = write_bundle(tmp_path / "first")
    with pytest.raises(UserError, match=r"red/1.png.*mend or remove the file"):
        compare(bundle, bundle, "--data_dir", images)


def test_detectors_are_not_compared_and_say_so():
    with pytest.raises(UserError, match="compare is for classifiers"):
        TASKS["detection"].changes(("logits", "logits"), None, str)
