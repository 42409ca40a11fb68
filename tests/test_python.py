"""What Python's users find: public names, classifiers to exchange, the input of a network, predictions as a table."""

import inspect
import subprocess
import sys
import typing
import warnings
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from networks import NUM_CLASSES, SMALL, arrays, difference, random_images, randomise
from PIL import Image
from test_documents import PYTHON_BLOCK
from test_infer import COLOURS, write_bundle
from test_new_family import outside

import mindcv_reparam
from mindcv_reparam import create_model, eval_transform, list_models, load_checkpoint, predict, reparameterize
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.errors import UserError
from mindcv_reparam.network import Network
from mindcv_reparam.run.table import Table
from mindcv_reparam.tasks import open_loader, task_of
from mindcv_reparam.zoo import model_from_checkpoint

ROOT = Path(__file__).parents[1]
HPARAMS = {"num_classes": 10, "in_channels": 3, "img_size": [16, 16]}
PREPROCESSING = {"crop_pct": 0.75, "interpolation": "bilinear", "mean": (10.0, 20.0, 30.0), "std": (40.0, 50.0, 60.0)}

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def plain(pynative):
    with outside(Path(__file__).parent / "data/plain.py"):
        yield


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory):
    """A tiny network and its checkpoint, which names classes and an input of its own."""
    net = randomise(create_model("plain_a", **HPARAMS)).set_train(False)
    path = tmp_path_factory.mktemp("saved") / "plain.ckpt"
    classes, labels = [f"n{i}" for i in range(10)], [f"word {i}" for i in range(10)]
    info = CheckpointInfo(
        "plain_a", HPARAMS, classes=classes, labels=labels, preprocessing={**PREPROCESSING, "image_resize": 16}
    )
    save_checkpoint(path, net, info)
    return net, path


def test_the_public_names_are_shown_and_typed():
    code = "import sys, mindcv_reparam; print(*dir(mindcv_reparam)); sys.exit('mindspore' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(mindcv_reparam.__all__) <= set(shown.split())
    assert set(mindcv_reparam.__all__) == {*mindcv_reparam._EXPORTS, "__version__"}
    for name in mindcv_reparam._EXPORTS:
        hints = inspect.signature(getattr(mindcv_reparam, name))
        assert hints.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in hints.parameters.values()), name
        assert getattr(mindcv_reparam, name).__doc__
    assert typing.get_type_hints(create_model)["return"] is Network
    with pytest.raises(AttributeError, match="no attribute 'create_modell'"):
        _ = mindcv_reparam.create_modell


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mindcv_reparam {mindcv_reparam.__version__}\n"


def test_models_are_listed_by_a_part_of_their_names():
    assert list_models("sa12") == ["fastvit_sa12", "rtdetr_fastvit_sa12"]
    assert list_models("fastvit_*")[0] == "fastvit_t8"
    assert list_models("nothing") == []


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        ("fastvit_t8", {"pretrained": True}, ["weights are not downloaded", "timm, apple", "convert FILE -o fastvit"]),
        ("fastvit_t8", {"num_classes": True}, ['create_model("fastvit_t8", checkpoint="fastvit_t8.ckpt")']),
        ("visformer_tiny_v2", {"pretrained": True}, ["(mindcv; "]),
        ("rtdetr_r18vd", {"pretrained": True}, ["rt-detr", "checkpoint="]),
        ("rtdetr_riformer_xs", {"pretrained": True}, ["nobody has published weights of rtdetr_riformer_xs"]),
    ],
)
def test_pretrained_answers_what_to_do(model, arguments, expected):
    with pytest.raises(UserError) as raised:
        create_model(model, **arguments)
    assert all(part in str(raised.value) for part in expected)
    assert "\n" not in str(raised.value)


# -- Classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
def test_a_classifier_is_exchanged(family):
    name, small = SMALL[family]
    net = randomise(create_model(name, num_classes=NUM_CLASSES, img_size=32, **small)).set_train(False)
    images, before = random_images((32, 32)), arrays(net)
    assert net.get_classifier() is net.head
    assert net.get_classifier().out_channels == NUM_CLASSES
    features = net.head.in_channels
    net.reset_classifier(0)
    pooled = net(images)
    assert pooled.shape == (2, features)
    assert (net.num_classes, type(net.get_classifier())) == (0, nn.Identity)
    net.reset_classifier(7)
    after = arrays(net)
    assert after.keys() == before.keys()
    assert [parameter.name for parameter in net.get_parameters()] == list(after)
    moved = {name for name in after if after[name].shape != before[name].shape or np.any(after[name] != before[name])}
    assert moved == {"head.weight", "head.bias"}
    assert after["head.weight"].shape == (7, features)
    assert 0 < after["head.weight"].std() < 0.5  # drawn as the family does
    np.testing.assert_array_equal(after["head.bias"], 0)
    assert {"head.weight", "head.bias"} <= {parameter.name for parameter in net.trainable_params()}
    assert difference(net(images), pooled.asnumpy() @ after["head.weight"].T) < 1e-5


def test_a_family_from_outside_has_it_too(saved):
    net = model_from_checkpoint(saved[1])[0]
    assert net.get_classifier() is net.linear
    net.reset_classifier(3)
    images = random_images((16, 16))
    assert net(images).shape == (2, 3)
    assert net.linear.bias.name == "linear.bias"
    fused = reparameterize(net)
    assert difference(fused(images), net(images)) < 2e-5
    assert fused.preprocessing == net.preprocessing


def test_a_compiled_network_takes_its_new_classifier(saved, graph_mode):
    net, images = model_from_checkpoint(saved[1])[0], random_images((16, 16))
    assert net(images).shape == (2, 10)
    net.reset_classifier(3)
    net.linear.weight.set_data(Tensor(np.zeros((3, 8)), ms.float32))
    net.linear.bias.set_data(Tensor([1, 2, 3], ms.float32))
    np.testing.assert_array_equal(net(images).asnumpy(), [[1, 2, 3]] * 2)


def test_a_new_classifier_keeps_the_rows_of_classes_that_the_network_knows(saved):
    net = model_from_checkpoint(saved[1])[0]
    assert (net.classes[3], net.labels[3]) == ("n3", "word 3")
    weight, bias = net.linear.weight.asnumpy(), net.linear.bias.asnumpy()
    net.reset_classifier(3, classes=["n7", "other", "n2"])
    assert (net.classes, net.labels) == (("n7", "other", "n2"), ())
    np.testing.assert_array_equal(net.linear.weight.asnumpy()[[0, 2]], weight[[7, 2]])
    np.testing.assert_array_equal(net.linear.bias.asnumpy(), [bias[7], 0, bias[2]])
    assert np.any(net.linear.weight.asnumpy()[1] != weight[1])


def test_what_has_no_classifier_to_exchange_says_why(saved, tmp_path):
    name, small = SMALL["riformer"]
    fused = reparameterize(create_model(name, img_size=64, num_classes=2, **small))
    with pytest.raises(UserError, match="is fused, and its last normalisation with the classifier"):
        fused.reset_classifier(3)
    save_checkpoint(tmp_path / "f.ckpt", fused, CheckpointInfo(name, {"num_classes": 2, **small}, state="full"))
    with pytest.raises(UserError, match="is fused, and its last normalisation"):
        create_model(name, num_classes=0, checkpoint=tmp_path / "f.ckpt")
    backbone = create_model("plain_a", **HPARAMS, features_only=True)
    with pytest.raises(UserError, match="this plain_a has no classifier"):
        backbone.get_classifier()
    detector = create_model("rtdetr_riformer_xs", num_classes=2)
    with pytest.raises(UserError, match="this rtdetr_riformer_xs has no classifier"):
        detector.reset_classifier(3)
    net = model_from_checkpoint(saved[1])[0]
    with pytest.raises(UserError, match="3 classes, and 2 names"):
        net.reset_classifier(3, classes=["a", "b"])


def test_a_new_head_is_a_warning(saved):
    net, path = saved
    message = r"plain\.ckpt, but for linear\.weight, linear\.bias, of other classes: new but for the rows of 0 classes"
    with pytest.warns(UserWarning, match=message) as caught:
        other = create_model("plain_a", num_classes=3, checkpoint=path)
    assert [Path(warning.filename).name for warning in caught] == ["test_python.py"]
    assert other.classes == ()
    assert other.preprocessing["crop_pct"] == 0.75
    with pytest.warns(UserWarning, match="new but for the rows of 2 classes") as caught:
        load_checkpoint(other, path, new_head=True, classes=["n1", "other", "n0"])
    assert [Path(warning.filename).name for warning in caught] == ["test_python.py"]
    np.testing.assert_array_equal(other.linear.bias.asnumpy()[[0, 2]], net.linear.bias.asnumpy()[[1, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_model("plain_a", checkpoint=path)
        create_model("plain_a", num_classes=0, checkpoint=path)
        load_checkpoint(create_model("plain_a", **HPARAMS), path)


# -- Images -----------------------------------------------------------------------------------------------------------


def test_a_network_knows_its_input(saved):
    published = create_model("fastvit_t8").preprocessing
    assert (published["image_resize"], published["crop_pct"], published["interpolation"]) == (
        (256, 256),
        0.9,
        "bicubic",
    )
    assert published["mean"] == pytest.approx((123.675, 116.28, 103.53))
    assert create_model("plain_a", img_size=24).preprocessing["image_resize"] == (24, 24)
    said = create_model("plain_a", checkpoint=saved[1], img_size=[16, 24]).preprocessing
    assert said == {**PREPROCESSING, "image_resize": (16, 24)}
    net = create_model("plain_a", **HPARAMS)
    load_checkpoint(net, saved[1])
    assert net.preprocessing == {**PREPROCESSING, "image_resize": (16, 16)}
    assert net.labels[3] == "word 3"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A class folder with a photograph, a drawing with transparency and a grey one, of odd sizes."""
    folder = tmp_path_factory.mktemp("pictures") / "n0"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.jpg", (61, 83, 3)), ("b.png", (90, 40, 4)), ("c.png", (33, 47))):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / name)
    return folder


def test_the_transform_has_the_bits_of_validation(saved, pictures, tmp_path):
    net, info = model_from_checkpoint(saved[1])
    config = Config(dataset="imagenet", data_dir=str(pictures.parent), batch_size=3, num_parallel_workers=1)
    config = config.with_defaults(**info.preprocessing, num_classes=10, model="plain_a")
    source = create_dataset(config, train=False)
    with open_loader(task_of("plain_a"), source, config, False) as loader:
        ((images, *_),) = loader.epoch(0)
    files = sorted(pictures.iterdir())
    bundle = tmp_path / "bundle"
    write_bundle(bundle, image_resize=(16, 16), **PREPROCESSING)
    for model in (net, saved[1], bundle):
        transform = eval_transform(model)
        for image, file in zip(images, files, strict=True):
            with Image.open(file) as picture:
                pixels = np.asarray(picture)
                assert transform(file).tobytes() == image.tobytes()
                assert transform(picture).tobytes() == image.tobytes()
            for given in (str(file), file.read_bytes(), pixels):
                assert transform(given).tobytes() == image.tobytes()
    assert transform(pixels).dtype == np.float32
    with pytest.raises(UserError, match=r"an array of float32 \[3, 4, 4\] is no image"):
        transform(np.zeros((3, 4, 4), np.float32))
    with pytest.raises(UserError, match=r"none\.jpg cannot be read: No such file"):
        transform("none.jpg")
    with pytest.raises(UserError, match="a dict is no network of create_model"):
        eval_transform({})


def test_the_user_s_image_stays_as_it_is(saved):
    palette = Image.new("P", (20, 20))
    palette.info["transparency"] = 0
    grey = Image.new("L", (20, 20), 7)
    grey.info["transparency"] = 7
    for image in (palette, grey):
        eval_transform(saved[1])(image)
        assert "transparency" in image.info
    white = eval_transform(saved[1])(grey)
    np.testing.assert_allclose(white[:, 0, 0], [(255 - 10) / 40, (255 - 20) / 50, (255 - 30) / 60], rtol=1e-6)


# -- Predictions ------------------------------------------------------------------------------------------------------


def expected_of(net, file, count):
    logits = net(Tensor(eval_transform(net)(file)[None])).asnumpy()[0].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)[:count]
    return order.tolist(), probabilities[order].tolist()


def test_networks_and_checkpoints_predict(saved, pictures):
    path, files = saved[1], sorted(pictures.iterdir())
    net = model_from_checkpoint(path)[0].set_train(True)
    tables = [predict(net, [files[1], files[0]], top_k=3), predict(path, [files[1], files[0]], top_k=3)]
    assert net.training
    net.set_train(False)
    for table in tables:
        assert table.columns == ("image", "rank", "label", "probability", "index")
        assert table["image"] == [str(files[1])] * 3 + [str(files[0])] * 3
        assert table["rank"] == [1, 2, 3] * 2
        for place, file in ((0, files[1]), (3, files[0])):
            indices, probabilities = expected_of(net, file, 3)
            assert table["index"][place : place + 3] == indices
            assert table["label"][place : place + 3] == [f"word {index}" for index in indices]
            np.testing.assert_allclose(table["probability"][place : place + 3], probabilities, rtol=1e-4)
    assert len(predict(net, pictures)) == 3 * 5
    assert predict(net, files[0], top_k=1, labels=list("abcdefghij"))["label"][0] in "abcdefghij"
    few = predict(net, files[0], threshold=0.1)
    assert min(few["probability"]) >= 0.1


def test_images_in_memory_have_names_and_bad_ones_are_told(saved, pictures):
    net, file = model_from_checkpoint(saved[1])[0], next(iter(sorted(pictures.iterdir())))
    with Image.open(file) as opened:
        pixels = np.asarray(opened)
        table = predict(net, [pixels, opened, pixels], top_k=1)
    assert table["image"] == ["image 0", str(file), "image 2"]
    assert len({*table["index"]}) == 1
    with pytest.warns(UserWarning, match=r"left out: image 1: an array of float32 \[4, 4\] is no image"):
        table = predict(net, [pixels, np.zeros((4, 4), np.float32), pixels], top_k=1)
    assert table["image"] == ["image 0", "image 2"]
    with pytest.raises(UserError, match="no image can be read: image 0: not an image"):
        predict(net, b"no image")
    assert len(predict(net, np.stack([pixels, pixels]), top_k=1)) == 2
    with pytest.raises(UserError, match="there are no images"):
        predict(net, [])


def test_another_allocator_is_refused_where_mindspore_was_imported_before(saved, pictures, monkeypatch):
    monkeypatch.setattr("mindcv_reparam.run.python.allocator", lambda: "/usr/lib/libjemalloc.so.2")
    for model in saved:
        with pytest.raises(UserError, match=r"memory comes from /usr/lib/libjemalloc\.so\.2, not from the C library"):
            predict(model, pictures)


def test_a_graph_is_compiled_for_few_sizes_of_batch(saved, pictures, graph_mode):
    net, file = model_from_checkpoint(saved[1])[0], sorted(pictures.iterdir())[0]
    shapes, run = [], type(net).__call__

    def counted(cell, images):
        shapes.append(images.shape[0])
        return run(cell, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(net), "__call__", counted)
        tables = [predict(net, [file] * count, top_k=1) for count in (1, 2, 8)]
    assert [len(table) for table in tables] == [1, 2, 8]
    assert shapes == [1, 8, 8]
    np.testing.assert_allclose(tables[2]["probability"], tables[0]["probability"] * 8, rtol=1e-5)


def test_a_bundle_predicts_without_mindspore(tmp_path):
    write_bundle(tmp_path / "bundle")
    Image.new("RGB", (30, 20), COLOURS["green"]).save(tmp_path / "green.png")
    code = (
        "import sys, mindcv_reparam; print(mindcv_reparam.predict('bundle', 'green.png', top_k=2)); "
        "sys.exit('mindspore' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["image", "rank", "label", "probability", "index"]
    assert lines[1][:3] == ["green.png", "1", "green"]
    assert [line[0] for line in lines[1:]] == ["green.png"] * 2


@pytest.mark.slow
def test_detectors_give_boxes():
    name = "rtdetr_riformer_xs"
    net = randomise(create_model(name, num_classes=2, img_size=64, num_queries=10, num_layers=1)).set_train(False)
    picture = np.random.default_rng(0).integers(0, 256, (50, 80, 3)).astype(np.uint8)
    table = predict(net, picture, top_k=4, threshold=0.0, labels=["cat", "dog"])
    assert table.columns == ("image", "label", "score", "x1", "y1", "x2", "y2", "index")
    assert len(table) == 4
    assert table["score"] == sorted(table["score"], reverse=True)
    assert {*table["label"]} <= {"cat", "dog"}
    assert max(table["x2"]) > 1
    assert len(predict(net, picture, threshold=1.0)) == 0


def test_what_gives_features_predicts_nothing(saved):
    pixels = np.zeros((20, 20, 3), np.uint8)
    for options in ({"num_classes": 0}, {"features_only": True}):
        net = create_model("plain_a", checkpoint=saved[1], **options)
        assert eval_transform(net)(pixels).shape == (3, 16, 16)
        with pytest.raises(UserError, match="this plain_a gives features and has no classes to tell"):
            predict(net, pixels)


# -- Tables -----------------------------------------------------------------------------------------------------------


def test_a_table_shows_itself(tmp_path, monkeypatch):
    table = Table(("image", "label", "probability"), [("a.png", "猫", 0.75), ("long name.png", "a <b>", 0.0625)])
    assert str(table) == (
        "image          label  probability\na.png          猫          0.7500\nlong name.png  a <b>       0.0625"
    )
    assert '<td>a &lt;b&gt;</td><td style="text-align: right">0.0625</td>' in table._repr_html_()
    assert table[1] == {"image": "long name.png", "label": "a <b>", "probability": 0.0625}
    assert [row["label"] for row in table] == table["label"]
    with pytest.raises(KeyError, match="no column labels, only image, label"):
        _ = table["labels"]
    table.to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "image,label,probability\na.png,猫,0.75\nlong name.png,a <b>,0.0625\n"
    many = Table(("n",), [(number,) for number in range(100)])
    assert "… 40 rows …" in str(many)
    assert len(str(many).splitlines()) == 62
    assert many._repr_html_().count("<tr>") == 62
    assert str(Table(("image", "label"), [])) == "image  label"


def test_pandas_is_used_where_it_is(monkeypatch):
    table = Table(("a", "b"), [(1, 2)])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pandas is not installed"):
        table.to_pandas()
    pandas = type(sys)("pandas")
    pandas.DataFrame = lambda rows, columns: (rows, columns)
    pandas.__spec__ = object()
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert table.to_pandas() == ([(1, 2)], ["a", "b"])


# -- Documentation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the documentation's code finds in its folder: weights, of a small network, photographs, a bundle."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "photos").mkdir()
    for name in ("cat.jpg", "photos/one.jpg", "photos/two.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)).save(folder / name)
    hparams = {"num_classes": 1000, "img_size": [32, 32], **SMALL["fastvit"][1]}
    names = [f"n{index:08d}" for index in range(1000)]
    info = CheckpointInfo("fastvit_t8", hparams, classes=names, labels=[f"word {name}" for name in names])
    save_checkpoint(folder / "fastvit_t8.ckpt", create_model("fastvit_t8", **hparams), info)
    write_bundle(folder / "bundle")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_the_documentation_s_code_runs(document, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    found: dict[str, typing.Any] = {}
    blocks = PYTHON_BLOCK.findall((ROOT / document).read_text())
    assert blocks
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for block in blocks:
            exec(compile(block, document, "exec"), found)
    assert found["transform"]("cat.jpg").shape == (3, 32, 32)
    assert [stage["stride"] for stage in found["backbone"].feature_info] == [4, 8, 16, 32]
    assert found["net"].num_classes == (2 if "table" in found else 5)
    if "table" in found:
        assert found["logits"].shape == (1, 1000)
        assert len(found["table"]) == 9
        assert len((workplace / "predictions.csv").read_text().splitlines()) == 10
