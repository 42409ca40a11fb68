"""What a server is sent by those who want it to stop answering: it answers everybody else, within bounded memory.

Each bomb runs against a server on the loopback interface, four times at once, while its health is asked for every 100
ms and another model is used. ``pytest tests/test_serve_attacks.py -s`` prints a table of what it cost.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from served import CLASSIFY, INFER, LARGE, MIB, Server, Watch, png
from test_infer import SIZE, write_bundle

AT_ONCE = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    return [write_bundle(folder / name) for name in ("colours", "other")]


@pytest.fixture(scope="module")
def server(bundles):
    with Server(*bundles, "--max_queue", 16) as server:
        yield server
        server.job.terminate()
        assert server.job.communicate(timeout=60) == ("", "")  # no bomb was worth a line, let alone a traceback
        assert server.job.returncode == 0


def eps(marker):
    """A program in PostScript that writes a file, where an interpreter runs it."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
        b"(" + str(marker).encode() + b") (w) file (run) writestring showpage\n%%EOF\n"
    )


def tensor(data, shape=(1, 3, SIZE, SIZE)):
    head = json.dumps({"name": "images", "shape": list(shape), "datatype": "FP32"})[:-1].encode()
    return b'{"inputs": [' + head + b', "data": ' + data + b"}]}"


ONES = b"[" + b"1," * 200_000
BOMBS = {  # path, body, statuses
    "402 KB, a long text among numbers": (INFER, lambda: tensor(ONES + b'"' + b"x" * 2000 + b'"]'), {400}),
    "9 MB, a long text among numbers": (INFER, lambda: tensor(b"[" + b"1," * 4_500_000 + b'"xxxxxxxxx"]'), {400}),
    "15 MB of text": (INFER, lambda: tensor(b'"' + b"x" * LARGE + b'"'), {400}),
    "1.5 MB of empty inputs": (INFER, lambda: b'{"inputs":[' + b"{}," * 500_000 + b"{}]}", {400}),
    "15 MB of empty inputs": (INFER, lambda: b'{"inputs":[' + b"{}," * 5_000_000 + b"{}]}", {400}),
    "15 MB of outputs": (INFER, lambda: b'{"inputs":[{}],"outputs":[' + b'{"name":"a"},' * 1_200_000 + b"{}]}", {400}),
    "15 MB of keys": (INFER, lambda: b"{" + b",".join(b'"%d":0' % n for n in range(1_400_000)) + b"}", {400}),
    "15 MB of shape": (INFER, lambda: tensor(b"[]", [1] * 5_000_000), {400}),
    "15 MB of brackets": (INFER, lambda: b"[" * LARGE, {400}),
    "15 MB of brackets as data": (INFER, lambda: tensor(b"[" * LARGE), {400}),
    "15 MB of lists as data": (INFER, lambda: tensor(b"[" + b"[]," * 5_000_000 + b"[]]"), {400}),
    "15 MB of one number": (INFER, lambda: tensor(b"[" + b"9" * LARGE + b"]"), {400}),
    "15 MB of numbers, too many": (INFER, lambda: tensor(b"[" + b"0," * 7_500_000 + b"0]"), {400}),
    "15 MB of numbers, a batch": (INFER, lambda: tensor(b"[" + b"0," * 7_679_999 + b"0]", (10_000, 3, 16, 16)), {200}),
    "a name of 15 MB": (INFER, lambda: b'{"inputs":[{"name":"' + b"a" * LARGE + b'"}]}', {400}),
    "1 x 89,000,000 pixels, empty": (CLASSIFY, lambda: png(1, 89_000_000, rows=0), {400}),
    "1 x 89,000,000 pixels": (CLASSIFY, lambda: png(1, 89_000_000), {400}),
    "89,000,000 x 1 pixels": (CLASSIFY, lambda: png(89_000_000, 1), {400}),
    "9,400 x 9,400 pixels of 1 bit": (CLASSIFY, lambda: png(9400, 9400), {200, 400}),
    "9,400 x 9,400 pixels of RGBA": (CLASSIFY, lambda: png(9400, 9400, 8, 6), {200, 400}),
    "3,500 x 3,500 pixels of RGBA": (CLASSIFY, lambda: png(3500, 3500, 8, 6), {200}),
    "60,000 x 1,400 pixels": (CLASSIFY, lambda: png(60_000, 1400), {200, 400}),
    "2**31 - 1 pixels square": (CLASSIFY, lambda: png(2**31 - 1, 2**31 - 1, rows=0), {400}),
}  # fmt: skip

# Decoders take as long over each of these as over one of another shape, or of a file without its pixels.
MORE = {
    *("1 x 89,000,000 pixels, empty", "89,000,000 x 1 pixels", "9,400 x 9,400 pixels of 1 bit"),
    "60,000 x 1,400 pixels",
}
PARAMETERS = [pytest.param(name, marks=pytest.mark.exhaustive) if name in MORE else name for name in BOMBS]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_bomb_harms_nobody(server, name):
    path, make, statuses = BOMBS[name]
    body = make()
    assert len(body) < 16 * MIB
    with Watch(server) as watch, ThreadPoolExecutor(AT_ONCE) as clients:
        time.sleep(0.3)
        answers = list(clients.map(lambda _: server.request(path, body), range(AT_ONCE)))
    assert {answer[0] for answer in answers} <= statuses, answers
    if 400 in statuses and answers[0][0] == 400:
        assert list(json.loads(answers[0][2])) == ["error"]
        assert len(answers[0][2]) < 1000
    watch.check(name)


@pytest.mark.parametrize("head", [b"%!PS-Adobe", b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe"])
def test_a_program_that_is_sent_as_an_image_is_not_run(server, tmp_path, head):
    before = {child.pid for child in psutil.Process(server.job.pid).children(recursive=True)}
    body = eps(tmp_path / "run").replace(b"%!PS-Adobe", head, 1)
    assert server.request(CLASSIFY, body)[0] == 400
    after = {child.pid for child in psutil.Process(server.job.pid).children(recursive=True)}
    assert after <= before  # what an earlier image was too much for may have gone since
    assert not (tmp_path / "run").exists()
