"""Bundles: written whole, checked anywhere."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from networks import randomise
from onnx import numpy_helper

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.errors import UserError
from mindcv_reparam.export import bundle
from mindcv_reparam.export.bundle import Candidate, write_bundle
from mindcv_reparam.export.graph import Interface
from mindcv_reparam.labels import read_labels
from mindcv_reparam.registry import model_info
from mindcv_reparam.run.accuracy import Comparison
from mindcv_reparam.run.runners import cell_program
from mindcv_reparam.run.verify import verify_bundle
from mindcv_reparam.zoo import model_from_checkpoint

SIZE = 32
# Only what is exported is compiled.
pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def source(tmp_path_factory, pynative):
    """A checkpoint of a small network on the digits, fused."""
    path = tmp_path_factory.mktemp("checkpoint") / "fastvit.ckpt"
    hparams = {"num_classes": 10, "in_channels": 3, "img_size": SIZE, "depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
    net = randomise(create_model("fastvit_t8", **hparams))
    preprocessing = dict(model_info("fastvit_t8").preprocessing, image_resize=SIZE)
    classes, metrics = [f"digit {index}" for index in range(10)], {"top1": 97.5, "train_loss": 0.25}
    described = {"epoch": 3, "metrics": metrics, "data": "digits: 1437 images, 10 classes"}
    save_checkpoint(path, net, CheckpointInfo("fastvit_t8", hparams, classes, preprocessing, **described))
    net, info = model_from_checkpoint(path)
    return Candidate(reparameterize(net), info, "full", str(path)), net


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A bundle with a dynamic batch, in two formats, compared on the digits."""
    folder = tmp_path_factory.mktemp("bundles") / "fastvit"
    fused, train_time = source
    comparison = Comparison(Digits(train=False), 40, cell_program(train_time))
    report = write_bundle(
        folder, fused, Interface(batch_sizes=None), ("MINDIR", "ONNX"), comparison=comparison, opset=17
    )
    return folder, report


@pytest.fixture
def copy(whole, tmp_path):
    """A bundle to break."""
    subprocess.run(["cp", "-r", whole[0], tmp_path / "copy"], check=True)
    return tmp_path / "copy"


def check(folder):
    return list(verify_bundle(folder))


def test_a_bundle_is_whole_and_says_so(whole):
    folder, _ = whole
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *("bundle.json", "labels.txt", "preprocessing.json", "report.md", "SHA256SUMS", "model.mindir", "model.onnx"),
        *("README.md", "Dockerfile", "config.pbtxt"),
        *("ascend/aipp.cfg", "ascend/convert.sh", "ascend/lite.cfg"),
        *("sample/image.png", "sample/input.npy", "sample/expected.npz"),
    }
    lines = check(folder)
    assert [line.split(":")[0] for line in lines] == ["checksums", "manifest", "preprocessing", "MINDIR", "ONNX"]
    sums = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert sums.returncode == 0
    assert not list(folder.parent.glob(".*"))


def test_the_manifest_reads_back(whole):
    folder, report = whole
    manifest = read_manifest(folder)
    assert manifest == report.manifest
    assert manifest.input.shape == (None, 3, SIZE, SIZE)
    assert manifest.labels[3] == "digit 3"
    assert manifest.preprocessing["image_resize"] == (SIZE, SIZE)


def test_the_report_tells_where_it_comes_from_and_what_it_costs(whole, source):
    folder, report = whole
    text = (folder / "report.md").read_text()
    digest = subprocess.run(["sha256sum", source[0].checkpoint], capture_output=True, text=True).stdout.split()[0]
    assert digest in text
    assert "| BatchNorm | 40 | 0 |" in text
    assert "epoch 3" in text
    assert re.search(
        r"\n\| written \| \d{4}-\d\d-\d\d \d\d:\d\d UTC by mindcv_reparam \S+, MindSpore 2\.\d+\.\d+, ", text
    )
    assert f"ONNX {onnx.__version__} (opset 17), onnxruntime " in text
    assert "\n| trained on | digits: 1437 images, 10 classes |\n" in text
    assert "\n| classes | 10, in labels.txt: digit 0, digit 1, digit 2, digit 3, digit 4, … |\n" in text
    assert "\n| preprocessing | An image is decoded as RGB, not turned by its EXIF tag, transparent pixels on " in text
    assert "cropped to the 32 x 32 in its centre. Its channels, red first, are (value - mean) / std " in text
    assert "\n| top1 | 97.5 |\n| train_loss | 0.25 |\n" in text
    for measurement in report.measured.values():
        assert measurement.difference <= 2e-5
        assert (measurement.agreement.images, measurement.agreement.same) == (40, 40)
        assert measurement.agreement.checkpoint_correct == measurement.agreement.exported_correct


@pytest.mark.parametrize("file", ["model.onnx", "labels.txt", "ascend/convert.sh", "sample/input.npy", "report.md"])
def test_a_changed_byte_is_noticed(copy, file):
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(UserError, match=f"{file} was changed"):
        check(copy)


def test_a_missing_file_is_noticed(copy):
    (copy / "model.mindir").unlink()
    with pytest.raises(UserError, match=r"model\.mindir is missing"):
        check(copy)


@pytest.mark.parametrize("lines", [0, 4])
def test_a_list_cut_short_is_noticed(copy, lines):
    sums = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(sums[:lines]))
    with pytest.raises(UserError, match=r"SHA256SUMS is not whole: it does not list"):
        check(copy)


@pytest.mark.parametrize("file", ["image.png", "input.npy", "expected.npz"])
def test_a_sample_that_cannot_be_read_is_one_line(copy, file):
    (copy / "sample" / file).write_bytes((copy / "sample" / file).read_bytes()[:100])
    write_checksums(copy)
    with pytest.raises(UserError, match="the sample cannot be read"):
        check(copy)


def test_outputs_are_checked_whatever_the_checksums_say(copy):
    model = onnx.load(copy / "model.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
    onnx.save(model, copy / "model.onnx")
    write_checksums(copy)
    with pytest.raises(UserError, match=r"model\.onnx gives other outputs than expected"):
        check(copy)


def test_preprocessing_is_checked_whatever_the_checksums_say(copy):
    values = json.loads((copy / "preprocessing.json").read_text())
    (copy / "preprocessing.json").write_text(json.dumps(values | {"interpolation": "bilinear"}))
    write_checksums(copy)
    with pytest.raises(UserError, match="preprocessing gives another input"):
        check(copy)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("bundle.json", "{", "is damaged"),
        ("bundle.json", '{"version": 99}', "a bundle of version 99"),
        ("bundle.json", '{"version": 1}', "is damaged"),
        ("preprocessing.json", "[]", "is damaged"),
        ("labels.txt", "one\n", "1 labels for 10 classes"),
    ],
)
def test_a_damaged_manifest_is_one_line(copy, file, text, message):
    (copy / file).write_text(text)
    write_checksums(copy)
    with pytest.raises(UserError, match=message):
        check(copy)


def test_no_bundle(tmp_path):
    with pytest.raises(UserError, match="is no bundle"):
        check(tmp_path)


def test_without_mindspore_the_rest_is_checked(whole):
    code = (
        "import sys; sys.modules['mindspore'] = None\n"
        "from pathlib import Path; import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'mindspore' else find(name, *rest)\n"
        "from mindcv_reparam.__main__ import main; sys.exit(main(['verify', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, whole[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MINDIR: not run, mindspore is not installed here" in done.stdout
    assert "ONNX: the outputs of the sample differ by" in done.stdout


def test_a_bundle_replaces_a_bundle_and_nothing_else(source, whole, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="photos holds other things"):
        write_bundle(tmp_path / "photos", source[0], Interface(), ("ONNX",))
    assert (tmp_path / "photos/holiday.jpg").read_bytes() == b"precious"

    subprocess.run(["cp", "-r", whole[0], tmp_path / "old"], check=True)
    write_bundle(tmp_path / "old", source[0], Interface(), ("ONNX",))
    assert not (tmp_path / "old/model.mindir").exists()
    check(tmp_path / "old")


def test_a_file_that_differs_leaves_what_was_there(source, copy, monkeypatch):
    before = (copy / "SHA256SUMS").read_bytes()
    monkeypatch.setattr(bundle, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(UserError, match=r"not written: model\.onnx differs from the network by nan"):
        write_bundle(copy, source[0], Interface(), ("ONNX",))
    assert (copy / "SHA256SUMS").read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_the_size_that_differs_is_named(source, tmp_path, monkeypatch):
    def found(expected, program, trials, kind):
        return 3e-3 if len(trials[0]) == 4 else 1e-6

    monkeypatch.setattr(bundle, "largest_difference", found)
    with pytest.raises(UserError, match=r"differs from the network by 3\.0e-03 for an input of \(4, "):
        write_bundle(tmp_path / "gears", source[0], Interface(batch_sizes=(1, 4, 8)), ("ONNX",))
    assert not list(tmp_path.iterdir())


def test_air_off_ascend_is_one_line(source, tmp_path):
    with pytest.raises(UserError, match=r"on an Ascend host only: here give --file_format ONNX, which atc"):
        write_bundle(tmp_path / "air", source[0], Interface(), ("MINDIR", "AIR"))
    assert not list(tmp_path.iterdir())


def test_labels_come_one_a_line(source, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n", encoding="utf-8")
    assert read_labels(tmp_path / "names.txt") == ["a", "b"]
    (tmp_path / "names.txt").write_bytes("\ufeffa\r\nb\u2028b\r\n".encode())
    assert read_labels(tmp_path / "names.txt") == ["a", "b\u2028b"]
    with pytest.raises(UserError, match="2 labels for a model of 10 classes"):
        write_bundle(tmp_path / "b", source[0], Interface(), ("ONNX",), labels=["a", "b"])
    with pytest.raises(UserError, match="cannot read the labels"):
        read_labels(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="0 labels for a model of 10 classes"):
        write_bundle(tmp_path / "b", source[0], Interface(), ("ONNX",), labels=read_labels(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match=r"'a\\nb' has a line break"):
        write_bundle(tmp_path / "b", source[0], Interface(), ("ONNX",), labels=["a\nb", *"cdefghijk"])
    assert not (tmp_path / "b").exists()


def test_what_no_bundle_can_hold_is_said_before_anything_is_written(source, tmp_path):
    fused, train_time = source
    gray = dataclasses.replace(fused.info, hparams=fused.info.hparams | {"in_channels": 1})
    with pytest.raises(UserError, match="images have 3 channels and this fastvit_t8 takes 1"):
        write_bundle(tmp_path / "b", dataclasses.replace(fused, info=gray), Interface(), ("ONNX",))
    comparison = Comparison(Digits(train=False), None, cell_program(train_time))
    with pytest.raises(UserError, match="verify_data compares classes, and head features gives none"):
        write_bundle(tmp_path / "b", fused, Interface(output_kind="features"), ("ONNX",), comparison=comparison)
    assert not list(tmp_path.iterdir())
