"""What one command writes every other one takes: convert and train against all that read a checkpoint, per family.

The mains run in this process, on networks made small under the names of the zoo.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from here import restored, run_here
from mindspore import ops
from networks import randomise
from PIL import Image
from safetensors.numpy import save_file

import export
import train
import validate
from mindcv_reparam import create_model, registry, runtime, zoo
from mindcv_reparam.__main__ import main as command
from mindcv_reparam.checkpoint import read_checkpoint
from mindcv_reparam.commands import infer
from mindcv_reparam.convert import revert, tables
from mindcv_reparam.formats import Table
from mindcv_reparam.runtime import prepare
from mindcv_reparam.serving.model import load_model

pytestmark = pytest.mark.slow

SIZE, CLASSES = 32, ("ant", "bee", "cat")
# Whose names, a model of the family, and what makes it small.
FAMILIES = {
    "visformer": ("timm", "visformer_tiny", dict(init_channels=8, embed_dim=32, depths=(0, 1, 1, 1), num_heads=(2, 2))),
    "fastvit": ("timm", "fastvit_t8", dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), mlp_ratio=2)),
    "riformer": ("mmpretrain", "riformer_s12", dict(depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16))),
    "poolformer": ("timm", "poolformer_s12", dict(depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16))),
    "regnet": ("timm", "regnety_160", dict(stem_width=8, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), group_width=8)),
    "gfnet": ("gfnet", "gfnet_h_ti", dict(depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16))),
}


@pytest.fixture(autouse=True, scope="module")
def session():
    """The scripts set up the log and MindSpore's mode for themselves."""
    with (
        restored(),
        pytest.MonkeyPatch.context() as patch,
    ):  # compiling would take most of the time; export compiles all the same
        for module in (runtime, infer):
            patch.setattr(module, "prepare", lambda device=None, mode=1, seed=None, *more: prepare("CPU", 1, seed))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of two images, for training and validation."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


# Convert knows something else of every family, which test_goldens.py compares; what train writes is the same for all.
PAIRS = [
    ("convert", "fastvit"),
    *(pytest.param(("convert", name), marks=pytest.mark.exhaustive) for name in FAMILIES if name != "fastvit"),
    ("train", "visformer"),
    pytest.param(("train", "fastvit"), marks=pytest.mark.exhaustive),
]


@pytest.fixture(scope="module", params=PAIRS, ids=" ".join)
def pair(request):
    """The first command, whose names the source has and the model, which is small in the registry meanwhile."""
    first, family = request.param
    source, name, small = FAMILIES[family]
    zoo.import_family(family)
    network, hyper_parameters = registry.VARIANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.models(), name, dataclasses.replace(registry.models()[name], input_size=SIZE))
        patch.setitem(registry.VARIANTS, name, (network, {**hyper_parameters, **small}))
        yield first, source, name


def table_of(name: str, source: str) -> Table:
    """Its names there, also where convert only reads them."""
    family = registry.model_info(name).family
    return next(one for one in tables() if (one.family, one.source, one.state) == (family, source, "train"))


@pytest.fixture(scope="module")
def written(pair, data, tmp_path_factory):
    """A checkpoint as the command writes it, without a word more than it must be told."""
    first, source, name = pair
    folder = tmp_path_factory.mktemp(name)
    net = randomise(create_model(name, num_classes=len(CLASSES)))
    if first == "convert":
        parameters = {p.name: p.asnumpy() for p in net.get_parameters()}
        save_file(revert(parameters, table_of(name, source)), folder / "source.safetensors")
        path = folder / "net.ckpt"
        assert command(["convert", str(folder / "source.safetensors"), "-o", str(path)]) == 0
        return path
    return trained(name, data, folder / "run")


def trained(name: str, data: Path, folder: Path, *more) -> Path:
    settings = ("--data_dir", data, "--epoch_size", 1, "--batch_size", 3, "--num_parallel_workers", 1, "--mode", 1)
    run_here(
        train,
        "--model",
        name,
        *settings,
        "--warmup_epochs",
        0,
        "--distribute",
        "False",
        "--ckpt_save_dir",
        folder,
        *more,
    )
    return folder / f"{name}_final.ckpt"


def test_every_command_takes_what_the_other_wrote(written, pair, data, tmp_path, capsys):
    name = pair[2]
    images = [str(data / "val/ant/0.png"), str(data / "val/bee/1.png")]
    _, info = read_checkpoint(written)
    assert info.hparams["img_size"] in (SIZE, [SIZE, SIZE])

    run_here(
        validate,
        "--ckpt_path",
        written,
        "--data_dir",
        data,
        "--batch_size",
        6,
        "--mode",
        1,
        "--output",
        tmp_path / "r.json",
    )
    assert json.loads((tmp_path / "r.json").read_text())["samples"] == 6
    assert command(["reparameterize", "--ckpt_path", str(written), "--output", str(tmp_path / "fused.ckpt")]) == 0
    assert command(["infer", str(tmp_path / "fused.ckpt"), *images, "--output", str(tmp_path / "c.json")]) == 0
    run_here(export, "--ckpt_path", written, "--file_format", "ONNX", "--output", tmp_path / "bundle")
    assert command(["verify", str(tmp_path / "bundle")]) == 0
    assert command(["infer", str(tmp_path / "bundle"), *images, "--output", str(tmp_path / "b.json")]) == 0
    told = [json.loads((tmp_path / f"{which}.json").read_text()) for which in "cb"]
    for ours, bundles in zip(*(each["images"] for each in told), strict=True):
        probabilities = ({entry["label"]: entry["probability"] for entry in one["classes"]} for one in (ours, bundles))
        assert next(probabilities) == pytest.approx(next(probabilities), abs=1e-4)

    model = load_model(tmp_path / "bundle", "onnxruntime")
    (logits,) = model.run(np.zeros((1, 3, SIZE, SIZE), np.float32))
    net, _ = zoo.model_from_checkpoint(written)
    expected = net(ops.zeros((1, 3, SIZE, SIZE))).asnumpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    again = trained(name, data, tmp_path / "again", "--ckpt_path", written)
    _, finer = read_checkpoint(again)
    assert (finer.classes, finer.hparams.get("gelu")) == (list(CLASSES), info.hparams.get("gelu"))
    capsys.readouterr()
