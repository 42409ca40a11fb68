"""What a server tells of itself, and what it answers to requests that chance makes."""

import copy
import json
import random
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from served import CLASSIFY, INFER, Server, picture, request_json
from test_infer import SIZE, write_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("described")
    return [
        write_bundle(folder / "colours"),
        write_bundle(folder / "pixels", input_kind="rgb", output_kind="softmax", batch_sizes=(1, 4)),
    ]


@pytest.fixture(scope="module")
def server(bundles):
    with Server(*bundles, "--head_seconds", 1, "--body_seconds", 1, "--max_body_mb", 1) as server:
        yield server
        server.job.terminate()
        assert server.job.communicate(timeout=60) == ("", "")
        assert server.job.returncode == 0


# what it tells


def test_schemathesis_finds_nothing(server, tmp_path):
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json", "--seed", "1"]
    job = subprocess.run([*command, "--max-examples", "10"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert job.returncode == 0, job.stdout
    assert re.search(r"[0-9]{3} generated, [0-9]{3} passed", job.stdout)


def test_the_page_of_routes_needs_nothing_from_elsewhere(server):
    status, headers, body = server.request("/docs")
    page = body.decode()
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    routes = json.loads(server.request("/openapi.json")[2])["paths"]
    assert len(routes) == 18
    assert all(f"<code>{route}</code>" in page for route in routes)
    assert "//" not in page
    assert "<script" not in page


def test_the_statuses_and_types_of_answers_are_declared(server):
    paths = json.loads(server.request("/openapi.json")[2])["paths"]
    assert set(paths["/v2/models/{name}"]["get"]["responses"]) == {"200", "404", "4XX"}
    posted = {"200", "400", "404", "408", "413", "415", "500", "503", "4XX"}
    assert set(paths["/v2/models/{name}/infer"]["post"]["responses"]) == posted
    assert set(paths["/v2/models/{name}/classify"]["post"]["responses"]) == posted
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n' % picture("red")
HINTS = {
    "form to classify": (CLASSIFY, FORM, "multipart/form-data; boundary=x", 415, "send the bytes of an image file"),
    "form to infer": (INFER, FORM, "multipart/form-data; boundary=x", 415, "send the JSON object of an infer"),
    "nothing to classify": (CLASSIFY, b"", "image/png", 400, "the body is empty, send the bytes of an image file"),
    "nothing to infer": (INFER, b"", "application/json", 400, "the body is empty, send the JSON object of an infer"),
    "JSON to classify": (CLASSIFY, request_json(), "application/json", 400, "but JSON: send the bytes of an image"),
}  # fmt: skip


@pytest.mark.parametrize("case", HINTS)
def test_a_body_of_another_kind_is_told_what_to_send(server, case):
    path, body, kind, status, reason = HINTS[case]
    answer = server.request(path, body, {"Content-Type": kind})
    assert answer[0] == status
    assert reason in json.loads(answer[2])["error"]


def test_the_access_log_has_a_line_for_every_request(bundles):
    with Server(bundles[0], access_log=True) as server:
        _, headers, body = server.request("/v2/models/colours", headers={"X-Request-ID": "from-a-proxy"})
        assert headers["X-Request-ID"] == "from-a-proxy"
        status, headers, _ = server.request(CLASSIFY + '?k="%0A', b"no image", {"X-Request-ID": "x" * 129})
        assert status == 400
        server.begin(INFER, request_json()).close()
        server.wait_for_metric(1, "mindcv_reparam_requests_total", endpoint="infer", status="400")
        server.job.terminate()
        lines = list(map(json.loads, server.job.communicate(timeout=60)[1].splitlines()))
    lines = [line for line in lines if line["path"] != "/metrics"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/v2/models/colours", 200),
        ("POST", CLASSIFY + '?k="%0A', 400),
        ("POST", INFER, 400),
    ]
    assert lines[0]["bytes"] == len(body)
    assert [line["model"] for line in lines] == ["colours"] * 3
    assert [line["id"] for line in lines[:2]] == ["from-a-proxy", headers["X-Request-ID"]]
    assert all(re.fullmatch("[0-9a-f]{16}", line["id"]) for line in lines[1:])
    for line in lines:
        assert list(line) == ["time", "id", "client", "method", "path", "model", "status", "bytes", "ms"]
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["client"].startswith("127.0.0.1:")
        assert 0 < line["ms"] < 60_000


def test_an_access_log_that_nobody_reads_stops_nobody(bundles):
    with Server(bundles[0], access_log=True) as server:  # its pipe holds 64 KiB
        with ThreadPoolExecutor(4) as clients:
            assert set(clients.map(lambda _: server.request("/v2/health/live")[0], range(1000))) == {200}
        server.job.terminate()
        assert server.job.wait(60) == 0


# what chance makes

REQUESTS = 1500
NASTY = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.5, "", "a", "1", "\x00", "é\u2028", [], {}, [[]],
    [{}], [None], [1, [2]], {"a": {}}, [1] * 1000, "FP32", "UINT8", "BYTES", [-1], [0], [1, 3, SIZE, SIZE],
    [2**31 - 1] * 8,
]  # fmt: skip
ANSWERS = {200, 400, 404, 405, 408, 413, 415}


def objects(value):
    """All JSON objects in a value, itself among them."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from objects(child)


def changed_fields(rng):
    """A request for an inference with some of its fields replaced, left out or longer than they were."""
    request = json.loads(request_json(np.zeros((1, 3, SIZE, SIZE)), parameters={}, outputs=[{"name": "scores"}]))
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(list(objects(request)))
        key = rng.choice([*place, "parameters", "binary_data_size", "id"])
        change = rng.randrange(3)
        if change == 0:
            place.pop(key, None)
        elif change == 1 and isinstance(place.get(key), list):
            place[key] = [*place[key], copy.deepcopy(rng.choice(NASTY))]
        else:
            place[key] = copy.deepcopy(rng.choice(NASTY))
    return json.dumps(request).encode()


def changed_bytes(rng, data):
    """Bytes with some of them replaced, cut out or repeated."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place, length = rng.randrange(len(data) + 1), rng.randint(1, 8)
        kind = rng.randrange(3)
        if kind == 0:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 1:
            del data[place : place + length]
        else:
            data[place:place] = data[place : place + length] * rng.randint(1, 20)
    return bytes(data)


def request_by_chance(number):
    rng = random.Random(number)
    kind = rng.randrange(4)
    path, body = INFER, changed_fields(rng)
    if kind == 1:
        body = changed_bytes(rng, request_json())
    elif kind == 2:
        path, body = CLASSIFY, changed_bytes(rng, picture("red", rng.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP"])))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return (changed_bytes(rng, head) if kind == 3 else head) + body


def answer_to(server, request):
    """Status and body of the answer to raw bytes; None where the connection ends without one."""
    host, port = server.address.split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        try:
            connection.sendall(request)
            while piece := connection.recv(2**16):
                answer += piece
        except ConnectionResetError:
            pass
        except TimeoutError:
            assert answer  # chance has taken the "Connection: close" away
    if not answer:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_requests_by_chance_get_a_reason(server):
    numbers = range(REQUESTS)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: answer_to(server, request_by_chance(number)), numbers))
    wrong = {n: answer for n, answer in zip(numbers, answers, strict=True) if answer and answer[0] not in ANSWERS}
    assert not wrong
    given = [answer for answer in answers if answer is not None]
    assert len(given) > 0.9 * REQUESTS
    for status, body in given:
        if status != 200:
            assert body.startswith(b'{"error":"'), body
    assert sum(status == 200 for status, _ in given) > 20  # some are still right, others nearly
    assert server.request("/v2/health/live")[0] == 200
