"""Clients that hold connections, bodies and memory without end, and the end of the server."""

import contextlib
import http.client
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from served import CLASSIFY, INFER, LARGE, MIB, Server, Watch, finish, png, request_json
from test_infer import write_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    return [write_bundle(folder / name) for name in ("colours", "other")]


# those who hold connections


def connect(server, source="127.0.0.1"):
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0))


def read_until(connection, end):
    answer = b""
    while not answer.endswith(end):
        piece = connection.recv(2**16)
        assert piece, answer
        answer += piece


def closed_after(connection, seconds):
    """Seconds until the server closes a connection on which it has nothing to say."""
    start = time.monotonic()
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""
    return time.monotonic() - start


def test_idle_connections_and_half_sent_headers_are_closed(bundles):
    with Server(*bundles, "--head_seconds", 2, "--body_seconds", 3) as server, contextlib.ExitStack() as stack:
        idle, half, again = (stack.enter_context(connect(server)) for _ in range(3))
        half.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: ")
        again.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /v2 HTTP")
        read_until(again, b'{"live":true}')
        slow = stack.enter_context(server.begin(INFER, request_json()))

        def trickle():
            with contextlib.suppress(OSError):
                for _ in range(100):
                    half.sendall(b"y")
                    time.sleep(0.1)

        with ThreadPoolExecutor(1) as other:
            other.submit(trickle)
            for connection in (idle, half, again):
                assert closed_after(connection, 10) < 6
        status, answer = finish(slow, rest=b"")
        assert (status, answer) == (408, {"error": "the body did not arrive within 3 s"})
        server.job.terminate()
        assert server.job.communicate(timeout=60) == ("", "")


def test_an_answer_that_nobody_reads_is_given_up(bundles):
    with Server(*bundles, "--write_seconds", 2) as server, connect(server) as connection:
        connection.settimeout(20)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # once both sides' buffers are full
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000_000)
        assert server.request("/v2/health/live")[0] == 200


@pytest.mark.parametrize(
    "begun", [b"", b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"]
)
def test_more_connections_than_allowed_push_out_those_that_wait(bundles, begun):
    with Server(*bundles, "--max_connections", 32) as server, contextlib.ExitStack() as stack:
        kept = stack.enter_context(connect(server, "127.0.0.2"))  # another client's, older than all of them
        for _ in range(200):
            stack.enter_context(connect(server)).sendall(begun)
        with Watch(server) as watch:
            time.sleep(1)
        watch.check_health()
        kept.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(kept, b'{"live":true}')
        assert server.metric("process_open_fds") < 100
        stack.close()
        server.job.terminate()
        assert server.job.communicate(timeout=60) == ("", "")


def test_bodies_that_do_not_end_leave_memory_for_others(bundles):
    options = ["--max_bodies_mb", 32, "--max_queue", 100]
    with Server(*bundles, *options) as server, contextlib.ExitStack() as stack, Watch(server) as watch:
        for _ in range(20):  # 300 MB
            stack.enter_context(server.begin(INFER, bytes(LARGE)))
        status, _ = finish(stack.enter_context(server.begin(INFER, request_json())), request_json()[-1:])
        assert status == 200
        assert server.request(INFER, bytes(LARGE))[0] == 400  # as large, and whole: it is read
    watch.check_health()
    assert watch.memory < 500 * MIB


# the end


def test_grace_is_kept_though_a_decoding_takes_longer(bundles):
    with Server(*bundles, "--grace_seconds", 2) as server, ThreadPoolExecutor(8) as clients:
        bomb = png(9400, 9400, 8, 6)
        jobs = [clients.submit(server.request, CLASSIFY, bomb) for _ in range(8)]
        server.wait_for_metric(8, "mindcv_reparam_requests_in_progress", model="colours")
        start = time.monotonic()
        server.job.terminate()
        server.job.wait(60)
        assert time.monotonic() - start < 4
        assert server.job.returncode == 0
        assert {job.result()[0] for job in jobs} <= {200, 400, 503}


def test_a_client_that_keeps_its_connection_loses_no_request_to_sigterm(bundles):
    with Server(*bundles) as server:
        host, port = server.address.split(":")
        answered, announced = [], []

        def client(_):
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            with contextlib.suppress(ConnectionRefusedError):  # a new connection, after the end: the client knows
                while True:
                    connection.request("POST", INFER, request_json())
                    response = connection.getresponse()
                    answered.append((response.status, len(response.read()) > 0))
                    announced.append(response.getheader("Connection"))
                    time.sleep(0.005)

        with ThreadPoolExecutor(8) as clients:
            jobs = [clients.submit(client, n) for n in range(8)]
            time.sleep(1)
            server.job.send_signal(signal.SIGTERM)
            for job in jobs:
                job.result()
        assert server.job.wait(60) == 0
        assert set(answered) == {(200, True)}
        assert announced.count("close") == 8
        assert server.job.communicate() == ("", "")


@pytest.mark.parametrize("numbers", [[signal.SIGINT] * 2, [signal.SIGTERM, signal.SIGINT]])
def test_a_second_interruption_ends_at_once_and_without_a_traceback(bundles, numbers):
    with Server(*bundles, "--max_delay_ms", 60_000) as server, ThreadPoolExecutor(1) as clients:
        clients.submit(server.request, INFER, request_json())
        server.wait_for_metric(1, "mindcv_reparam_requests_in_progress", model="colours")
        for number in numbers:
            server.job.send_signal(number)
            time.sleep(0.5)
        assert server.job.wait(5) == 130
        assert server.job.communicate() == ("", "")


def test_no_decoder_outlives_its_server(bundles):
    with Server(*bundles) as server:
        decoders = psutil.Process(server.job.pid).children()
        assert len(decoders) >= 2
        server.job.kill()
        server.job.wait()
        assert psutil.wait_procs(decoders, timeout=30)[1] == []
