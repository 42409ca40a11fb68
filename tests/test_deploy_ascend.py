"""Configurations of Ascend's converters: their forms follow the manuals, nothing here runs them."""

import dataclasses
import re
import subprocess

import pytest

from mindcv_reparam.deploy.ascend import ascend_files
from mindcv_reparam.deploy.manifest import Manifest, TensorSpec

MANIFEST = Manifest(
    model="visformer_tiny",
    state="full",
    input=TensorSpec("images", "float32", (None, 3, 224, 224)),
    input_kind="normalized",
    outputs=(TensorSpec("logits", "float32", (None, 1000)),),
    output_kind="logits",
    batch_sizes=(1, 4, 8),
    weights="fp32",
    files={"MINDIR": "model.mindir", "ONNX": "model.onnx"},
    labels=(),
    preprocessing={"image_resize": (224, 224), "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
)


def variant(shape, **changes):
    return dataclasses.replace(MANIFEST, input=dataclasses.replace(MANIFEST.input, shape=shape), **changes)


def test_aipp_normalises_as_preprocessing_does():
    text = ascend_files(MANIFEST)["aipp.cfg"]
    values = {key: float(value) for key, value in re.findall(r"(min_chn_\d|var_reci_chn_\d): ([\d.]+)", text)}
    for channel, (mean, std) in enumerate(zip(MANIFEST.preprocessing["mean"], MANIFEST.preprocessing["std"])):
        for pixel in (0, 128, 255):
            aipp = (pixel - values[f"min_chn_{channel}"]) * values[f"var_reci_chn_{channel}"]
            assert aipp == pytest.approx((pixel - mean) / std, abs=1e-6)
    assert "src_image_size_w: 224" in text
    assert text.startswith("aipp_op {")


def test_gears_of_the_batch():
    files = ascend_files(MANIFEST)
    assert "input_shape=images:[-1,3,224,224]\ndynamic_dims=[1],[4],[8]\n" in files["lite.cfg"]
    assert '--input_shape="images:-1,3,224,224" --dynamic_batch_size="1,4,8"' in files["convert.sh"]
    assert "dynamic_dims=[1],[4],[8],[16]" in ascend_files(dataclasses.replace(MANIFEST, batch_sizes=None))["lite.cfg"]


def test_a_fixed_batch_has_no_gears():
    files = ascend_files(variant((2, 3, 224, 224), batch_sizes=(2,)))
    assert "dynamic_dims" not in files["lite.cfg"]
    assert '--inputShape="images:2,3,224,224"' in files["convert.sh"]
    assert "dynamic_batch_size" not in files["convert.sh"]


def test_gears_of_the_image_size():
    files = ascend_files(variant((1, 3, None, None), batch_sizes=(1,)))
    assert "input_shape=images:[1,3,-1,-1]\ndynamic_dims=[224,224],[336,336]\n" in files["lite.cfg"]
    assert '--dynamic_image_size="224,224;336,336"' in files["convert.sh"]
    assert "src_image_size" not in files["aipp.cfg"]


def test_a_model_on_pixels_needs_no_aipp():
    files = ascend_files(variant((None, 224, 224, 3), input_kind="rgb"))
    assert set(files) == {"lite.cfg", "convert.sh"}
    assert "input_format=ND" in files["lite.cfg"]
    assert '--dynamic_dims="1;4;8"' in files["convert.sh"]
    assert "aipp" not in files["lite.cfg"] + files["convert.sh"]


@pytest.mark.parametrize(
    ("tool", "processor", "expected"),
    [
        ("lite", "910b", "--fmk=MINDIR --modelFile=../model.mindir .*--optimize=ascend_oriented:910b .*lite.cfg"),
        ("lite", "310p", "--outputFile=../model_310p --saveType=MINDIR --optimize=ascend_oriented:310p"),
        ("atc", "910b", "--framework=5 --model=../model.onnx --output=../model_910b --soc_version=Ascend910B4"),
        ("atc", "310p", "--soc_version=Ascend310P3 .*--insert_op_conf=aipp.cfg"),
    ],
)
def test_the_script_calls_the_converters(tmp_path, tool, processor, expected):
    (tmp_path / "convert.sh").write_text(ascend_files(MANIFEST)["convert.sh"])
    for name in ("converter_lite", "atc"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    command = ["sh", "convert.sh", tool, processor]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout)


def test_the_script_says_what_is_missing(tmp_path):
    (tmp_path / "convert.sh").write_text(
        ascend_files(dataclasses.replace(MANIFEST, files={"ONNX": "model.onnx"}))["convert.sh"]
    )
    for arguments, message in (
        (["lite", "910b"], "no MindIR file"),
        (["lite", "920"], "unknown processor"),
        ([], "usage"),
    ):
        done = subprocess.run(["sh", "convert.sh", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
