"""What is told of images is the task's alone: a task from outside the package goes through every program."""

import asyncio
import csv
import dataclasses
import functools
import json

import mindspore as ms
import msgspec
import numpy as np
import onnx
import pytest
from mindspore import nn, ops
from onnx import TensorProto, helper
from PIL import Image
from pydantic import BaseModel

from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import Manifest, read_manifest, write_manifest
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.transforms import eval_transform
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.ascend import ascend_files
from mindcv_reparam.export.graph import Interface, prepare
from mindcv_reparam.export.mindir import write_mindir
from mindcv_reparam.export.onnx import export_onnx
from mindcv_reparam.run import compare
from mindcv_reparam.run.accuracy import Comparison
from mindcv_reparam.run.runners import mindspore_program, onnxruntime_program
from mindcv_reparam.run.sample import write_sample
from mindcv_reparam.serving.app import application
from mindcv_reparam.serving.limits import Limits
from mindcv_reparam.serving.model import load_model
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.tensors import TensorSpec

SIZE = 8
PIXELS = (60, 40)  # width and height of the photo
COLOUR = (51, 102, 204)  # a point at 0.2 of the width and 0.4 of the height, with the score 0.8
POINT = {"x": pytest.approx(12, abs=1e-4), "y": pytest.approx(16, abs=1e-4), "score": pytest.approx(0.8, abs=1e-6)}


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float
    score: float


class Answer(BaseModel):
    model_name: str
    model_version: str
    points: list[dict[str, float]]


class PointResults:
    """One point per image: red and green say where, as parts of width and height, blue how surely.

    "points" is (N, 2) pixels of the image as decoded and (N, 1) scores, "parts" the network's own (N, 3).
    """

    kinds = ("points", "parts")
    what = "points"
    marks = True
    selects = True
    route = "point"
    most = 3
    least = 0.5
    columns = ("x", "y", "score")
    answer = Answer

    def tells(self, kind):
        return True

    def fits(self, kind, outputs):
        return [len(output.shape) for output in outputs] == ([2, 2] if kind == "points" else [2])

    def classes(self, kind, outputs):
        return None

    def plain(self, hparams, batch):
        return "parts", (TensorSpec("parts", "float32", (batch, 3)),)

    def meanings(self, kind):
        return {"places": "x and y in pixels"} if kind == "points" else {}

    def transform(self, config):
        return eval_transform(config)

    def find(self, kind, outputs, sizes, most, least):
        places, scores = outputs if kind == "points" else (outputs[0][:, :2] * sizes, outputs[0][:, 2:])
        found = []
        for (x, y), (score,) in zip(places.tolist(), scores.tolist(), strict=True):
            points = [Point(x, y, score)] * (score >= least)
            found.append(points[:most] if np.isfinite(score) else None)
        return found

    def line(self, found, label):
        return ", ".join(f"{label(0)} at {point.x:.1f} {point.y:.1f}" for point in found) or "nothing"

    def record(self, found, label, number):
        return {"points": [dataclasses.asdict(point) for point in found]}

    def document(self, found, skipped, label, number):
        return {"found": [self.record(points, label, number) for _, points in found], "left out": len(skipped)}

    def table(self, found, label):
        yield "file", "x"
        yield from ((file, point.x) for file, points in found for point in points)

    def rows(self, found, label):
        return [(point.x, point.y, point.score) for point in found]

    def caption(self, found, label):
        return f"{len(found)} points", ""

    def drawn(self, image, found, label):
        marked = image.copy()
        for point in found:
            place = round(point.x * image.width / PIXELS[0]), round(point.y * image.height / PIXELS[1])
            marked.putpixel(place, 0xFFFFFF)
        return marked

    def difference(self, kind, expected, actual):
        return 1e-6 * max(float(np.abs(e - a).max()) for e, a in zip(expected, actual, strict=True))

    def difference_note(self, kind):
        return "In a million pixels."

    def expected_names(self, kind, outputs):
        return tuple(f"expected {output.name}" for output in outputs)

    def expected_fits(self, kind, outputs, expected):
        return [array.shape[1:] for array in expected] == [(2,), (1,)]


class PointsCell(nn.Cell):
    """(N, 3) parts and (N, 2) sizes → places (N, 2) and scores (N, 1)."""

    def construct(self, parts, sizes):
        x, y, score = ops.split(parts, 1, 1)
        return ops.concat((x, y), 1) * ops.cast(sizes, ms.float32), score


@dataclasses.dataclass(frozen=True)
class PointsHead:
    takes_sizes = True

    def network(self, network):
        return network

    def cell(self):
        return PointsCell()

    def expected(self, outputs, sizes):
        return outputs[0][:, :2] * sizes, outputs[0][:, 2:]

    def specs(self, expected, batch, any_size):
        return TensorSpec("places", "float32", (batch, 2)), TensorSpec("scores", "float32", (batch, 1))


class PointComparison:
    def __init__(self):
        self.x = []

    def add(self, exported, checkpoint, indices, valid, sizes):
        self.x += [(x, part * width) for (x, _), (part, *_), (width, _) in zip(exported[0], checkpoint[0], sizes)]

    def result(self):
        return f"{len(self.x)} images, {max(abs(one - other) for one, other in self.x):.1f} pixels apart"


class Points:
    """As much of a task as bundles, programs, the server and export need."""

    name = "points"
    results = PointResults()

    def head(self, kind, most):
        return PointsHead()

    def comparison(self, kind, source):
        return PointComparison()


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(TASKS, "points", Points())


def manifest(kind="points", batch_sizes=None, **changes):
    batch = batch_sizes[0] if batch_sizes and len(batch_sizes) == 1 else None
    outputs = {
        "points": (TensorSpec("places", "float32", (batch, 2)), TensorSpec("scores", "float32", (batch, 1))),
        "parts": (TensorSpec("parts", "float32", (batch, 3)),),
    }
    values = {
        "model": "visformer_tiny",
        "state": "full",
        "input": TensorSpec("images", "float32", (batch, 3, SIZE, SIZE)),
        "input_kind": "normalized",
        "outputs": outputs[kind],
        "output_kind": kind,
        "batch_sizes": batch_sizes,
        "weights": "fp32",
        "files": {"ONNX": "model.onnx"},
        "labels": ("corner",),
        "preprocessing": {
            **{"image_resize": SIZE, "crop_pct": 1.0, "interpolation": "bilinear"},
            **{"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        },
        "task": "points",
        "sizes": TensorSpec("sizes", "int32", (batch, 2)) if kind == "points" else None,
    }
    return Manifest(**values | changes)


def parts_of(images):
    return images.mean(axis=(2, 3), dtype=np.float32)


def write_model(path, said):
    nodes = [helper.make_node("ReduceMean", ["images"], ["parts"], axes=(2, 3), keepdims=0)]
    if said.sizes is not None:
        nodes += [
            helper.make_node("Split", ["parts", "two and one"], ["where", "scores"], axis=1),
            helper.make_node("Cast", ["sizes"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["where", "pixels"], ["places"]),
        ]
    types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    infos = {
        spec.name: helper.make_tensor_value_info(spec.name, types[spec.dtype], [spec.shape[0] or "n", *spec.shape[1:]])
        for spec in (*said.inputs, *said.outputs)
    }
    graph = helper.make_graph(
        nodes,
        "points",
        [infos[spec.name] for spec in said.inputs],
        [infos[spec.name] for spec in said.outputs],
        [helper.make_tensor("two and one", TensorProto.INT64, [2], [2, 1])] if said.sizes is not None else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_bundle(folder, said):
    folder.mkdir()
    write_manifest(said, folder)
    write_model(folder / "model.onnx", said)
    if said.output_kind == "points":
        write_sample(folder, said, lambda images, sizes: PointsHead().expected((parts_of(images),), sizes))
    write_checksums(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", PIXELS, COLOUR).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("kind", ["points", "parts"])
def test_infer_tells_and_stores_what_the_task_says(tmp_path, photo, capsys, kind):
    bundle = write_bundle(tmp_path / "bundle", manifest(kind, batch_sizes=(3,) if kind == "points" else None))
    Image.new("RGB", (50, 90), (51, 102, 25)).save(tmp_path / "unsure.png")
    (tmp_path / "broken.png").touch()
    outputs = [tmp_path / f"told.{ending}" for ending in ("json", "csv")]
    files = [photo, tmp_path / "unsure.png", tmp_path / "broken.png"]
    for output in outputs:
        sheet = tmp_path / "sheet.png"
        assert main(["infer", *map(str, (bundle, *files)), "--output", str(output), "--contact_sheet", str(sheet)]) == 1
    told, rows = json.loads(outputs[0].read_text()), list(csv.reader(outputs[1].open()))
    assert told == {"found": [{"points": [POINT]}, {"points": []}], "left out": 1}
    assert rows == [["file", "x"], [str(photo), rows[1][1]]]
    assert float(rows[1][1]) == pytest.approx(12, abs=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{photo}: corner at 12.0 16.0", f"{files[1]}: nothing"] * 2
    drawn = np.asarray(Image.open(tmp_path / "sheet.png"))
    # Of the thumbnail of 128 × 85 pixels, 8 from the left and 8 + 21 from the top.
    assert drawn[8 + 21 + round(16 * 85 / 40), 8 + round(12 * 128 / 60)].tolist() == [255, 255, 255]

    assert main(["infer", str(bundle), str(files[1]), "--threshold", "0.05"]) == 0
    assert capsys.readouterr().out == f"{files[1]}: corner at 10.0 36.0\n"


def test_images_are_drawn_at_their_own_size_and_none_is_lost(tmp_path, photo, monkeypatch):
    bundle = write_bundle(tmp_path / "bundle", manifest())
    (tmp_path / "more").mkdir()
    Image.new("RGB", PIXELS, COLOUR).save(tmp_path / "more/photo.jpg", quality=95)
    monkeypatch.setattr("mindcv_reparam.run.drawings._QUALITY", 100)
    files = [str(photo), str(tmp_path / "more/photo.jpg")]
    assert main(["infer", str(bundle), *files, "--draw", str(tmp_path / "drawn")]) == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["photo-2.jpg", "photo.jpg"]
    for path in (tmp_path / "drawn").iterdir():
        image = Image.open(path).convert("L")
        assert image.size == PIXELS
        values = np.asarray(image)
        assert np.unravel_index(values.argmax(), values.shape) == (16, 12)
        assert values.max() > 200 > np.median(values)
    before = (tmp_path / "more/photo.jpg").read_bytes()
    with pytest.raises(UserError, match=r"photo\.jpg is one of the images: draw into another folder"):
        main(["infer", str(bundle), files[1], "--draw", str(tmp_path / "more")])
    assert (tmp_path / "more/photo.jpg").read_bytes() == before

    colours = write_bundle(tmp_path / "colours", manifest("parts", output_kind="logits", task="classification"))
    with pytest.raises(UserError, match="classes have no place in an image; --contact_sheet shows them"):
        main(["infer", str(colours), *files, "--draw", str(tmp_path / "none")])


def test_verify_measures_as_the_task_does(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "bundle", manifest(batch_sizes=(1, 2)))
    assert main(["verify", str(bundle)]) == 0
    assert "ONNX: the outputs of the sample differ by" in capsys.readouterr().out
    with np.load(bundle / "sample/expected.npz") as arrays:
        expected = dict(arrays)
    assert list(expected) == ["expected places", "expected scores"]
    np.savez(bundle / "sample/expected.npz", **expected | {"expected places": expected["expected places"] + 30})
    write_checksums(bundle)
    with pytest.raises(UserError, match=r"model\.onnx gives other outputs than expected: they differ by 3\.0e-05"):
        main(["verify", str(bundle)])


def test_the_manifest_keeps_task_and_sizes_and_names_what_is_none(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", manifest())
    assert read_manifest(bundle) == dataclasses.replace(manifest(), preprocessing=read_manifest(bundle).preprocessing)
    text = (bundle / "bundle.json").read_text()
    for changes, reason in (
        ({"task": "segmentation"}, "the task 'segmentation' of this visformer_tiny is none; there are classification"),
        ({"output_kind": "softmax"}, "output_kind 'softmax' is none of those of points: points, parts"),
        ({"output_kind": "parts"}, "outputs: their number or shapes are not those of the kind parts"),
        ({"sizes": {"name": "sizes", "dtype": "float32", "shape": [None, 2]}}, "sizes: float32 [None, 2] is no width"),
        ({"sizes": {"name": "sizes", "dtype": "int32", "shape": [4, 2]}}, "sizes: a batch of 4 does not go"),
    ):
        (bundle / "bundle.json").write_text(json.dumps(json.loads(text) | changes))
        with pytest.raises(UserError) as raised:
            read_manifest(bundle)
        assert reason in str(raised.value)


def test_a_bundle_from_before_there_were_tasks_is_a_classifiers(tmp_path):
    logits = (TensorSpec("logits", "float32", (None, 3)),)
    said = manifest("parts", outputs=logits, output_kind="logits", task="classification")
    (tmp_path / "old").mkdir()
    write_manifest(said, tmp_path / "old")
    values = json.loads((tmp_path / "old/bundle.json").read_text())
    del values["task"], values["sizes"]
    (tmp_path / "old/bundle.json").write_text(json.dumps(values))
    assert read_manifest(tmp_path / "old").task == "classification"
    assert read_manifest(tmp_path / "old").results.kinds[0] == "logits"


# the server


async def ask(app, method, path, body=b"", headers=()):
    """Status, headers and body of an answer, without a socket."""
    path, _, query = path.partition("?")
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"},
        **{"path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": ""},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {}},
        "headers": [(b"content-length", b"%d" % len(body)), *headers],
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent)


def serve(bundles, requests):
    """The answers of a server to requests, one after the other."""

    async def run():
        app = application([load_model(bundle) for bundle in bundles], Limits())
        async with app.router.lifespan_context(app):
            answers = [await ask(app, *request) for request in requests]
        await asyncio.sleep(0.2)  # in which the loop notices that the decoders have ended
        return answers

    return asyncio.run(run())


def inference(sizes, binary=False):
    """A request of two images and their sizes."""
    images = np.stack([np.full((3, SIZE, SIZE), 0.5, np.float32), np.full((3, SIZE, SIZE), 0.25, np.float32)])
    arrays = {"images": (images, "FP32"), "sizes": (np.array(sizes, np.int32), "INT32")}
    inputs, tail = [], b""
    for name, (array, datatype) in arrays.items():
        one = {"name": name, "shape": array.shape, "datatype": datatype}
        if binary:
            one["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            one["data"] = sizes if name == "sizes" else array.tolist()
        inputs.append(one)
    head = msgspec.json.encode({"inputs": inputs})
    headers = [(b"inference-header-content-length", b"%d" % len(head))] if binary else []
    return "POST", "/v2/models/points/infer", head + tail, headers


def test_the_server_tells_it_under_the_tasks_own_route(tmp_path, photo):
    bundles = [
        write_bundle(tmp_path / "points", manifest(batch_sizes=(1, 4))),
        write_bundle(
            tmp_path / "colours",
            manifest("parts", output_kind="logits", task="classification"),
        ),
    ]
    sizes = [[100, 40], [20, 80]]
    path = "/v2/models/points"
    requests = [
        ("POST", f"{path}/point", photo.read_bytes()),
        ("POST", f"{path}/point?threshold=0.9", photo.read_bytes()),
        ("POST", f"{path}/classify", photo.read_bytes()),
        ("POST", "/v2/models/colours/point", photo.read_bytes()),
        ("GET", path),
        inference(sizes),
        inference(sizes, binary=True),
        inference(sizes[:1]),
        inference([[1.5, 2], [3, 4]]),
        ("GET", "/openapi.json"),
    ]
    answers = serve(bundles, requests)
    statuses, bodies = [answer[0] for answer in answers], [json.loads(body) for *_, body in answers]
    assert statuses == [200, 200, 400, 400, 200, 200, 200, 400, 400, 200]
    assert bodies[0] == {"model_name": "points", "model_version": "1", "points": [POINT]}
    assert bodies[1]["points"] == []
    assert bodies[2]["error"] == "points gives points: use point"
    assert bodies[3]["error"] == "colours gives classes: use classify"
    assert [one["name"] for one in bodies[4]["inputs"]] == ["images", "sizes"]
    assert bodies[4]["inputs"][1] == {"name": "sizes", "datatype": "INT32", "shape": [-1, 2]}
    for body in bodies[5:7]:
        assert [one["name"] for one in body["outputs"]] == ["places", "scores"]
        assert body["outputs"][0]["data"] == pytest.approx([50, 20, 5, 20], abs=1e-4)
    assert bodies[7]["error"] == "the inputs are of 2 and 1 images"
    assert bodies[8]["error"] == "input sizes: its data are not all INT32 numbers"
    assert {"/v2/models/{name}/point", "/v2/models/{name}/classify"} <= set(bodies[9]["paths"])


# export


class Means(nn.Cell):
    """(N, 3, H, W) → (N, 3), the means of the channels."""

    def construct(self, x):
        return x.mean((2, 3))


def test_export_puts_the_tasks_head_behind_the_network(tmp_path):
    preprocessing = {"image_resize": (SIZE, SIZE), "mean": (0.0,) * 3, "std": (255.0,) * 3}
    deployment = prepare(Means(), "full", Interface(batch_sizes=None), preprocessing, Points())
    assert (deployment.output_kind, deployment.sizes) == ("points", TensorSpec("sizes", "int32", (None, 2)))
    names = tuple(output.name for output in deployment.outputs)
    write_mindir(deployment.graph, tmp_path / "model.mindir", deployment.input, names, deployment.sizes)
    export_onnx(tmp_path / "model.mindir", tmp_path / "model.onnx")
    inputs = [entry.name for entry in onnx.load(tmp_path / "model.onnx").graph.input]
    assert inputs == ["images", "sizes"]
    images = np.full((2, 3, SIZE, SIZE), 0.25, np.float32)
    sizes = np.array([[100, 40], [20, 80]], np.int32)
    for program in (onnxruntime_program(tmp_path / "model.onnx"), mindspore_program(tmp_path / "model.mindir")):
        places, scores = program(images, sizes)
        np.testing.assert_allclose(places, [[25, 10], [5, 20]], rtol=1e-6)
        np.testing.assert_allclose(scores, [[0.25], [0.25]], rtol=1e-6)
        measure = functools.partial(PointResults().difference, "points")
        expected, found = deployment.on_images(deployment.expected), deployment.on_images(program)
        # Places are about zero here, and up to 1000 pixels times the rounding of their parts away from it.
        assert compare.largest_difference(expected, found, deployment.trials(), measure) < 1e-9
    with pytest.raises(UserError, match="export_head logits: points has points, parts"):
        prepare(Means(), "full", Interface(output_kind="logits"), preprocessing, Points())


def test_real_images_are_compared_as_the_task_does():
    """The model tells 20 pixels more than the checkpoint's network: of images that are 32 pixels wide, 28 of them."""
    source = Digits(train=False)
    compared = Comparison(source, 28, lambda images: (parts_of(images),))

    def exported(images, sizes):
        assert (sizes == source.load(0).size).all()
        places, scores = PointsHead().expected((parts_of(images),), sizes)
        return places + np.float32(20), scores

    assert compared(manifest(batch_sizes=(4,)), exported) == "28 images, 20.0 pixels apart"


def test_ascends_converters_are_told_of_both_inputs():
    said = manifest(batch_sizes=(1, 4))
    files = ascend_files(said)
    assert f"input_shape=images:[-1,3,{SIZE},{SIZE}];sizes:[-1,2]" in files["lite.cfg"].splitlines()
    assert "dynamic_dims=[1,1],[4,4]" in files["lite.cfg"].splitlines()
    assert "precision_mode=preferred_fp32" in files["lite.cfg"].splitlines()
    assert "--precision_mode=allow_fp32_to_fp16" in files["convert.sh"]
    assert f'--input_shape="images:-1,3,{SIZE},{SIZE};sizes:-1,2" --dynamic_batch_size="1,4"' in files["convert.sh"]
