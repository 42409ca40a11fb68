"""The three scripts as users run them: real processes, real files, mpirun with two ranks."""

import csv
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from here import restored, run_here
from mindcv_recipes import recipe
from mindspore import ops
from networks import SMALL
from PIL import Image
from processes import DIGITS, MODEL, finish, mpirun_command, processes_with, start, wait_for_end

import export
import train
import validate
from mindcv_reparam import create_model, registry, zoo
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.errors import UserError
from mindcv_reparam.labels import IMAGENET, published

pytestmark = pytest.mark.usefixtures("known_tiny")
ROOT = Path(__file__).parents[1]


def run(*arguments, ranks=1, status=0):
    """(stdout, stderr) of a script; its exit status must be ``status``."""
    command = mpirun_command(ranks, *arguments) if ranks > 1 else [sys.executable, *map(str, arguments)]
    left, out, err = finish(start(command), seconds=300)
    assert left == status, f"{command} left with {left}:\n{out}\n{err}"
    return out, err


def rank_of(pid):
    """The rank that mpirun gave a process, as text; empty for mpirun itself."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    prefix = b"OMPI_COMM_WORLD_RANK="
    return next((v.removeprefix(prefix).decode() for v in variables if v.startswith(prefix)), "")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short training on the digits under mpirun, and its log."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    options = ("--epoch_size", 2, "--decay_epochs", 1, "--ckpt_save_dir", folder, "--log_interval", 11)
    options += ("--ema", True, "--ema_decay", 0.5, "--ema_warmup", 0, "--ckpt_select", "online")
    _, log = run(ROOT / "train.py", *DIGITS, "--lr", 0.008, *options, ranks=2)
    return folder, log


@pytest.mark.slow
def test_a_training_leaves_what_is_needed_afterwards(trained):
    folder, log = trained
    assert {file.name for file in folder.iterdir()} == {
        *(f"{MODEL}.yaml", "metrics.csv", "curves.png", f"{MODEL}_best.ckpt", f"{MODEL}_final.ckpt"),
        *(f"{MODEL}_best_ema.ckpt", f"{MODEL}_final_ema.ckpt"),
        *(f"{MODEL}-0001.ckpt", f"{MODEL}-0002.ckpt", f"{MODEL}_resume.npz"),
        "run.log",
    }
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["22", "44"]
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[1]["top1"]) > 90
    assert Image.open(folder / "curves.png").size == (1800, 480)
    # Both ranks run the same program; what is printed, is printed once.
    assert len(re.findall(r"epoch 2/2 step 22/22 loss", log)) == 1
    assert "[" not in log.split("first step")[1], "no progress bar in a log"

    arrays, info = read_checkpoint(folder / f"{MODEL}_best.ckpt")
    assert len(arrays) == 13
    assert (info.model, info.state, info.classes) == (MODEL, "train", [str(d) for d in range(10)])
    assert re.fullmatch(r"digits: \d,?\d+ images, 10 classes of \d+ \(\d\) to \d+ \(\d\) images", info.data)
    assert info.preprocessing["image_resize"] == 32
    assert info.hparams["num_classes"] == 10
    assert info.weights == "online"
    averaged, info = read_checkpoint(folder / f"{MODEL}_best_ema.ckpt")
    assert info.weights == "ema"
    assert info.metrics["top1"] == pytest.approx(float(rows[info.epoch - 1]["ema_top1"]))
    assert averaged.keys() == arrays.keys()
    assert any(np.any(averaged[name] != value) for name, value in arrays.items())


@pytest.mark.slow
def test_every_validation_image_counts_once_whatever_the_ranks_and_batches(trained, capsys):
    folder, _ = trained
    checkpoint, config = folder / f"{MODEL}_best.ckpt", folder / f"{MODEL}.yaml"
    results, examined = [], []
    for ranks, batch in ((1, 32), (1, 49), (2, 50)):
        output = folder.parent / f"{ranks}_{batch}.json"
        report = folder.parent / f"{ranks}_{batch}"
        arguments = ("-c", config, "--ckpt_path", checkpoint, "--batch_size", batch, "--output", output)
        if ranks == 1:  # the next tests run the script by itself
            with restored():
                run_here(validate, *arguments, "--report", report)
            out = capsys.readouterr().out
        else:
            out, _ = run(ROOT / "validate.py", *arguments, "--report", report, ranks=ranks)
        assert out.count("top-1") == 1
        results.append(json.loads(output.read_text()))
        examined.append(json.loads((report / "images.json").read_text()))
    assert [result["samples"] for result in results] == [360] * 3
    assert len({(result["correct1"], result["correct5"]) for result in results}) == 1
    assert np.ptp([result["loss"] for result in results]) < 1e-6
    for one in examined[1:]:
        assert [image["file"] for image in one["images"]] == [image["file"] for image in examined[0]["images"]]
        assert [image["right"] for image in one["images"]] == [image["right"] for image in examined[0]["images"]]
        assert one["classes"] == examined[0]["classes"]
        assert one["calibration"] == pytest.approx(examined[0]["calibration"], rel=1e-3)
    best = max(float(row["top1"]) for row in csv.DictReader((folder / "metrics.csv").open()))
    assert results[0]["top1"] == pytest.approx(best)


@pytest.mark.slow
def test_a_checkpoint_alone_is_enough_for_a_bundle(trained, tmp_path):
    folder, _ = trained
    checkpoint, bundle = folder / f"{MODEL}_best.ckpt", tmp_path / "bundle"
    options = ("--file_format", "MINDIR", "ONNX", "--batch_size", "dynamic", "--input", "rgb", "--head", "topk")
    data = ("--dataset", "digits", "--verify_data", "digits", "--num_samples", 100)
    out, _ = run(ROOT / "export.py", "--ckpt_path", checkpoint, *options, *data, "--output", bundle)
    for file in ("model.mindir", "model.onnx"):
        (line,) = (line for line in out.splitlines() if line.startswith(f"{bundle / file}: {MODEL} (full)"))
        assert float(re.search(r"network by ([\d.e+-]+)", line).group(1)) <= 2e-5
        (correct,) = re.findall(r"top-1 [\d.]+ % \((\d+)/100\)", line)
        assert int(correct) > 90
        assert "0 predictions differ" in line
    out, _ = run("-m", "mindcv_reparam", "verify", bundle)
    assert out.endswith(f"{bundle} is whole\n")
    (bundle / "labels.txt").write_text("zero\n")
    _, err = run("-m", "mindcv_reparam", "verify", bundle, status=2)
    assert err.count("\n") == 1 + err.count("set ONEDNN")
    assert "labels.txt was changed" in err


@pytest.mark.slow
def test_a_fused_checkpoint_gives_the_same_accuracy_and_is_not_fused_again(trained, tmp_path):
    folder, _ = trained
    arguments = ("-m", "mindcv_reparam", "reparameterize", "-c", folder / f"{MODEL}.yaml", "--ckpt_path")
    fused = tmp_path / "fused.ckpt"
    run(*arguments, folder / f"{MODEL}_best.ckpt", "--output", fused)
    arrays, info = read_checkpoint(fused)
    assert info.state == "full"
    assert not any("moving" in name for name in arrays)
    with restored(), pytest.raises(UserError, match="is fused already"):
        main([*map(str, arguments[2:]), str(fused), "--output", str(tmp_path / "twice.ckpt")])
    assert not (tmp_path / "twice.ckpt").exists()

    run(ROOT / "validate.py", "--dataset", "digits", "--ckpt_path", fused, "--output", tmp_path / "fused.json")
    rows = csv.DictReader((folder / "metrics.csv").open())
    best = max(rows, key=lambda row: float(row["top1"]))
    result = json.loads((tmp_path / "fused.json").read_text())
    assert result["top1"] == pytest.approx(float(best["top1"]))
    assert result["loss"] == pytest.approx(float(best["val_loss"]), rel=1e-4)


@pytest.mark.slow
def test_mindcvs_recipe_trains_on_an_image_folder_on_cpu(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{index}.jpg")
    (tmp_path / "recipe.yaml").write_text(recipe("visformer_tiny"))
    # As it stands but for data, devices and epochs, a batch that a small folder fills, and a network with few blocks.
    options = ("--data_dir", tmp_path / "data", "--distribute", "False", "--epoch_size", 1, "--batch_size", 4)
    zoo.import_family("visformer")
    network, hyper_parameters = registry.VARIANTS["visformer_tiny"]
    few = dict(init_channels=8, embed_dim=32, depths=(0, 1, 1, 1), num_heads=(2, 2))
    monkeypatch.setitem(registry.VARIANTS, "visformer_tiny", (network, {**hyper_parameters, **few}))
    with restored():
        run_here(train, "--config", tmp_path / "recipe.yaml", *options, "--ckpt_save_dir", tmp_path / "ckpt")
    log = capsys.readouterr().err
    assert "computing in float32 (O0)" in log
    assert "epoch 1/1 done" in log
    _, info = read_checkpoint(tmp_path / "ckpt/visformer_tiny_final.ckpt")
    assert info.classes == ["cat", "dog"]
    assert info.hparams["num_classes"] == 1000


@pytest.mark.slow
def test_a_killed_rank_takes_the_job_down_and_leaves_whole_checkpoints(tmp_path):
    options = ("--epoch_size", 50, "--num_samples", 128, "--ckpt_save_dir", tmp_path)
    job = start(mpirun_command(2, ROOT / "train.py", *DIGITS, *options))
    deadline = time.monotonic() + 200
    while not (tmp_path / f"{MODEL}-0002.ckpt").exists():
        assert job.poll() is None, finish(job)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(next(pid for pid in processes_with(str(tmp_path)) if rank_of(pid) == "1"), signal.SIGKILL)
    status, _, _ = finish(job, seconds=30)
    assert status != 0
    assert not wait_for_end(str(tmp_path), seconds=1)
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints:
        arrays, _ = read_checkpoint(checkpoint)
        assert len(arrays) == 13


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--model", "visformer_tinny"], "no model is called 'visformer_tinny'; the nearest is"),
        ("train.py", ["--model", "visformer_tiny", "--auto_augment", "rand-m9-mstdd0.5"], "mstd"),
        ("train.py", ["--config", "no.yaml"], "cannot read the configuration no.yaml"),
        ("validate.py", ["--ckpt_path"], "expected one argument"),
        ("export.py", ["--modell", "x"], "unknown flag --modell; the nearest is --model"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(script, arguments, message):
    out, err = run(ROOT / script, *arguments, status=2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.slow
def test_a_mistake_of_all_ranks_is_shown_once(tmp_path):
    arguments = ("--ckpt_path", tmp_path / "lost.ckpt", "--dataset", "digits")
    _, err = run(ROOT / "validate.py", *arguments, ranks=2, status=2)
    assert err.count("error: no checkpoint at") == 1


@pytest.fixture
def named(tmp_path):
    """A network that takes every image for a tabby cat, and images of a tench and of a tabby cat."""
    name, small = SMALL["poolformer"]
    hparams = {**small, "num_classes": 1000, "img_size": 32}
    net, names = create_model(name, **hparams), published(1000)
    net.head.bias.set_data(ops.one_hot(ms.Tensor(names.shown.index("tabby")), 1000, 9.0, 0.0))
    for folder in ("n01440764", "n02123045"):
        (tmp_path / "val" / folder).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "val" / folder / "0.png")

    def save(**said):
        save_checkpoint(tmp_path / "net.ckpt", net, CheckpointInfo(name, hparams, **said))
        return "--ckpt_path", tmp_path / "net.ckpt", "--data_dir", tmp_path, "--mode", 1

    with restored():
        yield save


def test_a_subset_of_imagenet_is_measured_by_the_names_of_its_folders(named, tmp_path):
    names, output = published(1000), tmp_path / "report.json"
    for said, more in (({"classes": list(names.folders)}, ()), ({}, ("--labels", IMAGENET))):
        run_here(validate, *named(**said), "--output", output, *more)
        report = json.loads(output.read_text())
        assert (report["samples"], report["correct1"]) == (2, 1)
    with pytest.raises(UserError, match="which of its 1000 outputs are the 2 of the data"):
        run_here(validate, *named())
    with pytest.raises(UserError, match=r"class folder 'n01440764'.* is not among the 1000"):
        run_here(validate, *named(classes=list("abcdefghij") + list(names.folders[1:991])))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_for_other_images_than_the_datas_is_one_line(tmp_path, channels):
    name, small = SMALL["poolformer"]
    hparams = {**small, "num_classes": 2, "img_size": 32, "in_channels": channels}
    path = tmp_path / "net.ckpt"
    save_checkpoint(path, create_model(name, **hparams), CheckpointInfo(name, hparams))
    line = f"images have 3 channels and this {name} takes {channels}"
    settings = ("--data_dir", tmp_path, "--ckpt_path", path)
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    with restored():
        for script, more in ((validate, ()), (train, ("--model", name)), (export, ())):
            output = ("--ckpt_save_dir" if script is train else "--output", tmp_path / "out")
            with pytest.raises(UserError, match=line):
                run_here(script, *(settings if script is not export else settings[2:]), *more, *output)
        with pytest.raises(UserError, match=line):
            run_here(train, "--model", name, "--in_channels", channels, "--ckpt_save_dir", tmp_path / "out")
        with pytest.raises(UserError, match=f"takes images of {channels} channels"):
            main(["infer", str(path), str(tmp_path / "0.png")])
    assert {entry.name for entry in tmp_path.iterdir()} == {"net.ckpt", "0.png"}


def test_a_class_folder_that_is_not_named_in_utf8_is_refused_before_anything_is_trained(tmp_path):
    for folder in (b"cat", b"\xe4pfel"):
        path = os.path.join(os.fsencode(tmp_path), b"train", folder)
        os.makedirs(path)
        Image.new("RGB", (40, 40)).save(os.path.join(os.fsdecode(path), "0.png"))
    settings = ("--model", "visformer_tiny", "--data_dir", tmp_path, "--batch_size", 1, "--distribute", "False")
    with restored(), pytest.raises(UserError, match=r"b'\\xe4pfel' in .* is not UTF-8: rename it"):
        run_here(train, *settings, "--ckpt_save_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
