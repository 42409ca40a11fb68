"""Bundles with altered fields, bytes and files: verify, infer and the server's loading say one line and never hang.

100 cases by default; ``MINDCV_REPARAM_FUZZ=5000 python -m pytest tests/test_bundle_fuzz.py`` tries as many.
"""

import contextlib
import copy
import json
import os
import random
import shutil
import signal

import pytest
from PIL import Image
from test_infer import write_bundle

from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.bundle.preprocessing import decoder, preprocessor
from mindcv_reparam.data.decoder import UnreadableImage
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.runners import onnxruntime_program
from mindcv_reparam.run.sample import write_sample
from mindcv_reparam.serving.model import load_model
from mindcv_reparam.serving.refused import Refused
from mindcv_reparam.tasks.classification.results import softmax

CASES = int(os.environ.get("MINDCV_REPARAM_FUZZ", "100"))
SECONDS = 20  # that one command may take on a busy machine
DESCRIPTIONS = ("bundle.json", "preprocessing.json")
FILES = (*DESCRIPTIONS, "labels.txt", "SHA256SUMS", "sample/image.png", "sample/input.npy", "sample/expected.npz")
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 16, 17, 255, 2**16, 2**16 + 1, 2**31, 2**63, -(2**64), 10**40, 10**400),
    *(0.0, -0.0, 0.5, 1e-300, 5e-324, 1e300, -1e300, 1e308),
    *("", "x", "3", "\0", "\ud800", "ü" * 300, "x" * 100_000, "../../etc/passwd", "/etc/passwd", "a\nb", "model.onnx"),
    *([], [[]], [1], [-1], [None], [1, 2], [3, 16, 16], ["a"], [1e300] * 3, [0, 0, 0], [10**9] * 4, [1] * 10_000),
    *({}, {"a": 1}, {"ONNX": 1}, {"ONNX": []}, {"ONNX": "labels.txt"}, {"ONNX": "sample"}, {"": ""}),
    *("float32", "float16", "int64", "uint8", "object", "logits", "softmax", "topk", "features", "rgb", "bgr", "full"),
]
TEXTS = [
    *("", "[", "{}", "[]", "null", "0", '"x"', "NaN", "[NaN]", "[" * 100_000, '{"a":' * 100_000, "\0", "\ufeff{}"),
    *('{"version": 1}', '{"version": 1e999}', '{"version": -Infinity}', '{"version": 1, "version": 1}', "9" * 10_000),
]


class Hang(BaseException):
    """A command took longer than SECONDS; no handler of Exception catches it."""


def _hang(*_):
    raise Hang


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, options in {"logits": {}, "topk": {"output_kind": "topk", "batch_sizes": (1, 4)}}.items():
        bundle = write_bundle(folder / name, **options)
        program = onnxruntime_program(bundle / "model.onnx", threads=1)
        write_sample(bundle, read_manifest(bundle), program if name == "logits" else _all_probabilities)
        write_checksums(bundle)
    Image.new("RGB", (30, 20), "red").save(folder / "photo.png")
    return folder


def _all_probabilities(images):
    """What the model of ``topk`` has to compute, for all three classes."""
    return (softmax(images.mean(axis=(2, 3))),)


def alter_field(rng, folder):
    """Another value, no value, one more key or the same key twice, anywhere in a description."""
    path = folder / rng.choice(DESCRIPTIONS)
    value = json.loads(path.read_text())
    parents = [value]
    for parent in parents:
        children = parent.values() if isinstance(parent, dict) else parent
        parents += [child for child in children if isinstance(child, dict | list) and child]
    parent = rng.choice(parents)
    key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    kind = rng.random()
    if kind < 0.7:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind < 0.85:
        del parent[key]
    elif isinstance(parent, dict):
        parent[rng.choice(["more", "__class__", "labels", ""])] = copy.deepcopy(rng.choice(VALUES))
    else:
        parent.append(copy.deepcopy(rng.choice(VALUES)))
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = text[:-1] + f', "model": {json.dumps(rng.choice(VALUES))}}}'
    path.write_text(text)
    return f"{path.name}: {type(parent).__name__}[{key!r}]"


def alter_text(rng, folder):
    path = folder / rng.choice(FILES[:4])
    path.write_text(rng.choice(TEXTS))
    return f"{path.name}: another text"


def alter_bytes(rng, folder):
    """Some bytes replaced, cut, doubled or inserted."""
    path = folder / rng.choice(FILES)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(4)
        if kind == 0 and place < len(content):
            content[place] = rng.choice([0, 255, content[place] ^ 1, rng.randrange(256)])
        elif kind == 1:
            content[place:place] = rng.randbytes(rng.choice([1, 4, 100]))
        elif kind == 2:
            content[place : place + rng.choice([1, 4, 100])] = b""
        elif rng.random() < 0.3:
            content = content[:place]
    path.write_bytes(content)
    return f"{path.name}: bytes"


def alter_file(rng, folder):
    """Another thing in a file's place."""
    path = folder / rng.choice([*FILES, "model.onnx"])
    kind = rng.choice(["gone", "pipe", "folder", "link out", "dangling", "circle", "device", "huge", "another"])
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("link out", "dangling", "circle", "device"):
        targets = {"link out": "/etc/passwd", "dangling": "nowhere", "circle": path.name, "device": "/dev/zero"}
        path.symlink_to(targets[kind])
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(2**42)
    elif kind == "another":
        path.write_bytes((folder / "ORIGINAL").read_bytes())
    return f"{path.name}: {kind}"


def load_for_serving(folder):
    model = load_model(folder)
    with contextlib.suppress(Refused, UnreadableImage):
        file = (folder.parent / "photo.png").read_bytes()
        with decoder(model.manifest).image(file) as image:
            tensor, size = preprocessor(model.manifest)(image), image.size
        model.tell(model.run(*model.inputs_of(tensor, size)), size, 5)


def run_all(folder):
    """What each command does: None, or the UserError's text. Anything else fails."""
    commands = {
        "verify": lambda: main(["verify", str(folder)]),
        "infer": lambda: main(["infer", str(folder), str(folder.parent / "photo.png")]),
        "serve": lambda: load_for_serving(folder),
    }
    told = {}
    for name, command in commands.items():
        signal.alarm(SECONDS)
        try:
            command()
            told[name] = None
        except UserError as error:
            told[name] = str(error)
        finally:
            signal.alarm(0)
    return told


def test_whole_bundles_pass(whole, capsys):
    for name in ("logits", "topk"):
        assert run_all(whole / name) == {"verify": None, "infer": None, "serve": None}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_altered_bundles_are_one_line(whole, tmp_path, capsys):
    previous = signal.signal(signal.SIGALRM, _hang)
    rng = random.Random(0)
    refused, failures = 0, []
    (tmp_path / "photo.png").write_bytes((whole / "photo.png").read_bytes())
    for number in range(CASES):
        folder = tmp_path / "bundle"
        shutil.copytree(whole / rng.choice(["logits", "topk"]), folder)
        alter = rng.choice([alter_field, alter_field, alter_field, alter_text, alter_bytes, alter_bytes, alter_file])
        if alter is alter_file:
            shutil.copy(folder / rng.choice(FILES), folder / "ORIGINAL")
        what = alter(rng, folder)
        if rng.random() < 0.7 and not (what.startswith("SHA") or what.endswith(("huge", "device", "link out"))):
            with contextlib.suppress(OSError, UserError):
                write_checksums(folder)  # whoever alters a bundle on purpose can do that, too
        try:
            told = run_all(folder)
        except (Exception, Hang) as error:
            failures.append(f"case {number}, {what}: {type(error).__name__}: {str(error)[:200]}")
            told = {}
        for text in filter(None, told.values()):
            refused += 1
            if "\n" in text.strip() and len(text) > 2000:
                failures.append(f"case {number}, {what}: a message of {len(text)} characters")
        shutil.rmtree(folder)
        capsys.readouterr()
    signal.signal(signal.SIGALRM, previous)
    assert not failures, "\n".join([f"{len(failures)} of {CASES}", *failures[:40]])
    assert refused > CASES  # of three commands each; most alterations are seen by all
