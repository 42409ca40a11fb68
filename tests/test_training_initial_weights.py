"""What a training starts from: backbones of classifiers in detectors, detectors with other classes."""

from pathlib import Path

import numpy as np
import pytest
from here import parse
from mindspore import nn
from networks import arrays, randomise

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.errors import UserError
from mindcv_reparam.training.initial_weights import load_initial

SMALL = dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32))
HEAD = dict(
    **dict(encoder_dim=16, encoder_feedforward=16, num_blocks=1, num_heads=2, hidden_dim=16, dim_feedforward=16),
    **dict(num_layers=2, num_queries=10, img_size=64),
)


def detector(num_classes: int = 3, backbone: str = "riformer_s12", **options: object) -> nn.Cell:
    options = SMALL | options if backbone == "riformer_s12" else options
    return create_model(f"rtdetr_{backbone}", num_classes=num_classes, **HEAD, **options)


def saved(path: Path, net: nn.Cell, model: str, **described: object) -> str:
    save_checkpoint(path, net, CheckpointInfo(model, {}, **described))
    return str(path)


# A classifier that ends in a norm of its last map, and one that ends in none: what it gives, and what it cannot.
CLASSIFIERS = {
    "riformer_s12": (SMALL, {}, {"norms.3.": "norm."}, "norms.1, norms.2"),
    "fastvit_t8": ({}, {"output_norms": True}, {}, "norms.1, norms.2, norms.3"),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_backbone_starts_from_a_classifier(tmp_path, caplog, name):
    sizes, options, renamed, lacking = CLASSIFIERS[name]
    theirs = randomise(create_model(name, num_classes=4, **sizes))
    net = detector(backbone=name, **options)
    before, given = arrays(net), arrays(theirs)
    with caplog.at_level("INFO"):
        load_initial(Config(backbone_ckpt=saved(tmp_path / "c.ckpt", theirs, name)), net, ())
    taken = 0
    for full, value in arrays(net).items():
        inner = full.removeprefix("backbone.")
        for ours, original in renamed.items():
            inner = inner.replace(ours, original)
        if full.startswith("backbone.") and not inner.startswith("norms."):
            assert np.array_equal(value, given[inner]), full
            taken += 1
        else:
            assert np.array_equal(value, before[full]), full
            if inner.startswith("norms."):
                one = 1.0 if full.endswith(("gamma", "variance")) else 0.0
                assert np.array_equal(value, np.full_like(value, one)), full
    assert taken == len(given) - 2 - sum(each.startswith("final_conv.") for each in given)
    assert f"lacks {lacking} of the backbone's outputs, which start as the identity" in caplog.text


def test_a_backbone_starts_from_another_detector(tmp_path, caplog):
    theirs, net = randomise(detector(7)), detector(3)
    before, given = arrays(net), arrays(theirs)
    with caplog.at_level("INFO"):
        load_initial(Config(backbone_ckpt=saved(tmp_path / "d.ckpt", theirs, "rtdetr_riformer_s12")), net, ())
    for name, value in arrays(net).items():
        assert np.array_equal(value, (given if name.startswith("backbone.") else before)[name]), name
    assert "lacks" not in caplog.text


def test_what_gives_a_backbone_no_weights_is_one_line(tmp_path):
    theirs, net = create_model("riformer_s12", num_classes=4, **SMALL), detector()
    fused = saved(tmp_path / "f.ckpt", reparameterize(theirs), "riformer_s12", state="full")
    other = saved(tmp_path / "o.ckpt", create_model("poolformer_s12", num_classes=4, **SMALL), "poolformer_s12")
    before = arrays(net)
    for target, path, message in (
        (net, fused, r"f\.ckpt is fused \(reparam full\), which cannot be trained"),
        (net, other, r"o\.ckpt, a train-time checkpoint of poolformer_s12, does not fit the network: the file lacks"),
        (theirs, fused, "backbone_ckpt is for a detector's backbone, and this model has none: take ckpt_path"),
    ):
        with pytest.raises(UserError, match=message):
            load_initial(Config(backbone_ckpt=path), target, ())
    assert all(np.array_equal(value, before[name]) for name, value in arrays(net).items())


@pytest.mark.parametrize("command", ["train", "validate", "export"])
def test_a_recipe_s_backbone_is_in_the_way_of_a_training_alone(command):
    words = ["-c", "configs/rtdetr/rtdetr_riformer_s12_ascend.yaml", "--ckpt_path", "mine.ckpt"]
    if command == "train":
        with pytest.raises(UserError, match="name one of them"):
            parse(words, command)
        words += ["--backbone_ckpt", ""]
    assert parse(words, command).ckpt_path == "mine.ckpt"


def test_a_detector_for_other_classes_keeps_the_rows_of_those_it_knows(tmp_path, caplog):
    """From ten classes to three, one of which is new."""
    theirs, net = randomise(detector(10)), detector(3)
    before, given = arrays(net), arrays(theirs)
    path = saved(tmp_path / "d.ckpt", theirs, "rtdetr_riformer_s12", classes=[f"digit {i}" for i in range(10)])
    with caplog.at_level("INFO"):
        load_initial(Config(ckpt_path=path), net, ("digit 7", "letter", "digit 2"))
    heads = 0
    for name, value in arrays(net).items():
        if name.startswith(("decoder.enc_score_head", "decoder.dec_score_head", "decoder.denoising_class_embed")):
            assert np.array_equal(value[[0, 2]], given[name][[7, 2]]), name
            assert np.array_equal(value[[1, *range(3, len(value))]], before[name][[1, *range(3, len(value))]]), name
            assert f"new {name}, {given[name].shape} in the file, {value.shape} here" in caplog.text
            heads += 1
        else:
            assert np.array_equal(value, given[name]), name
    assert heads == 7
    assert "knows 2 of 3 classes, digit 7, digit 2" in caplog.text
