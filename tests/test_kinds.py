"""What a file is, told from its content: the names of the files here are all the same."""

import io
import json
import pickle
import zipfile

import mindspore as ms
import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import save as safetensors

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import check_checkpoint
from mindcv_reparam.kinds import KINDS, kind_of, mistaken


def archive(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in entries.items():
            written.writestr(name.replace("__", "/").replace("_pkl", ".pkl").replace("_npy", ".npy"), content)
    return file.getvalue()


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form)
    return file.getvalue()


def onnx() -> bytes:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Relu", ["x"], ["x2"])
    out = helper.make_tensor_value_info("x2", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([node], "g", [info], [out])).SerializeToString()


CONTENTS = {
    "safetensors": safetensors({"a": np.ones(3, np.float32)}, {"format": "pt"}),
    "torch": archive(net__data_pkl=b"", net__version=b"3"),
    "torchscript": archive(net__data_pkl=b"", net__constants_pkl=b""),
    "pickle": pickle.dumps({"a": 1}, protocol=2),
    "resume": archive(run_npy=b"", all__x_npy=b""),
    "npz": archive(x_npy=b""),
    "archive": archive(**{"readme.txt": b""}),
    "onnx": onnx(),
    "mindir": b"\n\x031.1\x12\tMindSpore*\x062.10.0:\x97\x94\x0b",
    "lite": b"\x18\0\0\0MSL2\0\0",
    "hdf5": b"\x89HDF\r\n\x1a\n\0\0",
    "image": picture("JPEG"),
    "html": b"\n<!DOCTYPE html><html><head><title>404</title>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "json": json.dumps({"weight_map": {f"layer{i}": "model-00001.safetensors" for i in range(400)}}).encode(),
    "text": "model: visformer_tiny\nlr: 0.1  # größer\n".encode(),
    "empty": b"",
    None: b"\x00\x01\x02\x03",
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_content_tells(tmp_path, kind):
    path = tmp_path / "file.ckpt"
    path.write_bytes(CONTENTS[kind])
    assert kind_of(path) == kind


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (pickle.dumps({"a": 1}, protocol=4), "pickle"),
        (picture("WEBP"), "image"),
        (picture("PNG"), "image"),
        (b'{"a": [1, 2]}', "json"),
        (b"{a: 1}", "text"),  # YAML's flow mapping
        (b"[" * 4000, "json"),
        ("ü".encode() * 3000, "text"),  # the head ends within a character
        (b"PK\x03\x04damaged", None),
    ],
)
def test_more_contents(tmp_path, content, kind):
    (tmp_path / "file").write_bytes(content)
    assert kind_of(tmp_path / "file") == kind


def test_checkpoints_of_mindspore(tmp_path):
    for name, shape in (("weight", (3,)), ("a" * 120, (200,)), ("stem.0.weight", (500, 600)), ("step", ())):
        path = str(tmp_path / "net.ckpt")
        ms.save_checkpoint([{"name": name, "data": ms.Tensor(np.zeros(shape, np.float32))}], path)
        assert kind_of(path) == "checkpoint"


def test_folders_and_what_cannot_be_read(tmp_path):
    assert kind_of(tmp_path) == "folder"
    (tmp_path / "bundle.json").write_text("{}")
    assert kind_of(tmp_path) == "bundle"
    assert kind_of(tmp_path / "missing") is None


def test_a_mistake_is_one_line_with_a_remedy(tmp_path):
    path = tmp_path / "net.ckpt"
    for kind, content in CONTENTS.items():
        path.write_bytes(content)
        line = mistaken(path, "whole checkpoint")
        if kind is None:
            assert line is None
        else:
            assert line.startswith(f"{path} is no whole checkpoint: it is {KINDS[kind][0]}; ")
            assert "{" not in line
    path.write_bytes(CONTENTS["torch"])
    assert mistaken(path, "whole checkpoint").endswith(f"convert {path} -o NAME.ckpt makes a checkpoint of it")


def test_a_wrong_file_given_as_checkpoint_is_told_before_mindspore_is_imported(tmp_path):
    path = tmp_path / "lightning.ckpt"
    path.write_bytes(CONTENTS["torch"])
    with pytest.raises(UserError, match=r"lightning\.ckpt is no whole checkpoint: it is a file of PyTorch weights; "):
        check_checkpoint(path)
