"""Checkpoints of RT-DETR as its authors and transformers write them.

That a converted detector finds what the source finds, test_rtdetr_detector.py shows, whose weights are converted ones.
"""

import json
import re
from functools import cache

import numpy as np
import pickled
import pytest
from mindspore import nn
from mindspore.nn.utils import no_init_parameters
from recipe_rtdetr import FOLDER, Fixture, rtdetr_tensor
from safetensors.numpy import load_file, save_file
from test_convert import identical

from mindcv_reparam import create_model
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, load_checkpoint, read_checkpoint, save_checkpoint
from mindcv_reparam.convert import convert, detect, revert, table_for
from mindcv_reparam.convert.files import read_source
from mindcv_reparam.errors import UserError
from mindcv_reparam.labels import published
from mindcv_reparam.training.initial_weights import load_backbone
from mindcv_reparam.zoo import model_from_checkpoint

COUNTER = "num_batches_tracked"


def names_and_shapes(model: str, **hparams) -> dict[str, np.ndarray]:
    """A network's parameters without the memory for them, every number 0."""
    with no_init_parameters():
        net = create_model(model, **hparams)
    return {p.name: np.broadcast_to(np.float32(0), p.shape) for p in net.get_parameters()}


@cache
def transformers() -> dict[str, np.ndarray]:
    """What RTDetrForObjectDetection.save_pretrained writes for R18, with numbers of the recipe."""
    listed = json.loads((FOLDER / "transformers-r18vd.json").read_text())["state_dict"]
    return {name: rtdetr_tensor(name, shape) for name, shape in listed.items()}


@cache
def official() -> dict[str, np.ndarray]:
    return Fixture("riformer_s12_160x160").state


@pytest.fixture(scope="module")
def small():
    """The small detector in its authors' names, for four classes."""
    net = create_model("rtdetr_riformer_xs", num_classes=4)
    parameters = {p.name: p.asnumpy() for p in net.get_parameters()}
    return revert(parameters, table_for("rtdetr_riformer_xs", "rt-detr", "train"))


# -- Official names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["riformer_s12_160x160", "riformer_s12_160x160_bare"])
def test_the_inverse_of_a_conversion_is_the_identity(name):
    state = Fixture(name).state
    conversion = convert(state)
    assert (conversion.model, conversion.table.source, conversion.state) == ("rtdetr_riformer_s12", "rt-detr", "train")
    assert conversion.hparams == {"in_channels": 3, "num_classes": 80, "output_norms": True}
    assert set(conversion.unused) == {name for name in state if name.endswith(COUNTER)}
    assert identical(revert(conversion.parameters, conversion.table), state)


def test_a_backbone_without_norms_of_its_outputs_gets_none():
    state = {n: v for n, v in official().items() if not re.match(r"backbone\.norm\d", n)}
    conversion = convert(state)
    assert (conversion.model, conversion.hparams["output_norms"]) == ("rtdetr_riformer_s12", False)
    assert not any("norms" in name for name in conversion.parameters)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("rtdetr_r18vd", {}),
        ("rtdetr_r34vd", {}),
        ("rtdetr_r50vd_m", {}),
        ("rtdetr_r50vd", {}),
        pytest.param("rtdetr_r101vd", {}, marks=pytest.mark.exhaustive),
        ("rtdetr_fastvit_t8", {}),
        ("rtdetr_visformer_tiny_v2", {"img_size": [640, 640]}),
        ("rtdetr_riformer_xs", {"output_norms": True}),
    ],
)
def test_a_detector_is_recognised_by_its_shapes(model, expected):
    parameters = names_and_shapes(model, num_classes=7)
    state = revert(parameters, table_for(model, "rt-detr", "train"))
    frozen = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    conversion = convert(frozen)
    assert conversion.model == model
    assert conversion.hparams == {"in_channels": 3, "num_classes": 7, "output_norms": False, **expected}
    assert not conversion.unused
    assert {n: v.shape for n, v in conversion.parameters.items()} == {n: v.shape for n, v in parameters.items()}


def test_names_of_the_published_resnet_are_the_authors():
    state = revert(convert(transformers()).parameters, table_for("rtdetr_r18vd", "rt-detr", "train"))
    assert {
        "backbone.conv1.conv1_1.conv.weight",
        "backbone.res_layers.0.blocks.0.short.conv.weight",
        "backbone.res_layers.1.blocks.0.short.conv.norm.running_var",
        "backbone.res_layers.3.blocks.1.branch2b.norm.num_batches_tracked",
        *(name for name in official() if not name.startswith("backbone.")),
    } <= set(state)
    assert {n: v.shape for n, v in state.items() if n in official() and "input_proj" not in n} == {
        n: v.shape for n, v in official().items() if n in state and "input_proj" not in n
    }


def test_version_2_and_what_it_keeps_beside_its_weights():
    renamed = {
        re.sub(r"(encoder\.input_proj\.\d)\.0\.", r"\1.conv.", re.sub(r"enc_output\.0\.", "enc_output.proj.", n)): v
        for n, v in official().items()
    }
    renamed = {
        re.sub(r"(encoder\.input_proj\.\d)\.1\.", r"\1.norm.", re.sub(r"enc_output\.1\.", "enc_output.norm.", n)): v
        for n, v in renamed.items()
    }
    scale = "decoder.decoder.layers.{}.cross_attn.num_points_scale"
    beside = {scale.format(i): np.full(12, 0.25, np.float32) for i in range(3)}
    beside |= {"decoder.anchors": np.ones((1, 525, 4)), "decoder.valid_mask": np.ones((1, 525, 1), bool)}
    conversion = convert(renamed | beside)
    assert conversion.table.source == "rt-detrv2"
    assert identical(conversion.parameters, convert(official()).parameters)
    unused = {name: reason for name, reason in conversion.unused.items() if not name.endswith(COUNTER)}
    assert unused == {
        **dict.fromkeys(beside, "0.25 throughout, as every rtdetr here has it"),
        **dict.fromkeys(("decoder.anchors", "decoder.valid_mask"), "computed from the size of the image here"),
    }
    uneven = np.repeat(np.float32([1 / 3, 1 / 6, 1 / 3]), (3, 6, 3))
    with pytest.raises(UserError, match=r"layers\.1\.cross_attn\.num_points_scale is not 0\.25 throughout"):
        convert(renamed | {scale.format(1): uneven})


def test_a_deployed_detector_has_its_branches_still():
    sums = {"encoder.pan_blocks.1.bottlenecks.2.conv.weight": np.ones((128, 128, 3, 3), np.float32)}
    conversion = convert(official() | sums)
    assert conversion.unused[next(iter(sums))] == "the sum of two branches that are used"


def test_the_backbones_own_format_is_not_mistaken_for_the_detectors():
    assert (detect(official())[0].family, detect(official())[0].source) == ("rtdetr", "rt-detr")
    backbone = {name: value for name, value in official().items() if name.startswith("backbone.")}
    assert detect(backbone)[0].family == "riformer"


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (r"decoder\.decoder\.layers\.2\.", "num_layers 2, which is no model of the zoo"),
        (r"backbone\.network\.4\.5\.", "depths (2, 2, 5, 2), "),
        (r"encoder\.lateral_convs\.0\.", "without 'encoder.lateral_convs.0.conv.weight': it is not whole"),
        (r".*\.attention_weights\.", "without 'decoder.decoder.layers.0.cross_attn.attention_weights.weight'"),
    ],
)
def test_what_fits_no_detector_is_one_line(dropped, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert({name: value for name, value in official().items() if not re.match(dropped, name)})
    assert "\n" not in str(caught.value)


# -- A backbone alone --------------------------------------------------------------------------------------------------


def presnet(depths: tuple[int, ...], bottleneck: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of PResNet's state dict (lyuwenyu/RT-DETR, rtdetr_pytorch/src/nn/backbone/presnet.py), which its
    ``ResNet18_vd_pretrained_from_paddle.pth`` and so on have to the last."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_norm(name, inputs, outputs, size):
        shapes[f"{name}.conv.weight"] = (outputs, inputs, size, size)
        shapes.update({f"{name}.norm.{leaf}": (outputs,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.norm.{COUNTER}"] = ()

    for place, sizes in enumerate([(3, 32), (32, 32), (32, 64)], 1):
        conv_norm(f"conv1.conv1_{place}", *sizes, 3)
    inputs = 64
    for stage, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512))):
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            name = f"res_layers.{stage}.blocks.{block}"
            if block == 0:
                conv_norm(f"{name}.short.conv" if stage else f"{name}.short", inputs, outputs, 1)
            conv_norm(f"{name}.branch2a", inputs, width, 1 if bottleneck else 3)
            conv_norm(f"{name}.branch2b", width, width, 3)
            if bottleneck:
                conv_norm(f"{name}.branch2c", width, outputs, 1)
            inputs = outputs
    return shapes


@pytest.mark.parametrize(
    ("model", "depths", "bottleneck"),
    [
        ("rtdetr_r18vd", (2, 2, 2, 2), False),
        ("rtdetr_r34vd", (3, 4, 6, 3), False),
        ("rtdetr_r50vd", (3, 4, 6, 3), True),
        pytest.param("rtdetr_r101vd", (3, 4, 23, 3), True, marks=pytest.mark.exhaustive),
    ],
)
def test_the_published_resnet_is_the_backbone(model, depths, bottleneck):
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in presnet(depths, bottleneck).items()}
    conversion = convert(state, None if model != "rtdetr_r50vd" else model)
    assert (conversion.model, conversion.table.source, conversion.table.part) == (model, "rt-detr", "backbone")
    assert set(conversion.unused) == {name for name in state if name.endswith(COUNTER)}
    assert {n: v.shape for n, v in conversion.parameters.items()} == {
        n: v.shape for n, v in names_and_shapes(model).items() if n.startswith("backbone.")
    }
    with pytest.raises(
        UserError, match="the file does not fit rtdetr_riformer_xs: it holds a rtdetr of backbone resnet"
    ):
        convert(state, "rtdetr_riformer_xs")


def test_the_command_makes_a_backbone_checkpoint(tmp_path, capsys):
    rng = np.random.default_rng(0)
    shapes = presnet((2, 2, 2, 2), False)
    state = {n: np.array(7) if n.endswith(COUNTER) else rng.random(s, np.float32) for n, s in shapes.items()}
    source, path = tmp_path / "ResNet18_vd_pretrained_from_paddle.pth", str(tmp_path / "resnet18_vd.ckpt")
    command = ["convert", str(pickled.write(source, {"fc.weight": np.zeros(3, np.float32), **state})), "-o", path]
    with pytest.raises(UserError, match=r"holds the backbone of a rtdetr_r18vd alone: leave --num_classes out$"):
        main([*command, "--num_classes", "3"])
    assert main(command) == 0
    told = capsys.readouterr().out
    used = sum(not name.endswith(COUNTER) for name in state)
    assert f"{source}: backbone of rtdetr_r18vd by rt-detr, sha256 " in told
    assert f"  {used} tensors used\n" in told
    assert "  1 not used, not part of the network: fc.weight\n" in told
    assert told.endswith(f"wrote {path}, for --backbone_ckpt\n")
    net = create_model("rtdetr_r18vd", num_classes=2, img_size=(64, 64), num_queries=10)
    load_backbone(net, path)
    stem, last = net.backbone.conv1[0], net.backbone.res_layers[3].blocks[1].branch2b
    for cell, name in ((stem, "conv1.conv1_1"), (last, "res_layers.3.blocks.1.branch2b")):
        np.testing.assert_array_equal(cell.conv.weight.asnumpy(), state[f"{name}.conv.weight"])
        np.testing.assert_array_equal(cell.norm.gamma.asnumpy(), state[f"{name}.norm.weight"])
        np.testing.assert_array_equal(cell.norm.moving_variance.asnumpy(), state[f"{name}.norm.running_var"])
    with pytest.raises(UserError, match=r"a train-time checkpoint of rtdetr_r18vd, does not fit .* the file lacks enc"):
        load_checkpoint(net, path)


# -- transformers -----------------------------------------------------------------------------------------------------

PLACES = {
    "model.backbone.model.embedder.embedder.2.convolution.weight": "backbone.conv1.conv1_3.conv.weight",
    "model.backbone.model.encoder.stages.0.layers.0.shortcut.normalization.bias":
        "backbone.res_layers.0.blocks.0.short.norm.beta",
    "model.backbone.model.encoder.stages.2.layers.0.shortcut.1.convolution.weight":
        "backbone.res_layers.2.blocks.0.short.conv.conv.weight",
    "model.backbone.model.encoder.stages.3.layers.1.layer.1.normalization.running_var":
        "backbone.res_layers.3.blocks.1.branch2b.norm.moving_variance",
    "model.encoder_input_proj.1.1.running_mean": "encoder.input_proj.1.1.moving_mean",
    "model.encoder.encoder.0.layers.0.self_attn_layer_norm.weight": "encoder.encoder.0.layers.0.norm1.gamma",
    "model.encoder.encoder.0.layers.0.final_layer_norm.weight": "encoder.encoder.0.layers.0.norm2.gamma",
    "model.encoder.encoder.0.layers.0.fc2.bias": "encoder.encoder.0.layers.0.linear2.bias",
    "model.encoder.downsample_convs.1.norm.weight": "encoder.downsample_convs.1.norm.gamma",
    "model.decoder_input_proj.2.1.weight": "decoder.input_proj.2.norm.gamma",
    "model.decoder.layers.1.self_attn_layer_norm.bias": "decoder.decoder.layers.1.norm1.beta",
    "model.decoder.layers.1.encoder_attn_layer_norm.bias": "decoder.decoder.layers.1.norm2.beta",
    "model.decoder.layers.1.final_layer_norm.bias": "decoder.decoder.layers.1.norm3.beta",
    "model.decoder.layers.2.encoder_attn.value_proj.weight": "decoder.decoder.layers.2.cross_attn.value_proj.weight",
    "model.decoder.query_pos_head.layers.1.weight": "decoder.query_pos_head.layers.1.weight",
    "model.decoder.class_embed.2.bias": "decoder.dec_score_head.2.bias",
    "model.decoder.bbox_embed.0.layers.2.weight": "decoder.dec_bbox_head.0.layers.2.weight",
    "model.enc_output.1.weight": "decoder.enc_output.1.gamma",
    "model.enc_bbox_head.layers.1.bias": "decoder.enc_bbox_head.layers.1.bias",
    "model.denoising_class_embed.weight": "decoder.denoising_class_embed.weight",
}  # fmt: skip


def test_transformers_there_and_back_bit_for_bit():
    conversion = convert(transformers())
    assert (conversion.model, conversion.table.source) == ("rtdetr_r18vd", "transformers")
    assert set(conversion.unused) == {name for name in transformers() if name.endswith(COUNTER)}
    expected = names_and_shapes("rtdetr_r18vd")
    assert {n: v.shape for n, v in conversion.parameters.items()} == {n: v.shape for n, v in expected.items()}
    written = revert(conversion.parameters, conversion.table)
    added = set(written) - set(transformers())  # its backbone's norms are frozen and count no batches
    assert all(name.startswith("model.backbone.") and name.endswith(COUNTER) for name in added)
    assert identical({name: value for name, value in written.items() if name not in added}, transformers())


def test_version_2_of_transformers_has_how_many_points_a_level_has_beside():
    name = "model.decoder.layers.1.encoder_attn.n_points_scale"
    conversion = convert(transformers() | {name: np.full(12, 0.25, np.float32)})
    assert conversion.unused[name] == "0.25 throughout, as every rtdetr here has it"
    with pytest.raises(UserError, match=r"encoder_attn\.n_points_scale is not 0\.25 throughout"):
        convert(transformers() | {name: np.full(12, 0.5, np.float32)})


@pytest.mark.parametrize("theirs", PLACES)
def test_where_transformers_parameters_go(theirs):
    np.testing.assert_array_equal(convert(transformers()).parameters[PLACES[theirs]], transformers()[theirs])


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_projections_of_attention_are_packed_in_the_order_of_the_reference(leaf):
    packed = convert(transformers()).parameters[f"decoder.decoder.layers.1.self_attn.in_proj_{leaf}"]
    for i, part in enumerate("qkv"):
        own = transformers()[f"model.decoder.layers.1.self_attn.{part}_proj.{leaf}"]
        np.testing.assert_array_equal(packed[256 * i : 256 * (i + 1)], own)


def test_heads_that_a_file_holds_twice_must_agree():
    twice = {n.removeprefix("model.decoder."): v for n, v in transformers().items() if "_embed." in n}
    twice = {n: v for n, v in twice.items() if n.startswith(("class_embed.", "bbox_embed."))}
    assert len(twice) == 24
    conversion = convert(transformers() | twice)
    unused = {name for name in conversion.unused if not name.endswith(COUNTER)}
    assert unused == set(twice)
    assert conversion.unused["class_embed.0.bias"] == "the same as another tensor, which is used"
    assert identical(conversion.parameters, convert(transformers()).parameters)
    with pytest.raises(UserError, match=r"holds decoder\.dec_score_head\.1\.bias twice, and .* differs from the other"):
        convert(transformers() | {"class_embed.1.bias": twice["class_embed.1.bias"] + 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "in_proj_weight without k: it is not whole"),
        (np.zeros((255, 256), np.float32), "have the shapes"),
        (np.zeros((), np.float32), "have the shapes"),
    ],
)
def test_a_projection_that_does_not_fit_is_one_line(change, message):
    name = "model.decoder.layers.0.self_attn.k_proj.weight"
    state = {n: v for n, v in transformers().items() if n != name} | ({} if change is None else {name: change})
    with pytest.raises(UserError, match=message):
        convert(state)


# -- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ema", "expected", "note"),
    [
        (True, 1, "'ema.module'; not converted: 'model', 'date', 'last_epoch', 'optimizer', 'ema.updates'"),
        (False, 0, "'model'; not converted: 'date', 'last_epoch', 'optimizer'"),
    ],
)
def test_a_training_file_gives_its_averaged_weights_first(tmp_path, ema, expected, note):
    content = {
        "model": {"a": np.zeros(2, np.float32)},
        "date": "2026-11-27",
        "last_epoch": 71,
        "optimizer": {"state": {}, "param_groups": []},
    }
    if ema:
        content["ema"] = {"module": {"a": np.ones(2, np.float32)}, "updates": 9}
    source = read_source(pickled.write(tmp_path / "checkpoint0071.pth", content))
    assert source.tensors["a"].tolist() == [expected, expected]
    assert source.notes == (f"weights taken from {note}",)


def test_the_command_converts_a_detector_there_and_back(small, tmp_path, capsys):
    save_file(small, tmp_path / "in.safetensors")
    path = tmp_path / "ours.ckpt"
    assert main(["convert", str(tmp_path / "in.safetensors"), "-o", str(path)]) == 0
    net, info = model_from_checkpoint(path)
    np.testing.assert_array_equal(net.decoder.dec_score_head[1].bias.asnumpy(), small["decoder.dec_score_head.1.bias"])
    assert (info.model, info.hparams["num_classes"], info.classes) == ("rtdetr_riformer_xs", 4, None)
    used = sum(not name.endswith(COUNTER) for name in small)
    assert f"  {used} tensors used\n" in capsys.readouterr().out
    assert main(["convert", str(path), "-o", str(tmp_path / "back.safetensors"), "--to", "rt-detr"]) == 0
    assert identical(load_file(tmp_path / "back.safetensors"), small)


def test_another_class_count_gives_new_heads_and_names_them(small, tmp_path, capsys):
    save_file(small, tmp_path / "in.safetensors")
    path = tmp_path / "ours.ckpt"
    assert main(["convert", str(tmp_path / "in.safetensors"), "-o", str(path), "--num_classes", "3"]) == 0
    heads = [
        "decoder.dec_score_head.0.bias",
        "decoder.dec_score_head.0.weight",
        "decoder.dec_score_head.1.bias",
        "decoder.dec_score_head.1.weight",
        "decoder.denoising_class_embed.weight",
        "decoder.enc_score_head.bias",
        "decoder.enc_score_head.weight",
    ]
    assert f"new, untrained head of 3 classes in place of {', '.join(heads)}\n" in capsys.readouterr().out
    arrays, _ = read_checkpoint(path)
    assert arrays["decoder.denoising_class_embed.weight"].shape == (4, 64)
    kept = convert(small).parameters
    assert all(np.array_equal(arrays[name], kept[name]) for name in kept if name not in heads)


def test_weights_of_coco_carry_the_names_of_its_classes(small, tmp_path):
    rows = {n: np.resize(v, (80 + n.startswith("decoder.den"), *v.shape[1:])) for n, v in small.items() if _head(n)}
    save_file(small | rows, tmp_path / "in.safetensors")
    main(["convert", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "ours.ckpt")])
    _, info = read_checkpoint(tmp_path / "ours.ckpt")
    assert (len(info.classes), info.classes[0], info.classes[79]) == (80, "person", "toothbrush")
    assert published(7) is None


def _head(name: str) -> bool:
    return "score_head" in name or "denoising_class_embed" in name


def test_a_detector_that_stops_early_elsewhere_is_told(tmp_path, capsys):
    path, target = str(tmp_path / "few.ckpt"), str(tmp_path / "out.safetensors")
    for model, told in (("rtdetr_r50vd_m", True), ("rtdetr_r50vd", False)):
        save_checkpoint(path, nn.Dense(2, 2), CheckpointInfo(model, {}))
        assert main(["convert", path, "-o", target, "--to", "transformers"]) == 0
        line = f"transformers's {model} has eval_idx -1, this checkpoint has not: its outputs will differ"
        assert (line in capsys.readouterr().out) is told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rtdetr_riformer_s12", "transformers", "train"), "transformers has no rtdetr_riformer_s12; rt-detr has"),
        (("rtdetr_r18vd", "rt-detrv2", "train"), "rt-detrv2 has no rtdetr_r18vd; rt-detr, transformers has"),
        (("rtdetr_r18vd", "rt-detr", "full"), "rt-detr has no names for the parameters of a full checkpoint"),
    ],
)
def test_what_another_code_base_lacks_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        table_for(*arguments)
