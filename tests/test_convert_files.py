"""Files of PyTorch and safetensors: read without running anything, refused by one line, within bounds of memory.

The files of tests/data/torch are PyTorch's own, mmengine's and Lightning's; `make.py` beside them wrote them.
"""

import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pickled
import pytest
from goldens import Golden
from pickled import Call, Global, storage, view
from safetensors.numpy import save as safetensors

from mindcv_reparam.convert import convert, pickles
from mindcv_reparam.convert.files import read_source
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import check_checkpoint

FILES = Path(__file__).parent / "data" / "torch"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
WEIGHTS = {
    **dict.fromkeys(("float32", "float16", "bfloat16", "float64", "tied", "tied_too", "parameter"), BASE),
    "transposed": BASE.T,
    "part": np.arange(10, 70, dtype=np.float32).reshape(10, 6)[:, ::2],
    "expanded": np.full((2, 3), 3, np.float32),
    "scalar": np.array(7),
    "bool": np.array([True, False]),
    "uint8": np.array([1, 255], np.uint8),
    "int8": np.array([-1, 127], np.int8),
    "int16": np.array([-3], np.int16),
    "int32": np.array([-4], np.int32),
    "uint16": np.array([65535], np.uint16),
}


@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth"])
def test_every_type_and_view_of_pytorch(name):
    source = read_source(FILES / name)
    assert source.tensors.keys() == WEIGHTS.keys()
    for tensor, expected in WEIGHTS.items():
        assert source.tensors[tensor].dtype == expected.dtype, tensor
        np.testing.assert_array_equal(source.tensors[tensor], expected, tensor)
    assert source.notes == ("float16 and float64 written in float32",)


def test_a_big_endian_file(tmp_path):
    stored = {"0": np.array([1.5, -2.0], ">f4")}
    path = pickled.write(tmp_path / "net.pth", {"a": view(storage("0", 2), (2,), (1,))}, stored)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (entries | {"net/byteorder": b"big"}).items():
            archive.writestr(name, content)
    value = read_source(path).tensors["a"]
    assert (value.tolist(), value.dtype) == ([1.5, -2.0], np.float32)


@pytest.mark.parametrize(
    ("name", "weight", "note"),
    [
        (
            "training.pth.tar",
            "stem.0.weight",
            "weights taken from 'state_dict'; not converted: 'epoch', 'best', 'curve', 'args', 'options', 'colour', "
            "'path', 'device', 'type', 'names', 'function'",
        ),
        (
            "mmengine.pth",
            "backbone.weight",
            "weights taken from 'state_dict'; not converted: 'meta', 'message_hub', 'optimizer', 'ema_state_dict'",
        ),
        (
            "lightning.ckpt",
            "model.weight",
            "weights taken from 'state_dict'; not converted: 'epoch', 'global_step', 'pytorch-lightning_version', "
            "'loops', 'callbacks', 'optimizer_states', 'lr_schedulers', 'hparams_name', 'hyper_parameters'",
        ),
        ("module.pt", "stem.0.weight", "weights taken from a module that was saved whole, __main__.Small"),
        ("module_legacy.pt", "stem.0.weight", "weights taken from a module that was saved whole, __main__.Small"),
        ("module_inside.pt", "stem.0.weight", "weights taken from 'model'; not converted: 'epoch'"),
    ],
)
def test_what_training_scripts_keep_beside_the_weights_is_named_and_needs_no_package(name, weight, note):
    source = read_source(FILES / name)
    np.testing.assert_array_equal(source.tensors[weight].ravel(), np.full(source.tensors[weight].size, 0.25))
    assert note in source.notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sparse.pth", "the tensor a is sparse: save its to_dense()"),
        ("sparse_csr.pth", "the tensor a is sparse: save its to_dense()"),
        ("quantised.pth", "the tensor a is quantised: save the network before its quantisation"),
        ("nested.pth", "the tensor a is nested: save a tensor per part"),
        ("meta.pth", "the tensor a is on the device meta, without values"),
        ("float8.pth", "the tensor a has a type of numbers that no network here takes: save it in float32"),
        ("complex.pth", "the tensor a has a type of numbers that no network here takes: save it in float32"),
        ("float8.safetensors", "the tensor a has the type F8_E4M3, which no network here takes: save it in F32"),
        ("float4.safetensors", "the tensor a has the type F4, which no network here takes: save it in F32"),
        ("script.pt", "is a TorchScript program; save the state_dict alone"),
        ("list.pth", "holds a list, not a dictionary of tensors: save the state_dict"),
        ("numbers.pth", "holds no tensors, but 'a': save the state_dict"),
        ("hostile.pth", "is refused: reading it would run posix.mkdir; save the state_dict alone"),
        ("hostile_legacy.pth", "is refused: reading it would run posix.mkdir; save the state_dict alone"),
    ],
)
def test_what_cannot_be_taken_is_one_line(name, message):
    assert message in refusal(FILES / name)
    assert not os.path.exists("/tmp/ran")


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_source(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth", "training.pth.tar"])
def test_a_file_cut_anywhere_is_one_line(tmp_path, name):
    whole = (FILES / name).read_bytes()
    for length in (0, 1, 18, 100, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        refusal(tmp_path / name)


@pytest.mark.parametrize(
    "called", [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("importlib.util", "find_spec")]
)
def test_nothing_is_imported_or_run_and_commands_are_refused(tmp_path, called):
    content = {"state_dict": {"a": np.ones(2, np.float32)}, "extra": Call(Global(*called), "touch ran")}
    message = refusal(pickled.write(tmp_path / "net.pth", content))
    assert message.endswith(f"would run {'.'.join(called)}; save the state_dict alone where it comes from")


def test_names_that_are_only_kept_import_nothing(tmp_path):
    content = {"state_dict": {"a": np.ones(2, np.float32)}, "x": Call(Global("antigravity", "fly"), 1, state={"y": 2})}
    source = read_source(pickled.write(tmp_path / "net.pth", content))
    assert source.tensors["a"].tolist() == [1, 1]
    assert "antigravity" not in sys.modules


# -- Bounds -----------------------------------------------------------------------------------------------------------

GIB = 1 << 30
BOMBS = {
    "a view of a great many of one number": {"a": view(storage("0", 2), (1 << 20, 1 << 20), (0, 0))},
    "a view beyond its storage": {"a": view(storage("0", 2), (2,), (1,), offset=1)},
    "a negative step": {"a": view(storage("0", 2), (2,), (-1,), offset=1)},
    "a negative size": {"a": view(storage("0", 2), (-1,), (1,))},
    "a size that is a text": {"a": view(storage("0", 2), ("2",), (1,))},
    "a boolean size": {"a": view(storage("0", 2), (True,), (1,))},
    "a storage longer than its entry": {"a": view(storage("0", 1 << 40), (1 << 40,), (1,))},
    "a storage that is missing": {"a": view(storage("9", 2), (2,), (1,))},
    "an empty tensor of a great size": {"a": view(storage("0", 2), (1 << 40, 0), (1, 1))},
    "seventy axes": {"a": view(storage("0", 2), (1,) * 70, (1,) * 70)},
    "a storage that is none": {"a": Call(Global("torch._utils", "_rebuild_tensor_v2"), 1, 2, (), ())},
    "a tensor of nothing": {"a": Call(Global("torch._utils", "_rebuild_tensor_v2"))},
}
PROGRAMS = {
    "a memo of four thousand million": b"\x80\x02}r\xff\xff\xff\xff.",
    "a text longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b"x.",
    "bytes of 8 EiB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "a frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"}.",
    "a million lists": b"\x80\x02" + b"]" * 1_000_000 + b".",
    "an empty stack": b"\x80\x02.",
    "a mark too few": b"\x80\x02t.",
    "a call of nothing": b"\x80\x02R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer outside": b"\x80\x05\x97.",
    "a number of a million digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "no stop": b"\x80\x02}",
    "no pickle": b"hello",
}


@pytest.fixture
def little_memory():
    """No more than 512 MiB above what is taken already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIB // 2, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_tensor_takes_no_more_than_its_file_explains(tmp_path, little_memory, bomb):
    path = pickled.write(tmp_path / "net.pth", BOMBS[bomb], {"0": np.ones(2, np.float32)})
    assert "is no whole file of PyTorch weights" in refusal(path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_pickle_takes_no_more_than_its_size_explains(tmp_path, little_memory, monkeypatch, program):
    monkeypatch.setattr(pickles, "_INSTRUCTIONS", 100_000)  # 2,000,000 take seconds
    path = pickled.write(tmp_path / "net.pth", {}, pickle=PROGRAMS[program])
    harmless = ("a memo of four thousand million", "a frame longer than the file")  # without a meaning here
    wanted = "holds no tensors: save the state_dict" if program in harmless else "is no whole file of PyTorch weights"
    assert wanted in refusal(path)


def test_keys_that_hold_one_another_are_left_out_and_not_compared(tmp_path):
    """Comparing or hashing the tuple would take 2^60 steps."""
    nest = b")" + b"2\x86" * 60
    weights = pickled.instructions({"a": view(storage("0", 2), (2,), (1,))})[1:-1]
    program = b"\x80\x02(" + nest + b"K\x01" + weights + b"d."
    path = pickled.write(tmp_path / "net.pth", {}, {"0": np.ones(2, np.float32)}, program)
    assert read_source(path).tensors["a"].tolist() == [1, 1]


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path, little_memory):
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("net/data.pkl", "w") as entry:
        entry.write(b"\x80\x02}.")
        for _ in range(200):
            entry.write(bytes(1 << 20))
    assert "is no whole file of PyTorch weights" in refusal(path)


def test_an_encrypted_archive_is_one_line(tmp_path):
    path = pickled.write(tmp_path / "net.pth", {"a": np.ones(2, np.float32)})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "is no whole file of PyTorch weights" in refusal(path)


def test_a_file_too_large_for_any_network_is_refused_before_it_is_read(tmp_path, little_memory):
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors({"a": np.ones(2, np.float32)}))
    os.truncate(path, 20 << 30)
    assert refusal(path).endswith("has 20 GiB, convert reads up to 8: save the weights alone")


HEADERS = {
    "a length beyond the file": (1 << 40, {}),
    "a length of 200 MB": (200_000_000, {}),
    "data beyond the file": (None, {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
    "another shape": (None, {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
    "a great shape": (None, {"a": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 8]}}),
    "a negative shape": (None, {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}),
    "offsets turned round": (None, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}),
    "an unknown type": (None, {"a": {"dtype": "X7", "shape": [2], "data_offsets": [0, 8]}}),
    "a list for an entry": (None, {"a": [1, 2]}),
    "a header that is a list": (None, [1]),
    "a missing field": (None, {"a": {"dtype": "F32", "shape": [2]}}),
    "nothing": (None, {}),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_lying_header_of_safetensors_is_one_line(tmp_path, little_memory, header):
    length, content = HEADERS[header]
    text = json.dumps(content).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + np.ones(2, "<f4").tobytes())
    assert "is no whole safetensors file" in refusal(path)


def test_an_empty_tensor_is_one_line(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors({"a": np.ones((0, 4), np.float32), "b": np.ones(1, np.float32)}))
    assert refusal(path).endswith("the tensor a is empty, [0, 4]")


def test_numbers_that_float32_does_not_have_are_told(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors({"a": np.array([1e300])}))
    assert refusal(path).endswith("a has numbers beyond the range of float32")


# -- The kind is told from the content --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors", ".txt", ""])
def test_a_name_does_not_matter(tmp_path, suffix):
    for name, tensor in (("training.pth.tar", "stem.0.weight"), ("legacy.pth", "float32")):
        (tmp_path / f"net{suffix}").write_bytes((FILES / name).read_bytes())
        assert tensor in read_source(tmp_path / f"net{suffix}").tensors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"<html><body>404", "is no whole file of PyTorch weights: it is a web page; it was saved in"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; fetch the file"),
        ("a.pth", b"eighteen bytes....", "is no whole file of PyTorch weights: it is a text file"),
        ("a.pth", b"\x80\x02}q\x00.", "is no whole file of PyTorch weights: it is a Python pickle; save the weights"),
        ("a.pth", b"\x01\x02\x03", "is no whole file of PyTorch weights: it is truncated, damaged or of another kind"),
        ("a.onnx", b"\x08\x08\x12\x07pytorch", "a.onnx is no file of weights: it is an ONNX model"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "convert reads .safetensors, .pth, .pt, .bin, .tar, .ckpt, not .h5; "),
    ],
)
def test_a_file_of_another_kind_is_named_with_its_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_a_folder_or_a_pipe_is_one_line(tmp_path):
    assert refusal(tmp_path).endswith("it is a folder; name a file in it")
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == f"no file at {tmp_path / 'pipe'}"


def test_a_lightning_checkpoint_given_as_ckpt_path_says_what_to_do():
    with pytest.raises(UserError, match=r"lightning\.ckpt is no whole checkpoint: it is a file of PyTorch weights; "):
        check_checkpoint(FILES / "lightning.ckpt")


# -- Shapes that no network has ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_needs_no_pytorch(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from mindcv_reparam.__main__ import main, run_script; "
    code += (
        f"run_script(lambda: main(['convert', {str(FILES / 'mmengine.pth')!r}, '-o', {str(tmp_path / 'o.ckpt')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "tensors named backbone.bias, backbone.weight, … are no known format" in done.stderr
    assert not (tmp_path / "o.ckpt").exists()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("train-timm-fastvit_t8", "stem.0.conv_kxk.0.conv.weight"),
        ("train-timm-fastvit_t8", "stages.0.blocks.0.mlp.fc1.weight"),
        ("train-mmpretrain-riformer_s12", "backbone.patch_embed.proj.weight"),
        ("train-mmpretrain-riformer_s12", "head.fc.weight"),
        ("mindcv-visformer_tiny", "stem.0.weight"),
        ("mindcv-visformer_tiny", "pos_embed1"),
        ("mindcv-visformer_tiny", "pos_embed2"),
        ("official-gfnet_h_ti", "pos_embed"),
    ],
)
def test_shapes_that_no_network_has_are_one_line(family, name):
    state = Golden(family).state
    value = state[name]
    for altered in (value.ravel(), value.ravel()[0].reshape(()), value.reshape(1, 1, *value.shape), value[:0]):
        with pytest.raises(UserError, match="has the shape") as caught:
            convert(state | {name: altered})
        assert "\n" not in str(caught.value)


def test_a_head_of_too_many_classes_is_another_matrix():
    state = Golden("train-timm-fastvit_t8").state
    with pytest.raises(UserError, match=r"head\.weight is for 100001 classes, more than 100000"):
        convert(state | {"head.fc.weight": np.ones((100_001, 1), np.float32)})
