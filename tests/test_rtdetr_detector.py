"""Whole detectors: the reference's from image to boxes, and what the zoo promises of every one."""

import mindspore as ms
import numpy as np
import pytest
from goldens import images, tensor
from mindspore import Tensor, nn
from networks import SMALL_DETECTOR, arrays, cells, difference
from recipe_rtdetr import Fixture, rtdetr_tensor
from test_rtdetr import check_maps, check_result, official_names, reference_table

from mindcv_reparam import create_model, list_models, reparameterize
from mindcv_reparam.checkpoint import CheckpointInfo, load_arrays, save_checkpoint
from mindcv_reparam.complexity import count_parameters
from mindcv_reparam.config import Config
from mindcv_reparam.convert import convert
from mindcv_reparam.errors import UserError
from mindcv_reparam.models.rtdetr import encoder as encoder_module
from mindcv_reparam.precision import mixed_precision
from mindcv_reparam.registry import VARIANTS, model_info
from mindcv_reparam.stochastic import DropPath
from mindcv_reparam.tasks import TASKS

pytestmark = pytest.mark.usefixtures("pynative")

# Makes a detector small, whatever its backbone.
SMALL_HEAD = dict(
    **dict(encoder_dim=32, encoder_feedforward=48, num_blocks=1, num_heads=4),
    **dict(hidden_dim=32, dim_feedforward=48, num_layers=2, num_queries=20),
)
TWO_LAYERS = SMALL_DETECTOR | {"num_layers": 2}


def fill_riformer(net: nn.Cell, state: dict[str, np.ndarray]) -> nn.Cell:
    """The reference's weights, converted; norms that a bare backbone lacks are left out."""
    own = {parameter.name for parameter in net.get_parameters()}
    parameters = convert(state).parameters
    kept = {n: value for n, value in parameters.items() if n in own or not n.startswith("backbone.norms.")}
    load_arrays(net, kept, "the fixture")
    return net


@pytest.fixture(scope="module")
def riformer():
    return create_model("rtdetr_riformer_s12", num_classes=80, img_size=160)


def check_detector(net: nn.Cell, fixture: Fixture, bound: float) -> Tensor:
    """Maps, selection and outputs within the bound; returns the images."""
    results, config = fixture.results, fixture.spec["config"]
    x = Tensor(images(tuple(config["size"]), config["batch"], fixture.salt))
    maps = net.backbone(x)
    check_maps(maps, results, "level", bound)
    encoded = net.encoder(maps)
    check_maps(encoded, results, "encoder", bound)
    assert np.array_equal(net.decoder.select(*net.decoder.encode(encoded))[3].asnumpy(), results["topk"])
    check_result(results, *net.decoder(encoded), bound)
    return x


@pytest.mark.parametrize("size", ["128x160", "160x160"])
def test_riformer_from_image_to_boxes(monkeypatch, riformer, size):
    fixture = Fixture(f"riformer_s12_{size}")
    monkeypatch.setattr(encoder_module, "position_table", reference_table)
    assert not riformer.training
    x = check_detector(fill_riformer(riformer, fixture.state), fixture, 2e-5)
    if size == "160x160":
        parts = {name: count_parameters(getattr(riformer, name)) for name in ("backbone", "encoder", "decoder")}
        assert parts == fixture.spec["config"]["parameters"]
        fused = reparameterize(riformer)
        assert not cells(fused, nn.BatchNorm2d)
        check_result(fixture.results, *fused(x), 2e-5)


def test_riformer_without_norms_of_its_outputs():
    fixture = Fixture("riformer_s12_160x160_bare")
    net = create_model("rtdetr_riformer_s12", img_size=160, output_norms=False)
    check_detector(fill_riformer(net, fixture.state), fixture, 2e-5)


@pytest.mark.slow
@pytest.mark.exhaustive  # the sizes above are of the same code
def test_riformer_at_640():
    fixture = Fixture("riformer_s12_640x640")
    net = fill_riformer(create_model("rtdetr_riformer_s12"), fixture.state)
    x = check_detector(net, fixture, 3e-5)
    check_result(fixture.results, *reparameterize(net)(x), 3e-5)


# -- Folds ------------------------------------------------------------------------------------------------------------


def recipe_weights(net: nn.Cell) -> nn.Cell:
    """Random weights and statistics under which no fold is an identity."""
    names = official_names(net)
    for name, parameter in net.parameters_and_names():
        rule = tensor if name.startswith("backbone.") else rtdetr_tensor
        value = rule(names[name], parameter.shape)
        if name.endswith("moving_variance") and rule is rtdetr_tensor:
            value = value**4  # from 0.06 to 5
        parameter.set_data(Tensor(value))
    return net


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("riformer_xs", TWO_LAYERS),
        pytest.param("fastvit_t8", SMALL_HEAD, marks=pytest.mark.exhaustive),
        (
            "visformer_tiny",
            SMALL_HEAD | {"depths": (0, 1, 1, 1), "output_norms": True},
        ),  # of batch normalisation, which fold wholly
        ("r18vd", SMALL_HEAD | {"eval_idx": 0, "depths": (1, 1, 1, 1)}),
    ],
)
def test_a_detector_folds_altogether(backbone, options):
    net = recipe_weights(create_model(f"rtdetr_{backbone}", num_classes=7, img_size=(64, 96), **options))
    x = Tensor(images((64, 96)))
    expected = net(x)
    for level in ("branches", "full") if backbone == "riformer_xs" else ("full",):
        fused = reparameterize(net, level)
        for output, wanted in zip(fused(x), expected, strict=True):
            assert difference(output, wanted) <= 2e-5
        assert not [name for name in arrays(fused) if ".bottlenecks." in name and ".conv1." in name]
    assert not cells(fused, nn.BatchNorm2d)
    last = net.decoder.eval_idx
    gone = ("denoising", *(f"head.{i}." for i in range(2) if i != last))
    names = [name for name in arrays(fused) if "bbox" not in name]
    assert not [name for name in names if any(part in name for part in gone)]
    assert f"decoder.decoder.layers.{last}.norm3.gamma" in names
    assert f"decoder.decoder.layers.{last + 1}.norm3.gamma" not in names
    assert not [name for name in names if name.startswith("backbone.norms")]
    again = arrays(reparameterize(fused))
    assert all(np.array_equal(value, again.pop(name)) for name, value in arrays(fused).items())
    assert not again


# -- Graphs, precision, sizes -----------------------------------------------------------------------------------------


def test_a_detector_compiles():
    net = recipe_weights(create_model("rtdetr_riformer_xs", num_classes=7, **SMALL_DETECTOR))
    x = Tensor(images((64, 96)))
    expected = net(x)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        for output, wanted in zip(net(x), expected, strict=True):
            assert difference(output, wanted) <= 1e-5
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_scores_and_boxes_are_float32_in_half_precision():
    net = mixed_precision(create_model("rtdetr_riformer_xs", num_classes=7, **TWO_LAYERS), "O3")
    types = []
    for head in (net.decoder.enc_score_head, net.decoder.dec_bbox_head[1]):
        head.register_forward_hook(lambda cell, inputs, output: types.append(output.dtype))
    logits, boxes = net(Tensor(images((64, 64))))
    assert [logits.dtype, boxes.dtype, *types] == [ms.float32] * 4


# -- The zoo ----------------------------------------------------------------------------------------------------------


def test_every_detector_is_named_after_its_backbone():
    names = list_models("rtdetr_*")
    backbones = {name for family in ("riformer", "fastvit", "visformer") for name in list_models(f"{family}_*")}
    assert {name.removeprefix("rtdetr_") for name in names} - backbones == {
        *("r18vd", "r34vd", "r50vd", "r50vd_m", "r101vd"),
        "riformer_xs",
    }
    assert backbones <= {name.removeprefix("rtdetr_") for name in names}
    info = model_info("rtdetr_r50vd")
    assert (info.task, info.num_classes, info.input_size, info.crop_pct) == ("detection", 80, 640, 1.0)
    assert [(entry.ap, entry.ap50) for entry in info.published] == [(53.1, 71.3), (55.3, None)]


def test_batches_and_losses_are_made_for_the_queries_and_layers_that_the_network_has():
    """The registry's queries make denoising's masks, without the network."""
    create_model("rtdetr_riformer_xs")
    for name in list_models("rtdetr_*"):
        assert model_info(name).queries == VARIANTS[name][1].get("num_queries", 300), name
    net = create_model("rtdetr_riformer_xs", num_layers=1, num_classes=3)
    assert net.layers == len(net.decoder.decoder.layers) == 1


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("rtdetr_r18vd", (11.200, 4.965, 4.019)),
        ("rtdetr_r34vd", (21.308, 4.965, 5.168)),
        pytest.param("rtdetr_r50vd", (23.527, 11.951, 7.467), marks=pytest.mark.slow),
        # The decoder is r50's but for three projections from 128 channels more.
        pytest.param("rtdetr_r101vd", (42.519, 26.578, 7.4665 + 3 * 128 * 256 / 1e6), marks=pytest.mark.exhaustive),
    ],
)
def test_parameters_are_the_published_detectors(name, millions):
    net = create_model(name)
    counted = [count_parameters(part) / 1e6 for part in (net.backbone, net.encoder, net.decoder)]
    assert counted == pytest.approx(millions, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("riformer_xs", {"img_size": 200}, "image size 200x200: both sides must be multiples of 32"),
        ("riformer_xs", {"img_size": 32}, "num_queries 30: maps of 4x4, 2x2, 1x1 have 21 pixels"),
        ("riformer_xs", {"eval_idx": 2}, "eval_idx 2 is out of range: the decoder has 2 layers"),
        ("riformer_xs", {"features_only": True}, "neither features_only nor num_classes 0"),
        ("riformer_xs", {"num_classes": 0}, "neither features_only nor num_classes 0"),
        ("riformer_xs", {"backbone": "riformer_s13"}, "no model is called 'riformer_s13'"),
        ("r18vd", {"drop_rate": 0.1}, "the backbone resnet18_vd has no hyper-parameter drop_rate"),
    ],
)
def test_what_does_not_fit_is_one_line(name, options, message):
    with pytest.raises(UserError, match=message):
        create_model(f"rtdetr_{name}", **options)


@pytest.mark.parametrize(
    ("given", "largest"), [({}, 0.1), ({"drop_path_rate": 0.3}, 0.3), ({"drop_path_rate": 0.0}, 0.0)]
)
def test_stochastic_depth_is_the_backbones(given, largest):
    """0 is a rate like others, which turns off what the backbone has by itself."""
    net = create_model("rtdetr_riformer_xs", num_classes=3, **given)
    rates = [cell.rate for _, cell in net.cells_and_names() if isinstance(cell, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(largest)


@pytest.mark.parametrize(("size", "message"), [(80, "multiples of 32"), (32, "num_queries 30")])
def test_an_image_that_does_not_fit_is_one_line(size, message):
    with pytest.raises(UserError, match=message):
        create_model("rtdetr_riformer_xs")(Tensor(images((size, size))))


def test_sides_that_a_detector_does_not_take_are_refused_before_the_training():
    net = create_model("rtdetr_riformer_xs", num_classes=3, img_size=64)

    def check(*sides):
        config = Config(model="rtdetr_riformer_xs", image_resize=64, multi_scale=sides)
        TASKS["detection"].objective(config, net, ("a", "b", "c"), "O0", 1)

    check(64, 96, 640)
    with pytest.raises(UserError, match="image size 80x80: both sides must be multiples of 32"):
        check(64, 80)
    with pytest.raises(UserError, match="num_queries 30: maps of 4x4, 2x2, 1x1 have 21 pixels"):
        check(32)
    net.resized = {"position": None}  # as of a backbone with a parameter per pixel
    check(64)
    with pytest.raises(UserError, match="images of 96x96: the backbone has parameters per pixel, for 64x64 alone"):
        check(64, 96)


@pytest.mark.parametrize("state", ["train", "full"])
def test_checkpoints_come_back_and_other_classes_get_new_heads(tmp_path, state):
    net = recipe_weights(create_model("rtdetr_riformer_xs", num_classes=7, **TWO_LAYERS))
    expected, path = net(Tensor(images((64, 64)))), tmp_path / "net.ckpt"
    saved = net if state == "train" else reparameterize(net)
    hparams = {key: value for key, value in net.hparams.items() if value is not None}
    save_checkpoint(path, saved, CheckpointInfo("rtdetr_riformer_xs", hparams, state=state))
    for result, wanted in zip(create_model("rtdetr_riformer_xs", checkpoint=path)(Tensor(images((64, 64)))), expected):
        assert difference(result, wanted) <= 2e-5
    other = arrays(create_model("rtdetr_riformer_xs", num_classes=3, checkpoint=path))
    before = arrays(saved)
    changed = {name for name in before if not np.array_equal(before[name], other[name])}
    assert changed == {name for name in before if "score_head" in name or "class_embed" in name}
    assert other["decoder.enc_score_head.bias"] == pytest.approx(np.full(3, -np.log(99)), rel=1e-6)


def test_initial_numbers_are_the_references():
    net = create_model("rtdetr_riformer_xs")
    values = arrays(net)
    assert np.allclose(values["decoder.dec_score_head.0.bias"], -np.log(99))
    assert not values["decoder.dec_bbox_head.1.layers.2.weight"].any()
    assert not values["decoder.denoising_class_embed.weight"][-1].any()
    assert values["decoder.denoising_class_embed.weight"][:-1].std() == pytest.approx(1.0, abs=0.05)
    offsets = values["decoder.decoder.layers.0.cross_attn.sampling_offsets.bias"].reshape(4, 3, 4, 2)
    assert np.allclose(offsets[:, 2, 3], 4 * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6)
    weight = values["encoder.lateral_convs.0.conv.weight"]
    assert np.abs(weight).max() == pytest.approx(64**-0.5, rel=1e-2)
    boxes = net(Tensor(images((64, 64))))[1].asnumpy()
    assert np.allclose(boxes[..., 2] / 0.05, 2.0 ** np.round(np.log2(boxes[..., 2] / 0.05)), rtol=1e-4)
