"""Configurations of Ascend's converters: their forms follow the manuals, nothing here runs them."""

import dataclasses
import re
import subprocess

import pytest

from mindcv_reparam.bundle.manifest import Manifest, TensorSpec
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.ascend import ascend_files, check_gears

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


def convert(folder, manifest, *arguments, status=0, **environment):
    """Run a bundle's convert.sh with converters that print their arguments."""
    (folder / "convert.sh").write_text(ascend_files(manifest)["convert.sh"])
    for name in ("converter_lite", "atc"):
        (folder / name).write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
        (folder / name).chmod(0o755)
    environment["PATH"] = f"{folder}:/usr/bin:/bin"
    command = ["sh", "convert.sh", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


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
        # The manual has no suffix but :910b, so 310p, which had one, goes without.
        ("lite", "310p", "--outputFile=../model_310p --saveType=MINDIR --optimize=ascend_oriented --configFile"),
        ("lite", "Ascend910B2", "--outputFile=../model_Ascend910B2 .*--optimize=ascend_oriented:910b --configFile"),
        ("lite", "Ascend910_9392", "--optimize=ascend_oriented --configFile"),
        ("atc", "Ascend310B4", "--output=../model_Ascend310B4 --soc_version=Ascend310B4 "),
        ("atc", "Ascend910_9392", "--soc_version=Ascend910_9392 "),
        ("atc", "910b", "--framework=5 --model=../model.onnx --output=../model_910b --soc_version=Ascend910B4"),
        ("atc", "310p", "--soc_version=Ascend310P3 .*--insert_op_conf=aipp.cfg"),
    ],
)
def test_the_script_calls_the_converters(tmp_path, tool, processor, expected):
    done = convert(tmp_path, MANIFEST, tool, processor)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout)
    assert not done.stderr


def test_lite_converts_the_onnx_file_where_there_is_no_mindir_or_it_is_asked_for(tmp_path):
    onnx_only = dataclasses.replace(MANIFEST, files={"ONNX": "model.onnx"})
    for manifest, environment in ((onnx_only, {}), (MANIFEST, {"FMK": "ONNX"})):
        done = convert(tmp_path, manifest, "lite", "910b", **environment)
        assert done.returncode == 0, done.stderr
        assert "--fmk=ONNX --modelFile=../model.onnx --outputFile=../model_910b --saveType=MINDIR" in done.stdout
        assert "ascend_oriented:910b" in done.stdout


def test_a_refused_mindir_names_the_versions_and_the_way_out(tmp_path):
    done = convert(tmp_path, MANIFEST, "lite", "910b", status=1)
    assert done.returncode == 1
    assert "mind_ir_version 3, which MindSpore Lite 2.0.0 does not read; try FMK=ONNX sh convert.sh" in done.stderr
    assert convert(tmp_path, MANIFEST, "lite", "910b", status=1, FMK="ONNX").stderr == ""
    assert "mind_ir_version 3" in ascend_files(MANIFEST)["convert.sh"].split("set -eu")[0]


def test_bytes_without_aipp_are_not_among_the_inputs_of_atc(tmp_path):
    pixels = variant((1, 224, 224, 3), input_kind="rgb", batch_sizes=(1,))
    done = convert(tmp_path, pixels, "atc", "910b")
    assert done.returncode == 0
    assert "uint8 without AIPP, which atc's manual does not list for ONNX" in done.stderr
    assert "uint8" not in convert(tmp_path, pixels, "lite", "910b").stderr


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (tuple(range(1, 102)), "batch_size has 101 sizes: Ascend's converters take at most 100"),
        ((1, 2049), "batch_size 2049 is one of several: Ascend's converters take at most 2048 each"),
    ],
)
def test_gears_that_no_converter_takes_are_refused(sizes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_gears(sizes)


@pytest.mark.parametrize("sizes", [None, (4096,), tuple(range(1, 101)), (1, 2048)])
def test_gears_at_the_limits(sizes):
    check_gears(sizes)


def test_the_script_says_what_is_missing(tmp_path):
    (tmp_path / "convert.sh").write_text(
        # With an ONNX file, which this bundle had once, lite has something to convert.
        ascend_files(dataclasses.replace(MANIFEST, files={"AIR": "model.air"}))["convert.sh"]
    )
    for arguments, message in (
        (["lite", "910b"], "no MindIR file"),
        (["lite", "920"], "unknown processor"),
        ([], "usage"),
    ):
        done = subprocess.run(["sh", "convert.sh", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
