import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from networks import SMALL, difference, random_images, randomise

from mindcv_reparam import create_model, load_checkpoint, reparameterize
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.errors import UserError
from mindcv_reparam.models.positions import resize_position_embedding
from mindcv_reparam.zoo import model_from_checkpoint

# What networks compute is compared, not how they are compiled.
pytestmark = pytest.mark.usefixtures("pynative")
ROOT = Path(__file__).parents[1]
HPARAMS = {"num_classes": 10, "img_size": 32}


def randomized(net, seed=0):
    """Weights that no initialiser gives, so that a weight that was not loaded shows."""
    rng = np.random.default_rng(seed)
    for parameter in net.get_parameters():
        value = rng.uniform(0.5, 1.5, parameter.shape)
        parameter.set_data(ms.Tensor(value, parameter.dtype))
    return net


@pytest.fixture(scope="module")
def net():
    return randomized(create_model("visformer_tiny", **HPARAMS))


@pytest.fixture
def saved(net, tmp_path):
    path = tmp_path / "net.ckpt"
    info = CheckpointInfo("visformer_tiny", HPARAMS, classes=list("0123456789"), epoch=3, metrics={"top1": 97.5})
    save_checkpoint(path, net, info)
    return path


def same(one, other):
    pairs = zip(one.get_parameters(), other.get_parameters())
    return all(np.array_equal(a.asnumpy(), b.asnumpy()) for a, b in pairs)


def test_a_saved_network_comes_back_whole_and_says_what_it_is(net, saved):
    other = create_model("visformer_tiny", **HPARAMS)
    assert not same(net, other)
    info = load_checkpoint(other, saved)
    assert same(net, other)
    assert (info.model, info.epoch, info.classes[3], info.metrics) == ("visformer_tiny", 3, "3", {"top1": 97.5})
    assert os.listdir(saved.parent) == ["net.ckpt"]


def test_model_from_checkpoint_rebuilds_a_fused_network(net, tmp_path):
    path = tmp_path / "fused.ckpt"
    fused = reparameterize(net)
    save_checkpoint(path, fused, CheckpointInfo("visformer_tiny", HPARAMS, state="full"))
    rebuilt, info = model_from_checkpoint(path)
    assert info.state == "full"
    assert [p.name for p in rebuilt.get_parameters()] == [p.name for p in fused.get_parameters()]
    assert same(rebuilt, fused)


def test_a_fused_checkpoint_does_not_go_into_a_train_time_network(net, tmp_path):
    path = tmp_path / "fused.ckpt"
    save_checkpoint(path, reparameterize(net), CheckpointInfo("visformer_tiny", HPARAMS, state="full"))
    with pytest.raises(UserError, match=r"a fused \(reparam full\) checkpoint of visformer_tiny, does not fit"):
        load_checkpoint(create_model("visformer_tiny", **HPARAMS), path)


@pytest.mark.parametrize("state", ["train", "full"])
def test_create_model_takes_a_checkpoint_as_it_is(net, tmp_path, state):
    path = tmp_path / "some.ckpt"
    expected = net if state == "train" else reparameterize(net)
    save_checkpoint(path, expected, CheckpointInfo("visformer_tiny", HPARAMS, state=state))
    assert same(create_model("visformer_tiny", **HPARAMS, checkpoint=path), expected)
    backbone = create_model("visformer_tiny", **HPARAMS, checkpoint=path, features_only=True)
    weights = {parameter.name: parameter.asnumpy() for parameter in expected.get_parameters()}
    assert "stage3.3.mlp.conv3.weight" in {parameter.name for parameter in backbone.get_parameters()}
    for parameter in backbone.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), weights[parameter.name])


@pytest.mark.parametrize("model", ["visformer_tiny", "gfnet_h_ti"])
def test_an_image_too_small_for_the_strides_is_refused(model):
    with pytest.raises(UserError, match="image size 16x64 is too small: no pixel is left at stride 32"):
        create_model(model, img_size=(16, 64))


def test_any_number_of_channels_and_shape_of_image():
    net = create_model("visformer_tiny", num_classes=3, in_channels=1, img_size=(64, 32))
    assert net(ms.Tensor(np.ones((2, 1, 64, 32)), ms.float32)).shape == (2, 3)


def test_a_misspelt_hyper_parameter_is_named():
    with pytest.raises(UserError, match="visformer has no hyper-parameter num_head; the nearest is num_heads"):
        create_model("visformer_tiny", num_head=(2, 2))


def test_a_file_of_another_program_loads_by_name(net, tmp_path):
    path = tmp_path / "mindcv.ckpt"
    ms.save_checkpoint(net, str(path))
    arrays, info = read_checkpoint(path)
    assert info is None
    assert "stage1.0.norm2.gamma" in arrays
    with pytest.raises(UserError, match="does not say which model"):
        model_from_checkpoint(path)
    rebuilt, _ = model_from_checkpoint(path, "visformer_tiny", **HPARAMS)
    assert same(net, rebuilt)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-3], lambda raw: b"", None])
def test_a_damaged_file_is_one_clear_error(net, saved, damage):
    raw = bytearray(saved.read_bytes())
    if damage is None:
        raw[len(raw) // 2] ^= 1  # one bit within the weights
    saved.write_bytes(raw if damage is None else damage(bytes(raw)))
    with pytest.raises(UserError, match="no whole checkpoint"):
        read_checkpoint(saved)


def test_mindspore_says_nothing_beside_the_error(tmp_path):
    path = tmp_path / "cut.ckpt"
    path.write_bytes(b"no checkpoint")
    program = (
        "import sys; from mindcv_reparam.checkpoint import read_checkpoint\n"
        "try: read_checkpoint(sys.argv[1])\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, capture_output=True, text=True)
    assert "no whole checkpoint" in done.stdout
    assert done.stderr == ""


def test_a_wrong_path_names_what_is_there(saved):
    with pytest.raises(UserError, match=r"no checkpoint at .*lost\.ckpt; .* has net\.ckpt"):
        read_checkpoint(saved.with_name("lost.ckpt"))


def test_a_mismatch_lists_both_sides_and_touches_nothing(saved):
    other = create_model("visformer_tiny_v2", **HPARAMS)
    before = [p.asnumpy().copy() for p in other.get_parameters()]
    with pytest.raises(UserError) as error:
        load_checkpoint(other, saved)
    message = str(error.value)
    assert ", a train-time checkpoint of visformer_tiny, does not fit the network: " in message
    assert "the file lacks pos_embed0" in message
    assert "the network lacks stage1.4.norm2" in message
    assert "other shapes: " in message
    assert "\n" not in message
    assert all(np.array_equal(a, p.asnumpy()) for a, p in zip(before, other.get_parameters()))


def test_another_model_than_asked_for_is_refused(saved):
    with pytest.raises(UserError, match="is a checkpoint of visformer_tiny, not of visformer_small"):
        model_from_checkpoint(saved, "visformer_small")


def test_another_class_count_needs_a_new_head(net, saved, caplog):
    other = create_model("visformer_tiny", num_classes=7, img_size=32)
    head = other.head.weight.asnumpy().copy()
    with pytest.raises(UserError, match=r"other shapes: head\.weight \(10, 384\) in the file, \(7, 384\)"):
        load_checkpoint(other, saved)
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="but for head.weight, head.bias"):
        load_checkpoint(other, saved, new_head=True)
    assert "new head.weight, (10, 384) in the file, (7, 384) here" in caplog.text
    assert np.array_equal(other.head.weight.asnumpy(), head)
    assert np.array_equal(other.norm.gamma.asnumpy(), net.norm.gamma.asnumpy())


def test_position_embeddings_follow_the_image_size(net, saved, caplog):
    other = create_model("visformer_tiny", num_classes=10, img_size=(64, 32))
    with caplog.at_level("INFO"):
        load_checkpoint(other, saved)
    assert "pos_embed1 interpolated from (1, 96, 4, 4) to (1, 96, 8, 4)" in caplog.text
    # Bicubic interpolation of a linear ramp is the ramp itself, away from the borders.
    ramp = np.broadcast_to(np.arange(8.0)[:, None], (1, 2, 8, 4))
    resized = resize_position_embedding(ramp, (1, 2, 16, 4))
    np.testing.assert_allclose(resized[0, 0, 6:10, 0], np.arange(6, 10) / 2 - 0.25, atol=0.02)
    x = ms.Tensor(np.random.default_rng(0).normal(size=(1, 3, 64, 32)), ms.float32)
    assert other.set_train(False)(x).shape == (1, 10)


def test_a_full_disk_leaves_the_old_file(net, saved, monkeypatch):
    before = saved.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms, "save_checkpoint", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(saved, net, CheckpointInfo("visformer_tiny", HPARAMS))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["net.ckpt"]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A network with the exact GELU, whose weights fit one with tanh, and its file."""
    _, small = SMALL["visformer"]
    hparams = {**small, "num_classes": 4, "in_channels": 1, "img_size": 32, "gelu": "exact"}
    net = randomise(create_model("visformer_tiny_v2", **hparams)).set_train(False)
    path = tmp_path_factory.mktemp("exact") / "net.ckpt"
    save_checkpoint(path, net, CheckpointInfo("visformer_tiny_v2", hparams))
    return net, path, {name: value for name, value in hparams.items() if name not in ("gelu", "in_channels")}


def test_what_a_file_says_of_its_network_holds(exact):
    net, path, _ = exact
    images = random_images((32, 32), channels=1)
    expected = net(images)
    rebuilt = create_model("visformer_tiny_v2", checkpoint=path).set_train(False)
    assert difference(rebuilt(images), expected) == 0
    assert (rebuilt.hparams["gelu"], rebuilt.hparams["num_classes"]) == ("exact", 4)
    assert difference(model_from_checkpoint(path)[0](images), expected) == 0


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [("gelu", "tanh", "exact"), ("in_channels", 3, "1"), ("embed_dim", 16, "32"), ("num_heads", (4, 2), r"\[2, 2\]")],
)
def test_a_contradiction_names_both(exact, argument, value, said):
    _, path, _ = exact
    line = (
        f"is of a visformer_tiny_v2 with {argument} {said}, not {re.escape(str(value))}: leave {argument} to the file"
    )
    with pytest.raises(UserError, match=line):
        create_model("visformer_tiny_v2", checkpoint=path, **{argument: value})
    with pytest.raises(UserError, match=line):
        model_from_checkpoint(path, **{argument: value})


def test_weights_do_not_go_into_a_network_that_computes_something_else(exact):
    _, path, hparams = exact
    other = create_model("visformer_tiny_v2", in_channels=1, **hparams)
    with pytest.raises(UserError, match="visformer_tiny_v2 with gelu exact, the network has gelu tanh"):
        load_checkpoint(other, path)
    with pytest.raises(UserError, match="is a checkpoint of visformer_tiny_v2, not of visformer_tiny"):
        create_model("visformer_tiny", checkpoint=path)
    load_checkpoint(create_model("visformer_tiny_v2", in_channels=1, gelu="exact", **hparams), path)


def test_another_class_count_than_the_files_is_a_new_head(exact):
    with pytest.warns(UserWarning, match="but for head.weight, head.bias"):
        other = create_model("visformer_tiny_v2", num_classes=7, checkpoint=exact[1])
    assert other.head.weight.shape == (7, 64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embed_dim": 4096, "init_channels": 4096}, "numbers, and holds"),
        ({"num_classes": 100_000, "embed_dim": 4000}, "numbers, and holds"),
        ({"img_size": 4096}, "numbers, and holds"),
        ({"depths": (0, 0, 4096, 0)}, "4096 blocks, more than the file has tensors"),
        ({"depths": (0, -3, 1, 1)}, "does not fit the network|that can be built"),
        ({"depths": 7}, "describes no visformer_tiny_v2 that can be built"),
        ({"num_heads": ("two", None)}, "describes no visformer_tiny_v2 that can be built"),
        ({"num_heads": (0, 0)}, "does not fit the network"),
        ({"num_head": 2}, "visformer has no hyper-parameter num_head; the nearest is num_heads"),
        ({"img_size": 1}, "image size 1x1 is too small"),
    ],
)
def test_a_description_that_fits_no_file_takes_no_memory(exact, tmp_path, change, reason):
    net, _, hparams = exact
    path = tmp_path / "net.ckpt"
    said = {**hparams, "in_channels": 1, "gelu": "exact", **change}
    save_checkpoint(path, net, CheckpointInfo("visformer_tiny_v2", said))
    with pytest.raises(UserError, match=reason) as raised:
        model_from_checkpoint(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
