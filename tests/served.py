"""A server in a process of its own, and what clients send to it."""

import contextlib
import http.client
import importlib.util
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import tritonclient.http as triton
from PIL import Image
from processes import start
from prometheus_client.parser import text_string_to_metric_families
from test_infer import SIZE

INFER = "/v2/models/colours/infer"
CLASSIFY = "/v2/models/colours/classify"
MIB = 2**20
HEALTH_SECONDS = 1.0  # docs/serving.md: the event loop always answers; above what a server that does nothing needs
MEMORY = 2**30  # bytes of the server with its decoders
LARGE = 15 * MIB  # of a body; a server takes 16 by default


class Server:
    """A server process, ready to answer; it is killed in the end if it still runs."""

    def __init__(self, *arguments, access_log=False):
        command = [sys.executable, "-m", "mindcv_reparam", "serve", "--port", "0", *map(str, arguments)]
        self.job = start(command if access_log else [*command, "--no_access_log"])
        watchdog = threading.Timer(120, self.job.kill)
        watchdog.start()
        self.line = self.job.stdout.readline()
        watchdog.cancel()
        assert self.line.startswith("http://127.0.0.1:"), self.job.communicate()[1]
        self.url = self.line.split()[0]
        self.address = self.url.removeprefix("http://")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.job.kill()
        self.job.communicate()

    def client(self, **options):
        return triton.InferenceServerClient(self.address, **options)

    def request(self, path, body=None, headers=None):
        """Status, headers and body of the answer to a GET, or to a POST of ``body``."""
        request = urllib.request.Request(self.url + path, body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def metric(self, name, **labels):
        """The sum of the samples of this name and these labels."""
        families = text_string_to_metric_families(self.request("/metrics")[2].decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def wait_for_metric(self, value, name, **labels):
        end = time.monotonic() + 60
        while self.metric(name, **labels) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name, **labels)}, not {value}"
            time.sleep(0.02)

    def begin(self, path, body, **headers):
        """A connection on which all of a POST but its last byte has been sent."""
        connection = socket.create_connection(self.address.split(":"), timeout=60)
        lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[:-1])
        return connection


def triton_schema():
    """Triton's published ModelConfig; its module needs protobuf alone, the package around it gRPC."""
    (package,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(package, "grpc/model_config_pb2.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finish(connection, rest):
    """Send the rest of a body and return the status and the body of the answer."""
    with connection:
        connection.sendall(rest)
        response = connection.makefile("rb")
        status = int(response.readline().split()[1])
        length = next(int(line.split(b":")[1]) for line in response if line.lower().startswith(b"content-length"))
        while response.readline() not in (b"\r\n", b""):
            pass
        return status, json.loads(response.read(length))


def picture(colour, file_format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(file, file_format)
    return file.getvalue()


def request_json(images=None, **changes):
    """An inference request for "colours" with something changed."""
    images = np.zeros((1, 3, SIZE, SIZE), np.float32) if images is None else images
    values = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
    values |= {key: value for key, value in changes.items() if key != "outputs"}
    given = {key: value for key, value in values.items() if value is not None}
    return json.dumps({"inputs": [given], "outputs": changes.get("outputs", [])}).encode()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits=1, colour=0, rows=None):
    """A PNG of zeros, a few bytes for millions of pixels; ``rows`` of them are there, all by default."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    left = (1 + (width * bits * channels + 7) // 8) * (height if rows is None else rows)
    packer, data = zlib.compressobj(9), b""
    while left > 0:
        data += packer.compress(bytes(min(left, MIB)))
        left -= MIB
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data + packer.flush()) + chunk(b"IEND", b"")


IDLE = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Watch:
    """Asks for the health of a server every 100 ms, uses its other model, and reads its memory; all in threads.

    Attributes:
        health, other: the longest that an answer took, seconds.
        idle: the same of a server that does nothing else: what the machine, busy with whatever, and this process, busy
            with the attack, make every answer wait.
        memory: the most that the server and its decoders had together, bytes.
    """

    def __init__(self, server):
        self._host, self._port = server.address.split(":")
        self._process = psutil.Process(server.job.pid)
        self._end = threading.Event()
        self.health = self.other = self.memory = self.idle = 0

    def __enter__(self):
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # VmHWM counts from now on
        self._idle = subprocess.Popen([sys.executable, "-c", IDLE], stdout=subprocess.PIPE, text=True)
        self._idle_port = self._idle.stdout.readline().strip()
        jobs = (self._ask_health, self._ask_idle, self._use_other, self._read_memory)
        self._pool = ThreadPoolExecutor(len(jobs))
        self._jobs = [self._pool.submit(job) for job in jobs]
        return self

    def __exit__(self, *_):
        self._end.set()
        self._pool.shutdown()
        self._idle.kill()
        self._idle.communicate()
        for job in self._jobs:
            job.result()

    def _ask(self, method, path, body=None, port=None):
        """Seconds until a client of its own has the answer 200."""
        start = time.perf_counter()
        address = self._host, int(port or self._port)
        with contextlib.closing(http.client.HTTPConnection(*address, timeout=60)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            assert (response.status, response.read()[:1]) == (200, b"{")
        return time.perf_counter() - start

    def _ask_health(self):
        while not self._end.wait(0.1):
            self.health = max(self.health, self._ask("GET", "/v2/health/live"))

    def _ask_idle(self):
        while not self._end.wait(0.1):
            self.idle = max(self.idle, self._ask("GET", "/", port=self._idle_port))

    def _use_other(self):
        image = picture("red")
        while not self._end.wait(0.1):
            self.other = max(self.other, self._ask("POST", "/v2/models/other/classify", image))

    def _read_memory(self):
        own = Path(f"/proc/{self._process.pid}")
        while not self._end.wait(0.05):
            memory = _kibibytes(own, "VmHWM")
            for child in (own / f"task/{own.name}/children").read_text().split():
                with contextlib.suppress(OSError, IndexError):  # it has ended
                    memory += _kibibytes(own.parent / child, "VmRSS")
            self.memory = max(self.memory, memory * 1024)

    def check(self, name):
        health, idle, other = (f"{seconds:.2f} s" for seconds in (self.health, self.idle, self.other))
        print(f"\n| {name} | {health} | {idle} | {other} | {self.memory / MIB:.0f} MiB |", end="")
        self.check_health()
        assert self.memory < MEMORY

    def check_health(self):
        assert self.health < HEALTH_SECONDS + self.idle


def _kibibytes(process, what):
    return int((process / "status").read_text().split(f"{what}:")[1].split()[0])
