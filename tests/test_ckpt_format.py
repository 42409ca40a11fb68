"""Checkpoints as anyone may send them: whatever is in the file, an array or one line that names it."""

import json
import os
import random
import zlib
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from mindcv_reparam.checkpoint import read_checkpoint, save_checkpoint
from mindcv_reparam.checkpoint_info import ENTRY, CheckpointInfo, parse_info, read_info
from mindcv_reparam.ckpt_format import DamagedCheckpoint, read_contents
from mindcv_reparam.config import DECODING, Config
from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import model_info

ALTERED = int(os.environ.get("ALTERED", "400"))  # of each kind; more by the environment
SAID = {
    "model": "visformer_tiny",
    "hparams": {"num_classes": 3, "in_channels": 3, "img_size": [32, 64], "gelu": "exact", "depths": [0, 1, 1, 1]},
    "classes": ["a", "ü", "c"],
    "preprocessing": {"image_resize": 32, "crop_pct": 0.9, "mean": [1.0, 2.0, 3.0], "std": [4, 5, 6]},
    "state": "train",
    "metrics": {"top1": 97.5},
    "labels": ["A", "B", "C"],
}


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def delimited(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def entry(name: str, dims: list[int], kind: str, content: bytes) -> bytes:
    tensor = b"".join(varint(1 << 3) + varint(dim) for dim in dims)
    tensor += delimited(2, kind.encode()) + delimited(3, content)
    return delimited(1, delimited(1, name.encode()) + delimited(2, tensor))


def described(said: dict, *entries: bytes, checksum: bool = True) -> bytes:
    text = said if isinstance(said, str) else json.dumps(said)
    content = entry(ENTRY, [0], "str", text.encode("utf-32-le")) + b"".join(entries)
    return content + (b"crc_num" + zlib.crc32(content).to_bytes(10, "big") if checksum else b"")


def test_every_type_and_shape_is_read_as_mindspore_wrote_it(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
    kinds += ["float16", "float32", "float64"]
    arrays = {kind: rng.uniform(0, 100, (3, 1, 2)).astype(kind) for kind in kinds}
    arrays |= {"number": np.array(1.5, np.float32), "one": np.array([2.5], np.float32)}
    narrow = ms.Tensor([[1.0, -2.5]], ms.bfloat16)
    path = tmp_path / "some.ckpt"
    entries = [{"name": name, "data": ms.Tensor(value)} for name, value in arrays.items()]
    entries.append({"name": "narrow", "data": narrow})
    ms.save_checkpoint(entries, str(path), append_dict={"text": "größer"}, crc_check=True)
    contents = read_contents(path)
    assert contents.has_checksum
    assert contents.texts == {"text": "größer"}
    np.testing.assert_array_equal(contents.arrays.pop("narrow"), [[1.0, -2.5]])
    assert contents.arrays.keys() == arrays.keys()
    for name, value in arrays.items():
        assert (contents.arrays[name].dtype, contents.arrays[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(contents.arrays[name], value)


def test_a_tensor_in_parts_is_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)  # KiB
    value = np.arange(1000, dtype=np.float32).reshape(10, 100)
    ms.save_checkpoint([{"name": "w", "data": ms.Tensor(value)}], str(tmp_path / "some.ckpt"))
    np.testing.assert_array_equal(read_contents(tmp_path / "some.ckpt").arrays["w"], value)


def test_mindspore_reads_what_is_written(tmp_path):
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save_checkpoint(tmp_path / "some.ckpt", weights, CheckpointInfo("visformer_tiny", {"num_classes": 3}))
    entries = ms.load_checkpoint(str(tmp_path / "some.ckpt"), crc_check=True)
    assert json.loads(entries[ENTRY])["hparams"] == {"num_classes": 3}
    np.testing.assert_array_equal(entries["w"].asnumpy(), weights["w"])


FLOATS = bytes(24)
ONE = entry("w", [], "Float32", bytes(4))
CRAFTED = {
    "dims smaller than the content": (entry("w", [1, 2], "Float32", FLOATS), r"w of shape \(1, 2\) does not take the"),
    "dims larger than the content": (entry("w", [3, 3], "Float32", FLOATS), "does not take the 24 bytes"),
    "enormous dims": (entry("w", [2**40, 2**40], "Float32", FLOATS), "does not take the 24 bytes"),
    "a negative dim": (entry("w", [2**64 - 6], "Float32", FLOATS), "does not take the 24 bytes"),
    "zeros": (entry("w", [0, 2**60], "Float32", b""), "does not take the 0 bytes"),
    "too many dims": (entry("w", [1] * 17, "Float32", bytes(4)), "a tensor has parts that none has"),
    "a type that MindSpore lacks": (entry("w", [6], "Complex64", FLOATS), "of the type 'Complex64', which is none of"),
    "four bits": (entry("w", [48], "Int4", FLOATS), "of the type 'Int4'"),
    "no name": (entry("", [6], "Float32", FLOATS), "a name in it is no text"),
    "a name of bytes": (delimited(1, delimited(1, b"\xff\xfe") + delimited(2, b"")), "a name in it is no text"),
    "a long name": (entry("w" * 2000, [6], "Float32", FLOATS), "a name in it is no text"),
    "a name twice": (ONE + entry("v", [], "Int8", b"1") + ONE, "it holds w twice"),
    "parts that differ": (ONE + entry("w", [2], "Float32", bytes(4)), "parts of w differ"),
    "a text of surrogates": (entry("t", [0], "str", b"\x00\xd8\x00\x00"), "t is no text"),
    "no tensor": (delimited(1, delimited(1, b"w")), "an entry is not whole"),
    "a map": (delimited(1, delimited(1, b"w") + delimited(3, b"")), "other parts than a name and a tensor"),
    "an end within an entry": (entry("w", [6], "Float32", FLOATS)[:-3], "truncated"),
    "an entry longer than the file": (b"\x0a" + varint(2**62) + b"\x0a\x01w", "truncated"),
    "an endless number": (b"\x0a\x02" + b"\xff" * 12, "damaged|truncated"),
}  # fmt: skip


@pytest.mark.parametrize("case", CRAFTED)
def test_what_a_file_says_of_its_sizes_is_not_believed(tmp_path, case):
    content, reason = CRAFTED[case]
    (tmp_path / "some.ckpt").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=reason):
        read_contents(tmp_path / "some.ckpt")


def test_many_tiny_entries_are_not_taken_for_weights(tmp_path):
    (tmp_path / "some.ckpt").write_bytes(entry("w", [], "Bool", b"1") * 100_001)
    with pytest.raises(DamagedCheckpoint, match="too many"):
        read_contents(tmp_path / "some.ckpt")


def test_a_file_larger_than_any_network_is_not_read(tmp_path):
    content = b"\x0a" + varint(2**40)
    with open(tmp_path / "some.ckpt", "wb") as file:
        file.write(content)
        file.truncate(2**40)
    with pytest.raises(DamagedCheckpoint, match="it takes 1,099,511,627,776 bytes, more than"):
        read_contents(tmp_path / "some.ckpt")


def test_a_file_cut_between_entries_is_known_as_cut(tmp_path):
    path, weights = tmp_path / "net.ckpt", {"v": np.ones(3, np.float32), "w": np.ones(5, np.float32)}
    save_checkpoint(path, weights, CheckpointInfo("visformer_tiny", {}))
    whole = path.read_bytes()
    end = len(whole) - 17 - len(entry("w", [5], "Float32", bytes(20)))
    for cut in (len(whole) - 17, end):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="is no whole checkpoint: its end is missing; take the file from"):
            read_checkpoint(path)
        with pytest.raises(UserError, match="its end is missing"):
            read_info(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hparams": {"img_size": [200000, 200000]}}, "hparams.img_size: a side is a whole number from 1 to"),
        ({"hparams": {"img_size": [32]}}, "hparams.img_size: a side is a whole number"),
        ({"preprocessing": {"image_resize": True}}, "preprocessing.image_resize: a side is a whole number"),
        ({"hparams": {"checkpoint": "/etc/passwd"}}, "checkpoint is no hyper-parameter"),
        ({"hparams": {"features_only": True}}, "features_only is no hyper-parameter"),
        ({"hparams": {"num_classes": 10**9}}, "hparams.num_classes: input should be less than or equal to 100000"),
        ({"hparams": {"num_classes": "3"}}, "hparams.num_classes: input should be a valid integer, not '3'"),
        ({"hparams": {"in_channels": 0}}, "hparams.in_channels: input should be greater than or equal to 1, not 0"),
        ({"hparams": {"depths": [1] * 99}}, "depths: "),
        ({"hparams": {"embed_dim": 10**12}}, "embed_dim: "),
        ({"hparams": {"embed_dim": {"a": 1}}}, "embed_dim: "),
        ({"hparams": None}, "hparams: "),
        ({"model": ["visformer_tiny"]}, "model: input should be a valid string"),
        ({"model": "visformer_tinny"}, "no model is called 'visformer_tinny'"),
        ({"classes": [1, 2]}, r"classes\[0\]: input should be a valid string, not 1"),
        ({"classes": ["a"] * 4}, "it names 4 classes of 3"),
        ({"labels": ["A", "B"]}, "it has 2 labels for 3 classes"),
        ({"preprocessing": {"mean": [1.0]}}, "mean has 1 channels and std 3"),
        ({"preprocessing": {"crop_pct": 0}}, "preprocessing.crop_pct: input should be greater than 0"),
        ({"preprocessing": {"std": [0, 1, 1]}}, r"preprocessing.std\[0\]: input should be greater than 0"),
        ({"state": "deploy"}, "state: input should be 'train', 'branches' or 'full', not 'deploy'"),
        ({"epoch": -1}, "epoch: input should be greater than or equal to 0"),
        ({"metrics": {"top1": "high"}}, "metrics.top1: input should be a valid number"),
        ({"license": "MIT"}, "was written by another version of this project, which said more about it"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_one_line_that_names_the_place(tmp_path, change, reason):
    path = tmp_path / "net.ckpt"
    path.write_bytes(described(SAID | change, entry("w", [6], "Float32", FLOATS)))
    for read in (read_checkpoint, read_info):
        with pytest.raises(UserError, match=reason) as raised:
            read(path)
        assert str(path) in str(raised.value)
        assert len(str(raised.value)) < 500
        assert "\n" not in str(raised.value)


def test_what_a_description_leaves_out_has_the_models_defaults():
    info = parse_info('{"model": "fastvit_t8", "hparams": {"num_classes": 7}}', "x")
    assert info.hparams == {"num_classes": 7, "in_channels": 3, "img_size": 256}
    assert (info.preprocessing["image_resize"], info.preprocessing["crop_pct"]) == (256, 0.9)
    assert (info.state, info.weights, info.classes, info.labels) == ("train", "online", None, None)
    sized = parse_info('{"model": "fastvit_t8", "hparams": {"img_size": [64, 96]}}', "x")
    assert sized.preprocessing["image_resize"] == [64, 96]


def test_every_setting_that_a_training_writes_of_its_images_has_a_place(tmp_path):
    config = Config()
    written = {name: getattr(config, name) for name in (*model_info("visformer_tiny").preprocessing, *DECODING)}
    info = CheckpointInfo("visformer_tiny", {}, preprocessing=written)
    save_checkpoint(tmp_path / "net.ckpt", {"w": np.ones(3, np.float32)}, info)
    assert read_info(tmp_path / "net.ckpt").preprocessing == written


def test_a_metric_that_is_no_number_is_left_out(tmp_path):
    info = CheckpointInfo("visformer_tiny", {}, metrics={"val_loss": float("nan"), "loss": None, "top1": 3.5})
    save_checkpoint(tmp_path / "net.ckpt", {"w": np.ones(3, np.float32)}, info)
    assert read_info(tmp_path / "net.ckpt").metrics == {"top1": 3.5}


def test_a_class_that_is_not_named_in_utf8_is_refused_when_it_is_written(tmp_path):
    info = CheckpointInfo("visformer_tiny", {}, classes=["a", os.fsdecode(b"\xe4pfel")])
    with pytest.raises(UserError, match="the description of this visformer_tiny is damaged"):
        save_checkpoint(tmp_path / "net.ckpt", {"w": np.ones(3, np.float32)}, info)
    assert os.listdir(tmp_path) == []


VALUES = (None, True, 0, -1, 3, 10**5, 10**30, 0.5, -1e300, "", "x", "ä" * 5000, [], {}, [[]], [None], [10**9] * 3,
          ["a"], {"a": 1}, [1.5, "b"], "../../etc/passwd", {"checkpoint": "x"}, [[1, 2], [3]])  # fmt: skip


def alter(rng: random.Random, value: object) -> object:
    """A copy with one thing in it changed, taken away, added or repeated."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(VALUES)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place, copy = rng.choice(places), value.copy()
    kind = rng.random()
    if kind < 0.7:
        copy[place] = alter(rng, copy[place])
    elif kind < 0.8:
        del copy[place]
    elif isinstance(copy, dict):
        copy[rng.choice(["checkpoint", "x", "num_heads", "drop_rate", "embed_dim"])] = rng.choice(VALUES)
    else:
        copy.append(copy[place])
    return copy


def attempt(read: Callable[[], Any], name: str) -> tuple[Any, str]:
    """What ``read`` returns, or the one line with which it refuses: nothing else may come out of it."""
    try:
        return read(), ""
    except UserError as error:
        line = str(error)
    if name not in line or "\n" in line or len(line) > 600:
        pytest.fail(f"not one line that names the file: {line}")
    return None, line


def test_altered_descriptions_are_read_or_refused_in_one_line():
    rng, refused = random.Random(0), 0
    for _ in range(ALTERED):
        said = json.dumps(alter(rng, SAID))
        info, line = attempt(lambda: parse_info(said, "net.ckpt"), "net.ckpt")  # noqa: B023
        refused += bool(line)
        assert line or set(info.hparams) >= {"num_classes", "in_channels", "img_size"}
    assert refused > ALTERED / 2


def test_altered_bytes_are_read_or_refused_in_one_line(tmp_path):
    path, rng = tmp_path / "net.ckpt", random.Random(0)
    whole = described(SAID, entry("w", [2, 3], "Float32", FLOATS), entry("n", [], "Int64", bytes(8)))
    foreign = entry("v", [2, 3], "Float32", FLOATS) + entry("t", [0], "str", "abc".encode("utf-32-le"))
    for count in range(ALTERED):
        content = bytearray(whole if count % 2 else foreign)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place, kind = rng.randrange(len(content)), rng.random()
            if kind < 0.6:
                content[place] = rng.randrange(256)
            elif kind < 0.8:
                del content[place : place + rng.randrange(1, 20)]
            else:
                content[place:place] = rng.randbytes(rng.randrange(1, 20))
        path.write_bytes(content)
        read, line = attempt(lambda: read_checkpoint(path), str(path))
        if not line:
            arrays, info = read
            assert sum(value.nbytes for value in arrays.values()) <= len(content)
            assert info is None or bytes(content) == whole, "a change of a file with a checksum went unseen"
