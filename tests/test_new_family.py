"""A family from outside the package: one file, its recipe and what others call its parameters. Everything takes it."""

import contextlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from here import families_of, restored, run_here
from mindspore import nn
from networks import cells, difference, random_images, randomise
from safetensors.numpy import load_file, save_file

import export
import train
from mindcv_reparam import create_model, list_models, register_family, reparameterize
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.convert import convert, revert, tables
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.graph import Interface, prepare
from mindcv_reparam.registry import FORMATS, VARIANTS, families, model_info
from mindcv_reparam.training.optimizer import layer_factors
from mindcv_reparam.zoo import model_from_checkpoint

PLAIN = Path(__file__).parent / "data/plain.py"
HPARAMS = {"num_classes": 10, "in_channels": 3, "img_size": [16, 16]}
# The smaller model in PyTorch's names, and what the parameters are called here.
BRANCHES = {"rbr_dense": "dense", "rbr_1x1": "point"}
LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
RECIPE = """
model: plain_b
dataset: digits
image_resize: 16
batch_size: 700
epoch_size: 1
warmup_epochs: 0
scheduler: constant
num_parallel_workers: 1
val_while_train: False
layer_decay: 0.5
distribute: False
"""


MODULE = "mindcv_reparam.models.plain"


@contextlib.contextmanager
def outside(path):
    """The zoo with the families of a file, found by the environment variable; afterwards as before."""
    with pytest.MonkeyPatch.context() as patch:
        for table, names in ((VARIANTS, ("plain_a", "plain_b")), (FORMATS, ("plain",)), (sys.modules, (MODULE,))):
            for name in names:
                patch.setitem(table, name, None)  # so that what comes to stand there goes again
                patch.delitem(table, name)
        with families_of(path):
            yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The zoo with the family, whose file nobody has imported."""
    path = tmp_path_factory.mktemp("elsewhere") / "plain.py"
    path.write_text(PLAIN.read_text())
    with outside(path):
        yield path


@pytest.fixture(scope="module")
def network(plain):
    """The larger model with random weights and statistics."""
    return randomise(create_model("plain_b", **HPARAMS)).set_train(False)


@pytest.fixture(scope="module")
def trained(plain, tmp_path_factory):
    """The checkpoint of two steps on the digits."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "plain.yaml").write_text(RECIPE)
    with restored():
        run_here(train, "--config", folder / "plain.yaml", "--ckpt_save_dir", folder / "ckpt")
    (path,) = (folder / "ckpt").glob("*final.ckpt")
    return path


def test_the_file_lists_its_models_without_being_run(plain, capsys):
    assert main(["list", "plain*"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == ["plain_a", "plain", "-", "-", "-", "-", "16", "1.0"]
    assert rows[1] == ["plain_b", "plain", "-", "-", "-", "-", "16", "0.9", "12.30", "@16", "nobody"]
    assert main(["list", "plain_b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["published"][0]["top1"] == 12.3
    assert MODULE not in sys.modules
    assert [name for name in list_models() if name.startswith("plain")] == list_models()[-2:]


def test_networks_are_made_with_the_arguments_of_every_family(plain):
    grey = create_model("plain_a", num_classes=3, in_channels=1, img_size=(24, 16))
    assert grey.stages[0][0].dense[0].weight.shape == (4, 1, 3, 3)
    assert grey.linear.weight.shape == (3, 8)
    assert create_model("plain_b", img_size=(24, 16)).embedding.shape == (1, 8, 6, 4)
    assert create_model("plain_a").embedding is None
    with pytest.raises(UserError, match="plain has no hyper-parameter depth; the nearest is depths"):
        create_model("plain_a", depth=(1, 1))


def test_maps_and_pooled_features_are_those_of_the_classifier(network, by_operator):
    images = random_images((16, 16))
    state = {p.name: p for p in network.get_parameters()}
    backbone = create_model("plain_b", **HPARAMS, features_only=True)
    pooled = create_model("plain_b", **{**HPARAMS, "num_classes": 0})
    for net in (backbone, pooled):
        for parameter in net.get_parameters():
            parameter.set_data(state[parameter.name])
    maps = backbone.set_train(False)(images)
    assert backbone.feature_info == [{"channels": 4, "stride": 2}, {"channels": 8, "stride": 4}]
    assert [tuple(map.shape) for map in maps] == [(2, 4, 8, 8), (2, 8, 4, 4)]
    features = pooled.set_train(False)(images).asnumpy()
    np.testing.assert_allclose(features, maps[1].asnumpy().mean((2, 3)), rtol=1e-5)
    weight, bias = network.linear.weight.asnumpy(), network.linear.bias.asnumpy()
    np.testing.assert_allclose(network(images).asnumpy(), features @ weight.T + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["branches", "full"])
def test_it_fuses_to_plain_convolutions(network, level, by_operator):
    fused = reparameterize(network, level)
    assert cells(network, nn.BatchNorm2d)
    assert not cells(fused, nn.BatchNorm2d)
    assert len(cells(fused, nn.Conv2d)) == 3
    if level == "full":  # the same network as "branches"
        images = random_images((16, 16))
        assert difference(fused(images), network(images)) < 1e-5


def test_its_recipe_trains_it(trained):
    arrays, info = read_checkpoint(trained)
    assert (info.model, info.state, info.hparams["num_classes"]) == ("plain_b", "train", 10)
    assert info.preprocessing["crop_pct"] == 0.9
    means = arrays["stages.0.0.dense.1.moving_mean"]
    assert np.abs(means).min() > 0  # of two steps, which started at 0
    assert np.abs(arrays["embedding"]).min() > 0


def test_layer_decay_finds_its_blocks(network):
    names = [parameter.name for parameter in network.trainable_params()]
    factors = dict(zip(names, layer_factors(names, 0.5, families()["plain"].blocks)))
    blocks = [factors[f"stages.{block}.dense.0.weight"] for block in ("0.0", "1.0", "1.1")]
    assert blocks == [0.125, 0.25, 0.5]
    assert factors["linear.weight"] == 1.0


def test_it_is_exported_and_the_bundle_verifies(trained, tmp_path, capsys):
    folder = tmp_path / "bundle"
    settings = ("--ckpt_path", trained, "--file_format", "MINDIR", "ONNX", "--output", folder)
    with restored():
        run_here(export, *settings)
    assert main(["verify", str(folder)]) == 0
    printed = capsys.readouterr().out
    for file in ("model.mindir", "model.onnx"):
        assert f"{file}: plain_b (full)" in printed
    assert f"{folder} is whole" in printed


# -- Conversion -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign():
    """The smaller model in PyTorch's names, and the same arrays in this project's."""
    rng = np.random.default_rng(0)
    theirs, ours = {}, {}
    for stage, (channels, width) in enumerate(((3, 4), (4, 8))):
        for branch, own in BRANCHES.items():
            kernel = 3 if branch == "rbr_dense" else 1
            place, here = f"stage{stage + 1}.0.{branch}", f"stages.{stage}.0.{own}"
            weight = rng.normal(size=(width, channels, kernel, kernel)).astype(np.float32)
            theirs[f"{place}.conv.weight"] = ours[f"{here}.0.weight"] = weight
            for leaf, name in LEAVES.items():
                theirs[f"{place}.bn.{leaf}"] = ours[f"{here}.1.{name}"] = rng.uniform(0.5, 2.0, width).astype(
                    np.float32
                )
            theirs[f"{place}.bn.num_batches_tracked"] = np.zeros((), np.int64)
    for leaf, shape in (("weight", (5, 8)), ("bias", (5,))):
        theirs[f"linear.{leaf}"] = ours[f"linear.{leaf}"] = rng.normal(size=shape).astype(np.float32)
    return theirs, ours


def same(one, other):
    """The same names with the same bits."""
    return set(one) == set(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_weights_of_others_are_converted_there_and_back(plain, foreign, tmp_path, capsys):
    theirs, ours = foreign
    save_file(theirs, tmp_path / "theirs.safetensors")
    assert main(["convert", str(tmp_path / "theirs.safetensors"), "-o", str(tmp_path / "ours.ckpt")]) == 0
    assert "plain_a by plainvgg" in capsys.readouterr().out
    arrays, info = read_checkpoint(tmp_path / "ours.ckpt")
    assert same(arrays, ours)
    assert info.hparams == {"in_channels": 3, "img_size": 16, "num_classes": 5}
    net, _ = model_from_checkpoint(tmp_path / "ours.ckpt")
    np.testing.assert_array_equal(net.stages[1][0].point[0].weight.asnumpy(), theirs["stage2.0.rbr_1x1.conv.weight"])

    back = str(tmp_path / "back.safetensors")
    with pytest.raises(UserError, match="timm has no plain_a; plainvgg has"):
        main(["convert", str(tmp_path / "ours.ckpt"), "-o", back, "--to", "timm"])
    assert main(["convert", str(tmp_path / "ours.ckpt"), "-o", back, "--to", "plainvgg"]) == 0
    assert same(load_file(back), theirs)


def test_the_image_size_is_told_by_the_embedding_and_may_be_another(network, tmp_path, caplog):
    """What the network names as resized is interpolated, and fixes the size of an exported graph."""
    save_checkpoint(tmp_path / "b.ckpt", network, CheckpointInfo("plain_b", HPARAMS))
    names = {p.name: p.asnumpy() for p in network.get_parameters()}
    assert convert(revert(names, tables()[-1])).hparams == HPARAMS
    with caplog.at_level("INFO"):
        larger, _ = model_from_checkpoint(tmp_path / "b.ckpt", img_size=[32, 24])
    assert "embedding interpolated from (1, 8, 4, 4) to (1, 8, 8, 6)" in caplog.text
    assert larger.embedding.shape == (1, 8, 8, 6)
    size = {"image_resize": (16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    interface = Interface(dynamic_image_size=True)
    with pytest.raises(UserError, match="the image size of this model is fixed: embedding has one entry per pixel"):
        prepare(network, "train", interface, size)
    free = create_model("plain_a", **HPARAMS).set_train(False)
    assert prepare(free, "train", interface, size).input.shape == (1, 3, None, None)


# -- What is incomplete -----------------------------------------------------------------------------------------------

# What is taken out of the file, what stands in its place, and what the error says after "is incomplete: ".
LACKING = [
    ('    "input_size": 16,\n', "", "FAMILY lacks 'input_size' of plain_a"),
    ('    "crop_pct": 1.0,\n', "", "FAMILY lacks 'crop_pct' of plain_a"),
    ('    "models": {"plain_a": {}, "plain_b": {"crop_pct": 0.9}},\n', "", "FAMILY lacks 'models'"),
    ('"plain_a": {}, ', "", "FAMILY lacks the model 'plain_a'"),
    (', "plain_b": dict(depths=(1, 2), embedded=True)', "", "register_variants lacks 'plain_b'"),
    ("dict(depths=(1, 2), embedded=True)", "dict(depths=(1, 2))", "the variant 'plain_b' lacks embedded"),
    ('    classifier = "linear"\n', "", "Plain lacks classifier"),
    ('    head_parts = ("pool", "drop", "linear")\n', "", "Plain lacks head_parts"),
    ("    output_norm = staticmethod(batch_norm)\n", "", "Plain lacks output_norm"),
    ("def forward_stages", "def stages_of", "Plain lacks forward_stages"),
    ("def forward_features", "def features_of", "Plain lacks forward_features"),
    ("def forward_head", "def head_of", "Plain lacks forward_head"),
    ("num_classes=1000, in_channels=3, ", "", "Plain lacks the argument num_classes, the argument in_channels"),
    ("img_size=(16, 16), drop_rate=0.0, ", "", "Plain lacks the argument img_size, the argument drop_rate"),
    (", drop_path_rate=0.0", "", "Plain lacks the argument drop_path_rate"),
    ('{"crop_pct": 0.9}', '{"imitates": "plain_a"}', "Plain lacks forward_observed, own_parameters"),
    ("self.feature_info.append", "[].append", "Plain lacks feature_info"),
    ('"stride": 2 << i, ', "", "Plain lacks stride in feature_info[0], stride in feature_info[1]"),
    ("self.pool, self.drop,", "self.mean, self.drop,", "Plain lacks the part 'pool'"),
    ('("stage1.0.rbr_dense.conv.weight", "linear.weight")', "()", "the Table of plainvgg lacks markers"),
    ("tables=(TABLE,), ", "", "Formats lacks tables"),
    ('stems=("stages.0.0.dense.0.weight",), variant=variant_of, ', "", "Formats lacks stems, variant"),
]


@pytest.mark.parametrize(("part", "instead", "message"), LACKING, ids=[message for *_, message in LACKING])
def test_an_incomplete_family_is_one_error_that_names_what_it_lacks(tmp_path, part, instead, message):
    text, path = PLAIN.read_text(), tmp_path / "plain.py"
    assert text.count(part) == 1
    path.write_text(text.replace(part, instead))
    with outside(path), pytest.raises(UserError) as raised:
        create_model("plain_b")
    assert str(raised.value) == f"the family {path} is incomplete: {message}"


def test_what_is_no_family_or_cannot_be_run_is_one_error(tmp_path):
    path = tmp_path / "plain.py"
    for text, message in (
        ("x = 1\n", f"{path} is no family: it lacks FAMILY = {{…}}"),
        ("FAMILY = {\n    1 +\n}\n", f"the family {path} cannot be read: FAMILY: "),
        (f"{PLAIN.read_text()}1 / 0\n", f"the family {path} cannot be run: ZeroDivisionError: division by zero"),
    ):
        path.write_text(text)
        with outside(path), pytest.raises(UserError, match=re.escape(message)):
            create_model("plain_a")
    other = path.with_suffix(".txt")
    other.write_text(PLAIN.read_text())
    with outside(other), pytest.raises(UserError, match=r"txt cannot be run: ImportError: it is no file of Python$"):
        create_model("plain_a")


def test_a_family_may_be_registered_by_a_call_but_not_under_a_name_that_is_taken(tmp_path):
    again = tmp_path / "other.py"
    again.write_text(PLAIN.read_text())
    with outside(""):
        register_family(PLAIN)
        assert model_info("plain_b").crop_pct == 0.9
        assert create_model("plain_a", num_classes=2).linear.weight.shape == (2, 8)
        with pytest.raises(UserError, match=re.escape(f"the family {again} calls plain_a what is in {PLAIN}")):
            register_family(again)
