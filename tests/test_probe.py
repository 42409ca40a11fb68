"""The linear probe: logistic regression on features that are computed once, as a checkpoint like any other."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from here import parse, restored, run_here
from networks import randomise
from PIL import Image
from test_new_family import outside

import validate
from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.errors import UserError
from mindcv_reparam.probe.regression import STRENGTHS, choose_l2, fit

HPARAMS = {"num_classes": 4, "in_channels": 3, "img_size": [16, 16]}


# -- Regression -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def points():
    """Three overlapping clouds, whose channels have different scales, and one dead channel."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (30, 20, 10))
    values = rng.normal(size=(60, 5)) + rng.normal(size=(3, 5))[labels]
    values = values * [1.0, 10.0, 0.1, 1.0, 0.0] + [0, 5.0, 0, -1.0, 2.0]
    return values.astype(np.float32), labels.astype(np.int32)


def objective(weight, bias, values, labels, l2, share):
    """As the documentation says it: features of deviation 1, mean cross-entropy, half the squared norm."""
    deviation = np.where(values.std(0) > 0, values.std(0), 1.0)
    logits = values.astype(np.float64) @ weight.T + bias
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return (
        -(share * logs[np.arange(len(labels)), labels]).sum() / share.sum() + l2 / 2 * ((weight * deviation) ** 2).sum()
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fit_is_the_minimum(points, weighted):
    values, labels = points
    weights = np.array([1.0, 2.0, 3.0])[labels] if weighted else None
    share = np.ones(60) if weights is None else weights
    found = fit(values, labels, 3, 0.01, weights)
    least = objective(found.weight, found.bias, values, labels, 0.01, share)
    rng = np.random.default_rng(1)
    for size in (1e-2, 1e-3):
        for _ in range(20):
            step = rng.normal(size=found.weight.shape) * size / np.where(values.std(0) > 0, values.std(0), 1.0)
            moved = objective(found.weight + step, found.bias - step @ values.mean(0), values, labels, 0.01, share)
            assert moved > least - 1e-7
    assert least < objective(0 * found.weight, 0 * found.bias, values, labels, 0.01, share) - 0.1
    # The classes' probabilities have the frequencies of the classes where the bias is not penalised.
    logits = found.logits(values).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(share @ probabilities, [share[labels == i].sum() for i in range(3)], rtol=1e-3)


def test_the_penalty_means_the_same_whatever_the_scale(points):
    values, labels = points
    one, other = fit(values, labels, 3, 0.1), fit(7 * values + 3, labels, 3, 0.1)
    np.testing.assert_allclose(one.logits(values), other.logits(7 * values + 3), atol=2e-3)
    norms = [float((fit(values, labels, 3, l2).weight ** 2).sum()) for l2 in (1.0, 0.1, 0.001)]
    assert norms == sorted(norms)


def test_the_penalty_is_chosen_by_images_that_were_held_out():
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(2), 40)
    held_out = np.arange(80) % 10 < 2
    noise = rng.normal(size=(80, 60))
    told = np.concatenate([(2 * labels - 1)[:, None] * 3.0, noise[:, :3]], 1)
    assert choose_l2(noise, labels, 2, held_out) == STRENGTHS[0] == 1.0
    assert choose_l2(told, labels, 2, held_out) <= 1e-3
    assert choose_l2(noise, labels, 2, np.zeros(80, bool)) == 0.01


# -- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    with outside(Path(__file__).parent / "data/plain.py"):
        yield


@pytest.fixture(scope="module")
def weights(plain, tmp_path_factory):
    """The checkpoint of a tiny network for other classes, two of which the digits have."""
    path = tmp_path_factory.mktemp("weights") / "plain.ckpt"
    info = CheckpointInfo("plain_a", HPARAMS, classes=["cat", "7", "dog", "2"], preprocessing={"crop_pct": 1.0})
    save_checkpoint(path, randomise(create_model("plain_a", **HPARAMS)), info)
    return path


def probe(capfd, *words):
    """Standard output and error of the command."""
    with restored():
        assert main(["probe", *map(str, words)]) == 0
    return capfd.readouterr()


def test_its_accuracy_is_that_of_the_checkpoint_it_writes(weights, tmp_path, capfd):
    folder, output = tmp_path / "probe", tmp_path / "result.json"
    words = ("--ckpt_path", weights, "--dataset", "digits", "--ckpt_save_dir", folder, "--batch_size", 256)
    out, told = probe(capfd, *words)
    said = re.search(r"l2 ([\d.e-]+)\): top-1 [\d.]+ % \((\d+)/360\), top-5 [\d.]+ % \((\d+)/360\), loss ([\d.]+)", out)
    assert int(said[2]) > 100  # a tenth is chance; eight random features
    assert "training images: top-1" in out
    assert "data        digits: 1437 images, 10 classes" in told
    assert "features of 1437 images in" in told
    assert told.count("compiling the network for the features, once") == 1

    path = folder / "plain_a_probe.ckpt"
    with restored():
        run_here(validate, "-c", folder / "plain_a.yaml", "--ckpt_path", path, "--output", output, "--batch_size", 100)
    measured = json.loads(output.read_text())
    assert [measured["correct1"], measured["correct5"]] == [int(said[2]), int(said[3])]
    assert measured["loss"] == pytest.approx(float(said[4]), abs=1e-4)
    arrays, info = read_checkpoint(path)
    assert (info.state, info.classes, info.hparams["num_classes"]) == ("train", [*"0123456789"], 10)
    assert info.metrics["top1"] == pytest.approx(100 * int(said[2]) / 360)
    before, _ = read_checkpoint(weights)
    assert {name for name in arrays if np.shape(arrays[name]) != np.shape(before[name])} == {
        "linear.weight",
        "linear.bias",
    }
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays if not name.startswith("linear."))

    capfd.readouterr()
    again, told = probe(capfd, *words, "--probe_l2", said[1], "--batch_size", 200)
    assert again == out
    assert told.count("the features of") == 2
    assert "compiling" not in told


def test_features_are_of_these_weights_images_and_preprocessing(weights, tmp_path, capfd):
    data = tmp_path / "data"
    source = Digits(train=True)
    for index in range(24):
        (data / str(index % 2)).mkdir(parents=True, exist_ok=True)
        digit = np.flatnonzero(source.labels == index % 2)[index // 2]
        Image.fromarray(source.pixels(int(digit))).save(data / str(index % 2) / f"{index}.png")
    words = ["--data_dir", data, "--val_split", "0.25", "--ckpt_save_dir", tmp_path / "probe", "--batch_size", 8]
    words += ["--num_parallel_workers", 1, "--probe_l2", 0.01, "--mode", 1]
    _, told = probe(capfd, "--ckpt_path", weights, *words)
    assert "features of 18 images in" in told
    assert (tmp_path / "probe/split.csv").read_text().count(",val") == 6
    other = tmp_path / "other.ckpt"
    save_checkpoint(other, randomise(create_model("plain_a", **HPARAMS), seed=1), CheckpointInfo("plain_a", HPARAMS))
    _, told = probe(capfd, "--ckpt_path", other, *words)
    assert told.count("has the features of other weights: they are computed anew") == 2
    _, told = probe(capfd, "--ckpt_path", other, *words, "--crop_pct", 0.8)
    assert told.count("has the features of other preprocessing: ") == 2
    words += ["--crop_pct", 0.8]
    _, told = probe(capfd, "--ckpt_path", other, *words)
    assert told.count("the features of") == 2
    os.utime(data / "0" / "0.png", (1, 1))
    _, told = probe(capfd, "--ckpt_path", other, *words)
    assert told.count("has the features of other images: ") == 1
    file = tmp_path / "probe/features/train.npz"
    file.write_bytes(file.read_bytes()[:200])
    _, told = probe(capfd, "--ckpt_path", other, *words)
    assert "train.npz is damaged" in told
    balanced, _ = probe(capfd, "--ckpt_path", other, *words, "--class_weights", "balanced")
    assert "(linear probe, l2 0.01): top-1" in balanced


def test_what_cannot_be_probed_is_one_line(weights, tmp_path, monkeypatch):
    fused = tmp_path / "fused.ckpt"
    save_checkpoint(
        fused, reparameterize(create_model("plain_a", **HPARAMS)), CheckpointInfo("plain_a", HPARAMS, state="full")
    )
    words = ["--dataset", "digits", "--ckpt_save_dir", str(tmp_path / "probe")]
    with restored(), pytest.raises(UserError, match=r"fused\.ckpt is fused \(reparam full\)"):
        main(["probe", "--ckpt_path", str(fused), *words])
    with pytest.raises(UserError, match="no checkpoint to probe: give --ckpt_path"):
        main(["probe", *words])
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="probe runs on one device"):
        main(["probe", "--ckpt_path", str(weights), *words])
    monkeypatch.undo()
    (tmp_path / "probe").mkdir(exist_ok=True)
    (tmp_path / "probe/metrics.csv").touch()
    with pytest.raises(UserError, match="holds a training: name another folder"):
        main(["probe", "--ckpt_path", str(weights), *words])
    assert not list((tmp_path / "probe").glob("*.ckpt"))
    with pytest.raises(UserError, match="--probe_l2 must be above 0"):
        parse(["--ckpt_path", "a.ckpt", "--probe_l2", "0"], "probe")
