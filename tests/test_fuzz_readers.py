"""Altered files of others: every one is read, or refused by one line.

The seeds are fixed. `FUZZ_CASES=5000 python -m pytest tests/test_fuzz_readers.py` tries that many of each kind instead
of the few hundred of a normal run.
"""

import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pickled
import pytest
from safetensors.numpy import save as safetensors
from test_data_detection import content, write_images

from mindcv_reparam.config import Config, load_yaml, save_yaml
from mindcv_reparam.convert import convert
from mindcv_reparam.convert.files import read_source
from mindcv_reparam.data.coco import Coco
from mindcv_reparam.errors import UserError
from mindcv_reparam.kinds import kind_of, mistaken

CASES = int(os.environ.get("FUZZ_CASES", "200"))
TORCH = Path(__file__).parent / "data" / "torch"
# What stands where another value stood.
STRANGE = (None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, float("nan"), "", "x", "\0", "9" * 50, [], {}, [[]], {"a": {}})


def altered_bytes(whole: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, left out, doubled or cut off."""
    content = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(content))) if content else 0
        match rng.integers(0, 5):
            case 0 | 1:
                content[at : at + 1] = bytes([rng.integers(0, 256)])
            case 2:
                del content[at : at + int(rng.integers(1, 9))]
            case 3:
                content[at:at] = content[at : at + int(rng.integers(1, 40))]
            case _ if rng.integers(0, 4) == 0:
                del content[at:]
    return bytes(content)


def altered_field(value: object, rng: np.random.Generator) -> object:
    """A copy of nested dictionaries, lists and tuples with one member replaced, left out or added."""
    members = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    if not members or rng.integers(0, 12) == 0:
        return STRANGE[rng.integers(0, len(STRANGE))]
    key, member = members[rng.integers(0, len(members))]
    deeper = isinstance(member, (dict, list, tuple)) and rng.integers(0, 4)
    replaced = altered_field(member, rng) if deeper else STRANGE[rng.integers(0, len(STRANGE))]
    left_out = rng.integers(0, 8) == 0
    copied = [(k, replaced if k == key else v) for k, v in members if not (left_out and k == key)]
    return dict(copied) if isinstance(value, dict) else type(value)(v for _, v in copied)


def read_weights(path: Path) -> None:
    convert(read_source(path).tensors)


def told(read: Callable[[Path], object], path: Path) -> bool:
    """Whether the file was refused; any other exception, or a warning, fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mistaken(path, "file")
        try:
            read(path)
        except UserError as error:
            return bool(str(error)) and "Traceback" not in str(error)
    return False


def pth_fields() -> Iterator[bytes]:
    """The arguments of a tensor's rebuilding, and what lies around it."""
    rng = np.random.default_rng(3)
    plain = {
        "state_dict": {"a": ["tensor", 0, [2, 3], [3, 1], "FloatStorage", "0", 6], "b": 1.0, "c": {"d": [1, (2,)]}},
        "epoch": 3,
        "meta": {"names": ["x", "y"]},
    }
    while True:
        file = io.BytesIO()
        pickled.write(file, tensors_of(altered_field(plain, rng)), {"0": np.arange(6, dtype=np.float32)})
        yield file.getvalue()


def tensors_of(value: object) -> object:
    match value:
        case ["tensor", offset, shape, strides, kind, key, count]:
            storage = pickled.Persistent("storage", pickled.Global("torch", str(kind)), key, "cpu", count)
            shape, strides = (tuple(one) if isinstance(one, list) else one for one in (shape, strides))
            return pickled.view(storage, shape, strides, offset)
        case dict():
            return {key: tensors_of(one) for key, one in value.items()}
    return value


def safetensors_fields() -> Iterator[bytes]:
    rng = np.random.default_rng(4)
    data = np.arange(8, dtype="<f4").tobytes()
    plain = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    while True:
        text = json.dumps(altered_field(plain, rng)).encode()
        yield len(text).to_bytes(8, "little") + text + data


def yaml_fields() -> Iterator[bytes]:
    rng = np.random.default_rng(5)
    plain = {"model": "visformer_tiny", "lr": 0.1, "scale": [0.1, 1.0], "ema": True, "epoch_size": 3, "opt": "adamw"}
    while True:
        yield json.dumps(altered_field(plain, rng)).encode()  # a flow mapping


def objects(folder: Path, contents: Iterator[bytes]) -> Iterator[bytes]:
    write_images(folder / "images")
    return contents


def objects_fields() -> Iterator[bytes]:
    rng = np.random.default_rng(11)
    while True:
        yield json.dumps(altered_field(content(), rng)).encode()


def read_objects(path: Path) -> None:
    assert Coco(path, path.parent / "images").annotations


def bytes_of(whole: bytes, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    while True:
        yield altered_bytes(whole, rng)


def opened(whole: bytes, seed: int) -> Iterator[bytes]:
    """An archive whose pickle is altered and whose checksums are right."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in entries if name.endswith("data.pkl"))
    while True:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, altered_bytes(content, rng) if name == pickle else content)
        yield file.getvalue()


def resolved(folder: Path) -> bytes:
    save_yaml(Config(model="visformer_tiny"), folder / "resolved.yaml")
    return (folder / "resolved.yaml").read_bytes()


WEIGHTS = safetensors({"a": np.ones((2, 3), np.float32), "b": np.arange(4)}, {"format": "pt"})
SOURCES: dict[str, tuple[Callable[[Path], Iterator[bytes]], Callable[[Path], object], float]] = {
    "bytes of a pth": (lambda _: bytes_of((TORCH / "training.pth.tar").read_bytes(), 1), read_weights, 1.0),
    "bytes of a legacy pth": (lambda _: bytes_of((TORCH / "legacy.pth").read_bytes(), 2), read_weights, 1.0),
    "instructions of a pth": (lambda _: opened((TORCH / "weights.pth").read_bytes(), 6), read_weights, 1.0),
    "instructions of mmengine": (lambda _: opened((TORCH / "mmengine.pth").read_bytes(), 7), read_source, 0.2),
    "fields of a pth": (lambda _: pth_fields(), read_source, 0.1),
    "bytes of safetensors": (lambda _: bytes_of(WEIGHTS, 8), read_source, 0.5),
    "fields of safetensors": (lambda _: safetensors_fields(), read_source, 0.5),
    "bytes of objects": (lambda f: objects(f, bytes_of(json.dumps(content()).encode(), 12)), read_objects, 0.5),
    "fields of objects": (lambda folder: objects(folder, objects_fields()), read_objects, 0.5),
    "bytes of YAML": (lambda folder: bytes_of(resolved(folder)[:800], 9), load_yaml, 0.3),
    "fields of YAML": (lambda _: yaml_fields(), load_yaml, 0.5),
}


@pytest.mark.parametrize("source", SOURCES)
def test_an_altered_file_is_read_or_refused_by_one_line(tmp_path, source):
    """`least` is the part that must be refused, so that the alterations are known to matter."""
    make, read, least = SOURCES[source]
    contents = make(tmp_path)
    refused = 0
    for number in range(CASES):
        path = tmp_path / f"{number}.file"
        path.write_bytes(next(contents))
        refused += told(read, path)
        path.unlink()
    assert refused >= least * CASES


def test_the_kind_of_any_bytes_is_told_without_an_error(tmp_path):
    rng = np.random.default_rng(10)
    starts = [b"PK\x03\x04", b"\x80\x02", b"\n\x03", b"\x08\x07\x12", b"{", b"\x89PNG", b"", b"\x10\0\0\0\0\0\0\0{"]
    for number in range(CASES):
        (tmp_path / "any").write_bytes(starts[number % len(starts)] + rng.bytes(int(rng.integers(0, 300))))
        assert kind_of(tmp_path / "any") != "resume"
