"""``python -m mindcv_reparam serve``: a real server, driven by Triton's client and by sockets that misbehave."""

import contextlib
import gzip
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.http as triton
from google.protobuf import json_format
from networks import randomise
from served import CLASSIFY, INFER, Server, finish, picture, request_json, triton_schema
from test_infer import COLOURS, SIZE, write_bundle

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.bundle.preprocessing import decoder, preprocessor
from mindcv_reparam.checkpoint import CheckpointInfo
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.bundle import Candidate
from mindcv_reparam.export.bundle import write_bundle as export
from mindcv_reparam.export.graph import Interface
from mindcv_reparam.registry import model_info
from mindcv_reparam.run.runners import bundle_program
from mindcv_reparam.tasks.classification.results import most_probable

MAX_BODY = 2**20
EXTENSIONS = ["binary_tensor_data", "classification", "statistics", "model_configuration"]
FOREVER_MS = 60_000


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles by name: a network in two formats, and toys of the other kinds of input and output."""
    folder = tmp_path_factory.mktemp("served")
    hparams = {"num_classes": 10, "in_channels": 3, "img_size": 32, "depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
    net = reparameterize(randomise(create_model("fastvit_t8", **hparams)).set_train(False))
    checkpoint = folder / "fastvit.ckpt"
    checkpoint.write_bytes(b"")  # only its digest is asked for
    preprocessing = dict(model_info("fastvit_t8").preprocessing, image_resize=32)
    info = CheckpointInfo("fastvit_t8", hparams, [f"digit {n}" for n in range(10)], preprocessing)
    export(
        folder / "fastvit",
        Candidate(net, info, "full", str(checkpoint)),
        Interface(batch_sizes=None),
        ("MINDIR", "ONNX"),
    )
    write_bundle(folder / "colours")
    write_bundle(folder / "pixels", input_kind="rgb", output_kind="softmax", batch_sizes=(1, 4))
    write_bundle(folder / "two=best", output_kind="topk", batch_sizes=(2,))
    return {name: folder / name.replace(" ", "=") for name in ("fastvit", "colours", "pixels", "two best")}


@pytest.fixture(scope="module")
def server(bundles):
    given = [path if name == path.name else f"{name}={path}" for name, path in bundles.items()]
    with Server(*given, "--max_body_mb", MAX_BODY // 2**20) as server:
        yield server
        server.job.terminate()
        assert server.job.communicate(timeout=60) == ("", "")  # nothing that the tests did was worth a line
        assert server.job.returncode == 0


def random_input(bundle, batch, seed=0):
    spec = read_manifest(bundle).input
    rng = np.random.default_rng(seed)
    shape = (batch, *spec.shape[1:])
    return rng.integers(256, size=shape, dtype=np.uint8) if spec.dtype == "uint8" else rng.random(shape, np.float32)


def tensor(images, binary=True):
    given = triton.InferInput("images", images.shape, {"float32": "FP32", "uint8": "UINT8"}[images.dtype.name])
    given.set_data_from_numpy(images, binary_data=binary)
    return [given]


# what the protocol asks for


@pytest.mark.slow
def test_the_start_line_names_address_and_models(server):
    served = [f"{name} (onnxruntime_onnx)" for name in ("fastvit", "colours", "pixels", "two best")]
    assert server.line == f"{server.url} serves {', '.join(served)}\n"


@pytest.mark.slow
def test_health_and_metadata(server):
    client = server.client()
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fastvit")
    assert client.is_model_ready("two best", "1")
    assert not client.is_model_ready("fastvit", "2")
    assert not client.is_model_ready("no model")
    assert client.get_server_metadata()["extensions"] == EXTENSIONS
    assert client.get_model_metadata("fastvit", "1") == {
        "name": "fastvit",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    }
    assert client.get_model_metadata("pixels")["inputs"][0]["datatype"] == "UINT8"
    index = [(model["name"], model["state"]) for model in client.get_model_repository_index()]
    assert index == [(name, "READY") for name in ("fastvit", "colours", "pixels", "two best")]


@pytest.mark.slow
@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("name", ["fastvit", "pixels"])
def test_the_answer_is_the_models_own(server, bundles, name, binary_input, binary_output):
    images = random_input(bundles[name], batch=4)
    (output,) = read_manifest(bundles[name]).outputs
    asked = [triton.InferRequestedOutput(output.name, binary_data=binary_output)]
    result = server.client().infer(name, tensor(images, binary_input), outputs=asked, request_id="seven")
    (expected,) = bundle_program(bundles[name])(images)
    assert result.as_numpy(output.name).dtype == np.float32
    np.testing.assert_array_equal(result.as_numpy(output.name), expected)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == (name, "1", "seven")


@pytest.mark.slow
def test_all_outputs_come_in_binary_when_none_is_named(server, bundles):
    images = random_input(bundles["two best"], batch=2)
    result = server.client().infer("two best", tensor(images), model_version="1")
    scores, classes = bundle_program(bundles["two best"])(images)
    np.testing.assert_array_equal(result.as_numpy("scores"), scores)
    np.testing.assert_array_equal(result.as_numpy("classes"), classes)
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count", "size"), [("pixels", 3, 4), ("two best", 1, 2)])
def test_fewer_images_than_the_model_takes_are_filled_up(server, bundles, name, count, size):
    images = random_input(bundles[name], size)
    images[count:] = 0
    result = server.client().infer(name, tensor(images[:count]))
    expected = bundle_program(bundles[name])(images)[0][:count]
    np.testing.assert_array_equal(result.as_numpy("scores"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("binary", [True, False])
def test_classification_gives_values_indices_and_labels(server, bundles, binary):
    images = random_input(bundles["colours"], batch=2)
    asked = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
    answer = server.client().infer("colours", tensor(images), outputs=asked).as_numpy("scores")
    (scores,) = bundle_program(bundles["colours"])(images)
    labels = tuple(COLOURS)
    order = np.argsort(-scores, axis=1)[:, :2]
    expected = [[f"{row[i]:f}:{i}:{labels[i]}" for i in best] for row, best in zip(scores, order, strict=True)]
    assert [[cell.decode() if binary else cell for cell in row] for row in answer.tolist()] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastvit", "colours", "pixels", "two best"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_an_image_file_gives_its_classes(server, bundles, name, file_format):
    file = picture((30, 200, 90), file_format)
    path = f"/v2/models/{name.replace(' ', '%20')}/classify?k=2"
    status, _, body = server.request(path, file, {"Content-Type": "image/" + file_format.lower()})
    manifest = read_manifest(bundles[name])
    with decoder(manifest).image(file) as image:
        images = preprocessor(manifest)(image)[None]
    if name == "two best":
        images = np.concatenate([images, np.zeros_like(images)])
    outputs = bundle_program(bundles[name])(images)
    indices, probabilities = (values[0].tolist() for values in most_probable(outputs, manifest.output_kind, 2))
    assert status == 200
    assert json.loads(body)["classes"] == [
        {"index": index, "label": manifest.labels[index], "probability": probability}
        for index, probability in zip(indices, probabilities, strict=True)
    ]


@pytest.mark.slow
def test_metrics(server):
    server.request("/v2/models/colours/classify", picture("red"))
    server.request("/v2/models/colours/classify", b"no image")
    assert server.metric("mindcv_reparam_requests_total", model="colours", endpoint="classify", status="200") >= 1
    assert server.metric("mindcv_reparam_requests_total", model="colours", endpoint="classify", status="400") >= 1
    for name in ("request_seconds", "wait_seconds", "batch_seconds", "batch_images"):
        assert server.metric(f"mindcv_reparam_{name}_count", model="colours") >= 1
    assert server.metric("mindcv_reparam_requests_in_progress") == 0
    assert server.metric("process_resident_memory_bytes") > 0


@pytest.mark.slow
def test_statistics_are_those_of_triton_s_extension(bundles):
    with Server(bundles["colours"], "--max_batch_size", 4, "--max_delay_ms", FOREVER_MS) as server:
        client, begun = server.client(concurrency=2), time.time()
        assert client.get_inference_statistics("colours")["model_stats"][0]["last_inference"] == 0
        pair = [client.async_infer("colours", tensor(random_input(bundles["colours"], 2, n))) for n in range(2)]
        assert [one.get_result().as_numpy("scores").shape for one in pair] == [(2, 3), (2, 3)]
        client.infer("colours", tensor(random_input(bundles["colours"], 5)))
        assert server.request(CLASSIFY, b"no image")[0] == 400
        everything = client.get_inference_statistics()
        (found,) = everything["model_stats"]
        assert client.get_inference_statistics("colours", "1") == everything
        with pytest.raises(triton.InferenceServerException, match="no model 'colors'"):
            client.get_inference_statistics("colors")
    assert (found["name"], found["version"]) == ("colours", "1")
    assert begun <= found["last_inference"] / 1000 <= time.time()
    assert (found["inference_count"], found["execution_count"]) == (9, 2)
    stats = found["inference_stats"]
    assert {name: one["count"] for name, one in stats.items()} == {
        **{"success": 3, "fail": 1, "queue": 3, "cache_hit": 0},
        **{"compute_input": 3, "compute_infer": 3, "compute_output": 3},
    }
    batches = {one["batch_size"]: one for one in found["batch_stats"]}
    parts = ("compute_input", "compute_infer", "compute_output")
    assert {size: [one[part]["count"] for part in parts] for size, one in batches.items()} == {4: [1] * 3, 5: [1] * 3}
    for part in parts:  # each of the two requests takes as long as their batch
        assert abs(stats[part]["ns"] - 2 * batches[4][part]["ns"] - batches[5][part]["ns"]) <= 2
    parts = sum(stats[part]["ns"] for part in ("queue", *parts))
    assert 0 < parts < stats["success"]["ns"] < 60e9


@pytest.mark.slow
def test_the_configuration_is_triton_s(server):
    client, schema = server.client(), triton_schema()
    configs = {name: client.get_model_config(name) for name in ("fastvit", "pixels", "two best")}
    assert client.get_model_config("fastvit", "1") == configs["fastvit"]
    for name, config in configs.items():
        parsed, metadata = json_format.ParseDict(config, schema.ModelConfig()), client.get_model_metadata(name)
        assert (parsed.name, parsed.platform) == (name, metadata["platform"])
        assert parsed.dynamic_batching.max_queue_delay_microseconds == 0
        for kind, tensors in (("inputs", parsed.input), ("outputs", parsed.output)):
            assert [(one.name, schema.DataType.Name(one.data_type), [-1, *one.dims]) for one in tensors] == [
                (one["name"], f"TYPE_{one['datatype']}", one["shape"]) for one in metadata[kind]
            ]
    assert {name: config["max_batch_size"] for name, config in configs.items()} == {
        **{"fastvit": 8, "pixels": 4, "two best": 2}
    }


# what clients do wrong


def request_binary(length, declared, header_length=None):
    """A request of ``length`` bytes of tensor data that says it has ``declared``, with its headers."""
    header = request_json(data=None, parameters={"binary_data_size": declared})
    size = len(header) if header_length is None else header_length
    return header + bytes(length), {"Inference-Header-Content-Length": str(size)}


def huge_png():
    """The head of a PNG of 40,000 × 40,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


TENSOR = b'{"name": "images", "shape": [1], "datatype": "FP32"}'
BYTES = 4 * 3 * SIZE * SIZE
ZEROS = np.zeros((1, 3, SIZE, SIZE), np.float32)
BAD_REQUESTS = {
    "unknown path": ("/v2/modles", None, {}, 404, "Not Found"),
    "unknown model": ("/v2/models/colors/infer", request_json(), {}, 404, "no model 'colors'; this server has"),
    "unknown version": ("/v2/models/colours/versions/2/infer", request_json(), {}, 404, "no version '2'"),
    "method": (INFER, None, {}, 405, "Method Not Allowed"),
    "no body": (INFER, b"", {}, 400, "Invalid JSON"),
    "no JSON": (INFER, b"{", {}, 400, "Invalid JSON"),
    "no UTF-8": (INFER, b"\xff\xfe", {}, 400, "Invalid JSON"),
    "nested JSON": (INFER, b"[" * 100_000, {}, 400, "Invalid JSON"),
    "no object": (INFER, b"[]", {}, 400, "should be an object"),
    "no inputs": (INFER, b"{}", {}, 400, "inputs: Field required"),
    "empty inputs": (INFER, b'{"inputs": []}', {}, 400, "inputs: List should have at least 1 item"),
    "two inputs": (INFER, b'{"inputs": [%s, %s]}' % (TENSOR, TENSOR), {}, 400, "the request gives images, images"),
    "input name": (INFER, request_json(name="image"), {}, 400, "one input, images; the request gives image"),
    "datatype": (INFER, request_json(datatype="UINT8"), {}, 400, "input images is FP32, the request gives UINT8"),
    "shape text": (INFER, request_json(shape="1"), {}, 400, "inputs.0.shape: Input should be a valid array"),
    "negative shape": (INFER, request_json(shape=[-1, 3, SIZE, SIZE]), {}, 400, "inputs.0.shape.0"),
    "other shape": (INFER, request_json(np.zeros((1, 3, 8, 8))), {}, 400, "16, 16], the request's is [1, 3, 8, 8]"),
    "no batch": (INFER, request_json(np.zeros((3, SIZE, SIZE))), {}, 400, "the request's is [3, 16, 16]"),
    "empty batch": (INFER, request_json(np.zeros((0, 3, SIZE, SIZE))), {}, 400, "the request's is [0, 3, 16, 16]"),
    "large shape": (INFER, request_json(shape=[2**31 - 1, 3, SIZE, SIZE]), {}, 400, "the request has 768"),
    "immense shape": (INFER, request_json(shape=[10**4000]), {}, 400, "shape.0: Input should be less than 2147483648"),
    "deep shape": (INFER, request_json(shape=[1] * 9), {}, 400, "shape: List should have at most 8 items"),
    "no data": (INFER, request_json(data=None), {}, 400, "needs either data or the parameter binary_data_size"),
    "few data": (INFER, request_json(data=[1.0, 2.0]), {}, 400, "is 768 values, the request has 2"),
    "ragged data": (INFER, request_json(data=[[1.0], [2.0, 3.0]]), {}, 400, "its lists are not all of one length"),
    "text data": (INFER, request_json(data=["a"] * 768), {}, 400, "its data are not all FP32 numbers"),
    "null data": (INFER, request_json(data=[None] * 768), {}, 400, "its data are not all FP32 numbers"),
    "immense data": (INFER, request_json(data=[10**400] * 768), {}, 400, "its data are not all FP32 numbers"),
    "unknown output": (INFER, request_json(outputs=[{"name": "x"}]), {}, 400, "outputs scores; the request asks for x"),
    "output twice": (INFER, request_json(outputs=[{"name": "scores"}] * 2), {}, 400, "asks for scores, scores"),
    "classes of an output without": (
        "/v2/models/two%20best/infer", request_json(outputs=[{"name": "scores", "parameters": {"classification": 1}}]),
        {}, 400, "classification is for models that give a value per class"),
    "no classes": (INFER, request_json(outputs=[{"name": "scores", "parameters": {"classification": 0}}]), {},
                   400, "outputs.0.parameters.classification"),
    "output not finite": (INFER, request_json(np.full_like(ZEROS, np.inf)), {}, 400, "ask for binary data"),
    "uint8 range": ("/v2/models/pixels/infer", request_json(np.full((1, SIZE, SIZE, 3), 256), datatype="UINT8"), {},
                    400, "its data are not all UINT8 numbers"),
    "uint8 fractions": ("/v2/models/pixels/infer", request_json(np.full((1, SIZE, SIZE, 3), 0.5), datatype="UINT8"), {},
                        400, "its data are not all UINT8 numbers"),
    "large batch": ("/v2/models/pixels/infer", request_json(np.zeros((5, SIZE, SIZE, 3), int), datatype="UINT8"), {},
                    400, "up to 4 images together, the request has 5"),
    "header beyond the body": (INFER, *request_binary(BYTES, BYTES, 10**6), 400, "Content-Length is '1000000'"),
    "header length no number": (INFER, *request_binary(BYTES, BYTES, "-1"), 400, "Content-Length is '-1'"),
    "header length of many digits": (INFER, *request_binary(BYTES, BYTES, "9" * 5000), 400, "Content-Length is '999"),
    "header too short": (INFER, *request_binary(BYTES, BYTES, 10), 400, "Invalid JSON"),
    "few bytes": (INFER, *request_binary(BYTES - 4, BYTES), 400, f"{BYTES - 4} bytes follow the JSON object"),
    "many bytes": (INFER, *request_binary(BYTES + 4, BYTES), 400, f"{BYTES + 4} bytes follow the JSON object"),
    "wrong bytes": (INFER, *request_binary(8, 8), 400, f"is {BYTES} bytes, the request has 8"),
    "bytes beside data": (INFER, request_json(parameters={"binary_data_size": 0}), {}, 400, "needs either data or"),
    "compressed": (INFER, gzip.compress(request_json()), {"Content-Encoding": "gzip"}, 415, "Content-Encoding gzip"),
    "large body": (INFER, bytes(MAX_BODY + 1), {}, 413, "the body is larger than 1,048,576 bytes"),
    "huge body": (INFER, bytes(64 * MAX_BODY), {}, 413, "the body is larger than 1,048,576 bytes"),
    "large image": (CLASSIFY, bytes(MAX_BODY + 1), {}, 413, "the body is larger than 1,048,576 bytes"),
    "large body for nobody": ("/v2/models/x/infer", bytes(MAX_BODY + 1), {}, 404, "no model 'x'"),
    "no image": (CLASSIFY, b"GIF? no", {}, 400, "not an image"),
    "no bytes": (CLASSIFY, b"", {}, 400, "not an image"),
    "truncated image": (CLASSIFY, picture("red", "JPEG")[:-200], {}, 400, "not an image, or a damaged one"),
    "decompression bomb": (CLASSIFY, huge_png(), {}, 400, "40000 pixels: an image may have 108,000,000"),
    "k": (CLASSIFY + "?k=0", picture("red"), {}, 400, "k: Input should be greater than or equal to 1"),
    "k text": (CLASSIFY + "?k=all", picture("red"), {}, 400, "k: Input should be a valid integer"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_gets_a_reason_and_the_server_lives_on(server, case):
    path, body, headers, status, reason = BAD_REQUESTS[case]
    answer = server.request(path, body, headers)
    assert answer[0] == status, answer
    assert list(json.loads(answer[2])) == ["error"]
    assert reason in json.loads(answer[2])["error"]
    good = server.request("/v2/models/colours/infer", request_json(ZEROS + 1))
    assert json.loads(good[2])["outputs"][0]["data"] == [1, 1, 1]


@pytest.mark.slow
def test_a_body_without_an_end_is_stopped_at_the_limit(server):
    def chunks():
        for _ in range(17):
            yield bytes(2**16)

    status, _, body = server.request(INFER, chunks(), {"Transfer-Encoding": "chunked"})
    assert (status, json.loads(body)["error"]) == (413, "the body is larger than 1,048,576 bytes")


@pytest.mark.slow
def test_who_waits_to_be_asked_for_a_large_body_is_not_asked(server):
    with socket.create_connection(server.address.split(":"), timeout=60) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * MAX_BODY}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 413 ")


@pytest.mark.slow
def test_a_client_that_goes_away_leaves_its_place(server):
    with server.begin(INFER, request_json()):
        server.wait_for_metric(1, "mindcv_reparam_requests_in_progress", model="colours")
    server.wait_for_metric(0, "mindcv_reparam_requests_in_progress", model="colours")


# many clients, and the end


@pytest.mark.slow
def test_requests_run_together_and_sigterm_waits_for_what_has_begun(bundles):
    options = ["--max_batch_size", 4, "--max_queue", 4, "--max_delay_ms", FOREVER_MS, "--grace_seconds", 60]
    with Server(bundles["colours"], *options) as server:
        images = [np.full((1, 3, SIZE, SIZE), number, np.float32) for number in range(4)]
        with ThreadPoolExecutor(4) as clients:
            results = list(clients.map(lambda one: server.client().infer("colours", tensor(one)), images))
        for number, result in enumerate(results):
            np.testing.assert_array_equal(result.as_numpy("scores"), [[number] * 3])
        assert server.metric("mindcv_reparam_batch_images_count", model="colours") == 1
        assert server.metric("mindcv_reparam_batch_images_sum", model="colours") == 4

        bodies = list(map(request_json, images))
        begun = [server.begin(INFER, body) for body in bodies]
        server.wait_for_metric(4, "mindcv_reparam_requests_in_progress")
        server.job.terminate()
        wait_until_closed(server)
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(finish, begun, (body[-1:] for body in bodies)))
        for number, (status, answer) in enumerate(answers):
            assert status == 200
            assert answer["outputs"][0]["data"] == [number] * 3
        assert server.job.communicate(timeout=60) == ("", "")
        assert server.job.returncode == 0


@pytest.mark.slow
def test_a_full_queue_says_so_and_who_sends_no_body_does_not_fill_it(bundles):
    options = ["--max_batch_size", 4, "--max_queue", 4, "--max_delay_ms", FOREVER_MS / 3]
    with Server(bundles["colours"], *options) as server, contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(server.begin(INFER, request_json()))
        server.wait_for_metric(64, "mindcv_reparam_requests_in_progress", model="colours")
        assert server.request(CLASSIFY, b"no image")[0] == 400
        batch = request_json(np.zeros((4, 3, SIZE, SIZE)))
        with ThreadPoolExecutor(5) as clients:
            waiting = [clients.submit(server.request, INFER, request_json()) for _ in range(3)]
            server.wait_for_metric(67, "mindcv_reparam_requests_in_progress", model="colours")
            assert server.request(INFER, batch)[0] == 200  # the fourth place: more images than a batch takes
            assert [job.result()[0] for job in waiting] == [200] * 3


@pytest.mark.slow
def test_sigterm_does_not_wait_for_ever(bundles):
    with Server(bundles["colours"], "--grace_seconds", 0) as server:
        begun = server.begin(INFER, request_json())
        server.wait_for_metric(1, "mindcv_reparam_requests_in_progress")
        server.job.terminate()
        errors = server.job.communicate(timeout=60)[1]
        assert server.job.returncode == 0
        assert errors.splitlines() == ["ERROR:    Cancel 1 running task(s), timeout graceful shutdown exceeded"]
        status, answer = finish(begun, rest=b"")
        assert (status, answer) == (503, {"error": "the server stops and this was not done in time"})


def wait_until_closed(server):
    end = time.monotonic() + 60
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            socket.create_connection(server.address.split(":")).close()
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.slow
def test_a_model_that_fails_is_not_the_end(tmp_path):
    bundle = write_bundle(tmp_path / "colours")
    values = json.loads((bundle / "bundle.json").read_text())
    values["input"]["shape"] = [None, 3, None, None]  # the ONNX file takes only one size
    (bundle / "bundle.json").write_text(json.dumps(values))
    write_checksums(bundle)
    with Server(bundle) as server:
        status, _, body = server.request(INFER, request_json(np.zeros((1, 3, 8, 8))))
        assert (status, json.loads(body)) == (500, {"error": "the server failed: InvalidArgument"})
        assert server.request(INFER, request_json())[0] == 200
        assert server.metric("mindcv_reparam_requests_total", status="500") == 1
        server.job.terminate()
        assert "Got invalid dimensions" in server.job.communicate(timeout=60)[1]


@pytest.mark.slow
def test_mindspore_serves_too(bundles):
    with Server(bundles["fastvit"], "--backend", "mindspore", "--max_batch_size", 1) as server:
        assert server.line.endswith(" serves fastvit (mindspore_mindir)\n")
        images = random_input(bundles["fastvit"], batch=3)
        logits = server.client().infer("fastvit", tensor(images)).as_numpy("logits")
        np.testing.assert_array_equal(logits, bundle_program(bundles["fastvit"], "mindspore")(images)[0])
        server.job.terminate()
        assert server.job.wait(60) == 0


# what people do wrong


def test_a_taken_port_is_one_line(tmp_path):
    write_bundle(tmp_path / "colours")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"^cannot listen on 127.0.0.1:{port}: Address already in use; see --host"):
            main(["serve", str(tmp_path / "colours"), "--port", str(port)])


def test_an_address_elsewhere_is_one_line(tmp_path):
    write_bundle(tmp_path / "colours")
    with pytest.raises(UserError, match=r"^cannot listen on 192\.0\.2\.1:0: "):
        main(["serve", str(tmp_path / "colours"), "--port", "0", "--host", "192.0.2.1"])


def test_no_bundle_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is no bundle: it has no bundle\.json"):
        main(["serve", str(tmp_path)])


def test_two_models_of_one_name_are_one_line(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_bundle(tmp_path / folder / "colours")
    with pytest.raises(UserError, match="would both be the model colours: give one another name, NAME="):
        main(["serve", str(tmp_path / "a/colours"), str(tmp_path / "b/colours")])


@pytest.mark.parametrize("word", ["=colours", "a/b=colours", "stats=colours"])
def test_a_name_that_no_path_can_hold_is_one_line(word):
    with pytest.raises(UserError, match=f"^{word}: '.*' is no name of a model: take one without slashes"):
        main(["serve", word])


def test_a_backend_that_the_bundle_has_no_file_for_is_one_line(tmp_path):
    write_bundle(tmp_path / "colours")
    with pytest.raises(UserError, match="has ONNX: mindspore cannot run that"):
        main(["serve", str(tmp_path / "colours"), "--backend", "mindspore"])


def test_a_model_that_is_not_what_the_bundle_says_is_one_line(tmp_path):
    write_bundle(tmp_path / "colours")
    values = json.loads((tmp_path / "colours/bundle.json").read_text())
    values["outputs"][0]["dtype"] = "float16"
    (tmp_path / "colours/bundle.json").write_text(json.dumps(values))
    write_checksums(tmp_path / "colours")
    with pytest.raises(UserError, match=r"the model gives .* the manifest tells"):
        main(["serve", str(tmp_path / "colours"), "--port", "0"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--port", "65536"),
        ("--max_batch_size", "0"),
        ("--max_delay_ms", "nan"),
        ("--max_queue", "-1"),
        ("--threads", "0"),
    ],
)
def test_values_out_of_range_are_one_line(flags):
    with pytest.raises(UserError, match=f"argument {flags[0]}: must be a "):
        main(["serve", "bundle", *flags])


@pytest.mark.slow
def test_help_imports_neither_mindspore_nor_the_framework():
    code = "import sys; from mindcv_reparam.__main__ import main\n"
    code += "try: main(['serve', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'mindspore', 'fastapi', 'uvicorn', 'onnxruntime'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
