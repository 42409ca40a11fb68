"""A detector as a file: with its post-processing or without, in MindSpore and onnxruntime, for Ascend's compilers."""

import dataclasses
import json

import mindspore as ms
import numpy as np
import onnx
import pytest
from mindspore import Tensor, nn, ops
from networks import SMALL_DETECTOR, randomise
from PIL import Image
from test_export_graph import KNOWN_TO_LITE, primitives
from test_export_onnx import ASCEND_OPERATORS, counts, initializers, run
from test_results import serve

from mindcv_reparam import create_model, reparameterize, zoo
from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import Manifest, read_manifest, write_manifest
from mindcv_reparam.checkpoint_info import default_info
from mindcv_reparam.commands import export, verify
from mindcv_reparam.config import Config
from mindcv_reparam.data.scenes import Scenes
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.graph import Interface, prepare
from mindcv_reparam.export.mindir import write_mindir
from mindcv_reparam.export.onnx import export_onnx, translate
from mindcv_reparam.models.resnet_vd import ResNetVd
from mindcv_reparam.run.runners import mindspore_program
from mindcv_reparam.run.sample import write_sample
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tasks.detection.heads import BestDetections
from mindcv_reparam.tensors import TOLERANCE, TensorSpec, relative_difference

DETECTION = task_named("detection")
PREPROCESSING = {"image_resize": (64, 96), "mean": (123.675, 116.28, 103.53), "std": (58.4, 57.12, 57.375)}
QUERIES, CLASSES = 8, 3


# Only what is exported is compiled.
pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def net():
    """A fused detector of which every layer moves the boxes."""
    options = {
        "num_classes": CLASSES,
        "img_size": PREPROCESSING["image_resize"],
        "num_queries": QUERIES,
        "num_layers": 2,
    }
    network = create_model("rtdetr_riformer_xs", **SMALL_DETECTOR | options).set_train(False)
    rng = np.random.default_rng(0)
    for name, parameter in network.parameters_and_names():
        if not parameter.asnumpy().any():  # the layers that begin at zero
            scale = 0.3 if "bbox_head" in name or "cross_attn" in name else 0.0
            parameter.set_data(Tensor(rng.normal(0, scale, parameter.shape), ms.float32))
    return reparameterize(network, "full")


def written(net, interface, folder):
    deployment = prepare(net, "full", interface, PREPROCESSING, DETECTION)
    path = folder / "model.mindir"
    names = tuple(output.name for output in deployment.outputs)
    write_mindir(deployment.graph, path, deployment.input, names, deployment.sizes)
    return deployment, path


@pytest.fixture(scope="module")
def best(net, tmp_path_factory):
    """From bytes to detections, of any number of images."""
    return written(net, Interface("rgb", batch_sizes=None), tmp_path_factory.mktemp("best"))


@pytest.fixture(scope="module")
def expected(best):
    """What the network gives for each of the trials."""
    deployment, _ = best
    return [deployment.on_images(deployment.expected)(images) for images in deployment.trials()]


def largest_difference(deployment, expected, program):
    found = [deployment.on_images(program)(images) for images in deployment.trials()]
    return max(
        DETECTION.results.difference(deployment.output_kind, *pair) for pair in zip(expected, found, strict=True)
    )


def session(model):
    return lambda *inputs: tuple(run(model, *inputs))


def test_the_whole_graph_gives_detections_in_pixels(best, expected):
    deployment, path = best
    assert deployment.outputs == (
        TensorSpec("labels", "int32", (None, QUERIES * CLASSES)),
        TensorSpec("boxes", "float32", (None, QUERIES * CLASSES, 4)),
        TensorSpec("scores", "float32", (None, QUERIES * CLASSES)),
    )
    assert deployment.inputs[1] == TensorSpec("sizes", "int32", (None, 2))
    model = translate(path)
    assert [entry.name for entry in model.graph.input] == ["images", "sizes"]
    assert [entry.name for entry in model.graph.output] == ["labels", "boxes", "scores"]
    for program in (mindspore_program(path), session(model)):
        assert largest_difference(deployment, expected, program) <= TOLERANCE
        labels, boxes, scores = deployment.on_images(program)(deployment.trials()[1])
        assert (len(labels), boxes.std(axis=1).min() > 1, (np.diff(scores) <= 0).all()) == (3, True, True)
    # Half of the width and all of the height: the places move with it, but for those that are cut.
    images = deployment.trials()[0]
    (_, wide, _), (_, slim, _) = (
        session(model)(images, np.array([size], np.int32)) for size in ((400, 300), (200, 300))
    )
    np.testing.assert_allclose(slim, wide * np.array([0.5, 1, 0.5, 1], np.float32), rtol=1e-6)


@pytest.mark.parametrize("opset", [11, 16, 18, 21])
def test_every_opset_computes_the_same(best, expected, opset):
    deployment, path = best
    assert largest_difference(deployment, expected, session(translate(path, opset=opset))) <= TOLERANCE


def test_compilers_know_every_operator(best):
    _, path = best
    model = translate(path)
    assert counts(model).keys() <= set(json.loads(ASCEND_OPERATORS.read_text())["operators"])
    # Lite's converter for Ascend maps SiLU (tools/converter/adapter/acl/mapper/silu_mapper.cc), its schema has none.
    assert primitives(path) - KNOWN_TO_LITE <= {"SiLU"}


def test_the_published_detectors_backbone_is_exported(tmp_path):
    """Its pool pads, behind a ReLU, with zeros; the files' outputs are those of a pool that pads with -inf."""
    backbone = randomise(ResNetVd((1, 1, 1, 1), bottleneck=False)).set_train(False)
    path, spec = tmp_path / "net.mindir", TensorSpec("x", "float32", (None, 3, 64, 96))
    names = ("c2", "c3", "c4", "c5")
    write_mindir(reparameterize(backbone), path, spec, names)
    model = translate(path)
    assert counts(model).keys() <= set(json.loads(ASCEND_OPERATORS.read_text())["operators"])
    assert primitives(path) <= KNOWN_TO_LITE
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 96), np.float32)
    backbone.pool = nn.MaxPool2d(kernel_size=3, stride=2, pad_mode="pad", padding=1)
    expected = [output.asnumpy() for output in backbone(Tensor(images))]
    for outputs in (run(model, images), mindspore_program(path)(images)):
        assert largest_of(expected, outputs) <= TOLERANCE


def largest_of(expected, outputs):
    return max(relative_difference([one], [other]) for one, other in zip(expected, outputs, strict=True))


def test_compilers_see_constant_counts_and_no_batch(best):
    model = translate(best[1])
    constants = initializers(model)
    tops = [node for node in model.graph.node if node.op_type == "TopK"]
    assert [constants[node.input[1]].tolist() for node in tops] == [[QUERIES], [QUERIES * CLASSES]]
    inferred = onnx.shape_inference.infer_shapes(model)
    forms = {info.name: info.type.tensor_type.shape.dim for info in inferred.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            first = constants[node.input[1]][0]
            assert first in (0, -1), f"{node.name} has a batch of {first}"
    assert all(forms[node.output[0]][0].dim_value == 0 for node in tops)


def test_a_raw_head_gives_what_the_network_does(net, tmp_path):
    deployment, path = written(net, Interface(output_kind="logits", batch_sizes=(2,)), tmp_path)
    assert deployment.outputs == (
        TensorSpec("logits", "float32", (2, QUERIES, CLASSES)),
        TensorSpec("boxes", "float32", (2, QUERIES, 4)),
    )
    assert deployment.sizes is None
    expected = [deployment.expected(images) for images in deployment.trials()]
    assert largest_difference(deployment, expected, session(translate(path))) <= TOLERANCE


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        (Interface(top_k=25), "top_k 25 is more than the 24 detections that the model has: 8 queries of 3 classes"),
        (Interface(dynamic_image_size=True), "the image size of a detector is fixed"),
        (Interface(output_kind="softmax"), "export_head softmax: detection has topk, logits"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(net, interface, message):
    with pytest.raises(UserError, match=message):
        prepare(net, "full", interface, PREPROCESSING, DETECTION)


def test_post_processing_of_known_numbers():
    logits = Tensor([[[-2.0, 0.5, -3.0], [1.0, -4.0, 3.0]]], ms.float32)
    boxes = Tensor([[[0.5, 0.5, 0.2, 0.4], [0.05, 0.9, 0.2, 0.2]]], ms.float32)
    labels, places, scores = BestDetections(3)((logits, boxes), Tensor([[200, 100]], ms.int32))
    assert labels.asnumpy().tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(places.asnumpy(), [[[0, 80, 30, 100]] * 2 + [[80, 30, 120, 70]]], atol=1e-4)
    np.testing.assert_allclose(scores.asnumpy(), [[0.952574, 0.731059, 0.622459]], atol=1e-6)
    assert BestDetections(300)((logits, boxes), Tensor([[200, 100]], ms.int32))[0].shape == (1, 6)


# rules for ONNX, on what they are made of


class Selections(nn.Cell):
    """Everything of tensors that selects, in one graph: (N, 6, 5) → (N, …)."""

    def __init__(self):
        super().__init__()
        self.top = ops.TopK(sorted=True)
        self.act = nn.SiLU()

    def construct(self, x):
        best, places = self.top(ops.amax(x, -1), 4)
        rows = ops.gather(x, places, 1, 1)
        halves = ops.floor_divide(places, 2)
        image = ops.ResizeNearestNeighbor((12, 15))(x.reshape((-1, 1, 6, 5)))
        parts = x[:, 1:, 4], x[:, :4:2, 1:3], x[..., -1]
        near = (ops.floor(x) == ops.minimum(ops.maximum(ops.floor(x), -1.0), 1.0)).astype(ms.float32)
        return rows, halves, image, ops.stack((rows, self.act(rows)), -1), near, best, *parts


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("opset", [11, 17])
def test_selections_are_translated(tmp_path, batch, opset):
    net = Selections()
    path = tmp_path / "net.mindir"
    ms.export(net, Tensor(shape=[batch, 6, 5], dtype=ms.float32), file_name=str(path), file_format="MINDIR")
    model = translate(path, opset=opset)
    for count in (batch,) if batch else (1, 2):
        x = np.random.default_rng(count).normal(0, 2, (count, 6, 5)).astype(np.float32)
        for expected, actual in zip(net(Tensor(x)), run(model, x), strict=True):
            np.testing.assert_allclose(actual, expected.asnumpy(), rtol=1e-6, atol=1e-6)
            assert actual.dtype == expected.asnumpy().dtype


class NegativeQuotient(nn.Cell):
    def construct(self, x):
        return ops.floor_divide(ops.cast(x, ms.int32), 2)


class OddResize(nn.Cell):
    def construct(self, x):
        return ops.ResizeNearestNeighbor((7, 7))(x.reshape((1, 1, 4, 4)))


class OtherGather(nn.Cell):
    def construct(self, x):
        return ops.gather(x, ops.cast(x[:, :, 0], ms.int32), 2, 1)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (NegativeQuotient, "a quotient rounded down of what may be negative"),
        (OddResize, r"resizing \(1, 1, 4, 4\) to \(1, 1, 7, 7\)"),
        (OtherGather, "a Gather of 1 batch axes along axis 2"),
    ],
)
def test_what_has_no_equal_in_onnx_is_refused(tmp_path, cell, message):
    path = tmp_path / "net.mindir"
    ms.export(cell(), Tensor(np.ones((1, 4, 4)), ms.float32), file_name=str(path), file_format="MINDIR")
    with pytest.raises(UserError, match=message):
        translate(path)


# a bundle, from the command line to the server


@pytest.fixture(scope="module")
def bundle(best, tmp_path_factory):
    deployment, path = best
    folder = tmp_path_factory.mktemp("bundles") / "detector"
    folder.mkdir()
    manifest = Manifest(
        model="rtdetr_riformer_xs",
        state="full",
        input=deployment.input,
        input_kind="rgb",
        outputs=deployment.outputs,
        output_kind="topk",
        batch_sizes=None,
        weights="fp32",
        files={"ONNX": "model.onnx"},
        labels=("cat", "dog", "fire hydrant"),
        preprocessing={**PREPROCESSING, "crop_pct": 1.0, "interpolation": "bilinear"},
        task="detection",
        sizes=deployment.sizes,
        meanings=DETECTION.results.meanings("topk"),
        category_ids=(90, 7, None),
    )
    write_manifest(manifest, folder)
    export_onnx(path, folder / "model.onnx")
    write_sample(folder, manifest, deployment.expected)
    write_checksums(folder)
    return folder


@pytest.fixture
def coco(tmp_path):
    """Two images with an object each, of categories that the bundle numbers otherwise."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / "val2017" / name)
    content = dict(
        images=[dict(id=id, file_name=f"{'ab'[id]}.png", width=60, height=40) for id in range(2)],
        annotations=[dict(image_id=id, category_id=id + 1, bbox=[10, 10, 20, 20]) for id in range(2)],
        categories=[dict(id=1, name="dog"), dict(id=2, name="cat")],
    )
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return tmp_path


def test_verify_measures_the_files_on_labelled_images(bundle, coco, monkeypatch, capsys):
    assert main(["verify", str(bundle), "--verify_data", str(coco)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " AP " in line)
    assert line.startswith("ONNX: AP 0.")
    assert line.endswith(" on 2 images")
    # A checkpoint's network that finds both objects, where the untrained files find neither.
    logits, boxes = np.full((2, 9, 3), -9, np.float32), np.full((2, 9, 4), 0.5, np.float32)
    logits[0, 0, 1] = logits[1, 0, 0] = 9
    boxes[:, 0] = [20 / 60, 20 / 40, 20 / 60, 20 / 40]
    found = iter([(logits, boxes)])
    monkeypatch.setattr(verify, "_checkpoint", lambda path, manifest: (lambda images: _rows(next(found), images), None))
    command = ["verify", str(bundle), "--verify_data", str(coco), "--labels", str(bundle / "labels.txt")]
    expected = r"model\.onnx tells other objects than expected: AP 0\.\d+ on 2 images, the checkpoint 1\.0000"
    with pytest.raises(UserError, match=expected):
        main([*command, "--ckpt_path", "net.ckpt"])


def _rows(arrays, images):
    """As many as there are images: the batch is filled up."""
    return tuple(np.resize(array, (len(images), *array.shape[1:])) for array in arrays)


def test_what_verify_is_asked_beside_labelled_images_needs_them(bundle):
    with pytest.raises(UserError, match="--num_samples is for labelled images: name them by --verify_data"):
        main(["verify", str(bundle), "--num_samples", "3"])


def test_the_checkpoint_that_verify_compares_with_is_of_that_model(bundle, monkeypatch):
    info = default_info("rtdetr_riformer_xs")
    monkeypatch.setattr(zoo, "model_from_checkpoint", lambda path: (None, info))
    with pytest.raises(UserError, match=r"net\.ckpt is a rtdetr_riformer_xs of 80 classes, the bundle a .* of 3$"):
        verify._checkpoint("net.ckpt", read_manifest(bundle))


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 120, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_bundle_says_what_a_client_has_to_know(bundle):
    said = json.loads((bundle / "bundle.json").read_text())
    assert said["meanings"].keys() == {"sizes", "labels", "boxes", "scores"}
    assert said["meanings"]["sizes"].startswith("width and height, in this order")
    assert "x1 y1 x2 y2 in pixels" in said["meanings"]["boxes"]
    assert "from 0.5 on" in said["meanings"]["scores"]
    assert said["category_ids"] == [90, 7, None]
    assert [read_manifest(bundle).number(index) for index in range(4)] == [90, 7, 93, 94]
    assert main(["verify", str(bundle)]) == 0


def test_infer_tells_stores_and_draws_the_objects(bundle, photo, tmp_path, capsys):
    outputs = [tmp_path / f"found.{ending}" for ending in ("json", "csv")]
    for output in outputs:
        command = ["infer", str(bundle), str(photo), "--output", str(output), "--draw", str(tmp_path / "drawn")]
        assert main([*command, "--threshold", "0", "--topk", "4"]) == 0
    told = json.loads(outputs[0].read_text())
    assert told["images"] == [{"id": 1, "file_name": str(photo), "width": 120, "height": 50}]
    assert [one["id"] for one in told["annotations"]] == [1, 2, 3, 4]
    rows = outputs[1].read_text().splitlines()
    assert len(rows) == 5
    left, top, wide, high = told["annotations"][0]["bbox"]
    assert 0 <= left <= left + wide <= 120
    assert 0 <= top <= top + high <= 50
    names = {one["id"]: one["name"] for one in told["categories"]}
    assert names.items() <= {90: "cat", 7: "dog", 93: "fire hydrant"}.items()
    category = names[told["annotations"][0]["category_id"]]
    score = told["annotations"][0]["score"]
    assert capsys.readouterr().out.startswith(f"{photo}: {category} {score:.2f} at {left:.0f}")
    (drawn,) = (tmp_path / "drawn").iterdir()
    assert Image.open(drawn).size == (120, 50)
    assert main(["infer", str(bundle), str(photo)]) == 0  # untrained, it is sure of nothing
    assert capsys.readouterr().out == f"{photo}: nothing\n"


def test_the_server_detects_and_takes_sizes(bundle, photo):
    pixels = np.zeros((2, *PREPROCESSING["image_resize"], 3), np.uint8)
    inputs = [
        {"name": "images", "shape": pixels.shape, "datatype": "UINT8", "data": pixels.ravel().tolist()},
        {"name": "sizes", "shape": (2, 2), "datatype": "INT32", "data": [[400, 300], [200, 300]]},
    ]
    path = "/v2/models/detector"
    image, request, metadata = serve(
        [bundle],
        [
            ("POST", f"{path}/detect?k=3&threshold=0", photo.read_bytes()),
            ("POST", f"{path}/infer", json.dumps({"inputs": inputs}).encode()),
            ("GET", path),
        ],
    )
    assert [image[0], request[0], metadata[0]] == [200, 200, 200]
    told = json.loads(image[2])
    assert (told["width"], told["height"], len(told["objects"])) == (120, 50, 3)
    assert told["objects"][0].keys() == {"index", "label", "category_id", "score", "box"}
    numbers = {"cat": 90, "dog": 7, "fire hydrant": None}
    assert all(one["category_id"] == numbers[one["label"]] for one in told["objects"])
    assert told["objects"][0]["score"] >= told["objects"][1]["score"]
    assert [one["datatype"] for one in json.loads(metadata[2])["inputs"]] == ["UINT8", "INT32"]
    labels, boxes, scores = (np.reshape(one["data"], one["shape"]) for one in json.loads(request[2])["outputs"])
    assert (labels[0] == labels[1]).all()
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    np.testing.assert_allclose(boxes[1], boxes[0] * [0.5, 1, 0.5, 1], rtol=1e-5, atol=1e-3)


def test_accuracy_is_compared_on_scenes_by_their_name_or_a_folder_of_coco(tmp_path):
    info = default_info("rtdetr_riformer_xs")
    info = dataclasses.replace(info, hparams={**info.hparams, "num_classes": 10})

    def images_to_compare_on(config, info):
        return export.images_to_compare_on(config, info.model, info.preprocessing, info.classes, 10)

    source = images_to_compare_on(Config(verify_data="scenes"), info)
    assert (type(source), len(source)) == (Scenes, 512)
    with pytest.raises(UserError, match=r"has neither annotations/instances_val2017\.json"):
        images_to_compare_on(Config(verify_data=str(tmp_path)), info)
    with pytest.raises(UserError, match="verify_data nowhere is no folder: give that of a data set, or one of digits"):
        images_to_compare_on(Config(verify_data="nowhere"), info)
    with pytest.raises(UserError, match="dataset digits is not for detection, which is what rtdetr_riformer_xs is for"):
        images_to_compare_on(Config(verify_data="digits"), info)
