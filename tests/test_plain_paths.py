"""Paths of any characters: what others refuse is written and read under a plain name."""

import os
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from here import restored, run_here
from mindspore import nn
from test_infer import write_bundle

import export
from mindcv_reparam import create_model, plain_paths
from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import TensorSpec
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.complexity import cost
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.mindir import write_mindir
from mindcv_reparam.plain_paths import PLAIN, plain_folder, plain_output, readable_path
from mindcv_reparam.run.runners import bundle_program, mindspore_program
from mindcv_reparam.tasks.classification.teachers import ExportedTeacher

ODD = ["a b", "a,b", "a+b", "ü", "日本", "it's $5 & #1; (x)=~%20", "line\nbreak", os.fsdecode(b"caf\xe9"), "plain"]
# Each of these is written as others of its kind are; checkpoints and ONNX take a moment.
MORE = {"a,b", "a+b", "日本", "caf\udce9"}


class Linear(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(3 * 4 * 4, 2)

    def construct(self, images):
        return self.dense(images.reshape((images.shape[0], -1)))


@pytest.fixture(scope="module")
def network():
    return Linear().set_train(False)


SPEC = TensorSpec("images", "float32", (2, 3, 4, 4))
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 4, 4), np.float32)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive) if name in MORE else name for name in ODD]
)
def test_mindir_is_written_and_read_anywhere(network, tmp_path, name, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)  # the current folder counts where a path is relative
    expected = network(ms.Tensor(IMAGES)).asnumpy()
    for path in (tmp_path / name / "model.mindir", Path("relative.mindir"), Path(f"{name}.mindir")):
        write_mindir(network, path, SPEC, ("logits",))
        assert path.stat().st_mode & 0o777 == 0o644
        np.testing.assert_array_equal(mindspore_program(path)(IMAGES)[0], expected)
        np.testing.assert_array_equal(ExportedTeacher(path, (2, 3, 4, 4), 2)(ms.Tensor(IMAGES)).asnumpy(), expected)
    assert sorted(os.listdir()) == sorted({"model.mindir", "relative.mindir", f"{name}.mindir"})


@pytest.mark.parametrize("name", [*(f"{name}.ckpt" for name in ODD), "without suffix", "weights.bin"])
def test_checkpoints_are_written_and_read_anywhere(network, tmp_path, name):
    save_checkpoint(tmp_path / name, network, CheckpointInfo("fastvit_t8", {"num_classes": 2}))
    assert os.listdir(tmp_path) == [name]
    arrays, info = read_checkpoint(tmp_path / name)
    assert info.model == "fastvit_t8"
    np.testing.assert_array_equal(arrays["dense.weight"], network.dense.weight.asnumpy())


@pytest.mark.parametrize("name", ODD)
def test_onnx_runs_from_anywhere(tmp_path, name):
    bundle = write_bundle(tmp_path / name)
    (bundle / "model.onnx").rename(bundle / "mödel 1.onnx")
    text = (bundle / "bundle.json").read_text(encoding="utf-8")
    (bundle / "bundle.json").write_text(text.replace("model.onnx", "mödel 1.onnx"), encoding="utf-8")
    write_checksums(bundle)
    (scores,) = bundle_program(bundle)(np.ones((1, 3, 16, 16), np.float32))
    np.testing.assert_allclose(scores, [[1, 1, 1]], rtol=1e-6)


def test_an_odd_folder_for_temporary_files_is_not_used(tmp_path, monkeypatch):
    odd = tmp_path / "tmp ü"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with plain_folder() as folder:
        assert PLAIN.fullmatch(str(folder.resolve()))
        assert odd not in folder.parents
    assert not folder.exists()
    net = create_model("fastvit_t8", num_classes=2, depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), img_size=(32, 32))
    assert cost(net.set_train(False), (1, 3, 32, 32)).macs > 0
    monkeypatch.setattr(plain_paths, "PLAIN", plain_paths.re.compile("nothing"))
    with pytest.raises(UserError, match="set TMPDIR to a folder of ASCII letters"), plain_folder():
        pass


def test_what_fails_leaves_nothing(tmp_path):
    writer = plain_output(tmp_path / "a b.ckpt", ".ckpt")
    plain = writer.__enter__()
    plain.write_bytes(b"half")
    with pytest.raises(ZeroDivisionError):
        writer.gen.throw(ZeroDivisionError)
    assert not plain.parent.exists()
    assert os.listdir(tmp_path) == []
    strange = tmp_path / os.fsdecode(b"\xff.onnx")
    strange.write_bytes(b"model")
    with readable_path(strange) as path:
        assert (path.read_bytes(), path.suffix) == (b"model", ".onnx")
    assert not path.exists()
    with readable_path(tmp_path / "ü b.onnx") as path:
        assert path == tmp_path / "ü b.onnx"


@pytest.mark.slow
def test_export_script_from_a_folder_with_a_space_and_an_umlaut(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a b ü"
    folder.mkdir()
    hparams = {
        "num_classes": 10,
        "in_channels": 3,
        "img_size": [32, 32],
        "depths": [1, 1, 1, 1],
        "dims": [8, 16, 32, 64],
    }
    preprocessing = {
        **{"image_resize": 32, "crop_pct": 0.9, "interpolation": "bicubic"},
        **{"mean": [120.0, 110.0, 100.0], "std": [50.0, 60.0, 70.0]},
    }
    net = create_model("fastvit_t8", **hparams)
    save_checkpoint(folder / "net.ckpt", net, CheckpointInfo("fastvit_t8", hparams, None, preprocessing))
    monkeypatch.chdir(folder)
    with restored():
        run_here(export, "--ckpt_path", "net.ckpt", "--file_format", "MINDIR", "ONNX", "--output", "ö, 1+1")
        assert main(["verify", "ö, 1+1"]) == 0
    told = capsys.readouterr().out
    assert "MINDIR: the outputs of the sample differ by" in told
    assert "ONNX: the outputs of the sample differ by" in told
    assert sorted(os.listdir(folder)) == ["net.ckpt", "ö, 1+1"]
