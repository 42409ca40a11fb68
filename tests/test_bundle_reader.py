"""What a bundle says is checked field by field, its files against SHA256SUMS before they run, and both in one line."""

import hashlib
import json
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from test_infer import write_bundle

from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import check_checksums, check_files, write_checksums
from mindcv_reparam.bundle.manifest import read_manifest, write_manifest
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.runners import bundle_program, fitting
from mindcv_reparam.serving.model import load_model


@pytest.fixture
def bundle(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photo.png")
    return write_bundle(tmp_path / "bundle")


def change(bundle, file, **values):
    said = json.loads((bundle / file).read_text())
    (bundle / file).write_text(json.dumps(said | values))
    write_checksums(bundle)


def said(bundle, key):
    return json.loads((bundle / "bundle.json").read_text())[key]


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("bundle.json", {"version": "1"}, "version: input should be a valid integer, not '1'"),
        ("bundle.json", {"model": 3}, "model: input should be a valid string, not 3"),
        ("bundle.json", {"state": "melted"}, "state: input should be 'train', 'branches' or 'full', not 'melted'"),
        ("bundle.json", {"batch_sizes": []}, "batch_sizes: "),
        ("bundle.json", {"batch_sizes": [0]}, "batch_sizes[0]: input should be greater than or equal to 1, not 0"),
        ("bundle.json", {"batch_sizes": [10**30]}, "batch_sizes[0]: "),
        ("bundle.json", {"batch_sizes": 4}, "batch_sizes: input should be a valid array, not 4"),
        ("bundle.json", {"files": {}}, "files: "),
        ("bundle.json", {"files": {"GGUF": "m"}}, "files.GGUF"),
        ("bundle.json", {"outputs": []}, "outputs: "),
        ("bundle.json", {"more": 1}, "more: unexpected"),
        ("bundle.json", {"output_kind": "topk"}, "outputs: their number or shapes are not those of the kind topk"),
        ("bundle.json", {"input_kind": "rgb"}, "is no input of the kind rgb"),
        ("bundle.json", {"batch_sizes": [4]}, "a batch of None does not go with batch_sizes [4]"),
        ("bundle.json", {"category_ids": [1, 1]}, "category_ids: two classes have one number"),
        ("bundle.json", {"category_ids": list(range(99))}, "category_ids: 99 for "),
        ("preprocessing.json", {"image_resize": [16]}, "image_resize: "),
        ("preprocessing.json", {"image_resize": 60_000}, "numbers, more than"),
        ("preprocessing.json", {"mean": [0, 0]}, "mean: there is one number for each of three channels"),
        ("preprocessing.json", {"std": [1, 0, 1]}, "std: std must be above 0, got 0"),
        ("preprocessing.json", {"crop_pct": 1e-9}, "crop_pct: must be between 0.001 and"),
        ("preprocessing.json", {"interpolation": "lanczos"}, "interpolation: input should be 'nearest', "),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_the_remedy(bundle, file, values, reason):
    change(bundle, file, **values)
    with pytest.raises(UserError) as raised:
        read_manifest(bundle)
    message = str(raised.value)
    assert reason in message
    assert str(bundle) in message
    assert message.endswith("; copy the bundle anew from where it was made, or export it anew")


def test_what_is_written_reads_back(bundle, tmp_path):
    manifest = read_manifest(bundle)
    assert manifest.preprocessing["mean"] == (120.0, 110.0, 100.0)
    shutil.copytree(bundle, tmp_path / "again")
    write_manifest(manifest, tmp_path / "again")
    assert read_manifest(tmp_path / "again") == manifest


@pytest.mark.parametrize("name", ["/etc/passwd", "../bundle.json", "sample/../../x.onnx", "a\nb", "out/model.onnx"])
def test_files_stay_inside(bundle, tmp_path, name):
    (bundle / "out").symlink_to(tmp_path)
    (bundle / "bundle.json").write_text(
        json.dumps(json.loads((bundle / "bundle.json").read_text()) | {"files": {"ONNX": name}})
    )
    with pytest.raises(UserError, match=r"no path inside of it|a link that leads outside of"):
        read_manifest(bundle)


@pytest.mark.parametrize("file", ["bundle.json", "labels.txt", "preprocessing.json", "SHA256SUMS"])
def test_a_description_in_another_place_is_refused(bundle, tmp_path, file):
    shutil.move(bundle / file, tmp_path / "elsewhere")
    (bundle / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{file} is a link that leads outside of"):
        bundle_program(bundle)


@pytest.mark.parametrize("file", ["labels.txt", "preprocessing.json", "SHA256SUMS", "model.onnx"])
def test_a_pipe_is_not_waited_for(bundle, file):
    (bundle / file).unlink()
    os.mkfifo(bundle / file)
    with pytest.raises(UserError, match="it is a pipe, socket or device, not a file"):
        bundle_program(bundle)


def flip_signs(bundle):
    """Of the factor that makes logits of means: the least probable class becomes the most probable."""
    model = onnx.load(bundle / "model.onnx")
    scale = model.graph.initializer[0]
    scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))
    onnx.save(model, bundle / "model.onnx")


@pytest.mark.parametrize(
    "load",
    [
        lambda bundle: main(["infer", str(bundle), str(bundle.parent / "photo.png")]),
        load_model,
        bundle_program,
    ],
    ids=["infer", "serve", "run"],
)
def test_a_changed_file_never_runs(bundle, load, capsys):
    load(bundle)
    capsys.readouterr()
    flip_signs(bundle)
    with pytest.raises(UserError, match=r"model\.onnx was changed: its SHA-256 is not the one of SHA256SUMS; copy"):
        load(bundle)
    assert capsys.readouterr().out == ""
    write_checksums(bundle)
    load(bundle)
    for file in ("labels.txt", "preprocessing.json", "bundle.json"):
        content = (bundle / file).read_bytes()
        (bundle / file).write_bytes(content.replace(b"red", b"rot") + b"\n")
        with pytest.raises(UserError, match=f"{file} was changed"):
            load(bundle)
        (bundle / file).write_bytes(content)
    load(bundle)


def test_only_what_is_used_is_checked(bundle):
    (bundle / "report.md").write_text("one")
    write_checksums(bundle)
    (bundle / "report.md").write_text("two")
    bundle_program(bundle)
    with pytest.raises(UserError, match=r"report\.md was changed"):
        check_files(bundle, ["report.md"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "SHA256SUMS is missing, so nothing tells whether the bundle is unchanged: copy the bundle anew"),
        ("", "SHA256SUMS is not whole: it does not list bundle.json; copy the bundle anew"),
        ("{first}", "SHA256SUMS is not whole: it does not list "),
        ("{whole}{first}", "SHA256SUMS is damaged: line 5: bundle.json stands there twice"),
        ("rubbish\n", "SHA256SUMS is damaged: line 1: no digest and name of a file"),
        ("\0" * 10, "line 1: no digest"),
        (b"\xff\xfe", "no text in UTF-8"),
        ("{whole}" + "x" * 10**6, "larger than the "),
    ],
)
def test_a_list_that_is_not_whole_is_told(bundle, text, reason):
    whole = (bundle / "SHA256SUMS").read_text()
    (bundle / "SHA256SUMS").unlink()
    if isinstance(text, bytes):
        (bundle / "SHA256SUMS").write_bytes(text)
    elif text is not None:
        text = text.replace("{whole}", whole).replace("{first}", whole.splitlines(keepends=True)[0])
        (bundle / "SHA256SUMS").write_text(text)
    with pytest.raises(UserError) as raised:
        bundle_program(bundle)
    assert reason in str(raised.value)


def test_a_list_names_no_file_outside(bundle, tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with open(bundle / "SHA256SUMS", "a") as sums:
        sums.write(f"{hashlib.sha256(b'').hexdigest()}  ../x\n")
    bundle_program(bundle)  # what runs is listed and unchanged
    with pytest.raises(UserError, match=r"names the file '\.\./x', which is no path inside of it"):
        check_checksums(bundle, [])


def test_a_model_that_is_not_what_the_manifest_tells_is_one_line(bundle):
    change(bundle, "bundle.json", outputs=[said(bundle, "outputs")[0] | {"shape": [None, 5]}])
    run = bundle_program(bundle)
    with pytest.raises(
        UserError, match=r"the model gives \[\('float32', \(2, 3\)\)\] for 2 images, the manifest tells"
    ):
        run(np.zeros((2, 3, 16, 16), np.float32))
    with pytest.raises(UserError, match=r"model\.onnx does not run on float64 \[2, 3, 16, 16\]: "):
        run(np.zeros((2, 3, 16, 16)))

    def broken(images):
        raise ZeroDivisionError

    with pytest.raises(UserError, match="m does not run on int8 \\[1\\]: ZeroDivisionError"):
        fitting(broken, read_manifest(bundle), "m")(np.zeros(1, np.int8))


LABELS = ("röt\tgrün", "蓝 色", "b\u2028l\x85ue\0", " ", "", "\u202ered", "a\x1bb", "\U0001f600", "")


def test_class_names_of_any_script_round_trip(tmp_path):
    bundle = write_bundle(tmp_path / "names", labels=LABELS)
    assert read_manifest(bundle).labels == LABELS
