"""``python -m mindcv_reparam infer``: the same inputs and answers as validation, whatever runs the model."""

import csv
import dataclasses
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import onnx
import pytest
from here import restored, run_here
from networks import SMALL, randomise
from onnx import TensorProto, helper
from PIL import Image, ImageDraw

import validate
from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import Manifest, TensorSpec, read_manifest, write_manifest
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, decoder
from mindcv_reparam.data.decoder import Decoder, UnreadableImage
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.image_folder import ImageFolder
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.bundle import Candidate
from mindcv_reparam.export.bundle import write_bundle as export
from mindcv_reparam.export.graph import Interface
from mindcv_reparam.run import contact_sheet, fused
from mindcv_reparam.run.image_files import find_images
from mindcv_reparam.run.prediction import Prediction, Predictor, Skipped
from mindcv_reparam.run.sample import input_of
from mindcv_reparam.tasks import TASKS, open_loader
from mindcv_reparam.tasks.classification.results import most_probable

ROOT = Path(__file__).parents[1]
SIZE = 16
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PREPROCESSING = {
    "image_resize": SIZE,
    "crop_pct": 0.9,
    "interpolation": "bilinear",
    "mean": (120.0, 110.0, 100.0),
    "std": (50.0, 60.0, 70.0),
}


def manifest(
    input_kind="normalized", output_kind="logits", batch_sizes=None, labels=tuple(COLOURS), files=None, **preprocessing
):
    """That of a model whose three classes are the channels: the mean over the image is the logit."""
    batch = batch_sizes[0] if batch_sizes and len(batch_sizes) == 1 else None
    shape, dtype = ((3, SIZE, SIZE), "float32") if input_kind == "normalized" else ((SIZE, SIZE, 3), "uint8")
    k = 2 if output_kind == "topk" else 3
    outputs = [TensorSpec("scores", "float32", (batch, k))]
    if output_kind == "topk":
        outputs.append(TensorSpec("classes", "int64", (batch, k)))
    return Manifest(
        model="visformer_tiny",
        state="full",
        input=TensorSpec("images", dtype, (batch, *shape)),
        input_kind=input_kind,
        outputs=tuple(outputs),
        output_kind=output_kind,
        batch_sizes=batch_sizes,
        weights="fp32",
        files=files or {"ONNX": "model.onnx"},
        labels=labels,
        preprocessing={**PREPROCESSING, **preprocessing},
    )


def write_bundle(folder, **options):
    """A bundle of the model of :func:`manifest`, as an ONNX file."""
    said = manifest(**options)
    folder.mkdir()
    write_manifest(said, folder)
    uint8 = said.input_kind != "normalized"
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["means"], axes=(1, 2) if uint8 else (2, 3), keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
    ]
    if said.output_kind != "logits":
        nodes.append(helper.make_node("Softmax", ["logits"], ["softmax"], axis=1))
    if said.output_kind == "topk":
        nodes.append(helper.make_node("TopK", ["softmax", "k"], ["scores", "classes"], axis=1))
    else:
        nodes.append(helper.make_node("Identity", [nodes[-1].output[0]], ["scores"]))
    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}
    image, *outputs = (
        helper.make_tensor_value_info(spec.name, types[spec.dtype], [size or "n" for size in spec.shape])
        for spec in (said.input, *said.outputs)
    )
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 50 if uint8 else 1.0]),
        helper.make_tensor("k", TensorProto.INT64, [1], [2]),
    ]
    graph = helper.make_graph(nodes, "colours", [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    write_checksums(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Images of one colour each, in a folder and below."""
    folder = tmp_path / "photos"
    for file, colour in {"a.png": "red", "b.jpg": "green", "more/c.png": "blue", "more/d.BMP": "red"}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), COLOURS[colour]).save(folder / file)
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (30, 20)).save(folder / ".e.png")
    (folder / ".hidden").mkdir()
    Image.new("RGB", (30, 20)).save(folder / ".hidden/e.png")
    return folder


def infer(*arguments):
    return main(["infer", *map(str, arguments)])


def means(images):
    """The model of :func:`manifest` in NumPy."""
    return (images.mean(axis=(2, 3)),)


# what a command line names


def test_folders_patterns_and_files_name_images_once_and_in_order(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    found = ["photos/a.png", "photos/b.jpg", "photos/more/c.png", "photos/more/d.BMP"]
    assert find_images(["photos"]) == list(map(Path, found))
    assert find_images(["photos/**/*.png"]) == [Path(found[0]), Path(found[2])]
    assert find_images(["photos/more/*", "photos"]) == list(map(Path, found[2:] + found[:2]))
    assert find_images(["photos/mo*"]) == list(map(Path, found[2:]))
    assert find_images(["photos/notes.txt"]) == [Path("photos/notes.txt")]
    Path("linked").symlink_to("photos/more")
    Path("photos/more/circle").symlink_to("..")
    assert find_images(["linked"])[:2] == [Path("linked/c.png"), Path("linked/circle/a.png")]
    assert len(find_images(["linked"])) == len(find_images(["photos"])) == 4
    Path("photos/[1].png").touch()
    assert find_images(["photos/[1].png"]) == [Path("photos/[1].png")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("lost.png", "no file or folder lost.png"), ("*.webp", "no files match *.webp"), ("empty", "no images in empty")],
)
def test_a_name_that_stands_for_nothing_is_a_mistake(photos, name, message, monkeypatch):
    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    with pytest.raises(UserError) as raised:
        find_images([str(photos), name])
    assert str(raised.value).startswith(message)


# inputs, batches and outputs


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("image_resize", [32, (24, 40)])
def test_inputs_are_those_of_validation(tmp_path, image_resize, interpolation):
    rng = np.random.default_rng(0)
    kinds = [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("1", "bmp")]
    for number, (mode, suffix) in enumerate(kinds):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (37 + 20 * number, 90 - 11 * number, 4), np.uint8)
        Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode).save(folder / f"{number}.{suffix}")
    said = manifest(image_resize=image_resize, interpolation=interpolation)
    config = Config(**said.preprocessing, batch_size=2, num_parallel_workers=1)
    with open_loader(TASKS["classification"], ImageFolder(tmp_path), config, train=False) as loader:
        expected = np.concatenate([batch[weights > 0] for batch, _, weights in loader.epoch(0)])
    samples = list(Predictor(said, means).samples(find_images([str(tmp_path)]), ahead=3))
    assert len(samples) == len(kinds)
    np.testing.assert_array_equal([sample.input for sample in samples], expected)


def test_training_validation_infer_and_verify_read_files_alike(tmp_path):
    """A checkpoint's settings of decoding hold in each: of transparent, turned and 16-bit images."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "train/a").mkdir(parents=True)
    pixels = rng.integers(0, 256, (20, 30, 4), np.uint8)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "train/a/1.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "train/a/2.png", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(tmp_path / "train/a/3.png")
    said = manifest(crop_pct=1.0, image_background=(0, 90, 200), exif_orientation=True)
    config = Config(
        **said.preprocessing, batch_size=3, num_parallel_workers=1, data_dir=str(tmp_path), val_split="train",
        scale=(1.0, 1.0), ratio=(2 / 3, 2 / 3), hflip=0.0, color_jitter=0.0, shuffle=False,
    )  # fmt: skip
    files = find_images([str(tmp_path)])
    with open_loader(TASKS["classification"], create_dataset(config, train=False), config, train=False) as loader:
        ((validated, _, _),) = loader.epoch(0)
    infer_inputs = [sample.input for sample in Predictor(said, means).samples(files)]
    np.testing.assert_array_equal(infer_inputs, validated)
    for kind in (Path, Path.read_bytes):  # as verify and as the server has them
        np.testing.assert_array_equal([input_of(kind(file), said)[0] for file in files], validated)
    plain = [sample.input for sample in Predictor(manifest(crop_pct=1.0), means).samples(files)]
    assert [np.array_equal(*pair) for pair in zip(plain, validated)] == [False, False, True]
    config = dataclasses.replace(config, image_resize=(30, 20))
    with open_loader(TASKS["classification"], create_dataset(config, train=True), config, train=True) as loader:
        ((trained, _),) = loader.epoch(0)
    exact = [decoder.Decoder.of(config).pixels(file) for file in files[:2]]
    for image, expected in zip(trained, exact):
        assert expected.shape == (30, 20, 3)
        shown = image.transpose(1, 2, 0) * np.array(config.std) + np.array(config.mean)
        np.testing.assert_allclose(shown, expected, atol=1e-3)


def test_settings_of_decoding_come_back_from_bundles_and_checkpoints(tmp_path):
    settings = {"image_background": (0, 90, 200), "exif_orientation": True}
    bundle = write_bundle(tmp_path / "bundle", **settings)
    assert decoder.Decoder.of(Config(**read_manifest(bundle).preprocessing)) == Decoder((0, 90, 200), True)
    info = CheckpointInfo("visformer_tiny", {"num_classes": 3, "in_channels": 3}, None, {**PREPROCESSING, **settings})
    save_checkpoint(tmp_path / "a.ckpt", {"weight": np.zeros(3, np.float32)}, info)
    _, found = read_checkpoint(tmp_path / "a.ckpt")
    assert Decoder.of(Config().with_defaults(**found.preprocessing)) == Decoder((0, 90, 200), True)
    assert Decoder.of(Config().with_defaults(**PREPROCESSING)) == Decoder((255, 255, 255), False)


@pytest.mark.parametrize(
    ("listed", "batch_size", "expected"),
    [
        (None, 4, [4, 4, 3]),
        ((4,), 32, [4, 4, 4]),
        ((1, 2, 8), 32, [8, 8]),
        ((4, 8, 1, 2), 7, [4, 4, 4]),
        ((2, 8), 3, [2, 2, 2, 2, 2, 2]),
        ((16, 32), 20, [16]),
    ],
)
def test_batches_have_the_sizes_the_model_takes_and_padding_changes_nothing(tmp_path, listed, batch_size, expected):
    files = []
    for number in range(11):
        files.append(tmp_path / f"{number:02}.png")
        Image.new("RGB", (8, 8), tuple(COLOURS.values())[number % 3]).save(files[-1])
    shapes = []

    def program(images):
        shapes.append(images.shape)
        return means(images)

    results = list(Predictor(manifest(batch_sizes=listed), program).predict(files, batch_size, topk=2))
    assert [shape[0] for shape in shapes] == expected
    assert [result.file for result in results] == files
    assert [result.found.classes[0] for result in results] == [number % 3 for number in range(11)]
    alone = list(Predictor(manifest(), means).predict(files, 1, topk=2))
    for result, other in zip(results, alone):
        assert result.found.classes == other.found.classes
        assert result.found.probabilities == pytest.approx(other.found.probabilities, abs=1e-6)


def test_a_batch_smaller_than_any_the_model_takes_is_a_mistake(photos):
    with pytest.raises(UserError, match="batch_size 3: this model runs at least 4 images together"):
        list(Predictor(manifest(batch_sizes=(8, 4)), means).predict(find_images([str(photos)]), 3, topk=1))


def test_logits_and_probabilities_are_ranked_as_validation_ranks():
    logits = np.array([[1.0, 3.0, 3.0, 0.0], [-1000.0, 1000.0, 999.0, 0.0]], np.float32)
    classes, probabilities = most_probable([logits], "logits", 3)
    assert classes.tolist() == [[1, 2, 0], [1, 2, 3]]
    total = 2 * np.exp(3) + np.exp(1) + 1
    np.testing.assert_allclose(probabilities[0], [np.exp(3) / total, np.exp(3) / total, np.exp(1) / total])
    np.testing.assert_allclose(probabilities[1], [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0.0], atol=1e-12)
    assert most_probable([np.zeros((1, 100))], "logits", 4)[0].tolist() == [[0, 1, 2, 3]]
    half, single = (most_probable([logits[:1].astype(dtype)], "logits", 1)[1] for dtype in (np.float16, np.float32))
    assert half == single
    shares = np.array([[0.2, 0.5, 0.3]], np.float32)
    classes, probabilities = most_probable([shares], "softmax", 5)
    assert classes.tolist() == [[1, 2, 0]]
    np.testing.assert_array_equal(probabilities, shares[:, [1, 2, 0]])
    classes, probabilities = most_probable([np.array([[0.7, 0.2]]), np.array([[4, 1]])], "topk", 1)
    assert (classes.tolist(), probabilities.tolist()) == ([[4]], [[0.7]])


@pytest.mark.parametrize("input_kind", ["normalized", "rgb", "bgr"])
@pytest.mark.parametrize("output_kind", ["logits", "softmax", "topk"])
def test_every_kind_of_bundle_tells_the_same(tmp_path, photos, capsys, input_kind, output_kind):
    labels = ("blue", "green", "red") if input_kind == "bgr" else tuple(COLOURS)
    bundle = write_bundle(
        tmp_path / "bundle", input_kind=input_kind, output_kind=output_kind, batch_sizes=(3,), labels=labels
    )
    output = tmp_path / "predictions.json"
    assert infer(bundle, photos, "--output", output, "--backend", "onnxruntime") == 0
    told = json.loads(output.read_text())
    assert told["skipped"] == []
    assert [Path(row["file"]).name for row in told["images"]] == ["a.png", "b.jpg", "c.png", "d.BMP"]
    assert [row["classes"][0]["label"] for row in told["images"]] == ["red", "green", "blue", "red"]
    logits = ((255 - 120) / 50, -110 / 60, -100 / 70) if input_kind == "normalized" else (255 / 50, 0.0, 0.0)
    expected = np.exp(logits) / np.sum(np.exp(logits))
    red = {row["label"]: row["probability"] for row in told["images"][0]["classes"]}
    assert len(red) == (2 if output_kind == "topk" else 3)
    assert red == pytest.approx({label: expected[list(COLOURS).index(label)] for label in red}, rel=1e-5)
    assert f"{photos / 'a.png'}: red {100 * expected[0]:.2f} %; " in capsys.readouterr().out


def test_features_are_no_classes(tmp_path, photos):
    bundle = write_bundle(tmp_path / "bundle")
    said = json.loads((bundle / "bundle.json").read_text())
    outputs = [said["outputs"][0] | {"shape": [None, 3, 4, 4]}]
    (bundle / "bundle.json").write_text(json.dumps(said | {"output_kind": "features", "outputs": outputs}))
    write_checksums(bundle)
    with pytest.raises(UserError, match="exported for its features and has no classes"):
        infer(bundle, photos)


def test_a_preprocessing_that_does_not_fit_the_model_is_a_mistake(tmp_path, photos):
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "preprocessing.json").write_text(json.dumps({**PREPROCESSING, "image_resize": 20}))
    write_checksums(bundle)
    with pytest.raises(UserError, match=r"makes an input of shape \(4, 3, 20, 20\), the model takes \(None, 3, 16, 16"):
        infer(bundle, photos)


# what cannot be predicted


def test_unreadable_images_are_named_and_skipped_and_all_others_done(tmp_path, photos, capsys):
    (photos / "b.jpg").write_bytes((photos / "b.jpg").read_bytes()[:200])
    (photos / "bb.png").touch()
    os.symlink("nowhere", photos / "c.png")
    Image.new("RGB", (600_000, 1)).save(photos / "d.png")
    output, table = tmp_path / "predictions.json", tmp_path / "predictions.csv"
    bundle = write_bundle(tmp_path / "bundle")
    assert infer(bundle, photos, photos / "notes.txt", "--output", output, "--batch_size", 2) == 1
    told = json.loads(output.read_text())
    assert [Path(row["file"]).name for row in told["images"]] == ["a.png", "c.png", "d.BMP"]
    damaged = "not an image, or a damaged one"
    assert {Path(row["file"]).name: row["reason"] for row in told["skipped"]} == {
        **{"b.jpg": damaged, "bb.png": damaged, "notes.txt": damaged},
        "c.png": "No such file or directory",
        "d.png": "600000 x 1 pixels: a side may have 65,535",
    }
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 3
    assert f"{photos / 'b.jpg'} skipped: {damaged}\n" in shown.err
    assert "images: 3, skipped: 5, " in shown.err
    assert infer(bundle, photos, "--output", table) == 1
    assert [Path(row["file"]).name for row in csv.DictReader(table.open())] == ["a.png", "c.png", "d.BMP"]


def test_images_of_too_many_pixels_and_lost_ones_are_told_apart(photos, monkeypatch):
    with pytest.raises(UnreadableImage, match="No such file or directory"):
        Decoder().pixels(photos / "gone.png")
    monkeypatch.setattr(decoder, "MAX_PIXELS", 400)
    for side in (21, 40):
        Image.new("RGB", (side, side)).save(photos / "large.png")
        with pytest.raises(UnreadableImage, match="pixels"):
            Decoder().pixels(photos / "large.png")
    Image.new("RGB", (20, 20)).save(photos / "large.png")
    assert Decoder().pixels(photos / "large.png").shape == (20, 20, 3)


def test_an_output_that_is_not_finite_is_no_prediction(photos):
    def program(images):
        (logits,) = means(images)
        logits[1] = np.nan
        return (logits,)

    results = list(Predictor(manifest(), program).predict(find_images([str(photos)]), 4, topk=1))
    assert [type(result) for result in results] == [Prediction, Skipped, Prediction, Prediction]
    assert results[1].reason == "the model's output for it is not finite"


def test_a_missing_runtime_is_named(tmp_path, photos, monkeypatch):
    bundle = write_bundle(tmp_path / "bundle", files={"MINDIR": "model.mindir"})
    monkeypatch.setitem(sys.modules, "mindspore_lite", None)
    with pytest.raises(UserError, match="mindspore_lite is not installed"):
        infer(bundle, photos, "--backend", "lite")


# labels, files and the contact sheet


def test_labels_of_the_command_line_go_before_the_bundles(tmp_path, photos, capsys):
    bundle, labels = write_bundle(tmp_path / "bundle"), tmp_path / "labels.txt"
    labels.write_text("rouge\nvert, clair\nbleu ciel\n", encoding="utf-8")
    output = tmp_path / "predictions.csv"
    assert infer(bundle, photos / "b.jpg", "--labels", labels, "--output", output, "--topk", 2) == 0
    (row,) = csv.DictReader(output.open(encoding="utf-8"))
    assert list(row) == ["file", *(f"{field}_{rank}" for rank in "12" for field in ("index", "label", "probability"))]
    assert (row["file"], row["index_1"], row["label_1"]) == (str(photos / "b.jpg"), "1", "vert, clair")
    assert 0.5 < float(row["probability_1"]) < 1
    labels.write_text("rouge\nvert\n")
    with pytest.raises(UserError, match="there are 2 labels for the 3 classes of this visformer_tiny"):
        infer(bundle, photos, "--labels", labels)
    unlabelled = write_bundle(tmp_path / "top", output_kind="topk", labels=())
    assert infer(unlabelled, photos / "a.png", "--labels", labels) == 0
    assert ": rouge " in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot read the labels"):
        infer(bundle, photos, "--labels", tmp_path / "lost.txt")


def test_classes_without_a_label_are_told_by_their_index(tmp_path, photos, capsys):
    assert infer(write_bundle(tmp_path / "bundle", labels=("red",)), photos / "b.jpg", photos / "a.png") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{photos / 'b.jpg'}: 1 ")
    assert second.startswith(f"{photos / 'a.png'}: red ")


def test_names_that_are_no_text_are_told_all_the_same(tmp_path, photos, capsys):
    strange = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (20, 20), "blue").save(tmp_path / strange)
    for ending in ("csv", "json"):
        output = tmp_path / f"predictions.{ending}"
        assert infer(write_bundle(tmp_path / ending), tmp_path / strange, "--output", output) == 0
        assert r"caf\xe9.png" in output.read_text(encoding="utf-8").replace(r"\\", "\\")
    assert r"caf\xe9.png: blue" in capsys.readouterr().out


def test_contact_sheet_shows_the_crop_that_the_model_sees(tmp_path):
    wide = Image.new("RGB", (60, 20), COLOURS["red"])
    wide.paste(COLOURS["green"], (16, 0, 44, 20))
    wide.save(tmp_path / "wide.png")
    sheet = tmp_path / "sheet.png"
    assert infer(write_bundle(tmp_path / "bundle"), tmp_path / "wide.png", "--contact_sheet", sheet) == 0
    thumbnail = np.asarray(Image.open(sheet).crop((8, 8, 8 + 128, 8 + 128)))
    assert (thumbnail == COLOURS["green"]).all(), "nothing of the margins, and no frame"


def test_contact_sheet_shows_the_images_up_to_its_capacity(tmp_path, photos, capsys, monkeypatch):
    Image.new("RGB", (1, 300), COLOURS["blue"]).save(photos / "b_thin.png")
    (photos / "bb.png").touch()
    bundle = write_bundle(tmp_path / "bundle", labels=("red", "an exceedingly long name of a colour", "blue"))
    sheet = tmp_path / "sheet.png"
    assert infer(bundle, photos, "--contact_sheet", sheet) == 1
    image = Image.open(sheet)
    width, height = contact_sheet._CELL
    assert image.size == (3 * width, 2 * height)
    middles = [image.getpixel((x * width + 8 + 63, y * height + 8 + 63)) for y in (0, 1) for x in (0, 1, 2)]
    white = (255, 255, 255)
    expected = [COLOURS["red"], COLOURS["green"], COLOURS["blue"], COLOURS["blue"], COLOURS["red"], white]
    assert np.abs(np.subtract(middles, expected)).max() <= 1  # JPEG
    captions = np.asarray(image.convert("L").crop((0, 8 + 128 + 8, 3 * width, height)))
    ink = (captions < 128).reshape(len(captions), 3, width).any(axis=0)
    assert ink.any(axis=1).all()
    assert not ink[:, -8:].any()

    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, *how: written.append(text))
    (photos / "more/a_long_name_of_a_file_from_a_camera_0001.png").symlink_to(photos / "a.png")
    assert infer(bundle, photos / "a.png", photos / "more", "--contact_sheet", sheet) == 0
    assert written[2::3][0] == "a.png"
    assert written[2::3][1].startswith("…")
    assert written[2::3][1].endswith("a_0001.png")
    assert written[2::3][2:] == ["more/c.png", "more/d.BMP"]

    monkeypatch.setattr("mindcv_reparam.commands.infer.CAPACITY", 2)
    assert infer(bundle, photos, "--contact_sheet", sheet) == 1
    assert Image.open(sheet).size == (2 * width, height)
    assert f"{sheet} shows the first 2 of 6 images" in capsys.readouterr().err


# as users run it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}", "{photos}", "--output", "predictions.txt"], "--output must end with .csv or .json, got"),
        (["{bundle}", "{photos}", "--contact_sheet", "sheet.gif"], "--contact_sheet must end with .png, got"),
        (["{bundle}", "{photos}", "--topk", "0"], "topk: must be a whole number of at least 1, got '0'"),
        (["{bundle}", "{photos}", "--batch_size", "two"], "batch_size: must be a whole number of at least 1"),
        (["{bundle}", "{photos}", "--backend", "tensorrt"], "invalid choice: 'tensorrt'"),
        (["{bundle}", "{photos}", "--backend", "mindspore"], "has ONNX: mindspore cannot run that"),
        (["{bundle}", "{photos}", "--model", "fastvit_t8"], "--model is for checkpoints"),
        (["{bundle}"], "required: IMAGE"),
        (["{photos}", "{photos}"], "is no bundle: it has no bundle.json"),
        (["lost.ckpt", "{photos}", "--backend", "onnxruntime"], "--backend onnxruntime runs bundles and lost.ckpt is"),
        (["lost.ckpt", "{photos}"], "no checkpoint at lost.ckpt"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, photos, arguments, message):
    places = {"bundle": write_bundle(tmp_path / "bundle"), "photos": photos}
    with pytest.raises(UserError) as raised:
        infer(*(argument.format_map(places) for argument in arguments))
    assert message in str(raised.value)


def serve_alone(arguments, stderr):
    """infer as a program on a host that has no MindSpore."""
    code = "import sys; sys.modules['mindspore'] = None; from mindcv_reparam.__main__ import *; run_script(main)"
    command = [sys.executable, "-c", code, "infer", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)


def test_onnxruntime_needs_no_mindspore_and_a_log_no_progress_bar(tmp_path, photos):
    bundle, output = write_bundle(tmp_path / "bundle"), tmp_path / "out/predictions.csv"
    child = serve_alone(
        [bundle, photos, "--output", output, "--contact_sheet", tmp_path / "sheet.png"], subprocess.PIPE
    )
    assert child.returncode == 0, child.stderr
    assert [line.split()[1] for line in child.stdout.splitlines()] == ["red", "green", "blue", "red"]
    assert child.stderr.startswith("images: 4, skipped: 0, ")
    assert child.stderr.count("\n") == 1
    assert len(output.read_text().splitlines()) == 5
    assert os.listdir(output.parent) == [output.name]

    child = serve_alone([bundle, photos, tmp_path / "lost"], subprocess.PIPE)
    assert (child.returncode, child.stdout, child.stderr) == (2, "", f"error: no file or folder {tmp_path / 'lost'}\n")


def test_a_terminal_gets_a_progress_bar(tmp_path, photos):
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    child = serve_alone([write_bundle(tmp_path / "bundle"), photos], its)
    os.close(its)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert child.returncode == 0
    assert "| 0/4 [" in shown
    assert child.stdout.count("\n") == 4


# with MindSpore


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits for validation as PNG files in class folders; a checkpoint and a bundle of one network for them."""
    folder = tmp_path_factory.mktemp("digits")
    source = Digits(train=False)
    for index, label in enumerate(source.labels):
        (folder / f"data/val/{label}").mkdir(parents=True, exist_ok=True)
        source.load(index).save(folder / f"data/val/{label}/{index:03}.png")
    name, hyper_parameters = SMALL["fastvit"]
    hparams = dict(num_classes=10, in_channels=3, img_size=(32, 32), **hyper_parameters)
    net = randomise(create_model(name, **hparams)).set_train(False)
    for parameter in net.get_parameters():
        if parameter.name.startswith(net.classifier):  # logits of about 1, not 1000: probabilities other than 0 and 1
            parameter.set_data(parameter / 1000)
    preprocessing = {**PREPROCESSING, "image_resize": 32}
    info = CheckpointInfo(name, hparams, list(source.classes), preprocessing)
    save_checkpoint(folder / "net.ckpt", net, info)

    network = Candidate(reparameterize(net), info, "full", str(folder / "net.ckpt"))
    export(folder / "bundle", network, Interface(batch_sizes=(4, 16)), ("MINDIR", "ONNX"))
    return folder


@pytest.mark.slow
def test_top1_is_that_of_validation_whatever_runs_the_model(digits, tmp_path, monkeypatch):
    checkpoint, bundle, data = digits / "net.ckpt", digits / "bundle", digits / "data/val"
    report = tmp_path / "report.json"
    arguments = [
        "--ckpt_path",
        checkpoint,
        "--data_dir",
        digits / "data",
        "--batch_size",
        50,
        "--output",
        report,
        "--mode",
        1,
    ]
    with restored():
        run_here(validate, *arguments)
    validated = json.loads(report.read_text())
    assert validated["samples"] == 360

    levels = []
    monkeypatch.setattr(fused, "reparameterize", lambda net, level: levels.append(level) or reparameterize(net, level))
    tables = []
    for number, source in enumerate([(checkpoint,), (bundle, "--backend", "mindspore"), (bundle,)]):
        output = tmp_path / f"{number}.csv"
        assert infer(*source, data, "--output", output, "--batch_size", 50) == 0
        tables.append(list(csv.DictReader(output.open())))
        best = [(row["label_1"], Path(row["file"]).parent.name) for row in tables[-1]]
        assert len(best) == 360
        assert len({label for label, _ in best}) > 1, "a network that always says the same would prove nothing"
        assert sum(label == truth for label, truth in best) == validated["correct1"]
        first5 = [{row[f"label_{rank}"] for rank in range(1, 6)} for row in tables[-1]]
        assert sum(truth in labels for labels, (_, truth) in zip(first5, best)) == validated["correct5"]
    assert levels == ["full"], "the checkpoint runs fused"
    for rows in zip(*tables):
        assert len({row["label_1"] for row in rows}) == 1
        assert np.ptp([float(row["probability_1"]) for row in rows]) < 1e-5
